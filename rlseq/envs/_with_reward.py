"""The reward as part of the observation, for callers that hand a policy nothing else."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class WithReward(gymnasium.Wrapper[dict[str, Any], Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        reward = spaces.Box(-np.inf, np.inf, (), np.float64)
        self.observation_space = spaces.Dict({"obs": env.observation_space, "reward": reward})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return {"obs": obs, "reward": np.zeros(())}, info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return {"obs": obs, "reward": np.asarray(reward, np.float64)}, reward, terminated, truncated, info
