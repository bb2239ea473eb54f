"""Threads and worker processes; Triton's interpreter without a GPU; the real datasets beside the project, if there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# OpenMP reads it when torch is imported: worker processes side by side must not spin on each other's cores
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Triton reads it when it is imported: without a GPU its kernels run in the interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_BESIDE = Path(__file__).resolve().parent.parent.parent / "shared/data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores, at most 8: each takes a gigabyte of memory."""
    return min(8, os.cpu_count() or 1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets: $RLSEQ_TEST_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("RLSEQ_TEST_DATA") or _BESIDE)
    if not (folder / "minari").is_dir():
        pytest.skip(f"needs the real datasets: no {folder}/minari (set RLSEQ_TEST_DATA)")
    return folder


@pytest.fixture
def shared_minari(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Minari's root set to the real datasets: ``minari:rlseq/halfcheetah/medium-v0`` and the like open."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "minari"))
    return shared_data / "minari"
