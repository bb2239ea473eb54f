"""``gated_projections`` in Numba: one pass each way, where torch makes nine forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype, ready
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._numba import flat, fma, jit, sigmoid
from rlseq.kernels._threads import over_rows

_CLOSED = -87.0
"""Below this, silu is 0 and ``sigmoid`` stops at e^-87, which a large entry would lift."""
_TOKENS = 64
"""Tokens whose gradients of gamma and beta are added up in float32 before float64 takes them."""


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """CPU tensors only."""
    return None if device == "cpu" else f"tensors are on {device}"


def gated_projections(x: Tensor, gamma: Tensor, beta: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    """As ``rlseq.kernels.gated_projections``, arguments already checked."""
    node = _NODES[gamma.shape[0]]
    return tuple(one.to(x.dtype) for one in node(*ready(compute_dtype(x), x, gamma, beta, cosine, sine)))


# offsets are unsigned: Numba asks of a signed index whether it counts from the end, which nothing vectorises with; and
# slices of a token would cost as much as the arithmetic on them
@jit
def _silu(x, at, y, to, count):
    closed, zero = x.dtype.type(_CLOSED), x.dtype.type(0.0)
    for i in range(count):
        # a select that keeps NaN
        y[to + i] = zero if x[at + i] < closed else x[at + i] * sigmoid(x[at + i])


@jit
def _silu_backward(dy, at, x, dx, to, count):
    closed, zero, one = x.dtype.type(_CLOSED), x.dtype.type(0.0), x.dtype.type(1.0)
    for i in range(count):
        share = sigmoid(x[to + i])
        slope = share * fma(x[to + i], one - share, one)
        dx[to + i] = dy[at + i] * (zero if x[to + i] < closed else slope)


@jit
def _view(z, gamma, beta, view, cosine, sine, turn, half, y, to):
    right = view + half
    for i in range(half):
        a, b = fma(gamma[view + i], z[i], beta[view + i]), fma(gamma[right + i], z[half + i], beta[right + i])
        y[to + i] = a * cosine[turn + i] - b * sine[turn + i]
        y[to + half + i] = b * cosine[turn + i] + a * sine[turn + i]
    for i in range(half + half, np.uintp(z.size)):
        y[to + i] = fma(gamma[view + i], z[i], beta[view + i])


@jit
def _view_backward(dy, at, z, gamma, view, cosine, sine, turn, half, dz, dgamma, dbeta):
    right = view + half
    for i in range(half):
        a = dy[at + i] * cosine[turn + i] + dy[at + half + i] * sine[turn + i]
        b = dy[at + half + i] * cosine[turn + i] - dy[at + i] * sine[turn + i]
        dz[i] += a * gamma[view + i]
        dz[half + i] += b * gamma[right + i]
        dgamma[view + i] += a * z[i]
        dgamma[right + i] += b * z[half + i]
        dbeta[view + i] += a
        dbeta[right + i] += b
    for i in range(half + half, np.uintp(z.size)):
        dz[i] += dy[at + i] * gamma[view + i]
        dgamma[view + i] += dy[at + i] * z[i]
        dbeta[view + i] += dy[at + i]


@jit
def _forward_kernel(x, gamma, beta, cosine, sine, u, v, y0, y1, y2, y3, size, half, length, width, tile, begin, end):
    size, half, width = np.uintp(size), np.uintp(half), np.uintp(width)
    wide = (width - size) // np.uintp(2)
    z = np.empty(size, x.dtype)
    for token in range(np.uintp(begin * length), np.uintp(end * length)):
        at, to, turn = token * width, token * size, token * half
        _silu(x, at, u, token * wide, wide)
        _silu(x, at + wide, v, token * wide, wide)
        _silu(x, at + wide + wide, z, np.uintp(0), size)
        _view(z, gamma, beta, np.uintp(0), cosine, sine, turn, half, y0, to)
        _view(z, gamma, beta, size, cosine, sine, turn, half, y1, to)
        if y2.size:
            _view(z, gamma, beta, size + size, cosine, sine, turn, half, y2, to)
            _view(z, gamma, beta, size + size + size, cosine, sine, turn, half, y3, to)


@jit
def _backward_kernel(
    du, dv, d0, d1, d2, d3, x, gamma, cosine, sine, dx, sums, size, half, length, width, tile, begin, end
):  # fmt: skip
    size, half, width, count = np.uintp(size), np.uintp(half), np.uintp(width), np.uintp(gamma.size)
    wide = (width - size) // np.uintp(2)
    z, dz = np.empty(size, x.dtype), np.empty(size, x.dtype)
    dgamma, dbeta = np.zeros(count, x.dtype), np.zeros(count, x.dtype)
    for row in range(begin, end):
        total = sums[row * 2 * gamma.size : (row + 1) * 2 * gamma.size]
        for t in range(length):
            token = np.uintp(row * length + t)
            to, at, turn = token * width, token * size, token * half
            _silu_backward(du, token * wide, x, dx, to, wide)
            _silu_backward(dv, token * wide, x, dx, to + wide, wide)
            # again, because an exponential costs less than to write and read its result
            _silu(x, to + wide + wide, z, np.uintp(0), size)
            dz[:] = 0.0
            _view_backward(d0, at, z, gamma, np.uintp(0), cosine, sine, turn, half, dz, dgamma, dbeta)
            _view_backward(d1, at, z, gamma, size, cosine, sine, turn, half, dz, dgamma, dbeta)
            if d2.size:
                _view_backward(d2, at, z, gamma, size + size, cosine, sine, turn, half, dz, dgamma, dbeta)
                _view_backward(d3, at, z, gamma, size + size + size, cosine, sine, turn, half, dz, dgamma, dbeta)
            _silu_backward(dz, np.uintp(0), x, dx, to + wide + wide, size)
            if t % _TOKENS == _TOKENS - 1 or t == length - 1:
                for i in range(count):
                    total[i] += dgamma[i]
                    total[count + i] += dbeta[i]
                dgamma[:] = 0.0
                dbeta[:] = 0.0


def _forward(x: Tensor, gamma: Tensor, beta: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    views, size = gamma.shape
    expanded = (x.shape[2] - size) // 2
    outputs = [x.new_empty(x.shape[0], x.shape[1], many) for many in (expanded, expanded, *[size] * views)]
    _over_tokens(_forward_kernel, [x, gamma, beta, cosine, sine, *_four(outputs)], x, gamma, cosine)
    return tuple(outputs)


def _backward(*arguments: Tensor) -> tuple[Tensor, ...]:
    *gradients, x, gamma, cosine, sine = arguments
    dx, sums = torch.empty_like(x), x.new_zeros(x.shape[0], 2, *gamma.shape, dtype=torch.float64)
    _over_tokens(_backward_kernel, [*_four(gradients), x, gamma, cosine, sine, dx, sums], x, gamma, cosine)
    # copies: outputs of an operator must not share memory
    dgamma, dbeta = (one.to(gamma.dtype, copy=True) for one in sums.sum(0))
    return dx, dgamma, dbeta


def _four(of_each: list[Tensor]) -> list[Tensor]:
    """Tensors of u, v and two views or four, with nothing for those that are not there."""
    return [*of_each, *[of_each[0].new_empty(0)] * (6 - len(of_each))]


def _over_tokens(kernel: Any, tensors: list[Tensor], x: Tensor, gamma: Tensor, cosine: Tensor) -> None:
    shape = (x.shape[0], x.shape[1], x.shape[2])
    over_rows(kernel, [*flat(*tensors), gamma.shape[1], cosine.shape[-1]], shape, unit=x.shape[2])


def _node(views: int) -> Callable[..., tuple[Tensor, ...]]:
    """The operator for a number of views: a schema says how many tensors come out."""

    def wide(x: Tensor, gamma: Tensor, *_: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], x.shape[1], (x.shape[2] - gamma.shape[1]) // 2)

    def narrow(x: Tensor, gamma: Tensor, *_: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], x.shape[1], gamma.shape[1])

    outputs = ", ".join(["Tensor"] * (2 + views))
    gradients = ", ".join(f"Tensor d{i}" for i in range(2 + views))
    return differentiable_node(
        f"gated_projections_{views}_cpu",
        "CPU",
        (f"(Tensor x, Tensor gamma, Tensor beta, Tensor cosine, Tensor sine) -> ({outputs})", _forward),
        (f"({gradients}, Tensor x, Tensor gamma, Tensor cosine, Tensor sine) -> (Tensor, Tensor, Tensor)", _backward),
        forward_like=(wide, wide, *[narrow] * views),
        backward_like=(2 + views, 3 + views, 3 + views),
        kept=(0, 1, 3, 4),
        gradient_of=(0, 1, 2),
    )


_NODES = {views: _node(views) for views in (2, 4)}
