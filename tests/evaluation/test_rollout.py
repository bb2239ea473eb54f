from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlseq import envs
from rlseq.errors import ConfigError, SpaceError, UnknownNameError
from rlseq.evaluation import evaluate, normalized_score, rollout
from tests.tolerances import ROLLOUT
from tests.toys import AGENTS, ToyEnv, toy_agent, toy_store

ENV = "rlseq-tests/Toy-v0"
SEEDS = list(range(40, 51))


def by_hand(kind: str, mode: str, seed: int) -> tuple[float, int]:
    """One episode in one plain environment."""
    env = ToyEnv()
    policy = toy_agent(kind, toy_store(), window=4).policy(1, target_return=2.0, mode=mode)
    obs, _ = env.reset(seed=seed)
    total, steps, reward, done = 0.0, 0, None, False
    while not done:
        action = policy.act(obs[None], None if reward is None else np.array([reward]))
        obs, reward, done, _, _ = env.step(action[0])
        total, steps = total + reward, steps + 1
    return total, steps


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("mode", ["recurrent", "window"])
def test_a_vector_rollout_equals_lone_episodes_with_the_same_seeds(kind: str, mode: str) -> None:
    agent = toy_agent(kind, toy_store(), window=4)
    state = {k: v.clone() for k, v in agent.state_dict().items()}
    env = envs.make(ENV, 4)
    found = rollout(agent.policy(4, target_return=2.0, mode=mode), env, SEEDS)
    lone_agent = toy_agent(kind, toy_store(), window=4)
    lone_agent.load_state_dict(state)
    expected = []
    for seed in SEEDS:
        lone = envs.make(ENV, 1)
        expected.append(rollout(lone_agent.policy(1, target_return=2.0, mode=mode), lone, [seed]))
    np.testing.assert_allclose(found.returns, [e.returns[0] for e in expected], atol=ROLLOUT)
    np.testing.assert_array_equal(found.lengths, [e.lengths[0] for e in expected])
    assert len(set(found.lengths.tolist())) > 3
    assert found.terminated.all()
    assert found.seeds.tolist() == SEEDS


def test_a_rollout_equals_a_loop_over_a_plain_environment() -> None:
    import torch

    for seed in (1, 2, 3):
        torch.manual_seed(0)
        total, steps = by_hand("hawk-joint-previous", "recurrent", seed)
        torch.manual_seed(0)
        agent = toy_agent("hawk-joint-previous", toy_store(), window=4)
        found = rollout(agent.policy(1, target_return=2.0), envs.make(ENV, 1), [seed])
        assert (found.returns[0], found.lengths[0]) == (pytest.approx(total, abs=ROLLOUT), steps)


def test_the_policy_is_reset_exactly_where_the_environment_was() -> None:
    agent = toy_agent("hawk-joint", toy_store())
    env = envs.make(ENV, 3)
    policy = agent.policy(3)
    calls: list[tuple[np.ndarray, np.ndarray]] = []
    original, step = policy.act, env.step

    def act(obs: np.ndarray, reward: np.ndarray, start: np.ndarray) -> np.ndarray:
        calls.append((obs.copy(), start.copy()))
        return original(obs, reward, start)

    ended = [np.zeros(3, bool)]

    def stepped(action: np.ndarray) -> tuple[np.ndarray, ...]:
        result = step(action)
        ended.append(result[2] | result[3])
        return result

    policy.act, env.step = act, stepped  # type: ignore[method-assign]
    rollout(policy, env, SEEDS[:3])
    # calls[t] acts on what step t-1 returned: a row that step t-1 reset must start there, one that goes on must not.
    for t in range(1, len(calls)):
        went_on = ~ended[t] & ~ended[t - 1]
        assert calls[t][1][ended[t - 1]].all()
        assert not calls[t][1][went_on].any()
    assert any(e.any() for e in ended[:-1])


def test_other_autoreset_modes_and_other_row_counts_are_refused() -> None:
    agent = toy_agent("hawk-joint", toy_store())
    same_step = SyncVectorEnv([ToyEnv] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ConfigError, match="next step"):
        rollout(agent.policy(2), same_step, [0])
    with pytest.raises(ConfigError, match="a row for every environment"):
        rollout(agent.policy(3), envs.make(ENV, 2), [0])


def test_scores_are_reported_raw_and_normalized_with_seed_target_and_mode() -> None:
    store = toy_store()
    agent = toy_agent("transformer-interleaved", store)
    recurrent, window = (
        evaluate(agent, episodes=5, target_return=3.0, seed=7, mode=mode) for mode in ("recurrent", "window")
    )
    for scores, mode in ((recurrent, "recurrent"), (window, "window")):
        assert (scores.mode, scores.target_return, scores.seeds) == (mode, 3.0, [7, 8, 9, 10, 11])
        figures = scores.as_dict()
        assert figures["return_mean"] == pytest.approx(np.mean(scores.returns))
        assert figures["normalized_score"] == pytest.approx((np.mean(scores.returns) + 10.0) / 40.0)
        assert figures["episodes"] == 5
    assert recurrent.state_bytes != window.state_bytes


def test_no_reference_scores_no_normalized_score() -> None:
    from dataclasses import replace

    info = replace(toy_store().info, ref_min_score=None)
    assert normalized_score(np.ones(3), info) is None


def test_the_same_seed_gives_the_same_scores_whatever_the_number_of_rows() -> None:
    agent = toy_agent("hawk-joint", toy_store())
    few, many = (evaluate(agent, episodes=7, seed=3, num_envs=n) for n in (2, 7))
    np.testing.assert_allclose(few.returns, many.returns, atol=ROLLOUT)


def test_bad_requests_are_one_clear_error() -> None:
    agent = toy_agent("hawk-joint", toy_store())
    with pytest.raises(UnknownNameError, match="Did you mean"):
        evaluate(agent, "rlseq-tests/Toyy-v0")
    with pytest.raises(SpaceError, match="observations"):
        evaluate(agent, "HalfCheetah-v5")
    with pytest.raises(ConfigError, match="episodes must be >= 1"):
        evaluate(agent, episodes=0)
