"""``linear_scan`` in Numba: time outside, channels inside; a state is the sum of two numbers of the input's precision.

The second is the error of the first, carried along, which is as exact as a float64 state and vectorises twice as wide.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype, initial_state, ready
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._numba import flat, fma, jit, join, split
from rlseq.kernels._threads import over_rows


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """CPU tensors only."""
    return None if device == "cpu" else f"tensors are on {device}"


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.linear_scan``, arguments already checked."""
    dtype = compute_dtype(b)
    flags = None if reset is None else reset.contiguous()
    h, h_last = _node(*ready(dtype, a, b), *ready(torch.float64, initial_state(h0, b)), flags)
    return h.to(b.dtype), h_last


@jit
def _forward_kernel(a, b, h0, reset, h, h_last, length, width, tile, begin, end):
    tiles = (width + tile - 1) // tile
    high, low = np.empty(tile, b.dtype), np.empty(tile, b.dtype)
    for item in range(begin, end):
        row, first = item // tiles, (item % tiles) * tile
        start, n = row * width + first, min(tile, width - first)
        split(h0[start : start + n], high, low)
        for t in range(length):
            # unsigned: Numba would look for negative indices, and the loop would not vectorise
            at = np.uint64((row * length + t) * width + first)
            if reset.size > 0 and reset[row * length + t]:
                high[:], low[:] = 0.0, 0.0
            for d in range(np.uint64(n)):
                i = at + d
                total = fma(a[i], high[d], b[i])
                # what the rounding of total dropped
                low[d] = fma(a[i], low[d], fma(a[i], high[d], -total) + b[i])
                high[d] = total
                h[i] = total + low[d]
        join(high, low, h_last[start : start + n])


@jit
def _token_backward(dh, a, past, da, db, high, low):
    for d in range(a.size):
        total = high[d] + dh[d]
        rest = low[d] + ((high[d] - total) + dh[d])
        g = total + rest
        db[d] = g
        da[d] = g * past[d]
        high[d] = a[d] * total
        low[d] = fma(a[d], rest, fma(a[d], total, -high[d]))


@jit
def _backward_kernel(dh, dh_last, a, h, h0, reset, da, db, dh0, length, width, tile, begin, end):
    tiles = (width + tile - 1) // tile
    high, low = np.empty(tile, a.dtype), np.empty(tile, a.dtype)
    for item in range(begin, end):
        row, first = item // tiles, (item % tiles) * tile
        start, n = row * width + first, min(tile, width - first)
        split(dh_last[start : start + n], high, low)
        for t in range(length - 1, -1, -1):
            at = (row * length + t) * width + first
            dh_t, a_t, da_t, db_t = dh[at : at + n], a[at : at + n], da[at : at + n], db[at : at + n]
            if reset.size > 0 and reset[row * length + t]:
                for d in range(n):
                    db_t[d] = (high[d] + dh_t[d]) + low[d]
                da_t[:], high[:], low[:] = 0.0, 0.0, 0.0
            elif t > 0:
                _token_backward(dh_t, a_t, h[at - width : at - width + n], da_t, db_t, high, low)
            else:
                _token_backward(dh_t, a_t, h0[start : start + n], da_t, db_t, high, low)
        join(high, low, dh0[start : start + n])


def _forward(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    h, h_last = torch.empty_like(b), torch.empty_like(h0)
    over_rows(_forward_kernel, flat(a, b, h0, reset, h, h_last), b.shape)
    return h, h_last


def _backward(
    dh: Tensor, dh_last: Tensor, a: Tensor, h: Tensor, h0: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    da, db, dh0 = torch.empty_like(a), torch.empty_like(a), torch.empty_like(h0)
    # in the dtype of h, so that both can be the past of a token
    past = h0.to(h.dtype)
    over_rows(_backward_kernel, flat(dh, dh_last, a, h, past, reset, da, db, dh0), a.shape)
    return da, db, dh0


_node = differentiable_node(
    "linear_scan_cpu",
    "CPU",
    ("(Tensor a, Tensor b, Tensor h0, Tensor? reset) -> (Tensor, Tensor)", _forward),
    (
        "(Tensor dh, Tensor dh_last, Tensor a, Tensor h, Tensor h0, Tensor? reset) -> (Tensor, Tensor, Tensor)",
        _backward,
    ),
    forward_like=(1, 2),
    backward_like=(2, 2, 4),
    kept=(0, 4, 2, 3),
    gradient_of=(0, 1, 2),
)
