"""Random arguments for every op, and how to run an implementation with gradients through all that it returns."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlseq.kernels import SoftmaxState

SCANS = ("causal_conv", "linear_scan", "rg_lru", "softmax_scan")
Function = Callable[..., tuple[Tensor, ...]]

# where the arguments hold the state (two tensors for softmax_scan), the resets, and what has one entry a token
STATE = {"causal_conv": (3,), "linear_scan": (2,), "rg_lru": (4,), "softmax_scan": (2, 3)}
RESET = {"causal_conv": 4, "linear_scan": 3, "rg_lru": 5, "softmax_scan": 4}
TOKENS = {"causal_conv": (0,), "linear_scan": (0, 1), "rg_lru": (0, 1, 2), "softmax_scan": (0, 1)}
# the token input that a test makes infinite
WILD = {"causal_conv": 0, "linear_scan": 1, "rg_lru": 0, "softmax_scan": 1}


def implementation(op: str, name: str) -> Function:
    """From tensors to tensors."""
    return _flat(op, getattr(importlib.import_module(f"rlseq.kernels.{op}.{name}"), op))


def public(op: str) -> Function:
    """From tensors to tensors."""
    return _flat(op, getattr(importlib.import_module("rlseq.kernels"), op))


def _flat(op: str, function: Callable[..., Any]) -> Function:
    if op != "softmax_scan":
        return function

    def softmax_scan(s: Tensor, v: Tensor, z: Tensor | None, o: Tensor | None, reset: Tensor | None) -> Any:
        output, last = function(s, v, None if z is None else SoftmaxState(z, o), reset)
        return output, *last

    return softmax_scan


def arguments(
    op: str, batch: int, length: int, width: int, *, resets: float | None = 0.2, state: bool = True, seed: int = 0
) -> list[Any]:
    """float64 arguments of a scan in the order of its signature; two heads of ``width`` channels for softmax_scan."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    reset = None if resets is None else torch.rand(batch, length, generator=random) < resets
    if op == "softmax_scan":
        s, v = 3.0 * normal(batch, length, 2), normal(batch, length, 2, width)
        return [s, v, *((normal(batch, 2), normal(batch, 2, width)) if state else (None, None)), reset]
    x = normal(batch, length, width)
    if op == "linear_scan":
        decay = torch.rand(batch, length, width, generator=random, dtype=torch.float64)
        return [decay, x, normal(batch, width) if state else None, reset]
    if op == "rg_lru":
        gates = [normal(batch, length, width), 3.0 * normal(batch, length, width)]
        return [x, *gates, 3.0 * normal(width) - 3.0, normal(batch, width) if state else None, reset, 8.0]
    return [x, normal(4, width), normal(width), normal(batch, 3, width) if state else None, reset]


def with_state(op: str, args: Sequence[Any], state: Sequence[Any]) -> list[Any]:
    """The arguments with another state."""
    out = list(args)
    for i, one in zip(STATE[op], state, strict=True):
        out[i] = one
    return out


def cast(args: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    return [arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]


def part(op: str, args: Sequence[Any], begin: int, end: int, state: Sequence[Any]) -> list[Any]:
    """The arguments for tokens begin..end with another state."""
    out = with_state(op, args, state)
    for i in (*TOKENS[op], RESET[op]):
        out[i] = None if args[i] is None else args[i][:, begin:end]
    return out


def with_gradients(function: Function, args: Sequence[Any], seed: int = 0) -> list[Tensor]:
    """The outputs, then the gradient of every float argument for a random weighting of both outputs."""
    leaves = [
        arg.detach().clone().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in args
    ]
    outputs = function(*leaves)
    random = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        loss = loss + (output * torch.randn(output.shape, generator=random, dtype=torch.float64)).sum()
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    return [output.detach() for output in outputs] + list(torch.autograd.grad(loss, wanted))


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected magnitude, or to 1e-12 where float32 underflows.

    A gradient summed over time may cancel. Among many entries one does not; for few, the inputs' scale of 1 is taken.
    """
    if expected.numel() == 0:
        return 0.0
    difference = (got.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max().clamp_min(1e-12 if expected.numel() > 16 else 1.0)).item()


def worst(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert torch.isfinite(one).all()
    return max(error(one, other) for one, other in zip(got, expected, strict=True))
