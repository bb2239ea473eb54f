from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rlseq.agents.agent import Agent
from rlseq.agents.policy import Policy
from rlseq.agents.tokens import Inputs
from rlseq.data import SamplerConfig, TrajectoryStore, make_sampler, open_dataset
from rlseq.errors import ConfigError, ShapeError
from rlseq.types import Batch
from tests.tolerances import POLICY_REPLAY
from tests.toys import ACTION_SIZE, AGENTS, HIGH, LOW, OBS_SIZE, toy_agent, toy_store, toy_trajectories


def whole_episode(store: TrajectoryStore, index: int) -> Batch:
    """One episode as a training batch of one row, cut by the sampler that training uses."""
    one = store.episodes([index])
    length = int(store.lengths[index])
    return next(make_sampler(one, SamplerConfig(regime="pack", window=length, batch_size=1), seed=0))


def replay(policy: Policy, store: TrajectoryStore, index: int) -> tuple[list[Inputs], np.ndarray]:
    """Feeds an episode of the dataset through the acting path; returns the inputs the agent saw and its actions."""
    trajectory, seen, actions = store[index], [], []
    agent = policy.engine.step.agent
    original = agent.inputs

    def spy(*args: Tensor, **kwargs: Tensor) -> Inputs:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    agent.inputs = spy  # type: ignore[method-assign]
    try:
        for t in range(len(trajectory.reward)):
            if t > 0:
                done = torch.from_numpy(trajectory.action[t - 1 : t])
                policy.state = policy.state._replace(action=done)
            reward = None if t == 0 else trajectory.reward[t - 1 : t]
            actions.append(policy.act(trajectory.obs[t : t + 1], reward, np.array([t == 0])))
    finally:
        del agent.inputs
    return seen, np.concatenate(actions)


def check_replay(agent: Agent, store: TrajectoryStore, index: int, mode: str) -> None:
    """The acting path sees the inputs of the training path to the bit, step by step, and gives its actions."""
    batch = whole_episode(store, index)
    trained = agent.window_inputs(batch)
    with torch.inference_mode():
        expected = agent.to_bounds(agent(trained)[0])[0].numpy()
    policy = agent.policy(1, target_return=float(store.returns[index]), mode=mode)
    seen, actions = replay(policy, store, index)
    assert len(actions) == batch.obs.shape[1]
    for t, inputs in enumerate(seen):
        for name in ("obs", "return_to_go_scaled", "previous_action", "previous_reward_scaled", "timestep", "reset"):
            fed = getattr(inputs, name)[:, -1]
            assert torch.equal(fed, getattr(trained, name)[:, t]), (name, t)
        if mode == "window":
            assert torch.equal(inputs.action[:, :-1], trained.action[:, :t])
    np.testing.assert_allclose(actions, expected, atol=POLICY_REPLAY)


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("mode", ["recurrent", "window"])
def test_replaying_an_episode_gives_the_inputs_of_training_exactly_and_its_actions(kind: str, mode: str) -> None:
    store = toy_store()
    check_replay(toy_agent(kind, store), store, int(np.argmax(store.lengths)), mode)


@pytest.mark.parametrize("kind", ["hawk-joint-previous", "transformer-interleaved"])
def test_replaying_a_real_episode_of_a_thousand_steps_does_so_too(kind: str) -> None:
    store = open_dataset("bundled:halfcheetah-medium-replay")
    check_replay(toy_agent(kind, store), store, 40, "recurrent")


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("mode", ["recurrent", "window"])
def test_rows_whose_episodes_end_at_different_times_equal_lone_runs(kind: str, mode: str) -> None:
    store = toy_store()
    agent = toy_agent(kind, store, window=4)
    lengths = [[3, 6, 2, 5], [7, 1, 1, 7], [16], [5, 5, 6]]
    rows = [toy_trajectories(row, seed) for seed, row in enumerate(lengths)]
    flat = [
        (
            np.concatenate([t.obs for t in row]),
            np.concatenate([t.reward for t in row]),
            np.concatenate([np.arange(len(t.reward)) == 0 for t in row]),
        )
        for row in rows
    ]
    targets = np.array([3.0, -1.0, 0.5, 10.0])
    together = agent.policy(len(rows), target_return=targets, mode=mode)
    joint = []
    for t in range(16):
        reward = np.array([r[t - 1] if t else 0.0 for _, r, _ in flat])
        joint.append(
            together.act(np.stack([o[t] for o, _, _ in flat]), reward, np.array([start[t] for _, _, start in flat]))
        )
    for row, episodes in enumerate(rows):
        alone = []
        for trajectory in episodes:
            policy = agent.policy(1, target_return=targets[row], mode=mode)
            alone.extend(
                policy.act(trajectory.obs[t : t + 1], trajectory.reward[t - 1 : t] if t else None)
                for t in range(len(trajectory.reward))
            )
        np.testing.assert_allclose(np.concatenate(alone), np.stack(joint)[:, row], atol=POLICY_REPLAY)


@pytest.mark.parametrize("mode", ["recurrent", "window"])
def test_predict_is_pure_and_act_commits_once_per_call(mode: str) -> None:
    store = toy_store()
    policy = toy_agent("hawk-joint", store).policy(2, mode=mode)
    obs = np.ones((2, OBS_SIZE))
    policy.act(obs)
    before = [x.clone() for x in tree_leaves(policy.state)]
    first, state = policy.predict(obs, policy.state, np.ones(2))
    again, _ = policy.predict(obs, policy.state, np.ones(2))
    np.testing.assert_array_equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(before, tree_leaves(policy.state), strict=True))
    acted = policy.act(obs, np.ones(2))
    np.testing.assert_array_equal(first, acted)
    assert policy.state.timestep.tolist() == [1, 1]
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(state), tree_leaves(policy.state), strict=True))


def test_return_to_go_falls_by_the_observed_reward_and_the_timestep_counts_from_the_first_step() -> None:
    policy = toy_agent("hawk-joint", toy_store()).policy(1, target_return=5.0)
    obs = np.zeros((1, OBS_SIZE))
    policy.act(obs)
    assert (policy.state.return_to_go.item(), policy.state.timestep.item()) == (5.0, 0)
    policy.act(obs, np.array([1.5]))
    assert (policy.state.return_to_go.item(), policy.state.timestep.item()) == (3.5, 1)
    policy.act(obs, np.array([100.0]), np.array([True]))
    assert (policy.state.return_to_go.item(), policy.state.timestep.item()) == (5.0, 0)


def test_the_previous_action_is_fed_back() -> None:
    agent = toy_agent("hawk-joint-previous", toy_store())
    policy = agent.policy(1)
    obs = np.ones((1, OBS_SIZE))
    policy.act(obs)
    changed = policy.state._replace(action=policy.state.action + 1.0)
    kept, _ = policy.predict(obs, policy.state, np.zeros(1))
    other, _ = policy.predict(obs, changed, np.zeros(1))
    assert not np.array_equal(kept, other)


@pytest.mark.parametrize("kind", AGENTS)
def test_actions_lie_within_the_bounds_and_reach_both(kind: str) -> None:
    agent = toy_agent(kind, toy_store())
    obs = np.random.default_rng(0).normal(size=(8, OBS_SIZE)) * 10
    free = agent.policy(8).act(obs)
    assert free.shape == (8, ACTION_SIZE)
    assert ((free > LOW) & (free < HIGH)).all()
    for bias, bound in ((-1e3, LOW), (1e3, HIGH)):
        agent.head.linear.bias.data.fill_(bias)
        np.testing.assert_array_equal(agent.policy(8).act(obs), np.broadcast_to(bound, (8, ACTION_SIZE)))


def test_state_bytes_do_not_change_with_time() -> None:
    for kind, mode in (("hawk-joint", "recurrent"), ("transformer-interleaved", "recurrent"), ("hawk-joint", "window")):
        policy = toy_agent(kind, toy_store(), window=4).policy(3, mode=mode)
        sizes = set()
        for t in range(20):
            sizes.add(policy.state_bytes)
            policy.act(np.ones((3, OBS_SIZE)), np.zeros(3) if t else None)
        assert len(sizes) == 1


def test_reset_makes_rows_start_over() -> None:
    policy = toy_agent("hawk-joint", toy_store()).policy(2)
    obs = np.ones((2, OBS_SIZE))
    first = policy.act(obs)
    policy.act(obs, np.ones(2))
    policy.reset([1])
    action = policy.act(obs, np.ones(2))
    assert policy.state.timestep.tolist() == [2, 0]
    np.testing.assert_allclose(action[1], first[1], atol=POLICY_REPLAY)
    policy.reset()
    np.testing.assert_allclose(policy.act(obs), first, atol=POLICY_REPLAY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.ones((3, OBS_SIZE))}, r"obs must be \(2, 3\)"),
        ({"obs": np.ones((2, OBS_SIZE + 1))}, r"obs must be \(2, 3\)"),
        ({"obs": np.array([["a"] * OBS_SIZE] * 2)}, "obs must be"),
        ({"obs": np.array([[1.0] * OBS_SIZE, [1.0, np.nan, 0.0]])}, "obs must be finite.*row 1"),
        ({"reward": None}, "reward may be None only where an episode starts"),
        ({"reward": np.array([np.inf, 0.0])}, "reward must be finite.*row 0"),
        ({"reward": np.zeros(3)}, r"reward must be \(2,\)"),
        ({"episode_start": np.zeros(2)}, "episode_start must be"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_the_state_alone(change: dict[str, np.ndarray], message: str) -> None:
    policy = toy_agent("hawk-joint", toy_store()).policy(2)
    policy.act(np.ones((2, OBS_SIZE)))
    state = policy.state
    good = {"obs": np.ones((2, OBS_SIZE)), "reward": np.zeros(2), "episode_start": np.zeros(2, bool)}
    with pytest.raises(ShapeError, match=message):
        policy.act(**{**good, **change})
    assert policy.state is state


def test_reward_of_a_row_that_starts_is_ignored_even_if_not_finite() -> None:
    policy = toy_agent("hawk-joint", toy_store()).policy(2)
    policy.act(np.ones((2, OBS_SIZE)))
    action = policy.act(np.ones((2, OBS_SIZE)), np.array([0.0, np.nan]), np.array([False, True]))
    assert np.isfinite(action).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "rolling"}, "mode must be one of"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"target_return": np.nan}, "target_return must be one finite number"),
        ({"target_return": np.zeros(3), "num_envs": 2}, "target_return must be one finite number or 2"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    agent = toy_agent("hawk-joint", toy_store())
    with pytest.raises(ConfigError, match=message):
        agent.policy(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["recurrent", "window"])
def test_an_episode_longer_than_the_timestep_table_is_one_clear_error(mode: str) -> None:
    store = toy_store()
    agent = toy_agent("transformer-interleaved", store, window=4)
    policy = agent.policy(1, mode=mode)
    table = max(store.stats.length_max, store.info.max_episode_steps or 0)
    obs = np.ones((1, OBS_SIZE))
    for t in range(table):
        policy.act(obs, np.zeros(1) if t else None)
    with pytest.raises(ConfigError, match=f"at most {table} steps"):
        policy.act(obs, np.zeros(1))


def test_no_timestep_table_no_limit() -> None:
    policy = toy_agent("hawk-joint", toy_store()).policy(1)
    for t in range(200):
        assert np.isfinite(policy.act(np.ones((1, OBS_SIZE)), np.zeros(1) if t else None)).all()


def test_policies_of_one_agent_do_not_share_state() -> None:
    agent: Agent = toy_agent("hawk-joint", toy_store())
    a, b = agent.policy(1), agent.policy(1)
    a.act(np.ones((1, OBS_SIZE)))
    assert b.state.timestep.item() == -1
