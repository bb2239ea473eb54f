from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rlseq
from rlseq.cli import main
from tests.cli.commands import QUICK, one_line

EXAMPLE = Path(__file__).parents[2] / "examples" / "act_from_onnx.py"


@pytest.fixture(autouse=True)
def trained(toy: None, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    main(["train", "--dataset", "toy", "--out", "run", *QUICK])
    capsys.readouterr()


def test_a_run_becomes_a_file_that_the_example_acts_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", "policy.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == Path("policy.onnx").stat().st_size
    assert found["largest difference from PyTorch"] < 1e-5
    policy = rlseq.load_policy("policy.onnx")
    assert policy.state_bytes == found["state bytes a row"]
    assert policy.engine.facts["run"] == "run"
    assert policy.engine.facts["env_id"] == "rlseq-tests/Toy-v0"
    acted = subprocess.run([sys.executable, str(EXAMPLE), "policy.onnx"], capture_output=True, text=True, check=True)
    assert "us a step, last action" in acted.stdout

    before = Path("policy.onnx").read_bytes()
    assert "must not exist yet" in one_line(capsys, ["export", "run", "policy.onnx"])
    assert "a folder that exists" in one_line(capsys, ["export", "run", "none/policy.onnx"])
    assert "must be" in one_line(capsys, ["export", "nowhere", "other.onnx"])
    for window, words in (("0", "window must be at least 1"), ("3", "window goes with mode window")):
        assert words in one_line(capsys, ["export", "run", "other.onnx", "--window", window])
    assert Path("policy.onnx").read_bytes() == before
    assert {path.name for path in Path().iterdir()} == {"run", "policy.onnx"}


def test_eval_runs_the_steps_with_the_engine_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    returns = {}
    for engine in ("eager", "onnx"):
        assert main(["eval", "run", "--episodes", "3", "--engine", engine, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["evaluations"]
        assert row["engine"] == engine
        returns[engine] = row["returns"]
    assert returns["onnx"] == pytest.approx(returns["eager"], abs=1e-3)
    with pytest.raises(SystemExit) as caught:
        main(["eval", "run", "--engine", "onxx"])
    assert caught.value.code == 2
