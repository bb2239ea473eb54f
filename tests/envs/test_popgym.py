"""popgym's tasks come through its package: their ids are known without an import by the user, their spaces are flat."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from rlseq import envs
from rlseq.errors import ConfigError, UnknownNameError

needs_popgym = pytest.mark.skipif(
    importlib.util.find_spec("popgym") is None, reason='popgym is not installed: pip install "rlseq[popgym]"'
)


@needs_popgym
@pytest.mark.parametrize(
    ("env_id", "size"),
    [
        ("popgym-RepeatPreviousEasy-v0", 4),
        ("popgym-RepeatPreviousHard-v0", 4),
        ("popgym-AutoencodeEasy-v0", 6),
        ("popgym:popgym-AutoencodeMedium-v0", 6),
    ],
)
def test_a_task_is_made_by_its_id_and_plays_to_its_end(env_id, size):
    vector = envs.make(env_id, 2, seed=0)
    assert vector.single_observation_space.shape == (size,)
    obs, _ = vector.reset()
    ended = np.zeros(2, bool)
    for _ in range(400):
        assert obs.shape == (2, size)
        assert (obs.sum(axis=1) == (1 if size == 4 else 2)).all(), "one-hot"
        obs, _, term, trunc, _ = vector.step(vector.action_space.sample())
        ended |= term | trunc
        if ended.all():
            break
    assert ended.all()


@needs_popgym
def test_a_task_is_made_in_a_fresh_process_without_a_warning():
    code = "from rlseq import envs; print(envs.make('popgym-RepeatPreviousEasy-v0').reset(seed=0)[0].shape)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(1, 4)\n", "")


@needs_popgym
def test_the_card_k_steps_ago_earns_the_whole_return():
    vector = envs.make("popgym-RepeatPreviousEasy-v0", 1, seed=0)
    obs, _ = vector.reset()
    seen, total, done = [], 0.0, False
    while not done:
        seen.append(int(obs[0].argmax()))
        obs, reward, term, _, _ = vector.step(np.array([seen[-4] if len(seen) >= 4 else 0]))
        total, done = total + reward[0], term[0]
    assert total == pytest.approx(1.0)


@needs_popgym
def test_a_misspelt_task_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'popgym-RepeatPreviousEasy-v0'"):
        envs.make("popgym-RepeatPreviosEasy-v0")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "popgym", None)
    with pytest.raises(ConfigError, match=r'needs the package popgym.*pip install "rlseq\[popgym\]"') as caught:
        envs.make("popgym-RepeatPreviousEasy-v0")
    assert "\n" not in str(caught.value)
