"""The benchmark of memory: a short training remembers ten times longer than it lasted, a killed run goes on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlseq import backbones

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # the scripts are no package

import memory  # noqa: E402

sys.path.remove(str(BENCHMARKS))

TINY = ("--corridor", "30", "--lengths", "10", "30", "300", "--episodes", "30", "--engine", "eager")


def script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["memory.py", *arguments])
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")  # the script sets its own, for this test only
    threads = torch.get_num_threads()
    try:
        memory.main()
    finally:
        torch.set_num_threads(threads)


def test_every_backbone_has_a_recipe() -> None:
    assert {recipe.backbone for recipe in memory.RECIPES.values()} == set(backbones.available())


def test_the_longest_solved_corridor_ends_before_the_first_failure() -> None:
    def result(*rates: float) -> dict[str, Any]:
        return {"lengths": {str(10**i): {"success": rate} for i, rate in enumerate(rates)}}

    assert memory.solved(result()) == 0
    assert memory.solved(result(0.99, 1.0)) == 0
    assert memory.solved(result(1.0, 1.0, 0.5)) == 10
    assert memory.solved(result(1.0, 1.0, 1.0)) == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "hawkk"], "invalid choice: 'hawkk'"),
        (["--lengths", "0"], "must be at least 1"),
        (["--lengths", "4294967296"], "--lengths must be below 2^31"),
        (["--episodes", "0"], "must be at least 1"),
        (["--updates", "-1"], "must be at least 1"),
        (["--corridor", "20000"], "--corridor at most 10,000"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--engine", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SystemExit) as error:
        script(monkeypatch, "--out", str(tmp_path / "runs"), *arguments)
    assert error.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("memory.py: error: ")
    assert message in last
    assert not (tmp_path / "runs").exists()


def test_what_learned_from_30_steps_remembers_for_300_and_a_window_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path), *TINY, "--updates", "120", "--plot", str(tmp_path / "memory.png")]
    arguments += ["--backbones", "hawk", "transformer-window"]
    script(monkeypatch, *arguments)
    first = capsys.readouterr()
    rows = [line for line in first.out.splitlines() if line.startswith(("| hawk | 0 |", "| transformer-window | 0 |"))]
    hawk, transformer = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)
    assert hawk[6:] == ["300", "100 %", "100 %", "", "100 %"]
    assert transformer[6:9] == ["30", "100 %", "100 %"]
    assert int(transformer[9].removesuffix(" %")) < 80  # 31 steps: the cue has left the window
    assert transformer[10] == ""
    assert "120/120" in first.err
    assert "rlseq train --dataset minari:t-maze/passive-30-v0 " in first.out
    result = json.loads((tmp_path / "hawk-0.json").read_text())
    assert {length: found["success"] for length, found in result["lengths"].items()} == dict.fromkeys(
        ("10", "30", "300"), 1.0
    )
    assert (tmp_path / "memory.png").exists()

    script(monkeypatch, *arguments)
    again = capsys.readouterr()
    assert again.out.splitlines()[1:] == [
        line for line in first.out.splitlines()[1:] if not line.startswith("rlseq train")
    ]
    assert not again.err
    script(monkeypatch, *arguments[:2], *TINY, "--updates", "120", "--backbones", "hawk", "--lengths", "300", "600")
    assert "| 300 | 600 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="must have this run's settings"):
        script(monkeypatch, *arguments[:2], *TINY, "--updates", "70", "--backbones", "hawk")


def test_a_killed_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path), *TINY, "--updates", "3", "--backbones", "aaren"]
    given: list[list[str]] = []
    checkpoint = tmp_path / "aaren-0" / "checkpoints" / "2"

    def killed(command: list[str]) -> int:
        given.append(command)
        checkpoint.mkdir(parents=True, exist_ok=True)
        return 130

    with monkeypatch.context() as context:
        context.setattr(memory, "rlseq_command", killed)
        for _ in range(2):
            with pytest.raises(SystemExit) as error:
                script(context, *arguments)
            assert error.value.code == 130
    capsys.readouterr()
    assert [command[-1] for command in given] == [str(checkpoint.parents[1]), "--resume"]
    shutil.rmtree(checkpoint.parents[1])
    script(monkeypatch, *arguments)
    assert "| aaren | 0 | 3 |" in capsys.readouterr().out
