"""Triton's interpreter where there is no GPU; fixtures for the real datasets beside the project, skipped if absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Triton reads it when it is imported: without a GPU its kernels run in the interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_BESIDE = Path(__file__).resolve().parent.parent.parent / "shared/data"


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
