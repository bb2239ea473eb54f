from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from rlseq import envs
from rlseq.errors import ConfigError, ShapeError
from rlseq.evaluation import rollout
from tests.toys import OBS_SIZE, toy_agent, toy_store

ENV = "rlseq-tests/Toy-v0"


def test_its_own_evaluation_gives_the_returns_of_a_rollout() -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation", reason="stable-baselines3 is not installed")
    vectors = pytest.importorskip("stable_baselines3.common.vec_env", reason="stable-baselines3 is not installed")
    monitor = pytest.importorskip("stable_baselines3.common.monitor", reason="stable-baselines3 is not installed")
    agent = toy_agent("hawk-joint-previous", toy_store())
    vector = vectors.DummyVecEnv([lambda: monitor.Monitor(envs.with_reward(gymnasium.make(ENV)))] * 3)
    vector.seed(5)
    policy = agent.policy(3, target_return=2.0).for_sb3()
    found, lengths = evaluation.evaluate_policy(policy, vector, n_eval_episodes=3, return_episode_rewards=True)
    expected = [rollout(agent.policy(1, target_return=2.0), envs.make(ENV), [seed]) for seed in (5, 6, 7)]
    assert sorted(lengths) == sorted(int(one.lengths[0]) for one in expected)
    np.testing.assert_allclose(sorted(found), sorted(one.returns[0] for one in expected), rtol=1e-5)


def test_predict_carries_nothing_but_the_state_it_returns() -> None:
    agent = toy_agent("hawk-joint-previous", toy_store())
    policy, other = agent.policy(2).for_sb3(), agent.policy(2)
    obs, going = np.ones((2, OBS_SIZE)), np.zeros(2, np.bool_)
    first, state = policy.predict(obs, None, ~going)
    np.testing.assert_array_equal(first, other.act(obs))
    for _ in range(2):
        again, _ = policy.predict({"obs": -obs, "reward": np.ones((2, 1))}, state, going)
        np.testing.assert_array_equal(again, other.predict(-obs, other.state, np.ones(2), going)[0])


@pytest.mark.parametrize(
    ("observation", "options", "error", "message"),
    [
        (np.ones((1, OBS_SIZE)), {}, ShapeError, "the reward of the last step must be beside obs"),
        ({"obs": np.ones((1, OBS_SIZE))}, {}, ShapeError, "must hold obs and reward, got obs"),
        ({"obs": np.ones((1, OBS_SIZE)), "reward": np.array([np.nan])}, {}, ShapeError, "reward must be finite.*row 0"),
        (np.ones((1, OBS_SIZE)), {"deterministic": False}, ConfigError, "deterministic must be True"),
    ],
)
def test_what_it_cannot_use_is_one_clear_error(
    observation: object, options: dict[str, bool], error: type[Exception], message: str
) -> None:
    policy = toy_agent("hawk-joint", toy_store()).policy(1).for_sb3()
    _, state = policy.predict(np.ones((1, OBS_SIZE)))
    with pytest.raises(error, match=message):
        policy.predict(observation, state, np.zeros(1, np.bool_), **options)  # type: ignore[arg-type]


def test_the_wrapped_environment_has_the_reward_beside_the_observation() -> None:
    env = envs.with_reward(gymnasium.make("CartPole-v1"))
    obs, _ = env.reset(seed=0)
    assert obs["reward"] == 0
    assert obs in env.observation_space
    obs, reward, *_ = env.step(env.action_space.sample())
    assert obs["reward"] == reward == 1
