"""A policy as Stable-Baselines3 users know one: ``predict(observation, state, episode_start, deterministic)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from rlseq.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from rlseq.agents.acting import PolicyState
    from rlseq.agents.policy import Policy


class SB3Policy:
    """What `stable_baselines3.common.evaluation.evaluate_policy` and the like call a model.

    A return-conditioned policy needs the reward of every step, which Stable-Baselines3 does not hand to a model: the
    environment puts it beside the observation, see `rlseq.envs.with_reward`. `predict` is pure: what it remembers is in
    the state that the caller carries.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def predict(
        self,
        observation: ArrayLike | Mapping[str, ArrayLike],
        state: PolicyState | None = None,
        episode_start: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """Actions for the present observations, and the state for the next call.

        Args:
            observation: {"obs": (N, S), "reward": (N,)}, as `rlseq.envs.with_reward` gives it, or obs alone where every
                row starts an episode.
            state: what the last call returned; None before the first.
            episode_start: (N,) bool, True where observation is an episode's first.
            deterministic: must be True; the heads of these agents draw nothing.

        Raises:
            ConfigError: deterministic is False.
            ShapeError: see `Policy.act`.
        """
        if not deterministic:
            raise ConfigError("predict: deterministic must be True, got False. These agents draw no actions.")
        obs: Any = observation
        reward: Any = None
        if isinstance(observation, Mapping):
            if observation.keys() != {"obs", "reward"}:
                raise ShapeError(
                    f"predict: a dictionary must hold obs and reward, got {', '.join(map(str, observation))}. "
                    "Wrap the environment: rlseq.envs.with_reward(env)."
                )
            obs, reward = observation["obs"], np.asarray(observation["reward"])
            if np.ndim(obs) == 2 and reward.ndim == 2:  # Stable-Baselines3 stacks numbers as columns
                reward = reward[:, 0]
        elif state is not None and episode_start is not None and not np.all(episode_start):
            raise ShapeError(
                "predict: the reward of the last step must be beside obs, got obs alone. Wrap the environment: "
                "rlseq.envs.with_reward(env)."
            )
        before = self.policy.initial_state() if state is None else state
        return self.policy.predict(obs, before, reward, episode_start)
