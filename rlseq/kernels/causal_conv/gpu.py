"""``causal_conv`` in Triton: tiles of tokens x channels, each tap a shifted load under the mask of what no reset hides.

The carried tokens stand before the first one, at the indices -(W-1)..-1. A backward program walks through one strip of
tokens, so that its sums for weight and bias leave as one row of partial sums.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._triton import BLOCKS, launch, place, why_not

__all__ = ["causal_conv", "why_not"]

_TILE, _BACKWARD_TILE = 16, 8
"""Tokens of a tile: one warp has registers for half as many in the backward, which holds each tile several times."""
_STRIP = 512
"""Tokens of a backward program: partial sums are (W + 1) / 512 of x, and their float32 sums have 64 terms."""


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.causal_conv``, arguments already checked."""
    flags = None if reset is None else reset.contiguous()
    past = x.new_zeros(x.shape[0], weight.shape[0] - 1, x.shape[2]) if state is None else state
    y, last = _node(x.contiguous(), weight.contiguous(), bias.contiguous(), past.contiguous(), flags)
    return y, last


@triton.jit
def _tokens(x, state, row, t, mask, d, length, TAPS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """Tokens t of x, or of the state where t < 0; 0 from ``length`` on."""
    inside = (t >= 0) & (t < length)
    values = tl.load(x + (row * length + t) * WIDTH + d, mask=mask & inside, other=0.0).to(DTYPE)
    if TAPS > 1:
        before = (t < 0) & (t > -TAPS)
        carried = tl.load(state + (row * (TAPS - 1) + t + TAPS - 1) * WIDTH + d, mask=mask & before, other=0.0)
        values = tl.where(before, carried.to(DTYPE), values)
    return values


@triton.jit
def _resets(reset, row, t, length):
    """Whether token t is a reset; False outside of 0..length."""
    if reset is None:
        return tl.zeros(t.shape, tl.int1)
    else:
        return tl.load(reset + row * length + t, mask=(t >= 0) & (t < length), other=0) != 0


@triton.jit(do_not_specialize=["length", "tiles"])
def _forward_kernel(
    x, weight, bias, state, reset, y, length, tiles,
    TAPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    _, row, tile, channels = place(tiles, WIDTH, BLOCK)
    d = channels[None, :]
    mask = d < WIDTH
    t = (tile * GROUP + tl.arange(0, GROUP))[:, None]
    total = tl.zeros([GROUP, BLOCK], DTYPE) + tl.load(bias + d, mask=mask, other=0.0).to(DTYPE)
    alive = t < length
    for j in tl.static_range(TAPS):
        w = tl.load(weight + (TAPS - 1 - j) * WIDTH + d, mask=mask, other=0.0).to(DTYPE)
        token = _tokens(x, state, row, t - j, mask & alive, d, length, TAPS, WIDTH, DTYPE)
        total = tl.fma(w, token, total)
        alive = alive & ~_resets(reset, row, t - j, length)
    tl.store(y + (row * length + t) * WIDTH + d, total, mask=mask & (t < length))


@triton.jit(do_not_specialize=["length", "strips"])
def _backward_kernel(
    dy, dlast, x, weight, state, reset, dx, dstate, sums, length, strips,
    TAPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, STRIP: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    item, row, strip, channels = place(strips, WIDTH, BLOCK)
    d = channels[None, :]
    mask = d < WIDTH
    totals = ()
    for _ in tl.static_range(TAPS + 1):
        totals = totals + (tl.zeros([BLOCK], DTYPE),)
    # strips begin with the carried tokens
    begin = strip * STRIP - (TAPS - 1)
    for tile in range(tl.cdiv(tl.minimum(STRIP, length - begin), GROUP)):
        t = (begin + tile * GROUP + tl.arange(0, GROUP))[:, None]
        alive = t < length
        token = _tokens(x, state, row, t, mask, d, length, TAPS, WIDTH, DTYPE)
        gradient = tl.zeros([GROUP, BLOCK], DTYPE)
        sums_of_tile = ()
        for j in tl.static_range(TAPS):
            if j > 0:
                alive = alive & ~_resets(reset, row, t + j, length)
            inside = mask & alive & (t + j >= 0) & (t + j < length)
            dy_t = tl.load(dy + (row * length + t + j) * WIDTH + d, mask=inside, other=0.0).to(DTYPE)
            w = tl.load(weight + (TAPS - 1 - j) * WIDTH + d, mask=mask, other=0.0).to(DTYPE)
            gradient = tl.fma(w, dy_t, gradient)
            # select: a hidden token may be infinite
            sums_of_tile = sums_of_tile + (tl.sum(tl.where(inside, dy_t * token, 0.0), axis=0),)
            if j == 0:
                bias_of_tile = tl.sum(dy_t, axis=0)
        if TAPS > 1:
            slot = t - (length - (TAPS - 1))
            held = mask & alive & (slot >= 0)
            passed = tl.load(dlast + (row * (TAPS - 1) + slot) * WIDTH + d, mask=held, other=0.0)
            gradient += passed.to(DTYPE)
            carried = dstate + (row * (TAPS - 1) + t + TAPS - 1) * WIDTH + d
            tl.store(carried, gradient, mask=mask & (t < 0))
        tl.store(dx + (row * length + t) * WIDTH + d, gradient, mask=mask & (t >= 0) & (t < length))
        sums_of_tile = sums_of_tile + (bias_of_tile,)
        new = ()
        for j in tl.static_range(TAPS + 1):
            new = new + (totals[j] + sums_of_tile[j],)
        totals = new
    for j in tl.static_range(TAPS + 1):
        # rows as in weight, the oldest tap first, then bias
        at = item * (TAPS + 1) + (TAPS - 1 - j if j < TAPS else TAPS)
        tl.store(sums + at * WIDTH + channels, totals[j], mask=channels < WIDTH)


def _constants(x: Tensor, weight: Tensor, tile: int) -> dict[str, Any]:
    taps, width = weight.shape
    return {
        "TAPS": taps,
        "WIDTH": width,
        "BLOCK": BLOCKS[x.element_size()],
        "GROUP": tile,
        "DTYPE": compute_dtype(x),
    }


def _last(x: Tensor, state: Tensor, reset: Tensor | None) -> Tensor:
    """The last W-1 tokens, those before a reset as zeros."""
    length, size = x.shape[1], state.shape[1]
    recent = x[:, max(length - size, 0) :].to(state.dtype)
    last = torch.cat([state[:, recent.shape[1] :], recent], dim=1)
    if reset is None or size == 0:
        return last
    # a token is held if no reset comes after it
    after = reset[:, max(length - size + 1, 0) :].flip(1).cumsum(1).flip(1)
    hidden = torch.nn.functional.pad(after, (0, 1)).bool()
    first = reset.any(1, keepdim=True).expand(-1, size - hidden.shape[1])
    return torch.where(torch.cat([first, hidden], dim=1)[..., None], 0.0, last)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x)
    constants = _constants(x, weight, _TILE)
    tiles = triton.cdiv(x.shape[1], _TILE)
    programs = x.shape[0] * tiles * triton.cdiv(x.shape[2], constants["BLOCK"])
    launch(_forward_kernel, programs, x, weight, bias, state, reset, y, x.shape[1], tiles, **constants)
    return y, _last(x, state, reset)


def _backward(
    dy: Tensor, dlast: Tensor, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, ...]:
    batch, length, width = x.shape
    taps = weight.shape[0]
    dx, dstate = torch.empty_like(x), torch.empty_like(state)
    constants = _constants(x, weight, _BACKWARD_TILE)
    strips = triton.cdiv(length + taps - 1, _STRIP)
    sums = x.new_empty(batch * strips, taps + 1, width, dtype=compute_dtype(x))
    arguments = (dy, dlast, x, weight, state, reset, dx, dstate, sums, length, strips)
    programs = batch * strips * triton.cdiv(width, constants["BLOCK"])
    launch(_backward_kernel, programs, *arguments, **constants, STRIP=_STRIP)
    totals = sums.sum(dim=0, dtype=torch.float64)
    return dx, totals[:taps].to(weight.dtype), totals[taps].to(bias.dtype), dstate


_INPUTS = "Tensor x, Tensor weight, Tensor bias, Tensor state, Tensor? reset"
_node = differentiable_node(
    "causal_conv_gpu",
    "CompositeExplicitAutograd",
    (f"({_INPUTS}) -> (Tensor, Tensor)", _forward),
    (f"(Tensor dy, Tensor dlast, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)", _backward),
    forward_like=(0, 3),
    backward_like=(2, 3, 4, 5),
    kept=(0, 1, 2, 3, 4),
    gradient_of=(0, 1, 2, 3),
)
