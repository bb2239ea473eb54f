"""T-Maze: one cue decides one turn, alone and in thousands of rows that play the same."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlseq import envs
from rlseq.envs import t_maze
from rlseq.envs._mazes import DOWN, LEFT, RIGHT, UP, Streams
from rlseq.envs.t_maze import TMazeEnv, TMazeVectorEnv
from rlseq.errors import ConfigError, ShapeError, SpaceError, UnknownNameError

IDS = {"passive": "rlseq/TMazePassive-v0", "active": "rlseq/TMazeActive-v0"}


def _turn(cue):
    return UP if cue > 0 else DOWN


def _play(env, actions):
    """Observations after each action, the rewards, and the last step's (terminated, truncated)."""
    steps = [env.step(action) for action in actions]
    assert not any(step[2] or step[3] for step in steps[:-1])
    return [step[0].tolist() for step in steps], [step[1] for step in steps], steps[-1][2:4]


@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_policy_of_the_passive_maze_reads_the_cue_at_the_start_and_gets_1(seed):
    env = TMazeEnv("passive", 3)
    first, _ = env.reset(seed=seed)
    assert first[0] == 0
    assert abs(first[1]) == 1
    obs, reward, ended = _play(env, [RIGHT, RIGHT, RIGHT, _turn(first[1])])
    assert obs == [[0, 0], [0, 0], [1, 0], [1, first[1]]]
    assert reward == [0, 0, 0, 1]
    assert ended == (True, False)


@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_policy_of_the_active_maze_fetches_the_cue_first(seed):
    env = TMazeEnv("active", 2)
    assert env.reset(seed=seed)[0].tolist() == [0, 0]
    cue = env.step(LEFT)[0]
    assert cue[0] == 0
    assert abs(cue[1]) == 1
    obs, reward, ended = _play(env, [RIGHT, RIGHT, RIGHT, _turn(cue[1])])
    assert obs == [[0, 0], [0, 0], [1, 0], [1, cue[1]]]
    assert reward == [0, 0, 0, 1]
    assert ended == (True, False)


@pytest.mark.parametrize("seed", range(4))
def test_the_wrong_turn_ends_the_episode_without_reward(seed):
    env = TMazeEnv("passive", 2)
    first, _ = env.reset(seed=seed)
    obs, reward, ended = _play(env, [RIGHT, RIGHT, _turn(-first[1])])
    assert obs[-1] == [1, -first[1]]
    assert reward == [0, 0, 0]
    assert ended == (True, False)


@pytest.mark.parametrize("wasted", [UP, DOWN, LEFT])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_one_wasted_step_costs_the_reward(wasted, at):
    actions = [RIGHT] * 4
    actions.insert(at, wasted)
    env = TMazeEnv("passive", 4)
    env.reset(seed=0)
    _, reward, ended = _play(env, actions)
    assert not any(reward)
    assert ended == (False, True), "the limit is T + 1 steps, and the maze itself truncates"


def test_walls_hold():
    env = TMazeEnv("active", 3)
    env.reset(seed=0)
    assert env.step(LEFT)[0].tolist() == env.step(LEFT)[0].tolist(), "left of the cue"
    env = TMazeEnv("active", 3)
    env.reset(seed=0)
    obs, _, ended = _play(env, [UP, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT])
    assert obs == [[0, 0], [0, 0], [0, 0], [1, 0], [1, 0], [1, 0]]
    assert ended == (False, True), "the limit is T + 3 steps"


def test_from_the_junction_one_can_walk_back():
    env = TMazeEnv("active", 1)
    env.reset(seed=0)
    assert [env.step(action)[0][0] for action in (RIGHT, LEFT, RIGHT)] == [1, 0, 1]


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("length", [1, 7, (2, 9)])
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_the_single_environment_passes_gymnasiums_checker(kind, length, render_mode):
    check_env(gymnasium.make(IDS[kind], length=length, render_mode=render_mode).unwrapped)


@pytest.mark.parametrize("kind", IDS)
def test_both_mazes_are_made_by_id_in_a_fresh_process(kind):
    code = (
        f"import gymnasium; print(gymnasium.make('rlseq.envs:{IDS[kind]}', length=20).unwrapped.reset(seed=0)[0].shape)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(2,)\n", "")


def test_registering_loads_no_code_of_the_mazes():
    code = "import rlseq.envs, sys; print('rlseq.envs.t_maze' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_make_gives_it_as_a_vector():
    vector = envs.make(IDS["active"], 3, seed=0, length=5)
    assert vector.single_observation_space.shape == (2,)
    assert vector.reset()[0].shape == (3, 2)


def _pair(kind, mode, rows=64, length=(1, 6)):
    ours = gymnasium.make_vec(
        IDS[kind], num_envs=rows, vectorization_mode="vector_entry_point", length=length, autoreset_mode=mode.value
    )
    theirs = SyncVectorEnv([lambda: gymnasium.make(IDS[kind], length=length)] * rows, autoreset_mode=mode)
    return ours, theirs


def _assert_equal(ours, theirs):
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other)
    assert ours[-1] == theirs[-1] == {}


def _actions(rng, rows):
    """Mostly to the right, so that junctions are reached."""
    return np.where(rng.random(rows) < 0.7, RIGHT, rng.integers(0, 4, rows))


@pytest.mark.parametrize("kind", IDS)
def test_rows_play_what_single_environments_play_with_next_step_autoreset(kind):
    ours, theirs = _pair(kind, AutoresetMode.NEXT_STEP)
    assert ours.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    rng = np.random.default_rng(0)
    _assert_equal(ours.reset(seed=5), theirs.reset(seed=5))
    ends = rewards = 0
    for _ in range(200):
        action = _actions(rng, 64)
        mine = ours.step(action)
        _assert_equal(mine, theirs.step(action))
        ends, rewards = ends + (mine[2] | mine[3]).sum(), rewards + mine[1].sum()
    assert ends > 500
    assert rewards > 20
    _assert_equal(ours.reset(), theirs.reset())


@pytest.mark.parametrize("kind", IDS)
def test_rows_play_what_single_environments_play_with_masked_resets(kind):
    ours, theirs = _pair(kind, AutoresetMode.DISABLED)
    assert ours.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    rng = np.random.default_rng(1)
    _assert_equal(ours.reset(seed=list(range(100, 164))), theirs.reset(seed=list(range(100, 164))))
    resets = 0
    for step in range(200):
        action = _actions(rng, 64)
        mine = ours.step(action)
        _assert_equal(mine, theirs.step(action))
        mask = mine[2] | mine[3] | (rng.random(64) < 0.02)
        if mask.any():
            seed = [None if i % 3 else 1000 * step + i for i in range(64)] if step % 2 else None
            ours_options, theirs_options = {"reset_mask": mask}, {"reset_mask": mask.copy()}
            _assert_equal(ours.reset(seed=seed, options=ours_options), theirs.reset(seed=seed, options=theirs_options))
            assert "reset_mask" in ours_options, "the caller's dictionary stays as it is"
            resets += mask.sum()
    assert resets > 500


@pytest.mark.parametrize(
    "seeds", [np.arange(3, 7), [3, 4, 5, 6], [np.int64(3), 4, 5, 6], np.arange(3, 7, dtype=object)]
)
def test_seeds_of_rows_may_be_an_int_a_list_or_an_array(seeds):
    first, second = TMazeVectorEnv(4, length=(1, 10**6)), TMazeVectorEnv(4, length=(1, 10**6))
    first.reset(seed=3)
    second.reset(seed=seeds)
    assert np.array_equal(first._mazes.junction, second._mazes.junction)
    assert np.array_equal(first._mazes.cue, second._mazes.cue)


def test_the_largest_seeds_work_in_both():
    top = 2**64 - 1
    vector = TMazeVectorEnv(2, length=(1, 10**6))
    vector.reset(seed=[top, None])
    single = TMazeEnv(length=(1, 10**6))
    single.reset(seed=top)
    assert vector._mazes.junction[0] == single._mazes.junction[0]


def test_cues_and_lengths_are_uniform_and_streams_of_near_seeds_differ():
    n = 20_000
    vector = TMazeVectorEnv(n, length=(3, 7))
    drawn = []
    for seed in (0, None):
        vector.reset(seed=seed)
        drawn.append((vector._mazes.cue.copy(), vector._mazes.junction.copy()))
        cue, length = drawn[-1]
        assert set(np.unique(cue)) == {-1, 1}
        assert abs(cue.mean()) < 4 / np.sqrt(n)
        counts = np.unique(length, return_counts=True)
        assert counts[0].tolist() == [3, 4, 5, 6, 7]
        assert np.abs(counts[1] / n - 0.2).max() < 4 * np.sqrt(0.16 / n)
        assert abs(np.corrcoef(cue, length)[0, 1]) < 4 / np.sqrt(n)
    (first, _), (second, _) = drawn
    for shift in (0, 1, 2):  # the second episode of a seed is not the first one of a neighbour
        assert abs((second[: n - shift] * first[shift:]).mean()) < 4 / np.sqrt(n - shift)


def test_without_seeds_episodes_differ_from_run_to_run():
    lengths = [TMazeEnv(length=(1, 10**9)) for _ in range(2)]
    for env in lengths:
        env.reset()
    assert lengths[0]._mazes.junction[0] != lengths[1]._mazes.junction[0]
    vector = TMazeVectorEnv(3, length=(1, 10**9))
    vector.reset()
    assert len(set(vector._mazes.junction)) == 3


def test_an_ended_row_ignores_its_action_whatever_it_is():
    vector = TMazeVectorEnv(2, length=[1, 2])
    vector.reset(seed=0)
    while not (ended := np.logical_or(*vector.step(np.full(2, RIGHT))[2:4])).any():
        pass
    obs, reward, term, trunc, _ = vector.step(np.where(ended, 99, RIGHT))
    assert (np.abs(obs[ended, 1]) == 1).all()
    assert not reward[ended].any()
    assert not (term | trunc)[ended].any()


def test_a_corridor_of_a_million_steps_runs():
    # the whole way takes a minute: here its beginning and its end
    T = 1_000_000
    vector = gymnasium.make_vec(
        IDS["passive"], num_envs=256, vectorization_mode="vector_entry_point", length=T, render_mode="rgb_array"
    )
    cue = vector.reset(seed=0)[0][:, 1]
    right = np.full(256, RIGHT)
    for _ in range(500):
        obs, *_ = vector.step(right)
    assert not obs.any()
    vector._mazes.x += T - 502
    vector._mazes.t += T - 502
    assert not vector.step(right)[0].any()
    obs, reward, term, trunc, _ = vector.step(right)
    assert (obs == [1, 0]).all()
    assert not reward.any()
    assert not (term | trunc).any()
    turn = np.where(cue > 0, UP, DOWN)
    turn[128:] = UP + DOWN - turn[128:]
    obs, reward, term, trunc, _ = vector.step(turn)
    assert reward.tolist() == [1.0] * 128 + [0.0] * 128
    assert term.all()
    assert not trunc.any()


@pytest.mark.parametrize("kind", IDS)
def test_a_picture_is_small_and_shows_the_agent_move_and_turn(kind):
    env = gymnasium.make(IDS[kind], length=30, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert (first.shape, first.dtype) == ((80, 240, 3), np.uint8)
    assert env.metadata["render_fps"] > 0
    second = env.step(RIGHT)[0] is not None and env.render()
    assert not np.array_equal(first, second)


def test_the_picture_of_a_row_is_the_single_environments_to_the_last_step():
    vector = TMazeVectorEnv(2, length=3, render_mode="rgb_array")
    singles = [TMazeEnv(length=3, render_mode="rgb_array") for _ in range(2)]
    cues = vector.reset(seed=0)[0][:, 1]
    for number, single in enumerate(singles):
        single.reset(seed=number)
    for action in ([RIGHT] * 2, [RIGHT] * 2, [RIGHT] * 2, [_turn(cue) for cue in cues]):
        vector.step(np.array(action))
        for frame, single, move in zip(vector.render(), singles, action, strict=True):
            single.step(move)
            assert np.array_equal(frame, single.render())
    assert TMazeVectorEnv(2).render() is None
    assert TMazeEnv().render() is None


def _started(**arguments):
    vector = TMazeVectorEnv(3, **arguments)
    vector.reset(seed=0)
    return vector


def _started_single():
    env = TMazeEnv()
    env.reset(seed=0)
    return env


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TMazeEnv(length=0), ConfigError, "length must be .* got 0"),
        (lambda: TMazeEnv(length=True), ConfigError, "got True"),
        (lambda: TMazeEnv(length=2.0), ConfigError, "got 2.0"),
        (lambda: TMazeEnv(length=2**31), ConfigError, "got 2147483648"),
        (lambda: TMazeVectorEnv(length=(9, 3)), ConfigError, r"low <= high .* got \(9, 3\)"),
        (lambda: TMazeVectorEnv(length=(1, 2, 3)), ConfigError, r"got \(1, 2, 3\)"),
        (lambda: TMazeEnv("pasive"), UnknownNameError, "Did you mean 'passive'"),
        (lambda: TMazeEnv(render_mode="human"), UnknownNameError, "unknown render mode 'human'"),
        (lambda: TMazeVectorEnv(0), ConfigError, "num_envs must be >= 1, got 0"),
        (lambda: TMazeVectorEnv(max_episode_steps=0), ConfigError, "max_episode_steps must be >= 1, got 0"),
        (lambda: TMazeVectorEnv(autoreset_mode=AutoresetMode.SAME_STEP), UnknownNameError, "autoreset mode 'SameStep'"),
        (lambda: _started_single().step(4), SpaceError, "got 4"),
        (lambda: _started_single().step(0.0), SpaceError, "got 0.0"),
        (lambda: _started().step(np.array([0, 4, 0])), SpaceError, "got 4 in row 1"),
        (lambda: _started().step(np.array([0, 0, -1])), SpaceError, "got -1 in row 2"),
        (lambda: _started().step(np.zeros(2, int)), ShapeError, r"shape \(2,\)"),
        (lambda: _started().step(np.zeros(3)), ShapeError, "got float64"),
        (lambda: _started().reset(seed=-1), ConfigError, "got -1"),
        (lambda: _started().reset(seed=2**64 - 2), ConfigError, "for 3 rows"),
        (lambda: _started().reset(seed=[1, 2]), ShapeError, r"got shape \(2,\)"),
        (lambda: _started().reset(seed=[1, -2, None]), ConfigError, r"got \[1, -2, None\]"),
        (lambda: _started().reset(seed=[1, 2.5, None]), ConfigError, "or None"),
        (lambda: _started().reset(seed=[1, 2**64, None]), ConfigError, "or None"),
        (lambda: _started_single().reset(seed=2**64), ConfigError, "got 18446744073709551616"),
        (lambda: _started().reset(options={"reset_mask": [True] * 3}), ShapeError, "got list"),
        (lambda: _started().reset(options={"reset_mask": np.ones(3)}), ShapeError, "got float64"),
        (lambda: _started().reset(options={"reset_mask": np.zeros(3, bool)}), ConfigError, "got 0 of 3"),
        (lambda: TMazeVectorEnv(2).reset(options={"reset_mask": np.array([True, False])}), ConfigError, "got 1 of 2"),
        (lambda: t_maze.trajectories("passive", 3, "export", episodes=1), UnknownNameError, "Did you mean 'expert'"),
        (lambda: t_maze.trajectories("passive", 0, episodes=1), ConfigError, "got 0"),
        (lambda: t_maze.trajectories("passive", 3, episodes=0), ConfigError, "got 0 and 0"),
        (lambda: t_maze.trajectories("passive", 3, episodes=1, seed=-1), ConfigError, "got 1 and -1"),
        (lambda: t_maze.trajectories("passive", 3, "noisy", episodes=1, epsilon=1.5), ConfigError, "epsilon must"),
        (lambda: t_maze.trajectories("passive", 3, "noisy", episodes=1, turn_noise=-1), ConfigError, "turn_noise must"),
        (lambda: t_maze.random_score("lazy", 3), UnknownNameError, "kind of T-Maze 'lazy'"),
        (lambda: t_maze.random_score("active", 3, "log"), UnknownNameError, "Did you mean 'log-uniform'"),
        (lambda: TMazeEnv(distribution="normal"), UnknownNameError, "distribution of T-Maze's lengths 'normal'"),
        (lambda: t_maze.trajectories("passive", 3, episodes=1, distribution="x"), UnknownNameError, "lengths 'x'"),
        (lambda: TMazeEnv().step(0), ResetNeeded, "Call reset"),
        (lambda: TMazeVectorEnv(2).step(np.zeros(2, int)), ResetNeeded, "Call reset"),
        (lambda: TMazeEnv(render_mode="rgb_array").render(), ResetNeeded, "Call reset"),
    ],
)
def test_bad_input_is_one_line(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_bad_argument_through_make_is_one_line():
    with pytest.raises(ConfigError, match="length must be"):
        envs.make(IDS["passive"], length=0)


def test_a_step_after_the_end_needs_a_reset():
    env = TMazeEnv(length=1)
    env.reset(seed=0)
    env.step(RIGHT)
    env.step(UP)
    with pytest.raises(ResetNeeded):
        env.step(UP)
    vector = _started(length=1, autoreset_mode="Disabled")
    vector.step(np.full(3, RIGHT))
    vector.step(np.array([UP, UP, DOWN]))
    with pytest.raises(ResetNeeded, match="got 3 that have, row 0 first"):
        vector.step(np.full(3, RIGHT))


def test_a_lower_time_limit_truncates_earlier():
    vector = _started(length=5, max_episode_steps=2)
    assert not vector.step(np.full(3, RIGHT))[3].any()
    assert vector.step(np.full(3, RIGHT))[3].all()


def test_draws_are_splitmix64_and_stay_the_same_over_versions():
    streams = Streams(2)
    assert [hex(streams.draw(slice(None))[1]) for _ in range(2)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]
    vector = TMazeVectorEnv(8, length=(1, 100))
    vector.reset(seed=0)
    assert vector._mazes.cue.tolist() == [-1, 1, 1, -1, -1, -1, -1, -1]
    assert vector._mazes.junction.tolist() == [71, 95, 9, 60, 61, 11, 72, 65]
