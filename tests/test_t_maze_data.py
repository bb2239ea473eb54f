"""T-Maze's episodes become Minari datasets that Minari itself reads, whole or not at all."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from rlseq import envs, t_maze_data
from rlseq.data import minari_recorder, open_dataset
from rlseq.envs import t_maze
from rlseq.errors import ConfigError, DataError, RlseqError
from rlseq.evaluation import evaluate
from rlseq.types import Episode
from tests.toys import toy_agent


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.mark.parametrize("kind", t_maze.KINDS)
@pytest.mark.parametrize("policy", t_maze.POLICIES)
def test_minari_reads_the_episodes_as_they_were_played(root, kind, policy):
    import minari

    folder = t_maze_data.write_minari("t-maze/tiny-v0", kind=kind, length=(1, 9), policy=policy, episodes=20, seed=4)
    assert folder == root / "t-maze/tiny-v0"
    dataset = minari.load_dataset("t-maze/tiny-v0")
    expected = list(t_maze.trajectories(kind, (1, 9), policy, episodes=20, seed=4))
    assert dataset.total_episodes == 20
    assert dataset.total_steps == sum(len(one.reward) for one in expected)
    for read, one in zip(dataset.iterate_episodes(), expected, strict=True):
        assert np.array_equal(read.observations, one.obs)
        assert read.actions.shape == one.action.shape
        assert np.issubdtype(read.actions.dtype, np.integer)
        assert np.array_equal(read.actions, one.action)
        assert np.array_equal(read.rewards, one.reward)
        assert (read.terminations[-1], read.truncations[-1]) == (one.terminated, one.truncated)
        assert not (read.terminations | read.truncations)[:-1].any()
    assert [info["seed"] for info in dataset.storage.get_episode_metadata(range(20))] == list(range(4, 24))


def test_the_dataset_names_its_environment_and_its_scores(root):
    import minari

    t_maze_data.write_minari("tiny-v0", kind="active", length=(2, 5), episodes=3)
    dataset = minari.load_dataset("tiny-v0")
    for env in (dataset.recover_environment(), dataset.recover_environment(eval_env=True)):
        assert isinstance(env.unwrapped, t_maze.TMazeEnv)
        assert env.spec.id == "rlseq/TMazeActive-v0"
        assert env.spec.kwargs == {"kind": "active", "length": [2, 5]}
        assert env.spec.max_episode_steps == 8
        env.reset(seed=0)
    metadata = dataset.storage.metadata
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (t_maze.random_score("active", (2, 5)), 1.0)
    assert minari.get_normalized_score(dataset, np.ones(1)).tolist() == [1.0]
    assert "corridors of 2 to 5 cells" in metadata["description"]
    vector = gymnasium.make_vec(dataset.spec.env_spec, num_envs=4, vectorization_mode="vector_entry_point")
    assert vector.reset(seed=0)[0].shape == (4, 2)


def test_a_dataset_of_one_length_has_an_int_in_its_spec():
    import minari

    t_maze_data.write_minari("a/b/one-v1", kind="passive", length=6, policy="noisy", episodes=2, epsilon=0.1)
    dataset = minari.load_dataset("a/b/one-v1")
    assert dataset.spec.env_spec.kwargs == {"kind": "passive", "length": 6}
    assert dataset.storage.metadata["algorithm_name"] == ("t_maze.trajectories: noisy (epsilon 0.1, turn noise 0.5)")


def test_a_dataset_of_log_uniform_lengths_says_so():
    import minari

    t_maze_data.write_minari("log-v0", kind="passive", length=(1, 50), episodes=30, distribution="log-uniform")
    dataset = minari.load_dataset("log-v0")
    assert dataset.spec.env_spec.kwargs == {"kind": "passive", "length": [1, 50], "distribution": "log-uniform"}
    expected = list(t_maze.trajectories("passive", (1, 50), episodes=30, distribution="log-uniform"))
    assert [len(read) for read in dataset.iterate_episodes()] == [len(one.reward) for one in expected]
    assert dataset.storage.metadata["ref_min_score"] == t_maze.random_score("passive", (1, 50), "log-uniform")
    assert "corridors of 1 to 50 cells, log-uniform" in dataset.storage.metadata["description"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "lazy"}, "kind of T-Maze 'lazy'"),
        ({"length": 0}, "length must be"),
        ({"length": (3, 2)}, r"got \(3, 2\)"),
        ({"policy": "export"}, "Did you mean 'expert'"),
        ({"episodes": 0}, "episodes must be >= 1"),
        ({"distribution": "normal"}, "lengths 'normal'"),
        ({"dataset_id": "no version"}, "out must be minari:NAMESPACE/NAME-vN"),
        ({"dataset_id": "../up-v0"}, "out must be minari:NAMESPACE/NAME-vN"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(root, changes, words):
    arguments = {"dataset_id": "tiny-v0", "kind": "passive", "length": 3, "episodes": 2} | changes
    with pytest.raises(RlseqError, match=words) as caught:
        t_maze_data.write_minari(arguments.pop("dataset_id"), **arguments)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_the_native_mazes_are_evaluated_on_the_queue_of_seeds(root):
    names = ("rlseq/TMazePassive-v0", "CartPole-v1", "No-v0", "no:No-v0")
    assert [envs.takes_autoreset_mode(name) for name in names] == [True, False, False, False]
    t_maze_data.write_minari("tiny-v0", kind="passive", length=3, episodes=4)
    agent = toy_agent("hawk-joint", open_dataset("minari:tiny-v0"), depth=1)
    native, sync = (evaluate(agent, episodes=7, seed=5, num_envs=3, vectorization=way) for way in ("native", "sync"))
    assert native.seeds == sync.seeds == list(range(5, 12))
    assert (native.returns, native.lengths) == (sync.returns, sync.lengths)


def test_a_dataset_that_exists_stays_as_it_is(root):
    t_maze_data.write_minari("tiny-v0", kind="passive", length=3, episodes=2)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(ConfigError, match="minari:tiny-v0 must not exist yet"):
        t_maze_data.write_minari("tiny-v0", kind="passive", length=3, episodes=2)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def _episode(steps=2, **changes):
    arrays = {"obs": np.zeros((steps + 1, 2), np.float32), "action": np.zeros(steps, int), "reward": np.zeros(steps)}
    return Episode(**{**arrays, "terminated": True, "truncated": False, **changes})


def _interrupted():
    yield _episode()
    raise KeyboardInterrupt("by the user")


@pytest.mark.parametrize(
    ("episodes", "error", "words"),
    [
        ([], DataError, "must have an episode"),
        ([_episode(), _episode(action=np.zeros(3, int))], DataError, "episode 1 .* got 2, 3 and 3"),
        ([_episode(obs=np.zeros((2, 2), np.float32))], DataError, "got 2, 2 and 2"),
        ([_episode(steps=0)], DataError, "T >= 1"),
        (_interrupted(), KeyboardInterrupt, "by the user"),
    ],
)
def test_a_failure_leaves_nothing_behind(root, episodes, error, words):
    spec = gymnasium.spec("rlseq/TMazePassive-v0")
    with pytest.raises(error, match=words):
        minari_recorder.write("minari:space/tiny-v0", episodes, spec, algorithm_name="none", description="none")
    assert not list(root.glob("*"))


def test_scores_come_in_pairs():
    spec = gymnasium.spec("rlseq/TMazePassive-v0")
    with pytest.raises(ConfigError, match="two or none, got None and 1.0"):
        minari_recorder.write("minari:t-v0", [_episode()], spec, algorithm_name="x", description="x", ref_max_score=1.0)
