"""An empty datasets folder for every test, and what there is to record."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

import tests.toys  # registers the toy environment
from rlseq.cli import main
from tests.collect.toys import POLICIES, QUICK, TOY, Nested

assert tests.toys.ToyEnv


@pytest.fixture
def nested() -> Iterator[str]:
    gymnasium.register("rlseq-test/Recorded-v0", Nested, disable_env_checker=True)  # which warns of the same
    yield "rlseq-test/Recorded-v0"
    del gymnasium.registry["rlseq-test/Recorded-v0"]


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The datasets folder, which does not exist yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "deep/datasets"))
    return tmp_path / "deep/datasets"


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/toy_policies.py").write_text(POLICIES)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "toy_policies", raising=False)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on a dataset that was recorded: the whole way from nothing."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
        assert main(["data", "collect", "--env", TOY, "--policy", "random", "--episodes", "8", "--ref-max", "20",
                     "--out", "minari:mine/toy-v0"]) == 0  # fmt: skip
        assert main(["train", "--dataset", "minari:mine/toy-v0", "--out", "run", *QUICK]) == 0
    result = json.loads((folder / "run/result.json").read_text())
    assert result["evaluations"][0]["normalized_score"] is not None
    return folder / "run"
