"""What `rlseq data collect` records, by whom, and its reference scores."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest

import rlseq
from rlseq.cli import main
from rlseq.data import open_dataset
from rlseq.errors import ConfigError
from tests.collect.toys import QUICK, TOY, record, toward_zero
from tests.toys import ToyEnv


def test_a_random_dataset_opens_with_whole_episodes_of_the_stated_seeds(datasets: Path) -> None:
    found = record(seed=7, ref_min=-5.0, ref_max=50.0, author="me", description="a toy")
    store = open_dataset("minari:mine/toy-v0")
    assert (store.stats.episodes, store.stats.steps) == (found.episodes, found.steps) == (4, len(store.obs))
    assert (store.info.env_id, store.info.env_kwargs, store.info.max_episode_steps) == (TOY, {}, 25)
    assert (store.info.ref_min_score, store.info.ref_max_score) == (-5.0, 50.0)
    assert store.terminated.all()
    assert found.return_mean == pytest.approx(store.stats.return_mean)
    assert (found.return_min, found.return_max) == (store.returns.min(), store.returns.max())
    assert found.folder == datasets / "mine/toy-v0"
    dataset = minari.load_dataset("mine/toy-v0")
    env = ToyEnv()
    for number, episode in enumerate(dataset):
        assert len(episode.observations) == len(episode.actions) + 1 == len(episode.rewards) + 1
        obs, _ = env.reset(seed=7 + number)
        assert np.array_equal(episode.observations[0], obs)
        for action, reward in zip(episode.actions, episode.rewards, strict=True):
            assert env.step(action)[1] == reward
        repr(episode)
    metadata = dataset.storage.metadata
    assert (metadata["author"], metadata["description"], metadata["algorithm_name"]) == ({"me"}, "a toy", "random")
    assert [m["seed"] for m in dataset.storage.get_episode_metadata(range(4))] == [7, 8, 9, 10]
    assert minari.list_local_datasets().keys() == {"mine/toy-v0"}
    assert sorted(path.name for path in datasets.iterdir()) == ["mine"]
    assert found.folder.stat().st_mode & 0o777 == datasets.stat().st_mode & 0o777


def test_the_same_seed_records_the_same_and_actions_do_not_repeat_the_reset_noise() -> None:
    stores = []
    for out, seed in (("minari:a1-v0", 3), ("minari:a2-v0", 3), ("minari:a3-v0", 4)):
        record(out=out, seed=seed, noise=0.5)
        stores.append(open_dataset(out))
    assert np.array_equal(stores[0].action, stores[1].action)
    assert not np.array_equal(stores[0].action[:3], stores[2].action[:3])
    space = gymnasium.make(TOY).action_space
    space.seed(3)
    assert not np.array_equal(stores[0].action[0], space.sample())


def test_nested_observations_are_stored_as_the_environment_gives_them(nested: str, datasets: Path) -> None:
    record(env=nested, env_kwargs={"scale": 2.5, "max_episode_steps": 4}, ref_max=100.0)
    episode = minari.load_dataset("mine/toy-v0")[0]
    assert episode.observations["b"].shape == (5, 2, 2)
    assert np.allclose(np.diff(episode.observations["b"], axis=0), 1)
    assert episode.observations["a"][1].dtype == np.int64
    assert np.array_equal(episode.observations["a"][1][:, 0], np.arange(5))
    store = open_dataset("minari:mine/toy-v0")
    assert store.info.obs_size == 7
    assert store.info.env_kwargs == {"scale": 2.5, "max_episode_steps": 4}
    assert (store.info.max_episode_steps, rlseq.envs.time_limit(store.info)) == (4, 4)
    assert store.returns.tolist() == [10.0] * 4
    envs = rlseq.envs.make_for(store.info)
    envs.reset(seed=0)
    assert [bool(envs.step(np.zeros((1, 1)))[3][0]) for _ in range(4)] == [False, False, False, True]


def test_discrete_actions_are_stored_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlseq.data.minari_recorder.read", lambda *place: (None, None))  # whatever it says of Discrete
    record(lambda env, seed: lambda obs: int(obs[2] > 0), env="CartPole-v1", ref_max=100.0, noise=0.1)
    episode = minari.load_dataset("mine/toy-v0")[0]
    assert (episode.actions.dtype, set(episode.actions)) == (np.int64, {0, 1})
    assert len(episode.observations) == len(episode.actions) + 1


def test_an_environment_of_a_module_can_be_recorded_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_toys.py").write_text(
        "import gymnasium\nfrom tests.toys import ToyEnv\n"
        "gymnasium.register('mine/Own-v0', entry_point='tests.toys:ToyEnv', max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    record(env="my_toys:mine/Own-v0", ref_max=50.0)
    info = open_dataset("minari:mine/toy-v0").info
    assert info.env_id == "my_toys:mine/Own-v0"
    assert main(["train", "--dataset", "minari:mine/toy-v0", "--out", "run", *QUICK]) == 0
    del gymnasium.registry["mine/Own-v0"]
    del sys.modules["my_toys"]
    rlseq.envs.make_for(info).close()
    assert minari.load_dataset("mine/toy-v0").recover_environment().spec.id == "mine/Own-v0"
    del gymnasium.registry["mine/Own-v0"]


def test_a_function_is_called_for_every_episode(policies: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", TOY, "--policy", "toy_policies:toward_zero", "--episodes", "3", "--ref-episodes", "2"]
    assert main(["data", "collect", *arguments, "--out", "minari:mine/toy-v0", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == ""
    store = open_dataset("minari:mine/toy-v0")
    starts = np.zeros(len(store.action), bool)
    starts[store.offsets[:-1]] = True
    assert np.array_equal(store.action[starts], np.tile([[-2.0, -1.0]], (3, 1)))
    assert not store.action[~starts].any()
    assert found["episodes"] == 3
    assert Path(found["folder"]).is_dir()


def test_noise_replaces_actions_with_the_stated_probability() -> None:
    record(toward_zero, episodes=60, noise=0.3, ref_min=-1e6, ref_max=1e6)
    random = open_dataset("minari:mine/toy-v0").action.any(axis=1)
    assert len(random) > 300
    assert abs(random.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(random))


def test_a_run_acts_as_in_an_evaluation_and_sees_the_actions_that_noise_replaced(toy_run: Path) -> None:
    record(str(toy_run), target_return=5.0, seed=2, ref_min=-100.0, ref_max=100.0)
    agent = rlseq.load(toy_run)
    scores = rlseq.evaluation.evaluate(agent, TOY, episodes=4, target_return=5.0, seed=2, num_envs=1)
    assert np.allclose(open_dataset("minari:mine/toy-v0").returns, scores.returns)
    policy = agent.policy(1)
    seen = []

    def watch(rows: Any, *rest: Any) -> np.ndarray:
        seen.append(policy.state.action.numpy()[0].copy())
        return type(policy).act(policy, rows, *rest)

    policy.act = watch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlseq.run.load", lambda path, device: agent)
        patch.setattr(agent, "policy", lambda *args, **options: policy)
        record(str(toy_run), episodes=1, noise=1.0, overwrite=True, ref_min=-100.0, ref_max=100.0)
    assert np.array_equal(np.stack(seen[1:]), open_dataset("minari:mine/toy-v0").action[:-1])


def test_reference_scores_are_the_random_policy_and_the_expert(capsys: pytest.CaptureFixture[str]) -> None:
    def best(env: gymnasium.Env, seed: int) -> Callable[[Any], Any]:
        return lambda obs: env.action_space.high

    record("random", out="minari:plain-v0", episodes=5, ref_max=1e6)
    mean = open_dataset("minari:plain-v0").returns[:2].mean()
    found = record(toward_zero, out="minari:other-v0", expert=best, noise=0.5)
    assert found.ref_min_score == pytest.approx(mean), "two random episodes from the same seeds"
    alone = record(best, out="minari:best-v0", episodes=2)
    assert (found.ref_max_score, alone.ref_max_score) == (pytest.approx(alone.return_mean), alone.return_mean)
    noisy = record(best, out="minari:noisy-v0", episodes=2, noise=1.0)
    assert noisy.ref_max_score == pytest.approx(alone.return_mean), "noise does not count"
    given = record(best, out="minari:given-v0", ref_min=-3.0, ref_max=1e5)
    assert (given.ref_min_score, given.ref_max_score) == (-3.0, 1e5)


def test_scores_that_say_nothing_are_left_out_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "collect", "--env", TOY, "--episodes", "2", "--ref-episodes", "2", "--out"]
    assert main([*arguments, "minari:mine/toy-v0", "--policy", "random"]) == 0
    out = capsys.readouterr().out
    assert "none: the random policy recorded" in out
    assert "rlseq train --dataset minari:mine/toy-v0" in out
    assert open_dataset("minari:mine/toy-v0").info.ref_min_score is None
    assert main([*arguments, "minari:mine/toy-v1", "--policy", "random", "--expert", "random"]) == 0
    assert "is not above ref_min" in capsys.readouterr().out


def test_overwrite_replaces_a_dataset_only_when_the_new_one_is_whole(nested: str, datasets: Path) -> None:
    record(out="minari:mine/kept-v0", episodes=2)
    record(out="minari:mine/toy-v0", episodes=2)
    with pytest.raises(ConfigError, match="--overwrite"):
        record()
    with pytest.raises(ConfigError, match="the motor burnt"):
        record(env=nested, env_kwargs={"fail_at": 2}, overwrite=True)
    assert open_dataset("minari:mine/toy-v0").stats.episodes == 2
    record(episodes=3, overwrite=True)
    assert open_dataset("minari:mine/toy-v0").stats.episodes == 3
    assert open_dataset("minari:mine/kept-v0").stats.episodes == 2
    assert sorted(path.name for path in datasets.iterdir()) == ["mine"]
    assert sorted(p.name for p in (datasets / "mine").iterdir()) == ["kept-v0", "namespace_metadata.json", "toy-v0"]
