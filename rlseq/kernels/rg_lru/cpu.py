"""``rg_lru`` in Numba: time outside, channels inside; gates in float32, state in float64; backward recomputes gates.

Each token's channels are done in short loops of one precision each, because a loop that mixes float32 and float64
gets half the vector width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels._arguments import compute_dtype, initial_state
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._numba import expm1, flat, jit, no_tensor, sigmoid
from rlseq.kernels._threads import over_rows


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """CPU tensors only."""
    return None if device == "cpu" else f"tensors are on {device}"


def rg_lru(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, h0: Tensor | None, reset: Tensor | None, c: float
) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.rg_lru``, arguments already checked."""
    dtype = compute_dtype(x)
    flags = None if reset is None else reset.contiguous()
    tokens = [tensor.to(dtype).contiguous() for tensor in (x, gate_x, gate_a)]
    h, h_last = _node(*tokens, a_param.to(dtype).contiguous(), initial_state(h0, x).contiguous(), flags, c)
    return h.to(x.dtype), h_last


@jit
def _forward_kernel(x, gate_x, gate_a, rate, h0, reset, h, h_last, length, width, tile, begin, end):
    tiles = (width + tile - 1) // tile
    change, added = np.empty(tile, x.dtype), np.empty(tile, x.dtype)
    two = x.dtype.type(2.0)
    for item in range(begin, end):
        row, low = item // tiles, (item % tiles) * tile
        n = min(tile, width - low)
        start = row * width + low
        carry, rates = h_last[start : start + n], rate[low : low + n]
        carry[:] = h0[start : start + n]
        for t in range(length):
            at = (row * length + t) * width + low
            x_t, gate_x_t, h_t = x[at : at + n], gate_x[at : at + n], h[at : at + n]
            if reset.size > 0 and reset[row * length + t]:
                for d in range(n):
                    h_t[d] = sigmoid(gate_x_t[d]) * x_t[d]
                carry[:] = h_t
                continue
            gate_a_t = gate_a[at : at + n]
            for d in range(n):
                m = expm1(-rates[d] * sigmoid(gate_a_t[d]))
                change[d] = m
                added[d] = np.sqrt(-m * (m + two)) * sigmoid(gate_x_t[d]) * x_t[d]
            for d in range(n):
                carry[d] = carry[d] + (change[d] * carry[d] + added[d])
                h_t[d] = carry[d]


@jit
def _backward_kernel(
    dh, dh_last, x, gate_x, gate_a, rate, h, h0, reset, dx, dgate_x, dgate_a, sums, dh0, length, width, tile, begin, end
):
    tiles = (width + tile - 1) // tile
    change, slope, g = np.empty(tile, x.dtype), np.empty(tile, x.dtype), np.empty(tile, x.dtype)
    one, two, tiny = x.dtype.type(1.0), x.dtype.type(2.0), x.dtype.type(1e-37)
    for item in range(begin, end):
        row, low = item // tiles, (item % tiles) * tile
        n = min(tile, width - low)
        start = row * width + low
        carry, rates, total = dh0[start : start + n], rate[low : low + n], sums[start : start + n]
        carry[:] = dh_last[start : start + n]
        total[:] = 0.0
        for t in range(length - 1, -1, -1):
            at = (row * length + t) * width + low
            x_t, gate_x_t, gate_a_t, dh_t = x[at : at + n], gate_x[at : at + n], gate_a[at : at + n], dh[at : at + n]
            dx_t, dgate_x_t, dgate_a_t = dx[at : at + n], dgate_x[at : at + n], dgate_a[at : at + n]
            for d in range(n):
                carry[d] += dh_t[d]
                g[d] = carry[d]
            if reset.size > 0 and reset[row * length + t]:
                for d in range(n):
                    i = sigmoid(gate_x_t[d])
                    dx_t[d] = g[d] * i
                    dgate_x_t[d] = g[d] * i * x_t[d] * (one - i)
                dgate_a_t[:] = 0.0
                carry[:] = 0.0
                continue
            past = h0[start : start + n] if t == 0 else h[at - width : at - width + n]
            for d in range(n):
                r, i = sigmoid(gate_a_t[d]), sigmoid(gate_x_t[d])
                u = rates[d] * r
                m = expm1(-u)
                # u / beta is 0 at u = 0
                beta = np.sqrt(max(-m * (m + two), tiny))
                gi = g[d] * i
                dx_t[d] = gi * beta
                dgate_x_t[d] = gi * beta * x_t[d] * (one - i)
                a = one + m
                s = a * (gi * x_t[d] * a * (u / beta) - u * past[d] * g[d])
                dgate_a_t[d] = s * (one - r)
                change[d] = m
                slope[d] = s
            for d in range(n):
                carry[d] += change[d] * carry[d]
                total[d] += slope[d]


def _rate(a_param: Tensor, c: float) -> Tensor:
    return (c * functional.softplus(a_param.double(), threshold=40.0)).to(a_param.dtype)


def _forward(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, h0: Tensor, reset: Tensor | None, c: float
) -> tuple[Tensor, Tensor]:
    h, h_last = torch.empty_like(x), torch.empty_like(h0)
    arrays = flat(x, gate_x, gate_a, _rate(a_param, c), h0, no_tensor(reset), h, h_last)
    over_rows(_forward_kernel, arrays, x.shape)
    return h, h_last


def _backward(
    dh: Tensor,
    dh_last: Tensor,
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    h: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    c: float,
) -> tuple[Tensor, ...]:
    dx, dgate_x, dgate_a = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    sums, dh0 = torch.empty_like(h0), torch.empty_like(h0)
    # h0 in the dtype of h, so that both can be the past of a token
    inputs = flat(dh, dh_last, x, gate_x, gate_a, _rate(a_param, c), h, h0.to(h.dtype), no_tensor(reset))
    over_rows(_backward_kernel, [*inputs, *flat(dx, dgate_x, dgate_a, sums, dh0)], x.shape)
    # sigmoid / softplus is 0 / 0 far below 0, where its limit is 1
    wide = a_param.double().clamp(min=-30.0)
    ratio = torch.sigmoid(wide) / functional.softplus(wide, threshold=40.0)
    return dx, dgate_x, dgate_a, (sums.sum(dim=0) * ratio).to(a_param.dtype), dh0


_INPUTS = "Tensor x, Tensor gate_x, Tensor gate_a, Tensor a_param, "
_node = differentiable_node(
    "rg_lru_cpu",
    "CPU",
    (f"({_INPUTS}Tensor h0, Tensor? reset, float c) -> (Tensor, Tensor)", _forward),
    (
        f"(Tensor dh, Tensor dh_last, {_INPUTS}Tensor h, Tensor h0, Tensor? reset, float c)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _backward,
    ),
    forward_like=(0, 4),
    backward_like=(2, 2, 2, 5, 7),
    kept=(0, 1, 2, 3, 7, 4, 5),
    gradient_of=(0, 1, 2, 3, 4),
    constants=1,
)
