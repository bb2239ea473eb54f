"""``rg_lru`` in Numba: time outside, channels inside; the state as in ``linear_scan``; backward recomputes the gates.

The work of some tokens is done in short loops of few operations each: a processor then has many of their iterations
under way at once, where one long loop waits for its own exponentials. Memory is asked for one round ahead.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype, initial_state, ready
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._numba import (
    decay_minus_one,
    flat,
    fma,
    jit,
    join,
    prefetch,
    sigmoid,
    split,
    tokens_at_once,
)
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
    states = ready(torch.float64, initial_state(h0, x))
    h, h_last = _node(*ready(dtype, x, gate_x, gate_a, a_param), *states, flags, c)
    return h.to(x.dtype), h_last


@jit
def _gates(x, gate_x, gate_a, rates, input_gate, gated, recurrence_gate, u):
    for d in range(x.size):
        i = sigmoid(gate_x[d])
        input_gate[d] = i
        gated[d] = i * x[d]
    width = rates.size
    for first in range(0, x.size, width):
        gate_t, recurrence_t, u_t = gate_a[first:], recurrence_gate[first:], u[first:]
        for d in range(width):
            r = sigmoid(gate_t[d])
            recurrence_t[d] = r
            u_t[d] = rates[d] * r


@jit
def _decays(u, change, beta):
    two = u.dtype.type(2.0)
    for d in range(u.size):
        m = decay_minus_one(u[d])
        change[d] = m
        beta[d] = np.sqrt(-m * (m + two))


@jit
def _advance(change, beta, gated, high, low, h):
    for d in range(change.size):
        step = fma(change[d], high[d], beta[d] * gated[d])
        total = high[d] + step
        # what the rounding of total dropped
        low[d] += fma(change[d], low[d], (high[d] - total) + step)
        high[d] = total
        h[d] = total + low[d]


@jit
def _rates(a_param, c):
    rates = np.empty_like(a_param)
    for d in range(a_param.size):
        # softplus, without an overflow and without a loss of small values
        rates[d] = c * (max(a_param[d], 0.0) + math.log1p(math.exp(-abs(np.float64(a_param[d])))))
    return rates


@jit
def _forward_kernel(x, gate_x, gate_a, a_param, c, h0, reset, h, h_last, length, width, tile, begin, end):
    tiles = (width + tile - 1) // tile
    rates, tokens = _rates(a_param, c), tokens_at_once(width, tile)
    size = tokens * tile
    input_gate, recurrence_gate, u = np.empty(size, x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
    gated, change, beta = np.empty(size, x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
    high, low = np.empty(tile, x.dtype), np.empty(tile, x.dtype)
    for item in range(begin, end):
        row, first = item // tiles, (item % tiles) * tile
        start, n = row * width + first, min(tile, width - first)
        split(h0[start : start + n], high, low)
        for t in range(0, length, tokens):
            at, count = (row * length + t) * width + first, min(tokens, length - t)
            stop, many = at + count * n, count * n
            rates_n = rates[first : first + n]
            _gates(x[at:stop], gate_x[at:stop], gate_a[at:stop], rates_n, input_gate, gated, recurrence_gate, u)
            _decays(u[:many], change, beta)
            for k in range(count):
                here, there = k * n, (k + 1) * n
                if reset.size > 0 and reset[row * length + t + k]:
                    low[:] = 0.0
                    for d in range(n):
                        high[d] = gated[here + d]
                    h[at + here : at + there] = gated[here:there]
                else:
                    _advance(
                        change[here:there], beta[here:there], gated[here:there], high, low, h[at + here : at + there]
                    )
        join(high, low, h_last[start : start + n])


@jit
def _collect(dh, change, high, low, g):
    for d in range(dh.size):
        total = high[d] + dh[d]
        rest = low[d] + ((high[d] - total) + dh[d])
        g[d] = total + rest
        step = change[d] * total
        kept = total + step
        # what the roundings of step and kept dropped
        low[d] = rest + fma(change[d], rest, fma(change[d], total, total - kept))
        high[d] = kept


@jit
def _input_gradients(g, x, input_gate, beta, dx, dgate_x):
    one = x.dtype.type(1.0)
    for d in range(x.size):
        at_x = g[d] * input_gate[d] * beta[d]
        dx[d] = at_x
        dgate_x[d] = at_x * x[d] * (one - input_gate[d])


@jit
def _decay_gradients(g, gated, past, change, beta, u, slope):
    one, tiny = g.dtype.type(1.0), g.dtype.type(1e-37)
    for d in range(g.size):
        a = one + change[d]
        # u / beta is 0 at u = 0
        ratio = u[d] / max(beta[d], tiny)
        slope[d] = a * g[d] * (gated[d] * a * ratio - u[d] * past[d])


@jit
def _gate_gradients(slope, recurrence_gate, dgate_a, total):
    one, width = slope.dtype.type(1.0), total.size
    # backward in time also where one token comes at a time, so that the sum does not depend on the tiles
    for first in range(slope.size - width, -1, -width):
        slope_t, recurrence_t, dgate_t = slope[first:], recurrence_gate[first:], dgate_a[first:]
        for d in range(width):
            total[d] += slope_t[d]
            dgate_t[d] = slope_t[d] * (one - recurrence_t[d])


@jit
def _backward_kernel(
    dh,
    dh_last,
    x,
    gate_x,
    gate_a,
    a_param,
    c,
    h,
    h0,
    reset,
    dx,
    dgate_x,
    dgate_a,
    sums,
    dh0,
    length,
    width,
    tile,
    begin,
    end,
):
    tiles = (width + tile - 1) // tile
    rates, tokens = _rates(a_param, c), tokens_at_once(width, tile)
    # tokens of a sum in the inputs' precision, whatever the tile
    size, span = tokens * tile, tokens_at_once(width, width)
    input_gate, recurrence_gate, u = np.empty(size, x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
    gated, change, beta = np.empty(size, x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
    g, past, slope = np.empty(size, x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
    high, low, part = np.empty(tile, x.dtype), np.empty(tile, x.dtype), np.empty(tile, x.dtype)
    for item in range(begin, end):
        row, first = item // tiles, (item % tiles) * tile
        start, n = row * width + first, min(tile, width - first)
        total = sums[start : start + n]
        total[:], part[:] = 0.0, 0.0
        split(dh_last[start : start + n], high, low)
        for t in range((length - 1) // tokens * tokens, -1, -tokens):
            at, count = (row * length + t) * width + first, min(tokens, length - t)
            stop, many = at + count * n, count * n
            next_at, next_stop = at - tokens * n, at
            prefetch(gate_x, next_at, next_stop)
            prefetch(gate_a, next_at, next_stop)
            prefetch(x, next_at, next_stop)
            rates_n = rates[first : first + n]
            _gates(x[at:stop], gate_x[at:stop], gate_a[at:stop], rates_n, input_gate, gated, recurrence_gate, u)
            prefetch(h, next_at - width, next_stop - width)
            prefetch(dh, next_at, next_stop)
            _decays(u[:many], change, beta)
            if t > 0:
                past[:many] = h[at - width : stop - width]
            else:
                past[:n] = h0[start : start + n]
                past[n:many] = h[at : stop - n]
            for k in range(count - 1, -1, -1):
                here, there = k * n, (k + 1) * n
                _collect(dh[at + here : at + there], change[here:there], high, low, g[here:there])
                if reset.size > 0 and reset[row * length + t + k]:
                    # the past is dropped and beta is 1; the carry is selected, because a NaN passes a factor of 0
                    change[here:there], beta[here:there], past[here:there], u[here:there] = -1.0, 1.0, 0.0, 0.0
                    high[:], low[:] = 0.0, 0.0
            prefetch(dx, next_at, next_stop)
            prefetch(dgate_x, next_at, next_stop)
            _input_gradients(g[:many], x[at:stop], input_gate, beta, dx[at:stop], dgate_x[at:stop])
            prefetch(dgate_a, next_at, next_stop)
            _decay_gradients(g[:many], gated, past, change, beta, u, slope)
            _gate_gradients(slope[:many], recurrence_gate, dgate_a[at:stop], part[:n])
            if t % span == 0:
                for d in range(n):
                    total[d] += part[d]
                part[:] = 0.0
        join(high, low, dh0[start : start + n])


@jit
def _decay_parameter_gradient(sums, a_param, da_param):
    totals = np.zeros(a_param.size)
    for first in range(0, sums.size, a_param.size):
        row = sums[first:]
        for d in range(totals.size):
            totals[d] += row[d]
    for d in range(totals.size):
        # sigmoid / softplus is 0 / 0 far below 0, where its limit is 1
        e = math.exp(min(max(np.float64(a_param[d]), -30.0), 700.0))
        da_param[d] = totals[d] * (e / (1.0 + e)) / math.log1p(e)


def _forward(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, h0: Tensor, reset: Tensor | None, c: float
) -> tuple[Tensor, Tensor]:
    h, h_last = torch.empty_like(x), torch.empty_like(h0)
    arrays = [*flat(x, gate_x, gate_a, a_param), c, *flat(h0, reset, h, h_last)]
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
    inputs = [*flat(dh, dh_last, x, gate_x, gate_a, a_param), c, *flat(h, h0.to(h.dtype), reset)]
    over_rows(_backward_kernel, [*inputs, *flat(dx, dgate_x, dgate_a, sums, dh0)], x.shape)
    da_param = torch.empty_like(a_param)
    _decay_parameter_gradient(*flat(sums, a_param, da_param))
    return dx, dgate_x, dgate_a, da_param, dh0


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
