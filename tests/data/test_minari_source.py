"""Stage 1: Minari datasets become trajectories, without their final observations."""

from __future__ import annotations

import importlib.util
import json
import shutil

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from rlseq.data import open_dataset
from rlseq.data.minari_source import datasets_root, flat_rows, local_ids
from rlseq.errors import DataError, UnknownNameError

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))


def _stack(space, values):
    """Minari's layout: the batch axis is inside the nesting."""
    if isinstance(space, spaces.Dict):
        return {key: _stack(part, [value[key] for value in values]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_stack(part, [value[i] for value in values]) for i, part in enumerate(space))
    return values if isinstance(space, spaces.Text) else np.array(values)


def _create(root, dataset_id="test/tiny-v0", obs_space=BOX, action_space=ACTION, data_format="hdf5", **metadata):
    """A Minari dataset of episodes of 4 and 2 steps; returns its unstacked observations."""
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    data = root / dataset_id / "data"
    data.mkdir(parents=True)
    storage = MinariStorage.new(data, obs_space, action_space, data_format=data_format)
    observed, buffers = [], []
    for number, steps in enumerate((4, 2)):
        observed.append([obs_space.sample() for _ in range(steps + 1)])
        ends = np.arange(steps) == steps - 1
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=_stack(obs_space, observed[-1]),
                actions=_stack(action_space, [action_space.sample() for _ in range(steps)]),
                rewards=list(np.arange(steps) + 0.1),
                terminations=list(ends & (number == 0)),
                truncations=list(ends & (number == 1)),
            )
        )
    storage.update_metadata({"dataset_id": dataset_id, "minari_version": "0.5.4"})
    storage.update_episodes(buffers)
    path = data / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))
    return observed


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny(root):
    """Path of the HDF5 file of a plain dataset."""
    _create(root)
    return root / "test/tiny-v0/data/main_data.hdf5"


def test_the_final_observation_is_dropped_and_first_and_last_episode_are_there(root):
    observed = _create(root)
    store = open_dataset("minari:test/tiny-v0")
    assert store.lengths.tolist() == [4, 2]
    assert np.array_equal(store.obs, np.concatenate([np.array(o)[:-1] for o in observed]))
    assert store.reward.tolist() == [0.1, 1.1, 2.1, 3.1, 0.1, 1.1]
    assert store.terminated.tolist() == [True, False]
    assert store.truncated.tolist() == [False, True]


def test_no_real_episode_is_shifted_or_lost(shared_minari):
    store = open_dataset("minari:rlseq/hopper/medium-replay-v0")
    with h5py.File(shared_minari / "rlseq/hopper/medium-replay-v0/data/main_data.hdf5") as file:
        assert len(store) == len(file)
        for i in (0, 1, 380, 759, 760):
            raw = file[f"episode_{i}"]
            assert np.array_equal(store[i].obs, raw["observations"][:-1])
            assert np.array_equal(store[i].action, raw["actions"][()])
            assert np.array_equal(store[i].reward, raw["rewards"][()])
            assert store[i].terminated == raw["terminations"][-1]


def test_facts_come_from_the_metadata(shared_minari):
    info = open_dataset("minari:rlseq/halfcheetah/medium-v0").info
    assert (info.id, info.env_id) == ("minari:rlseq/halfcheetah/medium-v0", "HalfCheetah-v5")
    assert (info.max_episode_steps, info.obs_size, info.action_size) == (1000, 17, 6)
    assert (info.ref_min_score, info.ref_max_score) == (-288.73594290516763, 11498.880153523012)


def test_without_environment_or_scores_there_are_none(shared_minari):
    info = open_dataset("minari:rlseq/door/human-v0").info
    assert (info.env_id, info.max_episode_steps, info.ref_min_score, info.ref_max_score) == (None,) * 4


def test_the_evaluation_environment_comes_before_the_recorded_one(root):
    recorded = {"id": "Mine-v0", "max_episode_steps": 10, "kwargs": {"a": 1}}
    _create(root, env_spec=json.dumps(recorded))
    info = open_dataset("minari:test/tiny-v0").info
    assert (info.env_id, info.max_episode_steps, info.env_kwargs) == ("Mine-v0", 10, {"a": 1})
    evaluation = {"id": "Mine-v1", "max_episode_steps": 20, "kwargs": {"a": 2}}
    _create(root, "test/both-v0", env_spec=json.dumps(recorded), eval_env_spec=json.dumps(evaluation))
    info = open_dataset("minari:test/both-v0").info
    assert (info.env_id, info.max_episode_steps, info.env_kwargs) == ("Mine-v1", 20, {"a": 2})


def test_nested_observations_are_flattened_as_gymnasium_does(root):
    nested = spaces.Dict(
        {"z": BOX, "a": spaces.Tuple((spaces.Box(0, 1, (2, 2)), spaces.Box(0, 1, ()))), "m": spaces.Box(0, 1, (1,))}
    )
    observed = _create(root, obs_space=nested)
    store = open_dataset(root / "test/tiny-v0")
    expected = [spaces.flatten(nested, obs) for episode in observed for obs in episode[:-1]]
    assert np.array_equal(store.obs, np.array(expected, dtype=np.float32))
    assert store.info.obs_size == spaces.flatdim(nested) == 9


def test_flat_rows_keep_the_order_of_the_space_whatever_the_order_of_the_keys():
    space = spaces.Dict({"b": spaces.Box(0, 1, (1,)), "a": spaces.Box(0, 1, (1,))})
    value = {"b": np.array([[1.0]]), "a": np.array([[2.0]])}
    expected = spaces.flatten(space, {key: column[0] for key, column in value.items()})
    assert np.array_equal(flat_rows(space, value)[0], expected)
    assert np.array_equal(flat_rows(space, dict(reversed(value.items())))[0], expected)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow (pip install minari[arrow])")
def test_arrow_datasets_are_read(root):
    observed = _create(root, data_format="arrow")
    store = open_dataset("minari:test/tiny-v0")
    assert np.array_equal(store.obs, np.concatenate([np.array(o)[:-1] for o in observed]))


def test_a_format_that_cannot_be_read_is_one_line(tiny):
    _edit(tiny, data_format="papyrus")
    _expect("papyrus", str(tiny.parent))


def test_a_folder_with_and_without_data_opens(tiny):
    assert open_dataset(tiny.parent).steps == open_dataset(tiny.parent.parent).steps == 6


def test_discrete_actions_and_observations_are_rows_with_a_single_one(root):
    nested = spaces.Dict({"a": spaces.Discrete(3, start=-1), "b": spaces.MultiDiscrete([2, 4])})
    observed = _create(root, obs_space=nested, action_space=spaces.Discrete(5))
    store = open_dataset("minari:test/tiny-v0")
    expected = [spaces.flatten(nested, obs) for episode in observed for obs in episode[:-1]]
    assert np.array_equal(store.obs, np.array(expected, dtype=np.float32))
    assert store.info.discrete
    assert store.info.action_size == 5
    assert np.array_equal(store.action.sum(1), np.ones(6))
    assert set(np.unique(store.action)) == {0, 1}
    assert np.array_equal(np.stack([store.info.action_low, store.info.action_high]), [[0] * 5, [1] * 5])


def test_a_choice_outside_the_space_is_named_with_its_episode(root):
    _create(root, action_space=spaces.Discrete(5))
    with h5py.File(root / "test/tiny-v0/data/main_data.hdf5", "a") as file:
        file["episode_1"]["actions"][0] = 7
    _expect("episode_1", "outside Discrete(5")


@pytest.mark.parametrize(
    ("which", "space"),
    [
        ("obs_space", spaces.MultiBinary(3)),
        ("obs_space", spaces.Box(0, 255, (40, 40, 3), np.uint8)),
        ("obs_space", spaces.Dict({"a": BOX, "mission": spaces.Text(5)})),
        ("action_space", spaces.Discrete(3, start=1)),
        ("action_space", spaces.MultiDiscrete([2, 2])),
        ("action_space", spaces.Box(-1, 1, (2, 2))),
        ("action_space", spaces.Box(-1, np.inf, (2,))),
    ],
)
def test_other_spaces_are_refused(root, which, space):
    _create(root, **{which: space})
    _expect("must be", "minari:test/tiny-v0")


def _edit(tiny, **metadata):
    path = tiny.parent / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminations", "truncations"])
def test_a_missing_key_is_named_with_its_file_and_episode(tiny, key):
    with h5py.File(tiny, "a") as file:
        del file["episode_1"][key]
    _expect(str(tiny.parent), "episode_1", key)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminations", "truncations"])
def test_unequal_lengths_are_named(tiny, key):
    with h5py.File(tiny, "a") as file:
        dataset = file["episode_1"][key]
        dataset.resize((len(dataset) - 1, *dataset.shape[1:]))
    _expect(str(tiny.parent), "episode_1", key, "same length")


@pytest.mark.parametrize(("key", "name"), [("observations", "obs"), ("actions", "action"), ("rewards", "reward")])
def test_nan_is_named(tiny, key, name):
    with h5py.File(tiny, "a") as file:
        file["episode_0"][key][1] = np.nan
    _expect(str(tiny.parent), "episode_0", f"'{name}'", "finite")


def test_a_missing_episode_is_named(tiny):
    with h5py.File(tiny, "a") as file:
        del file["episode_1"]
    _expect(str(tiny.parent), "episode_1")


def test_an_empty_episode_is_named(tiny):
    with h5py.File(tiny, "a") as file:
        for key in ("observations", "actions", "rewards", "terminations", "truncations"):
            dataset = file["episode_1"][key]
            dataset.resize((int(key == "observations"), *dataset.shape[1:]))
    _expect("episode_1", "at least one step")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_one_line(tiny, part):
    whole = tiny.read_bytes()
    tiny.write_bytes(whole[: int(part * len(whole))])
    _expect(str(tiny.parent), "must be readable")


def test_damaged_metadata_is_one_line(tiny):
    path = tiny.parent / "metadata.json"
    path.write_text(path.read_text()[:100])
    _expect(str(tiny.parent), "metadata")


@pytest.mark.parametrize("key", ["data_format", "total_episodes", "observation_space"])
def test_metadata_without_a_key_is_one_line(tiny, key):
    path = tiny.parent / "metadata.json"
    facts = json.loads(path.read_text())
    del facts[key]
    path.write_text(json.dumps(facts))
    _expect(str(tiny.parent), "must be readable")


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"ref_min_score": 5, "ref_max_score": 5.0}, ("'ref_min_score' must be less than 'ref_max_score'",)),
        ({"ref_min_score": float("nan"), "ref_max_score": 5.0}, ("'ref_min_score' must be one finite number", "nan")),
        ({"ref_min_score": 0.0, "ref_max_score": [1.0, 2.0]}, ("'ref_max_score'", "shape (2,)")),
        ({"ref_min_score": 0.0, "ref_max_score": "5"}, ("'ref_max_score'", "type str")),
        ({"ref_min_score": False, "ref_max_score": 5.0}, ("'ref_min_score'", "type bool")),
        ({"ref_min_score": 0.0, "ref_max_score": 10**400}, ("'ref_max_score'", "type int")),
        ({"ref_min_score": 0.0}, ("together", "no 'ref_max_score'")),
        ({"ref_min_score": None, "ref_max_score": 5.0}, ("together", "no 'ref_min_score'")),
    ],
)
def test_scores_that_cannot_normalize_are_named_with_their_file(tiny, scores, words):
    _edit(tiny, **scores)
    _expect(str(tiny.parent / "metadata.json"), *words)


def test_scores_of_null_are_none(tiny):
    _edit(tiny, ref_min_score=None, ref_max_score=None)
    info = open_dataset("minari:test/tiny-v0").info
    assert (info.ref_min_score, info.ref_max_score) == (None, None)


def test_a_set_of_no_episodes_is_refused(tiny):
    _edit(tiny, total_episodes=0)
    _expect("at least one episode")


def test_a_missing_data_file_is_one_line(tiny):
    tiny.unlink()
    _expect(str(tiny.parent))


def test_a_folder_without_a_dataset_is_one_line(tmp_path):
    with pytest.raises(DataError, match="must hold a Minari dataset"):
        open_dataset(tmp_path)


def test_an_unknown_id_gets_the_nearest_the_list_and_how_to_download(tiny):
    with pytest.raises(UnknownNameError) as caught:
        open_dataset("minari:test/tinny-v0")
    message = str(caught.value)
    assert "Did you mean 'test/tiny-v0'?" in message
    assert "`minari download test/tinny-v0`" in message


def test_the_root_is_minaris_own(monkeypatch, tmp_path):
    from minari.storage.datasets_root_dir import get_dataset_path

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "somewhere"))
    assert datasets_root() == get_dataset_path()
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets_root() == get_dataset_path()


def test_local_ids_are_minaris(shared_minari):
    import minari

    assert local_ids() == sorted(minari.list_local_datasets())


def test_an_absent_root_has_no_ids(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "absent"))
    assert local_ids() == []
    assert not (tmp_path / "absent").exists()


def test_a_dataset_can_lie_on_a_read_only_disk(tiny):
    copy = tiny.parent.parent.with_name("frozen")
    shutil.copytree(tiny.parent.parent, copy)
    for path in (copy / "data/main_data.hdf5", copy / "data/metadata.json", copy / "data"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert open_dataset(copy).steps == 6
    finally:
        (copy / "data").chmod(0o755)


def _expect(*words):
    with pytest.raises(DataError) as caught:
        open_dataset("minari:test/tiny-v0")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
