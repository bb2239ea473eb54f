"""Where recording fails, it says why in one line and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import rlseq
from rlseq.errors import ConfigError, DataError, ShapeError
from tests.cli.commands import one_line
from tests.collect.toys import TOY, record
from tests.interrupts import MAY_BE_INTERRUPTED, interrupt


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ("", ConfigError, ["the motor burnt", "step 1", "seed 2", "toys.py"]),
        ("interrupt", KeyboardInterrupt, []),
        ("obs", DataError, ["observations", "finite", "seed 2", "step 2"]),
        ("reward", DataError, ["rewards", "finite", "seed 2"]),
    ],
)
def test_a_failure_midway_leaves_nothing(
    nested: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, error: type[BaseException], words: list[str]
) -> None:
    monkeypatch.setattr("rlseq.data.minari_recorder._STEPS_IN_MEMORY", 1)
    with pytest.raises(error) as caught:
        record(env=nested, env_kwargs={"fail_at": 2, "bad": bad})
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_exits_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"{MAY_BE_INTERRUPTED}import sys; from rlseq.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "data", "collect", "--env", "Pendulum-v1", "--policy", "random"]
    where = {"PYTHONPATH": str(Path(rlseq.__file__).parents[1]), "PYTHONWARNINGS": "error"}
    process = subprocess.Popen(
        [*command, "--episodes", "100000", "--out", "minari:mine/pendulum-v0"],
        env={**os.environ, **where},
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if list(tmp_path.glob("deep/datasets/.rlseq-recording-*/dataset/data/*.hdf5")):
            break
        time.sleep(0.05)
    time.sleep(0.5)
    _, printed = interrupt(process)
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1] == "rlseq: stopped."
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("policies")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": "HalfCheeta-v5"}, ["HalfCheetah-v5"]),
        ({"env": "nowhere:Mine-v0"}, ["nowhere"]),
        ({"policy": "randm"}, ["'randm'", "module:function"]),
        ({"policy": "runs/none"}, ["runs/none"]),
        ({"policy": "modules"}, ["modules", "run folder"]),
        ({"policy": "sb3:none.zip"}, ["sb3:none.zip"]),
        ({"policy": "nowhere:act"}, ["nowhere", "PYTHONPATH"]),
        ({"policy": "toy_policies:"}, ["toy_policies:"]),
        ({"policy": ":act"}, [":act"]),
        ({"policy": "toy_policies:absent"}, ["absent"]),
        ({"policy": "toy_policies:number"}, ["number"]),
        ({"policy": "toy_policies:no_policy"}, ["no_policy", "(env, seed)", "got 3"]),
        ({"policy": "toy_policies:direct"}, ["direct", "TypeError", "2 were given"]),
        ({"policy": "toy_policies:nan"}, ["nan", "finite"]),
        ({"policy": "toy_policies:wide"}, ["wide", "(3,)"]),
        ({"policy": "toy_policies:outside"}, ["outside", "99.0", "Clip"]),
        ({"policy": "toy_policies:text"}, ["text", "left"]),
        ({"policy": "toy_policies:raises"}, ["raises", "ZeroDivisionError: of mine", "toy_policies.py, line"]),
        ({"expert": "sb3:none.zip"}, ["sb3:none.zip"]),
        ({"episodes": "0"}, ["episodes", "0"]),
        ({"ref-episodes": "-1"}, ["ref_episodes", "-1"]),
        ({"noise": "2"}, ["noise", "2"]),
        ({"noise": "nan"}, ["noise", "nan"]),
        ({"seed": "-1"}, ["seed", "-1"]),
        ({"ref-min": "nan"}, ["ref_min", "nan"]),
        ({"ref-min": "5", "ref-max": "5"}, ["ref_min", "5.0"]),
        ({"target-return": "5"}, ["target_return", "random"]),
        ({"env-kwargs": "obs_size"}, ["KEY=VALUE", "obs_size"]),
        ({"env-kwargs": "obs_size=three"}, ["JSON", "three"]),
        ({"env-kwargs": "wheels=3"}, ["wheels"]),
        ({"env-kwargs": "seed=3"}, ["seed"]),
        ({"out": "mine/toy-v0"}, ["minari:NAMESPACE/NAME-vN", "mine/toy-v0"]),
        ({"out": "minari:mine/toy"}, ["minari:NAMESPACE/NAME-vN", "mine/toy"]),
        ({"out": "minari:../toy-v0"}, ["../toy-v0"]),
        ({"out": "minari:mine//toy-v0"}, ["mine//toy-v0"]),
        ({"out": "minari:"}, ["minari:NAMESPACE/NAME-vN"]),
        ({"out": "d4rl:toy-v0"}, ["d4rl:toy-v0"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, str], words: list[str]
) -> None:
    chosen = {"env": TOY, "policy": "random", "episodes": "2", "out": "minari:mine/toy-v0", "ref-min": "0"} | changes
    if "policy" in changes and "ref-max" not in chosen:
        chosen["ref-max"] = "1"
    arguments = [f"--{key}={value}" for key, value in chosen.items() if key != "env-kwargs"]
    if "env-kwargs" in chosen:
        arguments += ["--env-kwargs", chosen["env-kwargs"]]
    line = one_line(capsys, ["data", "collect", *arguments, "--json"])
    for word in words:
        assert word in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["modules"]


def test_a_run_that_does_not_fit_the_environment_is_one_line(
    capsys: pytest.CaptureFixture[str], toy_run: Path, tmp_path: Path
) -> None:
    arguments = ["--env", "Pendulum-v1", "--policy", str(toy_run), "--episodes", "1", "--out", "minari:mine/toy-v0"]
    line = one_line(capsys, ["data", "collect", *arguments])
    assert str(toy_run) in line
    assert "actions: dataset 2 numbers" in line
    assert not list(tmp_path.iterdir())


def test_a_dataset_cannot_lie_inside_another_or_take_a_folder_of_datasets() -> None:
    record(out="minari:mine/toy-v0", episodes=1)
    with pytest.raises(ConfigError, match="inside a dataset"):
        record(out="minari:mine/toy-v0/inner-v0")
    record(out="minari:mine/more-v1/toy-v0", episodes=1)
    with pytest.raises(ConfigError, match="free or a dataset"):
        record(out="minari:mine/more-v1", overwrite=True)


def test_spaces_that_rlseq_does_not_read_are_refused_before_a_step(nested: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="minari:mine/toy-v0 must be bounded"):
        record(env=nested, env_kwargs={"bad": "unbounded"})
    assert not list(tmp_path.iterdir())


def test_an_action_of_the_wrong_kind_is_named() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 2\)"):
        record(lambda env, seed: lambda obs: np.zeros((1, 2)))
