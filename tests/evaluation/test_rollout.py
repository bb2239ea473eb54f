from __future__ import annotations

import itertools
import multiprocessing
from contextlib import closing

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rlseq import envs
from rlseq.errors import ConfigError, SpaceError, UnknownNameError
from rlseq.evaluation import evaluate, normalized_score, resets_single_rows, rollout
from tests.tolerances import ROLLOUT
from tests.toys import AGENTS, ToyEnv, toy_agent, toy_store
from tests.vector_toys import NEXT_STEP, RAGGED, Alternating, RaggedEnv, Remembering, lone_episode

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


@pytest.mark.parametrize("rows", [1, 3, 7, 20])
@pytest.mark.parametrize("vectorization", ["sync", "async", "native"])
def test_a_queue_of_seeds_plays_exactly_the_episodes_of_lone_runs(vectorization: envs.Vectorization, rows: int) -> None:
    expected = [lone_episode(RaggedEnv(), seed) for seed in SEEDS]
    # Next-step autoreset beside it: sync and async vectors reset single rows in that mode too.
    for mode in ("Disabled",) if vectorization == "native" else ("Disabled", "NextStep"):
        with closing(envs.make(RAGGED, rows, vectorization=vectorization, autoreset_mode=mode)) as env:
            found = rollout(Remembering(rows), env, SEEDS, record_actions=True)
            again = rollout(Remembering(rows), env, SEEDS)
        assert list(zip(found.returns, found.lengths, strict=True)) == expected
        assert np.mean(found.returns) == np.mean([total for total, _ in expected])
        assert found.seeds.tolist() == SEEDS
        assert found.terminated.all()
        assert [len(actions) for actions in found.actions] == found.lengths.tolist()
        assert found.actions[0].dtype == np.float32
        assert (again.returns.tolist(), again.actions) == (found.returns.tolist(), None)
        assert found.calls >= max(found.lengths.max(), found.lengths.sum() / rows)


def test_the_first_episodes_that_end_would_be_too_short() -> None:
    """What the tests of the queue would not notice if lengths did not matter."""
    expected = [lone_episode(RaggedEnv(), seed) for seed in range(100)]
    with closing(envs.make(RAGGED, 8, autoreset_mode="Disabled")) as env:
        found = rollout(Remembering(8), env, range(100))
    assert found.returns.tolist() == [total for total, _ in expected]
    shortest_first = [total for total, _ in sorted(expected, key=lambda one: one[1])]
    assert np.mean(found.returns) > np.mean(shortest_first[:50]) + 2


def test_no_row_idles_while_seeds_are_left() -> None:
    seeds = list(range(60))
    with closing(envs.make(RAGGED, 4, autoreset_mode="Disabled")) as env:
        found = rollout(Remembering(4), env, seeds)
    # The rows end at most one episode apart.
    assert found.calls <= found.lengths.sum() / 4 + found.lengths.max()


@pytest.mark.parametrize("rows", [1, 3, 7, 20])
def test_where_rows_cannot_be_reset_alone_each_plays_its_share(rows: int) -> None:
    with closing(envs.make(NEXT_STEP, rows, vectorization="native")) as env:
        found = rollout(Remembering(rows), env, SEEDS, record_actions=True)
    expected: list[tuple[float, int]] = [(0.0, 0)] * len(SEEDS)
    for row in range(min(rows, len(SEEDS))):
        lone = RaggedEnv()
        for k, episode in enumerate(range(row, len(SEEDS), rows)):
            expected[episode] = lone_episode(lone, None if k else SEEDS[0] + row)
    assert list(zip(found.returns, found.lengths, strict=True)) == expected
    assert [len(actions) for actions in found.actions] == found.lengths.tolist()
    assert found.seeds.tolist() == [SEEDS[0]] * len(SEEDS), "the one seed that was used"


def test_gymnasiums_native_cart_pole_counts_no_step_that_only_resets() -> None:
    env = envs.make("CartPole-v1", 3, vectorization="native")
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    step, ends = env.step, []

    def stepped(action: np.ndarray) -> tuple[np.ndarray, ...]:
        result = step(action)
        ends.append((result[2] | result[3]).copy())
        return result

    env.step = stepped  # type: ignore[method-assign]
    found = rollout(Alternating(3), env, range(8), record_actions=True)
    assert found.returns.tolist() == found.lengths.tolist(), "reward 1 a step, none in a reset"
    assert len(set(found.lengths.tolist())) > 2
    assert all(actions.tolist() == [i % 2 for i in range(len(actions))] for actions in found.actions)
    for row in range(3):
        at = [-2, *np.flatnonzero([ended[row] for ended in ends])]
        between = [int(b - a - 1) for a, b in itertools.pairwise(at)]
        assert found.lengths[row::3].tolist() == between[: len(found.lengths[row::3])]


@pytest.mark.parametrize("env_id", [RAGGED, NEXT_STEP])
def test_the_policy_acts_once_a_step_and_starts_over_exactly_where_an_episode_starts(env_id: str) -> None:
    policy, env = Remembering(3), envs.make(env_id, 3, vectorization="native")
    step, ended = env.step, [np.zeros(3, bool)]

    def stepped(action: np.ndarray) -> tuple[np.ndarray, ...]:
        result = step(action)
        ended.append(result[2] | result[3])
        return result

    env.step = stepped  # type: ignore[method-assign]
    found = rollout(policy, env, SEEDS)
    assert len(policy.calls) == found.calls == len(ended) - 1
    assert policy.calls[0][1].all()
    for t in range(1, found.calls):
        # calls[t] acts on what step t-1 returned. In next-step mode the row is reset one step later; it is marked in
        # the step before as well, where its action is ignored.
        resets = ended[t] | ended[t - 1] if env_id == NEXT_STEP else ended[t]
        assert policy.calls[t][1].tolist() == resets.tolist()
    assert any(one.any() for one in ended[:-1])


def test_same_step_autoreset_other_row_counts_and_no_seeds_are_refused() -> None:
    agent = toy_agent("hawk-joint", toy_store())
    same_step = SyncVectorEnv([ToyEnv] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ConfigError, match="SAME_STEP"):
        rollout(agent.policy(2), same_step, [0])
    with pytest.raises(ConfigError, match="a row for every environment"):
        rollout(agent.policy(3), envs.make(ENV, 2), [0])
    with pytest.raises(ConfigError, match="a seed for every episode"):
        rollout(agent.policy(2), envs.make(ENV, 2), [])


@pytest.mark.parametrize("shared_memory", [True, False])
def test_only_vectors_that_reset_the_row_once_get_a_queue(shared_memory: bool) -> None:
    with closing(AsyncVectorEnv([RaggedEnv] * 2, shared_memory=shared_memory)) as env:
        assert resets_single_rows(env) == shared_memory
        found = rollout(Remembering(2), env, [5, 5, 5, 5])
    # Twice the same two episodes only where each seed is used.
    assert (found.returns[0] == found.returns[2]) == shared_memory


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


@pytest.mark.parametrize("vectorization", ["sync", "async", "native"])
def test_every_vectorization_gives_the_same_scores(vectorization: envs.Vectorization) -> None:
    agent = toy_agent("hawk-joint", toy_store())
    lone = evaluate(agent, RAGGED, episodes=7, seed=3, num_envs=1)
    found = evaluate(agent, RAGGED, episodes=7, seed=3, num_envs=3, vectorization=vectorization)
    np.testing.assert_allclose(found.returns, lone.returns, atol=ROLLOUT)
    assert (found.seeds, found.vectorization) == (list(range(3, 10)), vectorization)
    assert not multiprocessing.active_children()
