"""What the tests of recording share: an awkward environment, policies as a user writes them, and a short call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlseq.collect import Collected, collect

TOY = "rlseq-tests/Toy-v0"
SMALL = ["--backbone.width", "16", "--backbone.depth", "1", "--updates", "2", "--window", "8", "--batch-size", "4"]
QUICK = [*SMALL, "--eval.episodes", "2", "--eval.during", "0", "--device", "cpu"]

POLICIES = '''
import numpy as np

def toward_zero(env, seed):
    """Stateful: the first action of an episode is the space's lower bound."""
    first = [True]
    def act(obs):
        action = env.action_space.low if first else np.zeros(2)
        first.clear()
        return action
    return act

def no_policy(env, seed):
    return 3

def direct(obs):
    return np.zeros(2)

def returns(value):
    return lambda env, seed: lambda obs: value

nan, wide, outside, text = (returns(v) for v in (np.full(2, np.nan), np.zeros(3), np.full(2, 99.0), "left"))

def raises(env, seed):
    def act(obs):
        raise ZeroDivisionError("of mine")
    return act

number = 3
'''


class Nested(gymnasium.Env):
    """Dict observations in an array that the environment overwrites; fails at step `fail_at` of the third episode."""

    observation_space = spaces.Dict(
        {"b": spaces.Box(-9, 9, (2, 2)), "a": spaces.Tuple((spaces.Box(-9, 9, (1,)), spaces.Box(0, 9, (2,), np.int64)))}
    )
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, fail_at: int = 0, bad: str = "", scale: float = 1.0) -> None:
        self.fail_at, self.bad, self.scale, self.episode = fail_at, bad, scale, 0
        self.b = np.zeros((2, 2), np.float32)
        if bad == "unbounded":
            self.action_space = spaces.Box(-np.inf, np.inf, (1,))

    def _observe(self) -> dict[str, Any]:
        return {"b": self.b, "a": (np.full(1, self.count, np.float32), np.full(2, self.count))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.episode = 0, self.episode + 1
        self.b[:] = self.np_random.uniform()
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        self.b += 1
        if self.episode == 3 and self.count == self.fail_at:
            if self.bad == "interrupt":
                raise KeyboardInterrupt
            if self.bad == "obs":
                self.b[:] = np.nan
            elif self.bad != "reward":
                raise RuntimeError("the motor burnt")
        reward = np.nan if self.bad == "reward" and self.episode == 3 else self.scale
        return self._observe(), reward, self.count == 5, False, {"ignored": 1}


def toward_zero(env: gymnasium.Env, seed: int) -> Callable[[Any], Any]:
    return lambda obs: np.zeros(env.action_space.shape)


def record(policy: Any = "random", env: str = TOY, out: str = "minari:mine/toy-v0", **options: Any) -> Collected:
    return collect(env, policy, **{"episodes": 4, "ref_episodes": 2, "progress": False, **options}, out=out)
