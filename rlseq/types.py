"""The words that every layer shares: shapes and the frozen records that travel between the stages.

Shapes, used in every docstring of the library:

=====  =============================================
**B**  batch (rows; in acting, environments)
**K**  environment steps in a window
**L**  tokens in a sequence
**T**  environment steps in a trajectory
**N**  environment steps in a store
**D**  width of a backbone
**H**  heads
**E**  width of a head
**W**  attention window, in tokens (keys, the query's own included)
**S**  observation size
**A**  action size
=====  =============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """One episode, time first. The final observation, which no action follows, is not part of it.

    Attributes:
        obs: (T, S) float32.
        action: (T, A) float32.
        reward: (T,) float64.
        terminated: the episode ended in a terminal state.
        truncated: the episode was cut (time limit, or the recording stopped).
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    truncated: bool


@dataclass(frozen=True)
class Episode:
    """One episode as it was played and as Minari stores it: the final observation is part of it, actions are raw.

    Attributes:
        obs: T + 1 elements of the observation space, nested or not: a list, or an array with a row each.
        action: T elements of the action space, likewise.
        reward: T numbers, raw.
        terminated: the episode ended in a terminal state.
        truncated: the episode was cut (time limit, or the recording stopped).
        seed: the environment was reset with it; None where unknown.
    """

    obs: Sequence[Any] | np.ndarray
    action: Sequence[Any] | np.ndarray
    reward: Sequence[float] | np.ndarray
    terminated: bool
    truncated: bool
    seed: int | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says of itself and of the environment that it was recorded in.

    Attributes:
        id: the name it was opened by, such as ``minari:rlseq/hopper/medium-replay-v0``.
        env_id: Gymnasium id to evaluate in; None where the dataset names none.
        obs_size: S; nested observations are flattened in the order of their space.
        action_low: (A,) float32 lower bounds of the action space.
        action_high: (A,) float32 upper bounds.
        max_episode_steps: time limit of the environment; None where unknown.
        ref_min_score: return that counts as normalized score 0; None where none was published.
        ref_max_score: return that counts as normalized score 1; None where none was published.
        env_kwargs: keyword arguments of ``gymnasium.make`` that the recording environment had; JSON values only.
        dropped_obs: columns of the environment's flat observation that the dataset leaves out.
        discrete: the environment's action is one of A numbers, ``Discrete(A)``; the dataset holds it as a row of A, 1
            for the chosen one and else 0, the bounds.
    """

    id: str
    env_id: str | None
    obs_size: int
    action_low: np.ndarray
    action_high: np.ndarray
    max_episode_steps: int | None
    ref_min_score: float | None
    ref_max_score: float | None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    dropped_obs: tuple[int, ...] = ()
    discrete: bool = False

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.action_low)

    def normalized_score(self, returns: np.ndarray) -> np.ndarray | None:
        """(return - ref_min) / (ref_max - ref_min) (D4RL, Fu et al. 2020, arXiv 2004.07219, section 4).

        Args:
            returns: (n,) raw undiscounted returns.
        Returns:
            (n,) fractions; None where the dataset has no reference scores.
        """
        if self.ref_min_score is None or self.ref_max_score is None:
            return None
        return (returns - self.ref_min_score) / (self.ref_max_score - self.ref_min_score)


@dataclass(frozen=True)
class DatasetStats:
    """Figures of a whole store. Returns are undiscounted, in raw reward units; lengths in environment steps.

    Attributes:
        return_to_go_std: standard deviation of the return-to-go over all steps.
        return_to_go_min: the smallest return-to-go of any step.
        return_to_go_max: the largest one.
        obs_mean: (S,) float32.
        obs_std: (S,) float32 standard deviation, without the small constant that normalising adds.
    """

    episodes: int
    steps: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    return_to_go_std: float
    return_to_go_min: float
    return_to_go_max: float
    length_mean: float
    length_min: int
    length_max: int
    obs_mean: np.ndarray
    obs_std: np.ndarray


@dataclass(frozen=True)
class Batch:
    """B rows of K environment steps. Rows shorter than K are padded on the right, where mask is False.

    Attributes:
        obs: (B, K, S) float32, raw.
        action: (B, K, A) float32, raw.
        reward: (B, K) float32.
        return_to_go: (B, K) float32, raw units: the sum of rewards from this step to the end of its episode.
        timestep: (B, K) int64, counted from the start of the episode.
        reset: (B, K) bool, True on an episode's first step.
        mask: (B, K) bool, True on real steps.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    return_to_go: Tensor
    timestep: Tensor
    reset: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; copies from pinned memory do not block."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})
