"""Environments whose episodes end at different times, in every vector form, and a policy that must forget exactly.

The arithmetic is the same to the bit whatever the number of rows, so that the tests compare with ``==``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tests.toys import ToyEnv

RAGGED, NEXT_STEP, DRAWING, WILD, SLOW = (
    f"rlseq-tests/{name}-v0" for name in ("Ragged", "RaggedNextStep", "Drawing", "Wild", "Slow")
)
WIDTH, HEIGHT = 96, 64


class RaggedEnv(ToyEnv):
    """3 to 14 steps, decided by the seed; every step gives about 1, so that the return tells the length."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self._left > 0, "stepped after its end"
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, 1.0 + 0.1 * reward, terminated, truncated, info


class DrawingEnv(RaggedEnv):
    """A red bar that is as long as the episode is old, on blue."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  # Gymnasium's form

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self._age = 0
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._age += 1
        return super().step(action)

    def render(self) -> np.ndarray:
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        picture[..., 2] = 200
        picture[16:48, : 6 * self._age] = (200, 0, 0)
        return picture


class WildEnv(DrawingEnv):
    """No two episodes of a seed are alike."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, *rest = super().step(action)
        return obs, time.perf_counter(), *rest


class SlowEnv(RaggedEnv):
    """Waits in every step, and leaves a file that says so."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Path("stepping").touch()
        time.sleep(0.2)
        return super().step(action)


class RaggedVector(VectorEnv):
    """A native vector of `RaggedEnv` that resets the rows of a mask, or all in the step after their end."""

    def __init__(self, num_envs: int, max_episode_steps: int, mode: AutoresetMode = AutoresetMode.DISABLED) -> None:
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": mode}
        self.rows = [RaggedEnv() for _ in range(num_envs)]
        self.single_observation_space, self.single_action_space = (
            self.rows[0].observation_space,
            self.rows[0].action_space,
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.obs, self.ended = np.zeros(self.observation_space.shape), np.zeros(num_envs, np.bool_)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if self.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP:
            assert isinstance(seed, int)
            assert options is None
            seed = [seed + i for i in range(self.num_envs)]
        mask = np.ones(self.num_envs, np.bool_) if options is None else options["reset_mask"]
        for i in np.flatnonzero(mask):
            self.obs[i], _ = self.rows[i].reset(seed=seed[i])
        self.ended &= ~mask
        return self.obs.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward, before, self.ended = np.zeros(self.num_envs), self.ended, np.zeros(self.num_envs, np.bool_)
        for i, row in enumerate(self.rows):
            if before[i]:
                assert self.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP, "stepped after its end"
                self.obs[i], _ = row.reset()
            else:
                self.obs[i], reward[i], self.ended[i], _, _ = row.step(actions[i])
        return self.obs.copy(), reward, self.ended.copy(), np.zeros(self.num_envs, np.bool_), {}


def next_step_vector(num_envs: int, max_episode_steps: int) -> RaggedVector:
    return RaggedVector(num_envs, max_episode_steps, AutoresetMode.NEXT_STEP)


gymnasium.register(RAGGED, RaggedEnv, max_episode_steps=25, vector_entry_point=RaggedVector)
gymnasium.register(NEXT_STEP, RaggedEnv, max_episode_steps=25, vector_entry_point=next_step_vector)
gymnasium.register(DRAWING, DrawingEnv, max_episode_steps=25)
gymnasium.register(WILD, WildEnv, max_episode_steps=25)
gymnasium.register(SLOW, SlowEnv, max_episode_steps=25)


class Remembering:
    """Acts on the sum of all observations and rewards since the episode's start; every act is kept in `calls`."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.memory = num_envs, np.zeros(num_envs)
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def act(self, obs: np.ndarray, reward: np.ndarray, start: np.ndarray) -> np.ndarray:
        self.calls.append((obs.copy(), start.copy()))
        self.memory = np.where(start, 0.0, 0.5 * self.memory + reward) + obs[:, 0]
        action = self.memory / (1.0 + np.abs(self.memory))
        return np.stack([action, -action], axis=1).astype(np.float32)


class Alternating:
    """Discrete actions: push left, push right, from the episode's start."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.age = num_envs, np.zeros(num_envs, np.int64)

    def act(self, obs: np.ndarray, reward: np.ndarray, start: np.ndarray) -> np.ndarray:
        self.age = np.where(start, 0, self.age + 1)
        return self.age % 2


def lone_episode(env: gymnasium.Env[Any, Any], seed: int | None) -> tuple[float, int]:
    """Return and length of one episode in one plain environment."""
    policy, reward, total, steps, done = Remembering(1), 0.0, 0.0, 0, False
    obs, _ = env.reset(seed=seed)
    while not done:
        action = policy.act(obs[None], np.array([reward]), np.array([steps == 0]))[0]
        obs, reward, terminated, truncated, _ = env.step(action)
        total, steps, done = total + reward, steps + 1, terminated or truncated
    return total, steps
