"""Stage 2: the store holds what it was given, and computes returns-to-go and figures from it."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlseq.data import TrajectoryStore, returns_to_go
from rlseq.errors import ConfigError, DataError
from rlseq.types import DatasetInfo, Trajectory


def _equal(left: Trajectory, right: Trajectory) -> bool:
    arrays = all(np.array_equal(getattr(left, k), getattr(right, k)) for k in ("obs", "action", "reward"))
    return arrays and (left.terminated, left.truncated) == (right.terminated, right.truncated)


def test_every_trajectory_comes_back_unchanged_first_and_last_included(make_trajectories):
    given_ones = make_trajectories([3, 1, 7])
    store = TrajectoryStore.from_trajectories(iter(given_ones))
    assert len(store) == 3
    assert store.offsets.tolist() == [0, 3, 4, 11]
    assert all(_equal(a, b) for a, b in zip(store, given_ones, strict=True))
    assert _equal(store[-1], given_ones[2])
    assert store.timestep.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6]
    dtypes = [getattr(store, k).dtype for k in ("obs", "action", "reward", "return_to_go", "timestep", "offsets")]
    assert dtypes == [np.float32, np.float32, np.float64, np.float32, np.int64, np.int64]


def test_an_episode_is_a_view_and_an_index_outside_raises(make_store):
    store = make_store([3, 4])
    assert np.shares_memory(store[1].obs, store.obs)
    with pytest.raises(IndexError):
        store[2]


def test_the_store_keeps_no_reference_to_the_arrays_it_was_made_from(make_trajectories):
    source = make_trajectories([3])
    store = TrajectoryStore.from_trajectories(source)
    before = store.obs.copy()
    source[0].obs[:] = 0
    assert np.array_equal(store.obs, before)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_returns_to_go_subtract_rewards_one_by_one_in_float64(rewards):
    expected, left = [], float(np.sum(np.array(rewards)))
    for reward in rewards:
        expected.append(np.float32(left))
        left -= reward
    assert returns_to_go(np.array(rewards, dtype=np.float64)).tolist() == expected


def test_returns_to_go_restart_with_every_episode():
    ones = [Trajectory(np.zeros((t, 1)), np.zeros((t, 1)), np.ones(t), True, False) for t in (3, 2)]
    assert TrajectoryStore.from_trajectories(ones).return_to_go.tolist() == [3, 2, 1, 2, 1]


def test_stats_equal_those_of_the_concatenated_arrays(make_trajectories):
    source = make_trajectories([3, 1, 7])
    stats = TrajectoryStore.from_trajectories(source).stats
    obs = np.concatenate([t.obs for t in source]).astype(np.float64)
    returns = [t.reward.sum() for t in source]
    assert (stats.episodes, stats.steps, stats.length_min, stats.length_max) == (3, 11, 1, 7)
    assert stats.length_mean == pytest.approx(11 / 3, rel=1e-15)
    assert stats.return_mean == pytest.approx(np.mean(returns), rel=1e-14)
    assert stats.return_std == pytest.approx(np.std(returns), rel=1e-14)
    assert (stats.return_min, stats.return_max) == (min(returns), max(returns))
    assert np.allclose(stats.obs_mean, obs.mean(axis=0), rtol=1e-6, atol=1e-7)
    assert np.allclose(stats.obs_std, obs.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_a_store_beyond_its_memory_limit_lives_in_files_and_is_the_same(
    make_trajectories, tmp_path, monkeypatch, limit
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = make_trajectories([3, 1, 7, 20])
    small = TrajectoryStore.from_trajectories(source, memory_limit=limit)
    whole = TrajectoryStore.from_trajectories(source)
    for name in ("obs", "action", "reward", "return_to_go", "timestep"):
        assert np.array_equal(getattr(small, name), getattr(whole, name)), name
    assert isinstance(small.obs.base, np.memmap)
    assert not isinstance(whole.obs.base, np.memmap)
    assert small.top(0.5).steps == whole.top(0.5).steps
    assert list(tmp_path.iterdir()) == [], "files must have no name, so that nothing stays behind"


def test_split_holds_out_whole_episodes_and_loses_none(make_store):
    store = make_store([3] * 10)
    train, held_out = store.split(0.3, seed=1)
    assert (len(train), len(held_out)) == (7, 3)
    everything = sorted([t.reward.tolist() for t in train] + [t.reward.tolist() for t in held_out])
    assert everything == sorted(t.reward.tolist() for t in store)
    again = store.split(0.3, seed=1)[1]
    assert np.array_equal(held_out.obs, again.obs)
    others = [store.split(0.3, seed=seed)[1].obs for seed in range(2, 8)]
    assert any(not np.array_equal(held_out.obs, other) for other in others)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_split_leaves_at_least_one_episode_on_each_side(make_store, fraction):
    assert all(len(part) >= 1 for part in make_store([2, 2]).split(fraction))


def test_top_keeps_the_best_episodes_in_the_order_of_the_data():
    ones = [Trajectory(np.zeros((1, 1)), np.zeros((1, 1)), np.array([r]), True, False) for r in (3.0, 9.0, 1.0, 7.0)]
    store = TrajectoryStore.from_trajectories(ones)
    assert store.top(0.5).returns.tolist() == [9.0, 7.0]
    assert store.top(0.01).returns.tolist() == [9.0]
    assert store.top(1.0).returns.tolist() == [3.0, 9.0, 1.0, 7.0]


def test_drop_obs_leaves_the_other_columns_and_names_the_dropped_ones_of_the_full_observation(make_store):
    store = make_store([3, 4])
    once = store.drop_obs([1, 3])
    assert np.array_equal(once.obs, store.obs[:, [0, 2, 4]])
    assert (once.info.obs_size, once.info.dropped_obs) == (3, (1, 3))
    twice = once.drop_obs([1])
    assert np.array_equal(twice.obs, store.obs[:, [0, 4]])
    assert twice.info.dropped_obs == (1, 2, 3)
    assert np.array_equal(twice.return_to_go, store.return_to_go)


def test_info_by_default_has_the_sizes_and_unit_action_bounds(make_store):
    info = make_store([3]).info
    assert (info.obs_size, info.action_size, info.env_id, info.ref_max_score) == (5, 2, None, None)
    assert (info.action_low.tolist(), info.action_high.tolist()) == ([-1, -1], [1, 1])


def test_action_bounds_by_default_are_the_datas_where_it_leaves_the_unit_interval():
    action = np.array([[0.5, -3.0], [0.1, 2.0]])
    store = TrajectoryStore.from_trajectories([Trajectory(np.zeros((2, 1)), action, np.zeros(2), True, False)])
    assert (store.info.action_low.tolist(), store.info.action_high.tolist()) == ([-1, -3], [1, 2])


_GOOD = Trajectory(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros(3), True, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"obs": np.full((3, 2), np.nan)}, ("'obs'", "finite", "nan", "(0, 0)")),
        ({"obs": np.full((3, 2), 1e300)}, ("'obs'", "finite", "1e+300")),
        ({"action": np.array([[0], [np.inf], [0]])}, ("'action'", "finite", "inf", "(1, 0)")),
        ({"reward": np.array([0, np.nan, 0])}, ("'reward'", "finite")),
        ({"reward": np.zeros(4)}, ("same length", "reward 4", "obs 3")),
        ({"obs": np.zeros(3)}, ("'obs'", "shape", "(3,)")),
        ({"obs": np.zeros((3, 0))}, ("'obs'", "shape", "(3, 0)")),
        ({"obs": np.zeros((3, 5))}, ("(2, 1)", "(5, 1)")),
        ({"action": np.zeros((3, 2))}, ("(2, 1)", "(2, 2)")),
        ({"obs": np.array([["a", "b"]] * 3)}, ("'obs'", "real numbers")),
        ({"obs": np.zeros((0, 2)), "action": np.zeros((0, 1)), "reward": np.zeros(0)}, ("at least one step",)),
    ],
)
def test_a_bad_episode_is_named_in_one_line(change, words):
    with pytest.raises(DataError) as caught:
        TrajectoryStore.from_trajectories([_GOOD, replace(_GOOD, **change)])
    message = str(caught.value)
    assert "episode 1" in message
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_sizes_must_be_those_of_the_info():
    info = DatasetInfo("mine", None, 3, -np.ones(1), np.ones(1), None, None, None)
    with pytest.raises(DataError, match="mine: episode 0: .*must be \\(3, 1\\), got \\(2, 1\\)"):
        TrajectoryStore.from_trajectories([_GOOD], info)


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="at least one episode"):
        TrajectoryStore.from_trajectories([])


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.split(0),
        lambda s: s.split(1),
        lambda s: s.top(0),
        lambda s: s.top(1.1),
        lambda s: s.drop_obs([9]),
        lambda s: s.drop_obs([-1]),
        lambda s: s.drop_obs(range(5)),
        lambda s: s.episodes([0]).split(0.5),
    ],
)
def test_an_option_outside_its_range_is_refused(make_store, call):
    with pytest.raises(ConfigError, match="must"):
        call(make_store([2, 2]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 3))
def test_episodes_copies_any_choice_in_its_order(make_store, lengths, seed):
    store = make_store(lengths)
    choice = np.random.default_rng(seed).permutation(len(lengths))
    chosen = store.episodes(choice)
    assert all(_equal(chosen[i], store[int(c)]) for i, c in enumerate(choice))
