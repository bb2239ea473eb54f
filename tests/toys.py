"""A small store of random trajectories and a small environment, for tests of agents, training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from rlseq.agents import Agent, BehaviourCloning, DecisionTransformer
from rlseq.agents.behaviour_cloning import Config as CloningConfig
from rlseq.data import TrajectoryStore
from rlseq.types import DatasetInfo, Trajectory

OBS_SIZE, ACTION_SIZE = 3, 2
LOW, HIGH = np.array([-2.0, -1.0], np.float32), np.array([1.0, 3.0], np.float32)
LENGTHS = (7, 12, 1, 20, 5, 9)

AGENTS = {
    "hawk-joint": ("hawk", {}),
    "hawk-joint-previous": ("hawk", {"previous_action": True, "previous_reward": True}),
    "hawk-interleaved": ("hawk", {"tokens": "interleaved"}),
    "hybrid-joint": ("hybrid", {}),
    "flash-interleaved": ("flash", {"tokens": "interleaved"}),
    "gau-joint": ("gau", {"tokens": "joint"}),
    "transformer-interleaved": ("transformer", {"tokens": "interleaved"}),
    "transformer-joint": ("transformer", {"tokens": "joint"}),
    "cloning": (None, {}),
    "cloning-return": (None, {"return_conditioned": True}),
}


def toy_trajectories(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Trajectory]:
    """Random observations, actions within unequal bounds, rewards of any sign."""
    rng = np.random.default_rng(seed)
    return [
        Trajectory(
            obs=rng.normal(2.0, 3.0, size=(length, OBS_SIZE)).astype(np.float32),
            action=rng.uniform(LOW, HIGH, size=(length, ACTION_SIZE)).astype(np.float32),
            reward=rng.normal(size=length),
            terminated=True,
            truncated=False,
        )
        for length in lengths
    ]


def toy_store(lengths: Sequence[int] = LENGTHS, seed: int = 0, *, discrete: bool = False) -> TrajectoryStore:
    """A store of `toy_trajectories` that names `ToyEnv`; discrete: the larger column is chosen, and no environment."""
    info = DatasetInfo("toy", "rlseq-tests/Toy-v0", OBS_SIZE, LOW, HIGH, 25, -10.0, 30.0)
    trajectories = toy_trajectories(lengths, seed)
    if discrete:
        zeros = np.zeros(ACTION_SIZE, np.float32)
        info = replace(info, env_id=None, action_low=zeros, action_high=zeros + 1, discrete=True)
        choices = np.eye(ACTION_SIZE, dtype=np.float32)
        trajectories = [replace(one, action=choices[one.action.argmax(1)]) for one in trajectories]
    return TrajectoryStore.from_trajectories(trajectories, info)


def toy_agent(kind: str, store: TrajectoryStore, window: int = 20, depth: int = 2) -> Agent:
    """A small agent of `AGENTS`, or of BACKBONE-TOKENS, with fresh weights, in evaluation mode."""
    name, _, tokens = kind.rpartition("-")
    backbone, options = AGENTS.get(kind, (name, {"tokens": tokens}))
    if backbone is None:
        config = CloningConfig(width=16, **options)
        return BehaviourCloning(store.info, store.stats, window=window, config=config).eval()
    small: dict[str, Any] = {"width": 16, "depth": None if backbone == "hybrid" else depth}
    return DecisionTransformer.for_data(store, backbone, window=window, backbone_options=small, **options).eval()


class ToyEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Episodes of 3 to 14 steps, decided by the seed; the observation is a function of the seed and the actions."""

    def __init__(self, obs_size: int = OBS_SIZE) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_size,), np.float64)
        self.action_space = gymnasium.spaces.Box(LOW, HIGH, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._obs = self.np_random.normal(size=self.observation_space.shape)
        self._left = int(self.np_random.integers(3, 15))
        return self._obs.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, np.float32)), action
        self._left -= 1
        self._obs = 0.9 * self._obs + 0.1 * float(np.sum(action)) + 0.01 * self.np_random.normal(size=self._obs.shape)
        return self._obs.copy(), float(self._obs[0]), self._left == 0, False, {}


gymnasium.register("rlseq-tests/Toy-v0", entry_point=ToyEnv, max_episode_steps=25)
