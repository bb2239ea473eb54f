"""Environments are made flat, quiet, seeded, and held against a dataset."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import warnings
from contextlib import closing
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rlseq import envs
from rlseq.data import open_dataset
from rlseq.envs._quiet import _pass_on
from rlseq.errors import ConfigError, SpaceError, UnknownNameError
from rlseq.types import DatasetInfo
from tests.vector_toys import DRAWING, HEIGHT, RAGGED, WIDTH

NESTED = spaces.Dict({"position": spaces.Box(-1, 1, (2, 2)), "goal": spaces.Tuple((spaces.Box(-1, 1, (1,)),) * 2)})


class _Nested(gymnasium.Env):
    observation_space = NESTED
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, steps=3):
        self.steps = steps

    def _observe(self):
        return {"position": np.full((2, 2), 0.5, np.float32), "goal": (np.zeros(1, np.float32), np.ones(1, np.float32))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.done = 0
        return self._observe(), {}

    def step(self, action):
        self.done += 1
        return self._observe(), 1.0, self.done == self.steps, False, {}


@pytest.fixture
def nested_id():
    gymnasium.register("rlseq-test/Nested-v0", _Nested)
    yield "rlseq-test/Nested-v0"
    del gymnasium.registry["rlseq-test/Nested-v0"]


def _info(**changes):
    info = DatasetInfo("test", "HalfCheetah-v5", 17, -np.ones(6), np.ones(6), 1000, None, None)
    return replace(info, **changes)


def test_make_gives_a_vector_with_next_step_autoreset():
    vector = envs.make("HalfCheetah-v5", 3, seed=0)
    assert vector.num_envs == 3
    assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    obs, _ = vector.reset()
    assert obs.shape == (3, 17)
    vector.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("mode", [None, "Disabled", AutoresetMode.SAME_STEP])
def test_sync_and_async_vectors_reset_as_asked(vectorization, mode):
    with closing(envs.make(RAGGED, 2, vectorization=vectorization, autoreset_mode=mode)) as vector:
        asked = AutoresetMode.NEXT_STEP if mode is None else AutoresetMode(mode)
        assert vector.metadata["autoreset_mode"] == asked
        first, _ = vector.reset(seed=[3, 4])
        vector.step(np.zeros((2, 2), np.float32))
        again, _ = vector.reset(seed=[3, 4], options={"reset_mask": np.array([False, True])})
        assert np.array_equal(first[1], again[1])
        assert not np.array_equal(first[0], again[0])


def test_a_native_vector_is_gymnasiums_own_and_resets_in_its_own_way():
    with closing(envs.make("CartPole-v1", 3, seed=1, vectorization="native")) as vector:
        assert type(vector.unwrapped).__name__ == "CartPoleVectorEnv"
        assert vector.reset()[0].shape == (3, 4)
    with pytest.raises(ConfigError, match="native vector of 'CartPole-v1' must reset as asked, Disabled, got NextStep"):
        envs.make("CartPole-v1", 3, vectorization="native", autoreset_mode="Disabled")
    envs.make(RAGGED, 3, vectorization="native", autoreset_mode=AutoresetMode.DISABLED).close()


def test_columns_of_a_native_vector_are_dropped_and_single_rows_still_reset():
    with closing(envs.make(RAGGED, 3, vectorization="native", dropped_obs=[1])) as vector:
        obs, _ = vector.reset(seed=[1, 2, 3])
        assert obs.shape == vector.observation_space.shape == (3, 2)
        assert vector.single_observation_space.shape == (2,)
        vector.step(np.zeros((3, 2), np.float32))
        again, _ = vector.reset(seed=[1, 2, 3], options={"reset_mask": np.array([True, False, False])})
        assert np.array_equal(again[0], obs[0])
        assert not np.array_equal(again[1], obs[1])


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "gymnasium.envs:HalfCheetah-v5"])
def test_an_environment_without_a_native_vector_says_so(env_id):
    with pytest.raises(
        ConfigError, match=r"must have a vector_entry_point .*got none\. Give vectorization sync or async"
    ):
        envs.make(env_id, 2, vectorization="native")


def test_unknown_kinds_get_the_list():
    with pytest.raises(UnknownNameError, match="Known: async, native, sync"):
        envs.make(RAGGED, vectorization="asink")
    with pytest.raises(UnknownNameError, match="Known: Disabled, NextStep, SameStep"):
        envs.make(RAGGED, autoreset_mode="never")


def test_workers_end_when_what_follows_fails():
    with pytest.raises(SpaceError):
        envs.make_for(_info(env_id=RAGGED), 3, vectorization="async")
    assert not multiprocessing.active_children()


def test_workers_end_when_one_of_them_cannot_start(monkeypatch):
    main_process, make = os.getpid(), gymnasium.make

    def fails_in_workers(*args, **kwargs):
        if os.getpid() != main_process:
            os._exit(1)
        return make(*args, **kwargs)

    monkeypatch.setattr(gymnasium, "make", fails_in_workers)
    with pytest.raises(ConfigError):
        envs.make(RAGGED, 3, vectorization="async")
    assert not multiprocessing.active_children()


def test_workers_end_when_one_of_them_dies_or_a_call_was_interrupted():
    for trouble in ("dies", "interrupted"):
        vector = envs.make(RAGGED, 3, vectorization="async")
        vector.reset(seed=0)
        vector.step_async(np.zeros((3, 2), np.float32))
        vector.parent_pipes[0].recv()  # its answer will not come again
        if trouble == "dies":
            vector.processes[1].kill()
            vector.processes[1].join()
        vector.close()
        assert not multiprocessing.active_children()


def test_pictures_are_tried_before_they_are_promised():
    env = envs.make_rendering(DRAWING)
    env.reset(seed=0)
    assert env.render().shape == (HEIGHT, WIDTH, 3)
    env.close()
    with pytest.raises(ConfigError, match=r"'rlseq-tests/Ragged-v0' must draw .*got .*render_mode.*MUJOCO_GL"):
        envs.make_rendering(RAGGED)


def test_mujoco_without_opengl_is_one_line_that_names_the_variable(tmp_path):
    code = """
from rlseq import envs, errors
try:
    envs.make_rendering("HalfCheetah-v5")
except errors.ConfigError as error:
    print(error)
"""
    environment = {**os.environ, "MUJOCO_GL": "nothing"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert "MUJOCO_GL to egl or osmesa" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_start_and_rows_differ():
    first, second, other = (envs.make("Hopper-v5", 2, seed=seed).reset()[0] for seed in (4, 4, 5))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_nested_observations_are_flattened_as_gymnasium_does(nested_id):
    vector = envs.make(nested_id, 2, steps=5)
    obs, _ = vector.reset(seed=0)
    expected = spaces.flatten(NESTED, _Nested()._observe())
    assert np.array_equal(obs, np.stack([expected] * 2))
    ended = [vector.step(np.zeros((2, 1)))[2].any() for _ in range(5)]
    assert ended == [False] * 4 + [True], "keyword arguments arrive"


def test_dropped_columns_are_those_that_the_dataset_drops():
    store = open_dataset("bundled:halfcheetah-medium-replay").drop_obs([0, 5, 16])
    vector = envs.make_for(store.info, 2, seed=0)
    assert vector.single_observation_space.shape == (14,)
    full = envs.make("HalfCheetah-v5", 2).reset(seed=1)[0]
    assert np.array_equal(vector.reset(seed=1)[0], np.delete(full, [0, 5, 16], axis=1))


def test_a_dataset_fits_its_environment():
    store = open_dataset("bundled:halfcheetah-medium-replay")
    vector = envs.make_for(store.info, 2, seed=0)
    envs.check_spaces(vector, store.info)
    envs.check_spaces(vector.envs[0], store.info)


def test_the_model_of_a_d4rl_walker_is_the_old_one():
    def friction(**options):
        model = envs.make("Walker2d-v5", **options).envs[0].unwrapped.model
        return model.geom("foot_geom").friction[0], model.geom("foot_left_geom").friction[0]

    assert friction() == (1.9, 1.9)
    assert friction(xml_file="walker2d.xml") == (0.9, 1.9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs_size": 11}, ("observations: dataset 11 numbers", "17")),
        ({"action_low": -np.ones(3), "action_high": np.ones(3)}, ("actions: dataset 3 numbers",)),
        ({"action_high": np.full(6, 0.4)}, ("action high: dataset [0.4",)),
        ({"action_low": np.full(6, -2.0)}, ("action low: dataset [-2.0",)),
        ({"obs_size": 1, "action_low": np.zeros(1), "action_high": np.ones(1)}, ("observations:", "actions:")),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(changes, words):
    with pytest.raises(SpaceError) as caught:
        envs.make_for(_info(**changes))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert "HalfCheetah-v5" not in message, "no advice to evaluate in what does not fit"


def test_an_environment_of_discrete_actions_does_not_fit():
    with pytest.raises(SpaceError, match="Discrete"):
        envs.check_spaces(envs.make("CartPole-v1"), _info(obs_size=4))


@pytest.mark.parametrize("env_id", ["HalfChetah-v5", "HalfCheetah-v99", "nowhere/HalfCheetah-v5"])
def test_an_unknown_environment_gets_the_nearest_name(env_id):
    with pytest.raises(UnknownNameError, match=r"unknown environment.*Did you mean 'HalfCheetah-v\d'.*Hopper-v5"):
        envs.make(env_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda: envs.make("no_such_module:Env-v0"),
        lambda: envs.make("HalfCheetah-v5", wings=2),
        lambda: envs.make("HalfCheetah-v5", 0),
        lambda: envs.make("HalfCheetah-v5", dropped_obs=[17]),
        lambda: envs.make("HalfCheetah-v5", xml_file="nofile.xml"),
        lambda: envs.make("HalfCheetah-v5", xml_file=__file__),
        lambda: envs.make_for(_info(env_kwargs={"xml_file": "nofile.xml"})),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_dataset_without_an_environment_says_which_options_name_one():
    with pytest.raises(ConfigError, match=r"--eval\.env ID .*--env ID .*--eval\.episodes 0 --eval\.during 0"):
        envs.make_for(_info(env_id=None))


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match=r"{'xml_file': 'nofile.xml'} must .*does not exist\. Check its arguments"):
        envs.make("HalfCheetah-v5", xml_file="nofile.xml")


def test_an_old_version_that_cannot_be_made_is_one_line_and_no_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(
            ConfigError, match=r"'HalfCheetah-v2' must .*Its newest version is HalfCheetah-v5\."
        ) as error:
            envs.make("HalfCheetah-v2")
    assert not caught
    assert "\n" not in str(error.value)


def test_an_old_version_that_can_be_made_is_told():
    with pytest.warns(DeprecationWarning, match="CartPole-v0 is out of date"):
        envs.make("CartPole-v0").close()


def test_other_warnings_of_an_environment_that_fails_are_told():
    with pytest.warns(UserWarning, match="render_mode='x'"), pytest.raises(ConfigError):
        envs.make("HalfCheetah-v5", render_mode="x", xml_file="nofile.xml")


_CODE = """
import os, sys, warnings
warnings.simplefilter("error")
from rlseq import envs
for name, vectorization in (
    ("HalfCheetah-v5", "sync"), ("Hopper-v5", "sync"), ("Walker2d-v5", "sync"), ("HalfCheetah-v5", "async")
):
    vector = envs.make(name, 2, seed=0, vectorization=vectorization)
    vector.reset()
    for _ in range(3):
        vector.step(vector.action_space.sample())
    vector.close()
print(os.listdir("."))
"""


def test_mujoco_neither_prints_nor_leaves_a_file(tmp_path):
    done = subprocess.run([sys.executable, "-c", _CODE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_mujoco_does_print_and_write_without_it(tmp_path):
    code = "import gymnasium; gymnasium.make('HalfCheetah-v5')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    if not (done.stdout + done.stderr) and not list(tmp_path.iterdir()):
        pytest.skip("this MuJoCo has nothing to say about HalfCheetah-v5, so the quiet is not tested")


def test_other_warnings_of_mujoco_pass_on_and_never_raise_into_its_c_code(capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _pass_on("compiler attribute 'x' is deprecated and will be removed")
        _pass_on("Nan, Inf or huge value in QACC at DOF 0.")
    assert [str(one.message) for one in caught] == ["MuJoCo: Nan, Inf or huge value in QACC at DOF 0."]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _pass_on("Nan, Inf or huge value in QACC at DOF 0.")
    assert "huge value" in capsys.readouterr().err


def test_a_real_warning_of_the_simulation_reaches_the_user():
    env = envs.make("HalfCheetah-v5").envs[0]
    env.reset(seed=0)
    data = env.unwrapped.data
    data.qvel[:] = 1e30
    with pytest.warns(RuntimeWarning, match="MuJoCo: .*huge value"):
        env.unwrapped.do_simulation(np.zeros(6), 1)


def test_a_handler_that_is_already_set_stays():
    import mujoco

    before = mujoco.get_mju_user_warning()
    heard = []
    try:
        mujoco.set_mju_user_warning(heard.append)
        envs.make("HalfCheetah-v5").close()
        assert mujoco.get_mju_user_warning() is not _pass_on
    finally:
        mujoco.set_mju_user_warning(before)


class _Coded(_Nested):
    """Observations are codes; the first is the number of steps taken."""

    def __init__(self, space=None):
        super().__init__()
        self.observation_space = space

    def _observe(self):
        return self.observation_space.dtype.type(self.done) if self._is_one() else np.array([[self.done, 1]])

    def _is_one(self):
        return isinstance(self.observation_space, spaces.Discrete)


@pytest.fixture
def coded_id():
    gymnasium.register("rlseq-test/Coded-v0", _Coded)
    yield "rlseq-test/Coded-v0"
    del gymnasium.registry["rlseq-test/Coded-v0"]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Discrete(4), [[1, 0, 0, 0], [0, 1, 0, 0]]),
        (spaces.Discrete(3, start=-1), [[0, 1, 0], [0, 0, 1]]),
        (spaces.MultiDiscrete([[3, 2]]), [[1, 0, 0, 0, 1], [0, 1, 0, 0, 1]]),
    ],
)
def test_discrete_observations_become_one_hot(coded_id, space, expected):
    vector = envs.make(coded_id, 1, space=space)
    assert vector.single_observation_space.shape == (len(expected[0]),)
    obs = [vector.reset(seed=0)[0], vector.step(np.zeros((1, 1), np.float32))[0]]
    assert np.concatenate(obs).tolist() == expected


def test_columns_of_a_one_hot_observation_can_be_dropped(coded_id):
    vector = envs.make(coded_id, 1, space=spaces.Discrete(3), dropped_obs=[1])
    assert vector.reset(seed=0)[0].tolist() == [[1, 0]]
