"""The arguments of ``cases`` for the Triton kernels, ``softmax_scan`` with its state as two tensors among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlseq.kernels.softmax_scan._state import SoftmaxState
from tests.kernels import cases

OPS = ("causal_conv", "linear_scan", "rg_lru", "softmax_scan")


def function(op: str, name: str) -> cases.Function:
    """An implementation, from tensors to tensors."""
    run = cases.implementation(op, name)
    if op != "softmax_scan":
        return run

    def softmax_scan(s: Tensor, v: Tensor, z: Tensor | None, o: Tensor | None, reset: Tensor | None) -> Any:
        out, last = run(s, v, None if z is None else SoftmaxState(z, o), reset)
        return out, *last

    return softmax_scan


def arguments(
    op: str, batch: int, length: int, width: int, *, resets: float | None = 0.2, state: bool = True, seed: int = 0
) -> list[Any]:
    """float64 arguments; those of ``softmax_scan`` are s, v, z, o and reset, two heads of ``width`` channels."""
    if op != "softmax_scan":
        args = cases.arguments(op, batch, length, width, resets=resets, state=state, seed=seed)
        if op == "rg_lru":
            # decays of at least 0.2: a is 1 + expm1(-u), absolute to float32, and can be all there is of a dh0
            args[3].clamp_(max=-1.5)
        return args
    random = torch.Generator().manual_seed(seed)
    shapes = (batch, length, 2), (batch, length, 2, width), (batch, 2), (batch, 2, width)
    s, v, z, o = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    reset = None if resets is None else torch.rand(batch, length, generator=random) < resets
    return [3.0 * s, v, z if state else None, o if state else None, reset]
