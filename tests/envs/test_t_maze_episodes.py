"""T-Maze's data: episodes of the optimal and of a noisy policy, and the score of chance."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest

from rlseq.envs import t_maze
from rlseq.envs.t_maze import TMazeVectorEnv

IDS = {"passive": "rlseq/TMazePassive-v0", "active": "rlseq/TMazeActive-v0"}


@pytest.mark.parametrize(
    ("kind", "length"), [("passive", 1), ("passive", 4), ("active", 1), ("active", 2), ("active", 3)]
)
def test_the_random_score_is_the_mean_over_all_sequences_of_actions(kind, length):
    cues_and_actions = itertools.product((-1, 1), *[range(4)] * t_maze.episode_limit(kind, length))
    sequences = np.array(list(cues_and_actions)).T
    n = sequences.shape[1]
    vector = TMazeVectorEnv(n, kind, length)
    vector.reset(seed=0)
    vector._mazes.cue[:] = sequences[0]
    returns, live = np.zeros(n), np.ones(n, bool)
    for action in sequences[1:]:
        _, reward, term, trunc, _ = vector.step(action)
        returns += reward * live
        live &= ~(term | trunc)
    assert not live.any()
    assert t_maze.random_score(kind, length) == returns.mean()


def test_the_random_score_of_a_range_is_the_mean_of_its_lengths():
    each = [t_maze.random_score("active", T) for T in range(2, 2000)]
    assert t_maze.random_score("active", (2, 1999)) == pytest.approx(np.mean(each), rel=1e-12)
    assert t_maze.random_score("passive", 10**9) == 0.0


def test_the_random_score_of_log_uniform_lengths_weighs_them_by_their_probability():
    T = np.arange(2, 2000)
    each = [t_maze.random_score("active", int(one)) for one in T]
    mean = np.average(each, weights=np.log(T + 1) - np.log(T))
    assert t_maze.random_score("active", (2, 1999), "log-uniform") == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("kind", IDS)
def test_log_uniform_lengths_have_a_uniform_logarithm(kind):
    low, high, n = 3, 900, 20_000
    mazes = TMazeVectorEnv(n, kind, (low, high), distribution="log-uniform")
    mazes.reset(seed=0)
    lengths = mazes._mazes.junction - mazes._mazes.start
    assert (lengths.min(), lengths.max()) == (low, high)
    for bound in (4, 10, 100, 500):  # the share below each
        share = np.log(bound / low) / np.log((high + 1) / low)
        assert abs((lengths < bound).mean() - share) < 4 * np.sqrt(share * (1 - share) / n)
    one = gymnasium.make(IDS[kind], length=(low, high), distribution="log-uniform")
    for row in range(20):
        one.reset(seed=row)
        assert one.unwrapped._mazes.junction[0] == mazes._mazes.junction[row]
    mazes = TMazeVectorEnv(1000, kind, (7, 7), distribution="log-uniform")
    mazes.reset(seed=0)
    assert set(mazes._mazes.junction - mazes._mazes.start) == {7}


@pytest.mark.parametrize("kind", IDS)
def test_expert_episodes_return_1_in_every_length(kind):
    played = list(t_maze.trajectories(kind, (1, 30), episodes=300, seed=7))
    assert len(played) == 300
    lengths = {len(one.reward) for one in played}
    assert lengths == {T + (1 if kind == "passive" else 3) for T in range(1, 31)}
    for number, one in enumerate(played):
        assert one.seed == 7 + number
        assert (one.obs.dtype, one.action.dtype, one.reward.dtype) == (np.float32, np.int64, np.float64)
        assert one.obs.shape == (len(one.reward) + 1, 2)
        assert one.reward.tolist() == [0.0] * (len(one.reward) - 1) + [1.0]
        assert (one.terminated, one.truncated) == (True, False)


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("policy", t_maze.POLICIES)
@pytest.mark.parametrize("drawn", t_maze.DISTRIBUTIONS)
def test_an_episode_is_what_the_environment_gives_for_its_seed_and_actions(kind, policy, drawn):
    env = gymnasium.make(IDS[kind], length=(1, 12), distribution=drawn)
    for one in t_maze.trajectories(kind, (1, 12), policy, episodes=40, seed=3, distribution=drawn):
        obs = [env.reset(seed=one.seed)[0]]
        for action, reward in zip(one.action, one.reward, strict=True):
            observed, got, terminated, truncated, _ = env.step(action)
            obs.append(observed)
            assert got == reward
        assert np.array_equal(np.stack(obs), one.obs)
        assert (terminated, truncated) == (one.terminated, one.truncated)


@pytest.mark.parametrize("kind", IDS)
def test_half_of_the_noisy_walks_arrive_and_three_quarters_of_their_turns_are_right(kind):
    n = 3000
    for length in (1, 20):
        played = list(t_maze.trajectories(kind, length, "noisy", episodes=n))
        arrived = np.array([one.terminated for one in played])
        returns = np.array([one.reward.sum() for one in played])
        assert abs(arrived.mean() - 0.5) < 4 * np.sqrt(0.25 / n)
        assert abs(returns[arrived].mean() - 0.75) < 4 * np.sqrt(0.1875 / arrived.sum())
        assert not returns[~arrived].any()
        limit = t_maze.episode_limit(kind, length)
        assert all(len(one.reward) == limit for one in played), "no wasted step leaves time for a turn"


def test_epsilon_and_turn_noise_of_0_are_the_expert_and_of_1_are_chance():
    still = list(t_maze.trajectories("active", 9, "noisy", episodes=50, epsilon=0, turn_noise=0))
    assert all(one.reward.sum() == 1 for one in still)
    chance = list(t_maze.trajectories("passive", 9, "noisy", episodes=2000, epsilon=0, turn_noise=1))
    assert abs(np.mean([one.reward.sum() for one in chance]) - 0.5) < 4 * np.sqrt(0.25 / 2000)
    lost = list(t_maze.trajectories("passive", 40, "noisy", episodes=50, epsilon=1))
    assert all(one.truncated for one in lost)


def test_episodes_do_not_depend_on_how_many_are_asked_for():
    few = list(t_maze.trajectories("passive", (1, 9), "noisy", episodes=3, seed=298))
    many = list(t_maze.trajectories("passive", (1, 9), "noisy", episodes=301))
    for one, other in zip(few, many[298:], strict=True):
        assert np.array_equal(one.action, other.action)
