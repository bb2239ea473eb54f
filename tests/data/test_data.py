"""`open_dataset` finds datasets by name, and the bundled one is what it says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import rlseq.data
from rlseq.data import bundled_names, known_datasets, open_dataset, summary
from rlseq.errors import DataError, UnknownNameError

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "halfcheetah-medium-replay"
FOLDER = Path(rlseq.data.__file__).parent / "bundled" / NAME


@pytest.fixture(scope="module")
def bundled():
    return open_dataset(f"bundled:{NAME}")


def test_an_unknown_scheme_gets_the_list():
    with pytest.raises(UnknownNameError, match="Did you mean 'minari'.*bundled, d4rl, minari"):
        open_dataset("minary:mujoco/hopper/medium-v0")


def test_an_unknown_name_gets_the_nearest_of_all_that_is_known():
    with pytest.raises(UnknownNameError, match=f"Did you mean 'bundled:{NAME}'"):
        open_dataset(f"bundle-{NAME}")
    with pytest.raises(UnknownNameError, match=f"needs its scheme: bundled:{NAME}"):
        open_dataset(NAME)
    with pytest.raises(UnknownNameError, match=f"Did you mean '{NAME}'"):
        open_dataset("bundled:halfcheeta-medium")
    assert {f"bundled:{NAME}", "d4rl:hopper-medium-v2"} <= set(known_datasets())


def test_a_path_that_is_not_there_is_one_line():
    with pytest.raises(DataError, match="no such file"):
        open_dataset("nowhere/set.hdf5")


def test_the_bundled_set_is_there_and_small(bundled):
    assert bundled_names() == [NAME]
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 6_000_000
    assert (len(bundled), bundled.steps) == (64, 64_000)
    assert (bundled.info.env_id, bundled.info.max_episode_steps) == ("HalfCheetah-v5", 1000)
    assert bundled.info.ref_max_score == pytest.approx(11498.88, abs=0.01)
    assert bundled.stats.return_max == pytest.approx(4222.97, abs=0.01)


def test_the_bundled_set_says_where_it_comes_from():
    facts = json.loads((FOLDER / "data/metadata.json").read_text())
    assert facts["licence"] == "MIT"
    assert all(facts[key] for key in ("origin", "how_made", "left_out_episodes", "env_spec"))


def test_the_bundled_episodes_are_those_of_the_full_set_bit_for_bit(bundled, shared_minari):
    full = open_dataset("minari:rlseq/halfcheetah/medium-replay-v0")
    left_out = json.loads((FOLDER / "data/metadata.json").read_text())["left_out_episodes"]
    kept = full.episodes(np.setdiff1d(np.arange(80), left_out))
    for name in ("obs", "action", "reward", "return_to_go", "offsets", "truncated"):
        assert np.array_equal(getattr(bundled, name), getattr(kept, name)), name
    assert abs(bundled.stats.return_mean - full.stats.return_mean) < 0.01 * full.stats.return_mean


def test_minari_itself_reads_the_bundled_set(bundled):
    import minari

    episodes = list(minari.MinariDataset(FOLDER / "data").iterate_episodes())
    assert len(episodes) == 64
    assert np.array_equal(episodes[-1].observations[:-1], bundled[-1].obs)


def test_the_script_makes_the_bundled_set_again(shared_minari, tmp_path):
    script = ROOT / "scripts/make_bundled_dataset.py"
    if not script.is_file():
        pytest.skip("needs the repository: scripts/ is not installed")
    spec = importlib.util.spec_from_file_location("make_bundled_dataset", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(shared_minari / "rlseq/halfcheetah/medium-replay-v0/data", tmp_path / "set/data")
    facts = [json.loads((folder / "metadata.json").read_text()) for folder in (FOLDER / "data", tmp_path / "set/data")]
    assert facts[0] | {"dataset_size": 0} == facts[1] | {"dataset_size": 0}
    with h5py.File(FOLDER / "data/main_data.hdf5") as ours, h5py.File(tmp_path / "set/data/main_data.hdf5") as new:
        for episode in ("episode_0", "episode_63"):
            assert dict(ours[episode].attrs) == dict(new[episode].attrs)
            assert np.array_equal(ours[episode]["observations"][()], new[episode]["observations"][()])
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["data"]


def test_summary_states_the_facts_as_json(bundled):
    facts = json.loads(json.dumps(summary(bundled)))
    assert (facts["episodes"], facts["steps"], facts["terminated"], facts["truncated"]) == (64, 64_000, 0, 64)
    assert (facts["obs_size"], facts["action_size"], facts["action_high"]) == (17, 6, [1.0] * 6)
    returns = bundled.returns
    assert facts["return_mean"] == pytest.approx(returns.mean())
    low, high = facts["ref_min_score"], facts["ref_max_score"]
    assert facts["normalized_score_mean"] == pytest.approx((returns.mean() - low) / (high - low))
    assert len(facts["obs"]) == 17
    assert facts["obs"][3] == {
        "min": bundled.obs[:, 3].min(),
        "mean": pytest.approx(bundled.obs[:, 3].mean(dtype=np.float64)),
        "std": pytest.approx(bundled.obs[:, 3].std(dtype=np.float64)),
        "max": bundled.obs[:, 3].max(),
    }


def test_summary_without_reference_scores_has_no_normalized_score(make_store):
    assert summary(make_store([2]))["normalized_score_mean"] is None


def test_importing_the_data_package_loads_no_heavy_library():
    heavy = {"rlseq.data": {"minari", "mujoco", "triton", "gymnasium"}, "rlseq.envs": {"minari", "mujoco", "popgym"}}
    for module, others in heavy.items():
        code = f"import sys, {module}; print(*{others} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "", module
