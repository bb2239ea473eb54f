"""``rms_norm`` in Numba: two passes over a token forward and two backward, where torch makes a dozen over all of x."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype, ready
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._numba import dot, flat, jit
from rlseq.kernels._threads import over_rows

_ROWS = 64
"""Tokens whose gradients of the weight are added up in one float32 row before float64 takes it."""


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """CPU tensors only."""
    return None if device == "cpu" else f"tensors are on {device}"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As ``rlseq.kernels.rms_norm``, arguments already checked."""
    (y,) = _node(*ready(compute_dtype(x), x, weight), eps)
    return y.to(x.dtype)


@jit
def _forward_kernel(x, weight, eps, y, inverse, length, width, tile, begin, end):
    for token in range(begin * length, end * length):
        x_t, y_t = x[token * width : (token + 1) * width], y[token * width : (token + 1) * width]
        r = x.dtype.type(1.0 / np.sqrt(np.float64(dot(x_t, x_t)) / width + eps))
        inverse[token] = r
        for d in range(width):
            y_t[d] = x_t[d] * r * weight[d]


@jit
def _backward_kernel(dy, x, weight, inverse, dx, sums, length, width, tile, begin, end):
    weighted, part = np.empty(width, x.dtype), np.zeros(width, x.dtype)
    for row in range(begin, end):
        total = sums[row * width : (row + 1) * width]
        for t in range(length):
            token = row * length + t
            start, stop = token * width, (token + 1) * width
            dy_t, x_t, dx_t, r = dy[start:stop], x[start:stop], dx[start:stop], inverse[token]
            for d in range(width):
                part[d] += dy_t[d] * x_t[d] * r
                weighted[d] = dy_t[d] * weight[d]
            common = dot(weighted, x_t) * r * r / x.dtype.type(width)
            for d in range(width):
                dx_t[d] = r * (weighted[d] - common * x_t[d])
            if t % _ROWS == _ROWS - 1 or t == length - 1:
                for d in range(width):
                    total[d] += part[d]
                part[:] = 0.0


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, inverse = torch.empty_like(x), x.new_empty(x.shape[:-1])
    shape = (x.shape[0], x.shape[1], x.shape[2])
    over_rows(_forward_kernel, [*flat(x, weight), eps, *flat(y, inverse)], shape, unit=x.shape[2])
    return y, inverse


def _backward(dy: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dx, sums = torch.empty_like(x), torch.zeros(x.shape[0], x.shape[2], dtype=torch.float64)
    over_rows(_backward_kernel, flat(dy, x, weight, inverse, dx, sums), x.shape, unit=x.shape[2])
    return dx, sums.sum(0).to(weight.dtype)


_node = differentiable_node(
    "rms_norm_cpu",
    "CPU",
    ("(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)", _forward),
    ("(Tensor dy, Tensor x, Tensor weight, Tensor inverse, float eps) -> (Tensor, Tensor)", _backward),
    forward_like=(0, lambda x, weight, eps: x.new_empty(x.shape[:-1])),
    backward_like=(1, 2),
    kept=(0, 1, 4),
    gradient_of=(0, 1),
    constants=1,
    private=1,
)
