"""Stage 1: D4RL's flat files and dictionaries become trajectories."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlseq.data import from_dict, open_dataset, reference_scores
from rlseq.data._d4rl_table import TABLE
from rlseq.data.d4rl_source import cache_folder, episode_ends
from rlseq.errors import DataError, UnknownNameError


def test_episodes_end_at_terminals_and_timeouts_and_the_last_unfinished_one_is_kept(d4rl_arrays):
    store = from_dict(d4rl_arrays)
    assert store.lengths.tolist() == [4, 3, 5]
    assert store.terminated.tolist() == [True, False, False]
    assert store.truncated.tolist() == [False, True, True]
    assert np.array_equal(store.obs, d4rl_arrays["observations"])
    assert np.array_equal(store.action, d4rl_arrays["actions"])
    assert np.array_equal(store.reward, d4rl_arrays["rewards"].astype(np.float64))


def test_a_final_row_that_ends_its_episode_makes_no_empty_one(d4rl_arrays):
    d4rl_arrays["terminals"][11] = True
    store = from_dict(d4rl_arrays)
    assert store.lengths.tolist() == [4, 3, 5]
    assert store.truncated.tolist() == [False, True, False]


def test_columns_of_one_and_float64_and_integer_flags_are_taken(d4rl_arrays):
    plain = from_dict(d4rl_arrays)
    changed = {key: value.astype(np.float64) for key, value in d4rl_arrays.items()}
    for key in ("rewards", "terminals", "timeouts"):
        changed[key] = changed[key][:, None]
    store = from_dict(changed | {"next_observations": np.zeros((2, 2)), "infos/qpos": np.full(3, np.nan)})
    assert store.obs.dtype == np.float32
    assert np.array_equal(store.obs, plain.obs)
    assert np.array_equal(store.reward, plain.reward)
    assert np.array_equal(store.offsets, plain.offsets)


def test_without_timeouts_the_step_count_splits(d4rl_arrays):
    del d4rl_arrays["timeouts"]
    arrays = {key: np.concatenate([value] * 200) for key, value in d4rl_arrays.items()}
    arrays["terminals"][:] = False
    arrays["terminals"][1499] = True
    store = from_dict(arrays, "hopper-medium-v0")
    assert store.lengths.tolist() == [1000, 500, 900]
    assert store.terminated.tolist() == [False, True, False]
    assert store.truncated.tolist() == [True, False, True]


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 9) | st.none(), st.randoms(use_true_random=False)
)
def test_the_split_equals_a_loop_over_steps(terminals, max_steps, random):
    timeouts = [random.random() < 0.1 for _ in terminals] if random.random() < 0.5 else None
    expected, step = [], 0
    for row, terminal in enumerate(terminals):
        step += 1
        ended = terminal or (timeouts[row] if timeouts else step == max_steps)
        if ended or row == len(terminals) - 1:
            expected.append(row)
        step = 0 if ended else step
    found = episode_ends(np.array(terminals), np.array(timeouts) if timeouts else None, max_steps)
    assert found.tolist() == expected


def test_the_d4rl_and_the_minari_form_of_one_dataset_give_equal_trajectories(shared_data, shared_minari):
    flat = open_dataset(f"d4rl:{shared_data}/d4rl/halfcheetah_medium_replay-v0.hdf5")
    nested = open_dataset("minari:rlseq/halfcheetah/medium-replay-v0")
    for name in ("obs", "action", "offsets", "terminated", "truncated", "timestep"):
        assert np.array_equal(getattr(flat, name), getattr(nested, name)), name
    assert np.array_equal(flat.reward, nested.reward.astype(np.float32))
    # float32 rewards: 1000 of them move a return by less than 1000 half units in the last place.
    assert np.abs(flat.return_to_go - nested.return_to_go).max() < 1e-3
    for name in ("env_id", "max_episode_steps", "ref_min_score", "ref_max_score", "obs_size", "action_size"):
        assert getattr(flat.info, name) == getattr(nested.info, name), name


def test_a_version_2_file_with_every_field_is_read(shared_data):
    store = open_dataset(shared_data / "d4rl/hopper_medium_replay-v0.hdf5")
    assert (len(store), store.steps, int(store.terminated.sum())) == (761, 94846, 761)
    assert store.info.env_id == "Hopper-v5"
    assert (store.info.ref_min_score, store.info.ref_max_score) == (16.80175094394489, 3187.1181406517717)


def test_a_file_that_names_no_scores_gets_none_even_if_its_name_is_like_a_d4rl_id(shared_data):
    info = open_dataset(shared_data / "d4rl/door-human-v0.hdf5").info
    assert (info.env_id, info.ref_min_score, info.ref_max_score) == (None, None, None)


def test_a_d4rl_id_is_read_from_the_cache_with_its_environment_and_scores(d4rl_arrays, write_d4rl, monkeypatch):
    path = write_d4rl(d4rl_arrays, "walker2d_medium_expert-v2.hdf5")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(path.parent))
    assert cache_folder() == path.parent
    info = open_dataset("d4rl:walker2d-medium-expert-v2").info
    assert (info.id, info.env_id) == ("d4rl:walker2d-medium-expert-v2", "Walker2d-v5")
    assert info.env_kwargs == {"xml_file": "walker2d.xml"}
    assert (info.ref_min_score, info.ref_max_score, info.max_episode_steps) == (1.629008, 4592.3, 1000)


def test_a_files_own_scores_come_before_the_table(d4rl_arrays, write_d4rl, monkeypatch):
    own = {"metadata/ref_min_score": 1.0, "metadata/ref_max_score": 2.0, "metadata/env": "Mine-v0"}
    path = write_d4rl(d4rl_arrays | own, "hopper_medium-v2.hdf5")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(path.parent))
    info = open_dataset("d4rl:hopper-medium-v2").info
    assert (info.ref_min_score, info.ref_max_score, info.env_id, info.env_kwargs) == (1.0, 2.0, "Mine-v0", {})


def test_the_cache_is_d4rls_own_by_default(monkeypatch):
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    assert cache_folder().parts[-2:] == (".d4rl", "datasets")


def test_an_unknown_d4rl_id_gets_the_nearest_and_the_list():
    with pytest.raises(UnknownNameError, match="Did you mean 'hopper-medium-v2'.*antmaze-umaze-v2"):
        open_dataset("d4rl:hoper-medium-v2")


@pytest.mark.parametrize(
    ("dataset_id", "ending"),
    [
        ("hopper-medium-expert-v2", "gym_mujoco_v2/hopper_medium_expert-v2.hdf5"),
        ("ant-full-replay-v1", "gym_mujoco_v1/ant_full_replay-v1.hdf5"),
        ("walker2d-medium-replay-v0", "gym_mujoco/walker_mixed.hdf5"),
        ("pen-cloned-v0", "hand_dapg/pen-demos-v0-bc-combined.hdf5"),
        ("door-human-v1", "hand_dapg_v1/door-human-v1.hdf5"),
        ("maze2d-open-v0", "maze2d/maze2d-open-sparse.hdf5"),
        ("maze2d-large-dense-v1", "maze2d/maze2d-large-dense-v1.hdf5"),
        (
            "antmaze-large-play-v2",
            "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed",
        ),
        ("kitchen-mixed-v0", "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5"),
    ],
)
def test_addresses_are_d4rls(dataset_id, ending):
    url = TABLE[dataset_id].url
    assert url.startswith("http://rail.eecs.berkeley.edu/datasets/offline_rl/")
    assert ending in url


def test_no_two_ids_share_a_file():
    assert len({entry.file_name for entry in TABLE.values()}) == len(TABLE)


def test_reference_scores_are_for_d4rl_ids_alone():
    assert reference_scores("halfcheetah-medium-v2") == (-280.178953, 12135.0)
    assert reference_scores("d4rl:maze2d-umaze-dense-v1") == (68.537689, 193.66285642381482)
    assert reference_scores("antmaze-umaze-v0") == (0.0, 1.0)
    assert reference_scores("mujoco/halfcheetah/medium-v0") is None
    assert reference_scores("halfcheetah") is None


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_key_is_named(d4rl_arrays, write_d4rl, key):
    del d4rl_arrays[key]
    path = write_d4rl(d4rl_arrays)
    _expect(path, str(path), f"got no {key}")


def test_a_group_in_place_of_an_array_counts_as_missing(d4rl_arrays, write_d4rl):
    array = d4rl_arrays.pop("actions")
    _expect(write_d4rl(d4rl_arrays | {"actions/left": array}), "got no actions")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("observations", np.zeros(12), ("'observations'", "(12,)")),
        ("observations", np.zeros((12, 2, 2)), ("'observations'", "(12, 2, 2)")),
        ("rewards", np.zeros((12, 2)), ("'rewards'", "(12, 2)")),
        ("rewards", np.float32(1), ("'rewards'", "()")),
        ("terminals", np.zeros((12, 1, 1)), ("'terminals'", "(12, 1, 1)")),
        ("observations", np.full((12, 2), np.nan), ("'observations'", "finite", "(0, 0)")),
        ("actions", np.full((12, 2), np.inf), ("'actions'", "finite")),
        ("rewards", np.full(12, -np.inf), ("'rewards'", "finite")),
        ("terminals", np.full(12, np.nan), ("'terminals'", "finite")),
        ("actions", np.zeros((11, 2)), ("same length", "actions 11", "observations 12")),
        ("timeouts", np.zeros(13), ("same length", "timeouts 13")),
        ("actions", np.full((12, 2), b"left"), ("'actions'", "real numbers")),
    ],
)
def test_a_bad_array_is_named_with_its_file(d4rl_arrays, write_d4rl, key, value, words):
    path = write_d4rl(d4rl_arrays | {key: value})
    _expect(path, str(path), *words)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (5.0, 5.0, ("'ref_min_score' must be less than 'ref_max_score'", "5.0 and 5.0")),
        (5.0, 4.0, ("must be less",)),
        (np.nan, 4.0, ("'ref_min_score' must be one finite number", "nan")),
        (1, -np.inf, ("'ref_max_score'", "-inf")),
        (np.zeros(3), 4.0, ("'ref_min_score'", "shape (3,)")),
        (0.0, "4", ("'ref_max_score'", "bytes")),
        (0.0, h5py.Empty("f"), ("'ref_max_score'", "Empty")),
        (None, 4.0, ("together", "no 'ref_min_score'")),
        (0.0, None, ("together", "no 'ref_max_score'")),
    ],
)
def test_scores_that_cannot_normalize_are_named_with_their_file(d4rl_arrays, write_d4rl, low, high, words):
    scores = {"metadata/ref_min_score": low, "metadata/ref_max_score": high}
    path = write_d4rl(d4rl_arrays | {key: value for key, value in scores.items() if value is not None})
    _expect(path, str(path), *words)


def test_a_group_in_place_of_a_score_is_one_line(d4rl_arrays, write_d4rl):
    path = write_d4rl(d4rl_arrays | {"metadata/ref_min_score/deep": 0.0})
    _expect(path, str(path))


def test_integer_scores_are_taken(d4rl_arrays, write_d4rl):
    info = open_dataset(write_d4rl(d4rl_arrays | {"metadata/ref_min_score": 0, "metadata/ref_max_score": 4})).info
    assert (info.ref_min_score, info.ref_max_score) == (0.0, 4.0)
    assert info.normalized_score(np.array([0.0, 1.0, 8.0])).tolist() == [0.0, 0.25, 2.0]


def test_no_step_at_all_is_refused(d4rl_arrays, write_d4rl):
    _expect(write_d4rl({key: value[:0] for key, value in d4rl_arrays.items()}), "at least one step")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_clear_line(d4rl_arrays, write_d4rl, part):
    path = write_d4rl({key: np.concatenate([value] * 50) for key, value in d4rl_arrays.items()})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    _expect(path, str(path), "whole HDF5 file")


def test_a_damaged_chunk_is_one_clear_line(d4rl_arrays, tmp_path):
    path = tmp_path / "damaged.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in d4rl_arrays.items():
            file.create_dataset(key, data=value, compression="gzip")
        chunk = file["actions"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    _expect(path, str(path), "whole HDF5 file")


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path):
    _expect(tmp_path / "none.hdf5", "none.hdf5", "no such file")


def _expect(path, *words):
    with pytest.raises(DataError) as caught:
        open_dataset(f"d4rl:{path}")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
