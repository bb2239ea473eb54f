"""The matrix of runs: what it starts and goes on with, and that one Ctrl-C ends it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.interrupts import MAY_BE_INTERRUPTED, interrupt
from tests.scripts import BENCHMARKS, load, refusal, run_script

matrix = load("matrix")

SLOW = """
import os, pathlib, sys, time
pathlib.Path(os.environ["STARTED"], str(os.getpid())).touch()
time.sleep(120)
"""
WITH_SLOW_RUNS = """
import matrix
matrix.Run.command = lambda run: ["slow"]
matrix.main()
"""


def test_a_run_starts_with_its_options_and_goes_on_with_its_folder_alone(tmp_path: Path) -> None:
    (run,) = matrix.runs(tmp_path, [0], ["hopper"], ["published"], ["k20"])
    started = run.command()
    assert started[:4] == ["rlseq", "train", "--dataset", "minari:rlseq/hopper/medium-replay-v0"]
    assert started[-2:] == ["--out", str(run.folder)]
    run.folder.mkdir()
    assert run.command() == [*started, "--overwrite"]
    (run.folder / "checkpoints" / "1000").mkdir(parents=True)
    assert run.command() == ["rlseq", "train", "--out", str(run.folder), "--resume"]


def test_all_backbones_run_in_all_regimes_and_the_controls_once(tmp_path: Path) -> None:
    found = matrix.runs(tmp_path, [0, 1], ["hopper"], ["hawk", "bc", "aaren-paper"], list(matrix.REGIMES))
    assert len({run.folder for run in found}) == len(found) == 2 * (3 + 1 + 1)
    assert [run.folder.name for run in found[:3]] == [f"hopper-hawk-{regime}-seed0" for regime in matrix.REGIMES]


def test_rows_of_200_are_more_where_more_of_them_is_padding(tmp_path: Path) -> None:
    for dataset, rows in (("halfcheetah", "7"), ("hopper", "15")):
        short, long, stream = matrix.runs(tmp_path, [0], [dataset], ["hawk"], list(matrix.REGIMES))
        assert long.options[-2:] == ["--batch-size", rows]
        assert "--batch-size" not in short.options + stream.options


def test_a_run_that_was_finished_meanwhile_is_not_begun(tmp_path: Path) -> None:
    begun = matrix.Run(tmp_path / "begun", ["--no-such-option"])
    assert matrix.Trainings().train(begun) == 2
    begun.folder.mkdir()
    (begun.folder / "result.json").touch()
    assert matrix.Trainings().train(begun) == 0


def test_one_interrupt_ends_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    started = tmp_path / "started"
    started.mkdir()
    (tmp_path / "slow.py").write_text(SLOW)
    paths = [str(tmp_path), str(BENCHMARKS), str(BENCHMARKS.parent)]
    environment = {**os.environ, "STARTED": str(started), "PYTHONPATH": os.pathsep.join(paths)}
    code = MAY_BE_INTERRUPTED + WITH_SLOW_RUNS
    command = [sys.executable, "-c", code, "--out", str(tmp_path / "runs"), "--agents", "bc", "--jobs", "2"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while len(list(started.iterdir())) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        _, printed = interrupt(process)  # the script alone, as `kill -INT` does
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "the same command goes on" in printed
    assert len(list(started.iterdir())) == 2
    for child in started.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(child.name), 0)


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert str(file) in refusal(capsys, lambda: run_script(monkeypatch, matrix, "--out", file))


def test_a_seed_named_twice_is_one_run_and_one_that_is_too_large_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--out", tmp_path / "runs", "--datasets", "hopper", "--agents", "bc", "bc", "--dry-run")
    run_script(monkeypatch, matrix, *asked, "--seeds", 0, 0)
    assert len(capsys.readouterr().out.splitlines()) == 1
    told = refusal(capsys, lambda: run_script(monkeypatch, matrix, *asked, "--seeds", 2**63))
    assert "--seeds at least 0 and less than 2^63" in told
