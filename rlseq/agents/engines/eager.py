"""The step as PyTorch runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from rlseq.agents.acting import ActingStep, Given, PolicyState


class Eager:
    """Runs an acting step; see `Engine`."""

    overwrites = False

    def __init__(self, step: ActingStep, rows: int) -> None:
        self.step, self.spec, self.rows = step, step.spec, rows
        self.device = step.agent.obs_mean.device
        leaves, self._structure = _pytree.tree_flatten_with_path(step.initial_state(1))
        self.names = tuple(leaf_name(path) for path, _ in leaves)
        self.run: Callable[..., tuple[Tensor, PolicyState]] = step

    @torch.inference_mode()  # as the states that follow are: a compiled step is compiled once
    def initial_state(self) -> PolicyState:
        """See `Engine`."""
        return self.step.initial_state(self.rows)

    @torch.inference_mode()
    def __call__(self, given: Given, state: Any, *, consume: bool = False) -> tuple[np.ndarray, PolicyState]:
        """See `Engine`."""
        action, following = self.run(*(torch.from_numpy(x).to(self.device) for x in given), state)
        return action.cpu().numpy(), following

    @torch.inference_mode()
    def native(self, array: np.ndarray) -> Tensor:
        """See `Engine`."""
        return torch.from_numpy(array.copy()).to(self.device)

    def arrays(self, state: PolicyState) -> list[np.ndarray]:
        """See `Engine`."""
        return [leaf.cpu().numpy().copy() for leaf in _pytree.tree_leaves(state)]

    def restored(self, arrays: list[np.ndarray]) -> PolicyState:
        """See `Engine`."""
        restored: PolicyState = _pytree.tree_unflatten([self.native(array) for array in arrays], self._structure)
        return restored


def leaf_name(path: tuple[Any, ...]) -> str:
    """``memory.0.hidden``: fields by name, entries of a tuple by number."""
    return ".".join(str(getattr(key, "name", getattr(key, "idx", getattr(key, "key", key)))) for key in path)


def build(step: ActingStep, rows: int) -> Eager:
    """The engine of a step."""
    return Eager(step, rows)
