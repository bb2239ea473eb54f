from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_script_trains_and_acts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["from_script.py", "--updates", "1", "--episodes", "1"])
    runpy.run_path(str(EXAMPLES / "from_script.py"))
    printed = capsys.readouterr().out
    assert "return" in printed
    assert "bytes of state" in printed
