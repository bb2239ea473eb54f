"""``softmax_scan`` in Numba: time outside, channels inside; mean and gradient as ``linear_scan``'s, float64 weights.

z is carried as m + log u, with m the largest score so far: one exponential a token and head, and no logarithm.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype, ready
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._numba import dot, flat, fma, jit, join, split
from rlseq.kernels._threads import over_rows
from rlseq.kernels.softmax_scan._state import SoftmaxState


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """CPU tensors only."""
    return None if device == "cpu" else f"tensors are on {device}"


def softmax_scan(s: Tensor, v: Tensor, state: SoftmaxState | None, reset: Tensor | None) -> tuple[Tensor, SoftmaxState]:
    """As ``rlseq.kernels.softmax_scan``, arguments already checked."""
    batch, _, heads, size = v.shape
    z0, o0 = SoftmaxState.empty(batch, heads, size, device=v.device) if state is None else state
    flags = None if reset is None else reset.contiguous()
    scores, z0, o0 = ready(torch.float64, s, z0, o0)
    o, z_last, o_last = _node(scores, *ready(compute_dtype(v), v), z0, o0, flags)
    return o.to(v.dtype), SoftmaxState(z_last, o_last)


@jit
def _weigh(s, m, u):
    """New m and u, weight p of the new token and a of the mean before it."""
    if m == -math.inf:
        return s, 1.0 if s > -math.inf else 0.0, 1.0, 0.0
    if s > m:
        before = u * math.exp(m - s)
        return s, before + 1.0, 1.0 / (before + 1.0), before / (before + 1.0)
    own = math.exp(s - m)
    return m, u + own, own / (u + own), u / (u + own)


@jit
def _mix(p, v, high, low, o):
    for d in range(v.size):
        step = p * ((v[d] - high[d]) - low[d])
        total = high[d] + step
        # what the rounding of total dropped
        low[d] += (high[d] - total) + step
        high[d] = total
        o[d] = total + low[d]


@jit
def _forward_kernel(s, v, z0, o0, reset, o, z_last, o_last, p, a, size, length, width, tile, begin, end):
    tiles, heads = (width + tile - 1) // tile, width // size
    m, u = np.empty(tile // size), np.empty(tile // size)
    high, low = np.empty(tile, v.dtype), np.empty(tile, v.dtype)
    for item in range(begin, end):
        row, first = item // tiles, (item % tiles) * tile
        start, n = row * width + first, min(tile, width - first)
        split(o0[start : start + n], high, low)
        for k in range(n // size):
            m[k], u[k] = z0[start // size + k], 1.0
        for t in range(length):
            if reset.size > 0 and reset[row * length + t]:
                m[:] = -math.inf
            token = (row * length + t) * heads + first // size
            for k in range(n // size):
                alone = m[k] == -math.inf
                m[k], u[k], p[token + k], a[token + k] = _weigh(s[token + k], m[k], u[k])
                at, here = (token + k) * size, k * size
                v_t, o_t = v[at : at + size], o[at : at + size]
                if alone:
                    low[here : here + size] = 0.0
                    high[here : here + size] = v_t
                    o_t[:] = v_t
                else:
                    _mix(p[token + k], v_t, high[here : here + size], low[here : here + size], o_t)
        for k in range(n // size):
            z_last[start // size + k] = m[k] + math.log(u[k])
        join(high, low, o_last[start : start + n])


@jit
def _collect(do, p, a, high, low, g, dv):
    for d in range(do.size):
        total = high[d] + do[d]
        rest = low[d] + ((high[d] - total) + do[d])
        g[d] = total + rest
        dv[d] = p * g[d]
        if p < 0.5:
            # a rounded near 1 loses what p still says
            kept = fma(-p, total, total)
            low[d] = fma(-p, rest, rest) + fma(-p, total, total - kept)
        else:
            kept = a * total
            low[d] = fma(a, rest, fma(a, total, -kept))
        high[d] = kept


@jit
def _backward_kernel(
    do, dz_last, do_last, v, o0, o, o_last, p, a, ds, dv, dz0, do0, size, length, width, tile, begin, end
):
    tiles, heads = (width + tile - 1) // tile, width // size
    c, g = np.empty(tile // size), np.empty(size, v.dtype)
    high, low = np.empty(tile, v.dtype), np.empty(tile, v.dtype)
    for item in range(begin, end):
        row, first = item // tiles, (item % tiles) * tile
        start, n = row * width + first, min(tile, width - first)
        split(do_last[start : start + n], high, low)
        for k in range(n // size):
            at = start + k * size
            c[k] = dot(do_last[at : at + size], o_last[at : at + size]) - dz_last[start // size + k]
        for t in range(length - 1, -1, -1):
            token = (row * length + t) * heads + first // size
            for k in range(n // size):
                at, here = (token + k) * size, k * size
                do_t, weight, past_weight = do[at : at + size], p[token + k], a[token + k]
                c[k] += dot(do_t, o[at : at + size])
                _collect(
                    do_t,
                    weight,
                    past_weight,
                    high[here : here + size],
                    low[here : here + size],
                    g,
                    dv[at : at + size],
                )
                ds[token + k] = weight * (dot(v[at : at + size], g) - c[k])
                if past_weight != 0.0:
                    c[k] *= past_weight
                else:
                    # selected, because a NaN from later tokens would come through a weight of 0
                    c[k] = 0.0
                    high[here : here + size], low[here : here + size] = 0.0, 0.0
        gradient = do0[start : start + n]
        join(high, low, gradient)
        for k in range(n // size):
            at, here = start + k * size, k * size
            # a state that was dropped may hold infinities
            kept = a[row * length * heads + first // size + k] > 0.0
            dz0[start // size + k] = dot(o0[at : at + size], gradient[here : here + size]) - c[k] if kept else 0.0


def _forward(s: Tensor, v: Tensor, z0: Tensor, o0: Tensor, reset: Tensor | None) -> tuple[Tensor, ...]:
    batch, length, heads, size = v.shape
    o, z_last, o_last = torch.empty_like(v), torch.empty_like(z0), torch.empty_like(o0)
    p, a = v.new_empty(batch, length, heads), v.new_empty(batch, length, heads)
    arrays = flat(s, v, z0, o0, reset, o, z_last, o_last, p, a)
    over_rows(_forward_kernel, [*arrays, size], (batch, length, heads * size), unit=size)
    return o, z_last, o_last, p, a


def _backward(
    do: Tensor, dz_last: Tensor, do_last: Tensor, v: Tensor, o0: Tensor, o: Tensor, o_last: Tensor, p: Tensor, a: Tensor
) -> tuple[Tensor, ...]:
    batch, length, heads, size = v.shape
    ds, dv = p.new_empty(p.shape, dtype=torch.float64), torch.empty_like(v)
    dz0, do0 = torch.empty_like(dz_last), torch.empty_like(o0)
    arrays = flat(do, dz_last, do_last, v, o0, o, o_last, p, a, ds, dv, dz0, do0)
    over_rows(_backward_kernel, [*arrays, size], (batch, length, heads * size), unit=size)
    return ds, dv, dz0, do0


def _weights_like(s: Tensor, v: Tensor, *_: Tensor | None) -> Tensor:
    return v.new_empty(s.shape)


_node = differentiable_node(
    "softmax_scan_cpu",
    "CPU",
    ("(Tensor s, Tensor v, Tensor z0, Tensor o0, Tensor? reset) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _forward),
    (
        "(Tensor do_, Tensor dz_last, Tensor do_last, Tensor v, Tensor o0, Tensor o, Tensor o_last, Tensor p, Tensor a)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _backward,
    ),
    forward_like=(1, 2, 3, _weights_like, _weights_like),
    backward_like=(lambda *inputs: inputs[7].new_empty(inputs[7].shape, dtype=torch.float64), 3, 1, 4),
    kept=(1, 3, 5, 7, 8, 9),
    gradient_of=(0, 1, 2, 3),
    private=2,
)
