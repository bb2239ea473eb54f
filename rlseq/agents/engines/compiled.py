"""The step through `torch.compile`: one graph with fixed shapes, on a GPU replayed as CUDA graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from rlseq.agents.acting import ActingStep, Given, PolicyState
from rlseq.agents.engines.eager import Eager
from rlseq.errors import ConfigError


class Compiled(Eager):
    """`Eager` with a compiled step; compiles when it is made, which takes up to a minute."""

    def __init__(self, step: ActingStep, rows: int) -> None:
        super().__init__(step, rows)
        on_gpu = self.device.type == "cuda"

        def dense(*arguments: Any) -> tuple[Tensor, PolicyState]:
            """A state like the first: other strides would be another graph."""
            action, state = step(*arguments)
            result: PolicyState = _pytree.tree_map(Tensor.contiguous, state)
            return action, result

        # PyTorch refuses to compile one piece of code more than eight times; every policy has its own copy
        dense.__code__ = dense.__code__.replace()
        compiled = torch.compile(
            dense,
            fullgraph=True,
            dynamic=False,
            **({"mode": "reduce-overhead"} if on_gpu else {"options": CPU_OPTIONS}),
        )
        self.run = self._owned(compiled) if on_gpu else compiled
        obs = np.zeros((rows, self.spec.obs_size), np.float32)
        number = np.zeros(rows)
        state = self.initial_state()
        try:
            for start in (True, False):
                _, state = self(Given(obs, number, np.full(rows, start), number), state)
        except RuntimeError as error:
            told = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"policy: engine compiled needs a C++ compiler that torch can use, got {told}. Use eager or onnx."
            ) from error

    @staticmethod
    def _owned(compiled: Any) -> Any:
        """CUDA graphs write every result to the same memory: what the caller keeps is a copy."""

        def run(*arguments: Any) -> tuple[Tensor, PolicyState]:
            torch.compiler.cudagraph_mark_step_begin()
            result: tuple[Tensor, PolicyState] = _pytree.tree_map(torch.clone, compiled(*arguments))
            return result

        return run


CPU_OPTIONS = {"cpp_wrapper": True}
"""The call of the kernels from C++, not from Python: most of a step of one row is calls."""


def build(step: ActingStep, rows: int) -> Compiled:
    """The engine of a step."""
    return Compiled(step, rows)
