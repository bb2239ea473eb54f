"""Rotary position embedding: the scores of rotated queries and keys depend on their distance alone.

    (x_i, x_{i + R/2}) -> (x_i cos p f_i - x_{i + R/2} sin p f_i, x_{i + R/2} cos p f_i + x_i sin p f_i)
    f_i = 10000^(-2 i / R),  i = 0 .. R/2 - 1,  p = the token's position, R = number of rotated entries

Source: Su et al. 2021, arXiv 2104.09864, eq. 34, with the pairs half a vector apart as in Griffin's released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LONGEST_WAVE = 10_000.0


def rotate(x: Tensor, position: Tensor, size: int) -> Tensor:
    """Rotate the first ``size`` entries of every vector by its token's position; the others stay.

    Angles are reduced in float64: in float32 they would be off by a twentieth of a turn at position 1,000,000.

    Args:
        x: (..., n, E) n vectors a token.
        position: (...) int64 tokens since the last reset.
        size: R, even, at most E; 0 rotates nothing.
    """
    if size == 0:
        return x
    cosine, sine = cosines_and_sines(position, size, x.dtype)
    rest = cosine.new_ones(()).expand(*cosine.shape[:-1], x.shape[-1] - size)
    function: Callable[..., Tensor] = _Rotation.apply
    return function(x, torch.cat([cosine, cosine, rest], dim=-1).unsqueeze(-2), sine.unsqueeze(-2))


class _Rotation(torch.autograd.Function):
    """``_turned``, without a concatenation in either pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(factor, sine)
        return _turned(x, factor, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        factor, sine = ctx.saved_tensors
        return _Rotation.apply(gradient, factor, -sine), None, None


def _turned(x: Tensor, factor: Tensor, sine: Tensor) -> Tensor:
    """The product x * factor, plus the other one of each pair times its sine.

    Args:
        x: (..., n, E).
        factor: (..., 1, E) cosines, twice, and then ones.
        sine: (..., 1, R / 2).
    """
    half = sine.shape[-1]
    if torch.compiler.is_exporting():
        # a write in place is a dozen nodes of an ONNX graph
        left, right, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
        cosine = factor[..., :half]
        return torch.cat([left * cosine - right * sine, right * cosine + left * sine, rest], dim=-1)
    y = x * factor
    y[..., :half].addcmul_(x[..., half : 2 * half], -sine)
    y[..., half : 2 * half].addcmul_(x[..., :half], sine)
    return y


def cosines_and_sines(position: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., R / 2) of the angles of tokens at positions (...), for the first R = ``size`` entries."""
    eager = position.device.type == "cpu" and not torch.compiler.is_compiling()
    if eager and position.dim() > 1 and position.numel() > 0:
        first, last = (int(one) for one in position.aminmax())
        if last - first < position.numel() // 2:
            # rows share positions: a table of them is smaller
            table = cosines_and_sines(torch.arange(first, last + 1), size, dtype)
            index = (position - first).flatten()
            cosine, sine = (one.index_select(0, index).unflatten(0, position.shape) for one in table)
            return cosine, sine
    index = torch.arange(0, size, 2, device=position.device, dtype=torch.float64)
    angle = torch.remainder(position[..., None] * LONGEST_WAVE ** (-index / size), 2 * math.pi)
    if dtype != torch.float64:
        angle = angle.float()
    return angle.cos().to(dtype), angle.sin().to(dtype)
