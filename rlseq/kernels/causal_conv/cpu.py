"""``causal_conv`` in Numba: one pass over time, the taps of a token inside; no transposes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype, ready
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._numba import flat, jit
from rlseq.kernels._threads import over_rows


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """CPU tensors only."""
    return None if device == "cpu" else f"tensors are on {device}"


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.causal_conv``, arguments already checked."""
    dtype = compute_dtype(x)
    flags = None if reset is None else reset.contiguous()
    past = x.new_zeros(x.shape[0], weight.shape[0] - 1, x.shape[2]) if state is None else state
    y, last = _node(*ready(dtype, x, weight, bias, past), flags)
    return y.to(x.dtype), last.to(past.dtype)


@jit
def _forward_kernel(x, weight, bias, state, reset, y, last, taps, length, width, tile, begin, end):
    tiles = (width + tile - 1) // tile
    for item in range(begin, end):
        row, low = item // tiles, (item % tiles) * tile
        n = min(tile, width - low)
        first, first_past = row * length, row * (taps - 1)
        reach = taps - 1
        for t in range(length):
            if reset.size > 0 and reset[first + t]:
                reach = 0
            at = (first + t) * width + low
            y_t = y[at : at + n]
            y_t[:] = bias[low : low + n]
            for j in range(reach + 1):
                w = weight[(taps - 1 - j) * width + low :]
                source = x[at - j * width :] if j <= t else state[(first_past + taps - 1 + t - j) * width + low :]
                for d in range(n):
                    y_t[d] += w[d] * source[d]
            reach = min(reach + 1, taps - 1)
        for s in range(taps - 1):
            t = length - (taps - 1) + s
            at = (first_past + s) * width + low
            if length - t > reach:
                last[at : at + n] = 0.0
            elif t >= 0:
                last[at : at + n] = x[(first + t) * width + low : (first + t) * width + low + n]
            else:
                past = (first_past + taps - 1 + t) * width + low
                last[at : at + n] = state[past : past + n]


@jit
def _backward_kernel(dy, dlast, x, weight, state, reset, dx, dstate, sums, taps, length, width, tile, begin, end):
    tiles = (width + tile - 1) // tile
    part = np.empty((taps + 1) * tile, x.dtype)
    for item in range(begin, end):
        row, low = item // tiles, (item % tiles) * tile
        n = min(tile, width - low)
        first, first_past = row * length, row * (taps - 1)
        total = sums[row * (taps + 1) * width + low :]
        part[:] = 0.0
        reach = taps - 1
        for t in range(length):
            if reset.size > 0 and reset[first + t]:
                reach = 0
            at = (first + t) * width + low
            dy_t = dy[at : at + n]
            dbias = part[taps * tile : taps * tile + n]
            for d in range(n):
                dbias[d] += dy_t[d]
            for j in range(reach + 1):
                tap = taps - 1 - j
                w, dw = weight[tap * width + low :], part[tap * tile : tap * tile + n]
                before = at - j * width if j <= t else (first_past + taps - 1 + t - j) * width + low
                source, target = (x[before:], dx[before:]) if j <= t else (state[before:], dstate[before:])
                for d in range(n):
                    target[d] += w[d] * dy_t[d]
                    dw[d] += source[d] * dy_t[d]
            reach = min(reach + 1, taps - 1)
            if t % 128 == 127 or t == length - 1:
                # float32 sums stay short; the long ones are float64
                for tap in range(taps + 1):
                    for d in range(n):
                        total[tap * width + d] += part[tap * tile + d]
                part[:] = 0.0
        for s in range(max(taps - 1 - reach, 0), taps - 1):
            t = length - (taps - 1) + s
            before = (first + t) * width + low if t >= 0 else (first_past + taps - 1 + t) * width + low
            target = dx[before:] if t >= 0 else dstate[before:]
            dlast_s = dlast[(first_past + s) * width + low :]
            for d in range(n):
                target[d] += dlast_s[d]


def _forward(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    y, last = torch.empty_like(x), torch.empty_like(state)
    arrays = flat(x, weight, bias, state, reset, y, last)
    over_rows(_forward_kernel, [*arrays, weight.shape[0]], x.shape)
    return y, last


def _backward(
    dy: Tensor, dlast: Tensor, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, ...]:
    batch, _, width = x.shape
    taps = weight.shape[0]
    dx, dstate = torch.zeros_like(x), torch.zeros_like(state)
    sums = torch.zeros(batch, taps + 1, width, dtype=torch.float64)
    arrays = flat(dy, dlast, x, weight, state, reset, dx, dstate, sums)
    over_rows(_backward_kernel, [*arrays, taps], x.shape)
    totals = sums.sum(dim=0).to(weight.dtype)
    return dx, totals[:taps].clone(), totals[taps].clone(), dstate


_INPUTS = "Tensor x, Tensor weight, Tensor bias, Tensor state, Tensor? reset"
_node = differentiable_node(
    "causal_conv_cpu",
    "CPU",
    (f"({_INPUTS}) -> (Tensor, Tensor)", _forward),
    (f"(Tensor dy, Tensor dlast, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)", _backward),
    forward_like=(0, 3),
    backward_like=(2, 3, 4, 5),
    kept=(0, 1, 2, 3, 4),
    gradient_of=(0, 1, 2, 3),
)
