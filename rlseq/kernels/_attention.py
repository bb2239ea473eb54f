"""What the attention ops share: positions since the last reset, tokens that are not finite, relu^2 under a mask.

Time is counted in tokens of the call: new tokens are at 0 .. L - 1, carried ones before 0. A token that is not finite
is cut out before any product, because a weight of 0 does not silence it (0 x inf is NaN); who sees it is then told by
comparing times.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NEVER = torch.iinfo(torch.int64).min
"""A time before all others."""


def positions(count: Tensor, reset: Tensor | None, length: int) -> Tensor:
    """Tokens since the last reset before each new token, (B, L) int64, of rows that begin at position count (B,)."""
    index = torch.arange(length, device=count.device)
    if reset is None:
        return count[:, None] + index
    started = torch.where(reset, index, NEVER).cummax(dim=1).values
    return torch.where(started >= 0, index - started, count[:, None] + index)


def broken(*tensors: Tensor) -> Tensor:
    """Whether a token has an entry that is NaN or infinite in one of the (B, L, ...) tensors: (B, L) bool."""
    # the largest of NaN and a number is NaN
    largest = [one.detach().flatten(2).abs().amax(-1) for one in tensors]
    return ~(functools.reduce(torch.maximum, largest) < math.inf)


def cut_out(tokens: Tensor, flags: Tensor, value: float = 0.0) -> Tensor:
    """(B, L, ...) tokens with value in place of those that flags (B, L) marks; they get no gradient."""
    flags = flags.reshape(*flags.shape, *[1] * (tokens.dim() - 2))
    # a tensor, because a number takes a slower path
    return torch.where(flags, tokens.new_full((), value), tokens)


def latest(flags: Tensor, first: int = 0) -> Tensor:
    """Time of the last marked token up to each one, NEVER if there is none; flags (B, L) begin at time ``first``."""
    index = torch.arange(first, first + flags.shape[1], device=flags.device)
    return torch.where(flags, index, NEVER).cummax(dim=1).values


def distance_bias(bias: Tensor, distance: Tensor) -> Tensor:
    """The entry of bias (W,) at each distance, any entry outside 0 .. W - 1; shape of distance."""
    # index_select, because the gradient of an advanced index is slow
    return bias.index_select(0, distance.clamp(0, bias.shape[0] - 1).flatten()).view_as(distance)


class _SquaredRelu(torch.autograd.Function):
    """relu(scores)^2 where seen, plus linear where linear_seen, with few passes over memory."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, seen: Tensor, linear: Tensor | None, linear_seen: Tensor | None) -> Tensor:
        zero = scores.new_zeros(())
        root = torch.where(seen, scores, zero).relu_()
        ctx.save_for_backward(root, linear_seen)
        if linear is None or linear_seen is None:
            return root * root
        return torch.where(linear_seen, linear, zero).addcmul_(root, root)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        root, linear_seen = ctx.saved_tensors
        linear = None if linear_seen is None else torch.where(linear_seen, gradient, gradient.new_zeros(()))
        return (gradient * root).mul_(2.0), None, linear, None


def squared_relu(
    scores: Tensor, seen: Tensor, linear: Tensor | None = None, linear_seen: Tensor | None = None
) -> Tensor:
    """relu(scores)^2 where seen, plus linear where linear_seen, else 0; differentiable once in scores and linear."""
    function: Callable[..., Tensor] = _SquaredRelu.apply
    return function(scores, seen, linear, linear_seen)
