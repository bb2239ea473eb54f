from __future__ import annotations

from pathlib import Path

import pytest

import rlseq
from tests.toys import toy_store


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlseq.data, "open_dataset", lambda name: toy_store())
