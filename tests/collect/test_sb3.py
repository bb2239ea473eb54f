"""Policies of Stable-Baselines3 in `rlseq data collect`; skipped where it is not installed."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rlseq.collect import collect
from rlseq.data import open_dataset
from tests.cli.commands import one_line

sb3 = pytest.importorskip("stable_baselines3", reason='needs Stable-Baselines3: pip install "rlseq[sb3]"')


def small(algorithm: str, env: gymnasium.Env, **options: Any) -> Any:
    return getattr(sb3, algorithm)("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, device="cpu", seed=0, **options)


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAC model of HalfCheetah-v5 after 200 steps."""
    path = tmp_path_factory.mktemp("sb3") / "sac.zip"
    env = gymnasium.make("HalfCheetah-v5")
    small("SAC", env, learning_starts=100, buffer_size=1000).learn(200).save(path)
    env.close()
    return path


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.mark.parametrize("policy", ["random", "sb3"])
def test_five_episodes_of_the_cheetah(cheetah: Path, policy: str) -> None:
    name = f"sb3:{cheetah}" if policy == "sb3" else policy
    found = collect("HalfCheetah-v5", name, episodes=5, out="minari:mine/cheetah-v0", ref_episodes=1, progress=False)
    store = open_dataset("minari:mine/cheetah-v0")
    assert (store.stats.episodes, store.stats.steps, store.info.env_id) == (5, 5000, "HalfCheetah-v5")
    assert (found.steps, found.return_mean) == (5000, pytest.approx(store.stats.return_mean))
    assert (found.ref_min_score is None) == (found.no_scores is not None)
    if policy == "sb3":
        model = sb3.SAC.load(cheetah, device="cpu")
        assert np.allclose(model.predict(store.obs[:9], deterministic=True)[0], store.action[:9], atol=1e-5)


@pytest.mark.parametrize("algorithm", ["A2C", "DDPG", "PPO", "SAC", "TD3"])
def test_the_algorithm_is_found_out_from_the_file(algorithm: str, tmp_path: Path) -> None:
    env = gymnasium.make("Pendulum-v1")
    model = small(algorithm, env)
    model.save(tmp_path / "model.zip")
    policy = f"sb3:{tmp_path / 'model.zip'}"
    collect("Pendulum-v1", policy, episodes=1, out="minari:one-v0", ref_min=-1e4, ref_max=0, progress=False)
    store = open_dataset("minari:one-v0")
    expected = model.predict(store.obs, deterministic=True)[0]
    assert np.allclose(store.action, expected, atol=1e-5)


def test_what_is_no_model_or_does_not_fit_is_one_line(
    cheetah: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "text.zip").write_text("no model")
    with zipfile.ZipFile(models / "empty.zip", "w") as file:
        file.writestr("other", "no model")
    with zipfile.ZipFile(models / "strange.zip", "w") as file:
        file.writestr("data", "{}")
    with zipfile.ZipFile(models / "half.zip", "w") as file:
        file.writestr("data", '{"clip_range": 0.2}')
    (models / "normalized").mkdir()
    shutil.copy(cheetah, models / "normalized/sac.zip")
    (models / "normalized/vecnormalize.pkl").touch()

    def told(path: Path, env: str = "HalfCheetah-v5") -> str:
        arguments = ["--env", env, "--policy", f"sb3:{path}", "--episodes", "1", "--out", "minari:mine/x-v0"]
        return one_line(capsys, ["data", "collect", *arguments])

    assert "must be a model of Stable-Baselines3" in told(models / "text.zip")
    assert "must be a model of Stable-Baselines3" in told(models / "empty.zip")
    assert "known algorithm" in told(models / "strange.zip")
    assert "half.zip" in told(models / "half.zip")
    assert "vecnormalize.pkl" in told(models / "normalized/sac.zip")
    assert "must fit the environment" in told(cheetah, "Hopper-v5")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    assert 'pip install "rlseq[sb3]"' in told(cheetah)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
