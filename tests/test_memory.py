"""The benchmark of memory: a short training remembers ten times its length, a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlseq import backbones
from rlseq.training import checkpoint
from tests.scripts import load, refusal, run_script

memory = load("memory")

TINY = ("--corridor", "30", "--lengths", "10", "30", "300", "--episodes", "30", "--engine", "eager")


def script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")  # the script sets its own, for this test only
    run_script(monkeypatch, memory, *arguments)


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
        (["--plot", "success.nil"], "--plot must end in one of"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = refusal(capsys, lambda: script(monkeypatch, "--out", str(tmp_path / "runs"), *arguments))
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
    for changes, message in (
        (["--updates", "70"], "must have this run's settings"),
        (["--updates", "120", "--episodes", "40"], "must have 40 episodes a length, got 30"),
        (["--updates", "120", "--seed", "0", "3"], "must have hawk-3.json beside it"),
    ):
        (tmp_path / "hawk-3").mkdir(exist_ok=True)
        refused = [*arguments[:2], *TINY, "--backbones", "hawk", *changes]
        assert message in refusal(capsys, lambda given=refused: script(monkeypatch, *given))
    (tmp_path / "hawk-0.json").write_text("{")
    assert "hawk-0.json must hold a result, got JSONDecodeError" in refusal(
        capsys, lambda: script(monkeypatch, *arguments)
    )


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_with_the_next_corridor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path), *TINY, "--updates", "120", "--backbones", "aaren"]
    monkeypatch.setattr(memory, "STEPS_PER_UPDATE", 62)  # two rows: what is learned does not matter
    save, asked = checkpoint.save, []

    def save_and_stop(*given: Any) -> None:
        save(*given)
        raise KeyboardInterrupt

    def stop_at_30(policy: Any, length: int, label: str) -> dict[str, Any]:
        asked.append(length)
        if asked == [10, 30]:
            raise KeyboardInterrupt
        return {"episodes": policy.num_envs, "success": 1.0}

    def stopped() -> str:
        with pytest.raises(SystemExit) as error:
            script(monkeypatch, *arguments)
        assert error.value.code == 130
        printed = capsys.readouterr().err
        assert printed.endswith("memory.py: stopped; the same command goes on.\n")
        return printed

    with monkeypatch.context() as context:
        context.setattr(checkpoint, "save", save_and_stop)
        assert "  100/120  " in stopped()
    monkeypatch.setattr(memory, "ask", stop_at_30)
    progress = [line for line in stopped().splitlines() if "/120 " in line]
    assert [line.split()[1] for line in progress] == ["120/120"]
    script(monkeypatch, *arguments)
    assert asked == [10, 30, 30, 300]
    assert "| aaren | 0 | 120 |" in capsys.readouterr().out
