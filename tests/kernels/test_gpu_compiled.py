"""The machine code of the Triton kernels, compiled ahead of time for three generations of GPUs: nothing spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# bytes of shared memory that one block may use
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # a process of its own: the interpreter and the compiler do not mix in one
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_gpu", "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_compiles_for_every_chip_without_spills(
    compiled: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = compiled["rows"]
    with capsys.disabled():
        print("\n" + compiled["table"])
    assert {(row["op"], row["dtype"]) for row in rows} == {
        (op, dtype) for op in ("causal_conv", "linear_scan", "rg_lru", "softmax_scan") for dtype in ("fp32", "bf16")
    }
    assert {row["capability"] for row in rows} == set(SHARED)
    assert not [row for row in rows if row["spilled"] > 0]
    assert not [row for row in rows if row["shared"] > SHARED[row["capability"]]]


def test_the_measure_of_spills_finds_one(compiled: dict[str, Any]) -> None:
    assert compiled["forced"]["registers"] <= 32
    assert compiled["forced"]["spilled"] > 0
