"""Backbones from outside the package, by dotted name: loaded, checked and trained; what is wrong with one is a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import rlseq
from rlseq import backbones, conformance
from rlseq.conformance.__main__ import main
from rlseq.errors import ConfigError
from tests.cli.commands import QUICK, one_line
from tests.toys import toy_store

WRAPPED = """
from dataclasses import dataclass

from rlseq.backbones import hawk


@dataclass(frozen=True)
class Config:
    must: int
    width: int = 16
    depth: int = 1
    broken: bool = False


def build(config):
    model = hawk.build(hawk.Config(config.width, config.depth))
    if config.broken:
        model.step = no_step
    return model


def no_step(x, state, reset=None):
    raise ZeroDivisionError("no step here")
"""

LEAKY = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Config:
    width: int = 16
    depth: int = 1
    leak: float = 0.5


class Leaky(nn.Module):
    '''h_t = leak h_{t-1} + W x_t: a recurrence that knows nothing of rlseq.'''

    def __init__(self, config):
        super().__init__()
        self.leak, self.width = config.leak, config.width
        self.inner = nn.Linear(config.width, config.width)

    def init_state(self, batch_size, *, device=None, dtype=None):
        weight = self.inner.weight
        return torch.zeros(batch_size, self.width, device=device or weight.device, dtype=dtype or weight.dtype)

    def step(self, x, state, reset=None):
        if reset is not None:
            state = state.masked_fill(reset[:, None], 0.0)
        y = self.leak * state + self.inner(x).to(state.dtype)
        return y, y

    def forward(self, x, state=None, reset=None):
        state = self.init_state(len(x)) if state is None else state
        features = []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t], state, None if reset is None else reset[:, t])
            features.append(y)
        return torch.stack(features, dim=1), state


def build(config):
    return Leaky(config)
"""


def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Writes a package of a name of its own; the dotted name of the module in it."""
    package = tmp_path / f"outside_{tmp_path.name}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{package.name}.mine"


def test_command_line_checks_a_plug_in_that_knows_nothing_of_rlseq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = plug_in(tmp_path, monkeypatch, LEAKY)
    command = [sys.executable, "-m", "rlseq.conformance", name, "--cases", "2", "--steps", "50", "--compiler", "eager"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(rlseq.__file__).parents[1])])}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kept") == len(conformance.LAWS)
    assert f"{name}: Config(width=16, depth=3, leak=0.5)" in done.stdout


def test_plug_in_is_trained_with_its_own_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, out = plug_in(tmp_path, monkeypatch, LEAKY), tmp_path / "run"
    monkeypatch.setattr(rlseq.data, "open_dataset", lambda _: toy_store())
    arguments = ["train", "--dataset", "toy", "--backbone", name, "--backbone.leak", "0.25", "--out", str(out)]
    assert rlseq.cli.main([*arguments, *QUICK]) == 0
    written = json.loads((out / "config.json").read_text())
    assert (written["backbone"], written["backbone_options"]["leak"]) == (name, 0.25)
    agent = rlseq.load(out)
    assert type(agent.backbone).__name__ == "Leaky"
    assert agent.backbone.leak == 0.25


def test_exceptions_of_a_plug_in_are_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = plug_in(tmp_path, monkeypatch, WRAPPED)
    quick = {name: conformance.LAWS[name] for name in ("no_output_sees_a_later_token", "forward_equals_steps")}
    monkeypatch.setattr(conformance, "LAWS", quick)
    given = [name, "--cases", "1", "--option", "must=3"]
    assert main(given) == 0
    assert main([*given, "--option", "broken=true"]) == 1
    assert "forward_equals_steps: got ZeroDivisionError: no step here" in capsys.readouterr().out


def told_by_train(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line with which a training with this plug-in, called NAME, is refused before its folder is made."""
    name, out = plug_in(tmp_path, monkeypatch, text), tmp_path / "run"
    monkeypatch.setattr(rlseq.data, "open_dataset", lambda _: toy_store())
    told = one_line(capsys, ["train", "--dataset", "toy", "--backbone", name, "--out", str(out), *QUICK[4:]])
    assert not out.exists()
    return told.replace(name, "NAME")


FORM = "must be a frozen dataclass with width and depth, got another in 'NAME'"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "width: int = 16",
            "must: float\n    width: int = 16",
            "every option of NAME must have a default or a value, got no must",
        ),
        ("return Leaky(config)", "pass", "build of NAME must return an nn.Module, got NoneType"),
        ("return Leaky(config)", "return Leaky(3)", "it must build, got AttributeError: 'int' object has no attribute"),
        ("def step(", "def other(", "model of NAME must run step by step (rlseq.backbones.Backbone), got no step."),
        ("@dataclass(frozen=True)", "", FORM),
        ("depth: int = 1", "", FORM),
        ("frozen=True", "", FORM),
        ("depth: int = 1", "depth: int = 1\n    for_tokens = None", "it must take a number of tokens, got TypeError: "),
        (
            "import torch",
            "import no_such_library",
            "plug-in NAME: it must import, got ModuleNotFoundError: No",
        ),
        ("import torch", "1 / 0", "plug-in NAME: it must import, got ZeroDivisionError: division by zero. Mend"),
        ("import torch", "import (", "plug-in NAME: it must import, got SyntaxError: "),
        ("def build", "def make", "must define Config and build, got 'NAME' without build"),
    ],
)
def test_plug_in_that_cannot_be_used_is_one_line_and_exit_code_2(
    old: str,
    new: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in told_by_train(LEAKY.replace(old, new, 1), tmp_path, monkeypatch, capsys)
    name = f"outside_{tmp_path.name}.mine"
    with pytest.raises(SystemExit) as stopped:
        main([name])
    assert stopped.value.code == 2
    assert message.replace("NAME", name) in capsys.readouterr().err.splitlines()[-1]


def test_a_forward_that_raises_is_one_line_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = LEAKY.replace("features = []", "raise ValueError('no\\nforward')")
    told = told_by_train(text, tmp_path, monkeypatch, capsys)
    assert "it must take a batch of toy, got ValueError: no. Mend the plug-in." in told


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return y, y", "raise ValueError('no step')", "act step by step, got ValueError: no step"),
        ("return y, y", "return y", "act step by step, got "),
        ("return y, y", "return y, None", "act step by step, got AttributeError: "),
        ("return y, y", "return y, y[:, :3]", "act step by step, got RuntimeError: "),
        ("        weight = self.inner.weight\n", "        raise ValueError('no state')\n", "got ValueError: no state"),
        ("        weight = self.inner.weight\n", "        return None\n", "act step by step, got AttributeError: "),
    ],
)
def test_a_step_that_fails_is_one_line_before_a_folder_is_made(
    old: str,
    new: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # a forward of its own, which needs neither a step nor a state
    forward = "def forward(self, x, state=None, reset=None):\n"
    text = LEAKY.replace(old, new, 1).replace(forward, f"{forward}        return x, x\n")
    told = told_by_train(text, tmp_path, monkeypatch, capsys)
    assert "backbone plug-in NAME: it must " in told
    assert message in told


def test_a_state_that_fails_is_one_line_of_the_checker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = LEAKY.replace("        weight = self.inner.weight\n", "        raise ValueError('no state')\n")
    name = plug_in(tmp_path, monkeypatch, text)
    with pytest.raises(SystemExit, match="2"):
        main([name])
    assert f"{name}: it must make a model and a state, got ValueError: no state." in capsys.readouterr().err


def test_a_plug_in_beside_the_user_is_found_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/mine.py").write_text("")  # without Config and build
    script = "import sys; sys.path = [p for p in sys.path if p]; from rlseq.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(rlseq.__file__).parents[1])}
    command = [sys.executable, "-P", "-c", script, "train", "--dataset", "toy", "--backbone", "beside.mine"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must define Config and build, got 'beside.mine' without Config and build" in done.stderr


@pytest.mark.parametrize("line", ["1 / 0", "import no_such_library", "raise ValueError('two\\nlines')"])
def test_package_of_a_plug_in_that_does_not_import_is_one_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = plug_in(tmp_path, monkeypatch, LEAKY)
    (tmp_path / name.partition(".")[0] / "__init__.py").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=rf"^backbone plug-in {name}: it must import, got \w+: .*Mend the plug-in\.$"):
        backbones.load(name)


def test_options_that_a_plug_in_refuses_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = "    def __post_init__(self):\n        assert self.leak < 1, 'leak too\\nlarge'\n"
    name = plug_in(tmp_path, monkeypatch, LEAKY.replace("leak: float = 0.5\n", f"leak: float = 0.5\n\n{check}"))
    with pytest.raises(ConfigError, match=r"it must take its options, got AssertionError: leak too\. Mend"):
        backbones.configure(name, leak=2.0)
    given = ["train", "--backbone", name, "--backbone.leak", "2", "--out", str(tmp_path / "run")]
    assert "it must take its options, got AssertionError: leak too. Mend" in one_line(capsys, given)
    assert not (tmp_path / "run").exists()


def test_options_may_be_those_of_another_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from rlseq.backbones import hawk\n\nbuild = hawk.build\n\n\nclass Config(hawk.Config):\n    pass\n"
    name = plug_in(tmp_path, monkeypatch, text)
    assert backbones.build(name, width=16, depth=1, heads=2).width == 16


def test_plug_in_must_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"must be an importable module, got 'plugs.none'\. Is its folder on PYTHON"):
        backbones.load("plugs.none")


def test_plug_in_has_no_duty_but_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = plug_in(tmp_path, monkeypatch, LEAKY)
    model = backbones.build(name, width=8, depth=1, leak=0.0)
    assert isinstance(model, nn.Module)
    assert backbones.is_recurrent(backbones.configure(name))
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(model(x)[0], model.inner(x))
