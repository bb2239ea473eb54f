"""The benchmark of training: what it cannot time or write is said before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts import load, refusal, run_script

train = load("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tables", "sweep", "--backbones", "hugging-face"],
            "must have a backbone of rlseq, got hugging-face alone",
        ),
        (["--tables", "joint-20", "sweep", "--backbones", "hugging-face"], "--tables sweep must have a backbone"),
        (["--dataset", "nope"], "'nope'"),
        (["--dataset", "bundled:nope"], "nope"),
        (["--backbones", "hawkk"], "got hawkk"),
        (["--threads", "99999999"], "must be 1 to 1024, got 99999999"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--json", "."], "must be a file, got a folder"),
        (["--json", "none/x.json"], "is no folder"),
        (["--tables", "sweep", "--plot", "x.foo"], "--plot must end in one of"),
        (["--plot", "x.png"], "add --tables sweep"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train.rivals, "available", lambda: True)  # an extra
    monkeypatch.chdir(tmp_path)
    last = refusal(capsys, lambda: run_script(monkeypatch, train, *arguments))
    assert last.startswith("train.py: error: ")
    assert message in last
