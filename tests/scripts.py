"""The scripts of ``benchmarks/``: no package, they import each other from their folder."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str) -> Any:
    """A script as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def run_script(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: object) -> None:
    """Runs a script with these arguments; it may set the threads for itself alone."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    threads = torch.get_num_threads()
    monkeypatch.setenv("RLSEQ_NUM_THREADS", os.environ.get("RLSEQ_NUM_THREADS", str(threads)))
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


def refusal(capsys: pytest.CaptureFixture[str], run: Callable[[], object]) -> str:
    """The last line that a script prints to stderr, and nothing to stdout, before it exits with 2."""
    with pytest.raises(SystemExit) as error:
        run()
    assert error.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err.strip().splitlines()[-1]
