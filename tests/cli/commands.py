"""Helpers of the command line's tests."""

from __future__ import annotations

import pytest

from rlseq.cli import main

SMALL = ["--backbone.width", "16", "--backbone.depth", "1", "--updates", "4", "--checkpoint-every", "2"]
QUICK = [*SMALL, "--window", "20", "--batch-size", "4", "--eval.episodes", "2", "--eval.during", "1", "--device", "cpu"]


def one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that a command prints to stderr before it exits with 2."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("rlseq: ")
    return lines[0]
