"""``softmax_scan`` in Triton: one program a head; z is carried as m + log u, with the largest score m and a sum u.

The forward leaves the weights p and a of every token for the backward (1/E of v each) and o before every group, from
which the backward rebuilds it. <do, o> is carried as a product of each channel, so that a token costs one sum over the
channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlseq.kernels import _triton
from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._triton import (
    GROUP,
    difference_step,
    enter,
    exp,
    joined,
    launch,
    left_in_next,
    linear_step,
    load_group,
    load_resets,
    mix_step,
    prefix,
    split,
    states_between,
    why_not,
)
from rlseq.kernels.softmax_scan._state import SoftmaxState

__all__ = ["softmax_scan", "why_not"]

_CHANNELS, _BACKWARD_CHANNELS = 128, 64
"""Channels of a warp: more heads' widths than this get more warps, because a warp's registers hold a group."""

LARGEST = tl.constexpr(2.0**126)


def softmax_scan(s: Tensor, v: Tensor, state: SoftmaxState | None, reset: Tensor | None) -> tuple[Tensor, SoftmaxState]:
    """As ``rlseq.kernels.softmax_scan``, arguments already checked."""
    flags = None if reset is None else reset.contiguous()
    batch, _, heads, size = v.shape
    z0, o0 = SoftmaxState.empty(batch, heads, size, device=v.device) if state is None else state
    states = z0.to(torch.float64).contiguous(), o0.to(torch.float64).contiguous()
    o, z_last, o_last = _node(s.contiguous(), v.contiguous(), *states, flags)
    return o, SoftmaxState(z_last, o_last)


@triton.jit
def _weights(s, m, hi, lo, reset):
    """Weights p and a of a token, then the largest score and the pair of the sum after it."""
    before = tl.where(reset, 0.0, hi + lo)
    m = tl.where(reset, -float("inf"), m)
    # an infinite score weighs all, as a very large one does; inf - inf would be NaN
    s = tl.where(s > LARGEST, LARGEST, s)
    top = tl.maximum(m, s)
    # -inf - -inf is NaN
    base = tl.where(top == -float("inf"), 0.0, top)
    old, new = exp(m - base), exp(s - base)
    hi, lo = linear_step(old, new, hi, lo, reset, new)
    total = hi + lo
    empty = total == 0.0
    safe = tl.where(empty, 1.0, total)
    return tl.where(empty, 1.0, new / safe), tl.where(empty, 0.0, old * before / safe), top, hi, lo


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _forward_kernel(
    s, v, reset, m_in, u_in, o_in, o, p, a, before, m_out, u_out, o_out, length, span, chunks,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
    SUMMARY: tl.constexpr,
):  # fmt: skip
    _, _, _, _, groups, token, left, group = enter(length, span, chunks, HEADS, 1, GROUP, False)
    program = tl.program_id(0).to(tl.int64)
    head, e = program % HEADS, tl.arange(0, BLOCK)
    mask = e < SIZE
    if SUMMARY:
        m = tl.full((), -float("inf"), DTYPE)
        u_hi, u_lo = (tl.full((), 0.0, DTYPE),) * 2
        hi, lo = (tl.zeros([BLOCK], DTYPE),) * 2
    else:
        m = tl.load(m_in + program).to(DTYPE)
        u_hi, u_lo = split(tl.load(u_in + program), DTYPE)
        hi, lo = split(tl.load(o_in + program * SIZE + e, mask=mask, other=0.0), DTYPE)
    stride: tl.constexpr = HEADS * SIZE
    at = token * HEADS + head
    state_at = (group * HEADS + head) * SIZE + e
    s_group = load_group(s + at, left, True, -float("inf"), HEADS, GROUP)
    v_group = load_group(v + at * SIZE + e, left, mask, 0.0, stride, GROUP)
    resets = load_resets(reset, token, left, GROUP)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, False)
        next_at = at + GROUP * HEADS
        token += GROUP
        s_next = load_group(s + next_at, next_left, True, -float("inf"), HEADS, GROUP)
        v_next = load_group(v + next_at * SIZE + e, next_left, mask, 0.0, stride, GROUP)
        resets_next = load_resets(reset, token, next_left, GROUP)
        if not SUMMARY:
            tl.store(before + state_at, hi + lo, mask=mask)
        for u in tl.static_range(GROUP):
            p_t, a_t, m, u_hi, u_lo = _weights(s_group[u].to(DTYPE), m, u_hi, u_lo, resets[u])
            # beyond the end, -inf weighs nothing unless there is no token at all
            p_t, a_t = tl.where(u < left, p_t, 0.0), tl.where(u < left, a_t, 1.0)
            added = p_t * v_group[u].to(DTYPE)
            hi, lo = mix_step(p_t, a_t, added, hi, lo, added)
            if not SUMMARY:
                tl.store(p + at + u * HEADS, p_t, mask=u < left)
                tl.store(a + at + u * HEADS, a_t, mask=u < left)
                tl.store(o + (at + u * HEADS) * SIZE + e, hi + lo, mask=mask & (u < left))
        at, s_group, v_group, resets, left = next_at, s_next, v_next, resets_next, next_left
        state_at += stride
    tl.store(m_out + program, m.to(tl.float64))
    tl.store(u_out + program, joined(u_hi, u_lo))
    tl.store(o_out + program * SIZE + e, joined(hi, lo), mask=mask)


@triton.jit(do_not_specialize=["chunks"])
def _forward_prefix_kernel(
    m_of, u_of, o_of, fresh, m0, u0, o0, m_in, u_in, o_in, chunks,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row, head, e = program // HEADS, program % HEADS, tl.arange(0, BLOCK)
    mask = e < SIZE
    m, total = tl.load(m0 + program), tl.load(u0 + program)
    o = tl.load(o0 + program * SIZE + e, mask=mask, other=0.0)
    for chunk in range(chunks):
        at = (row * chunks + chunk) * HEADS + head
        tl.store(m_in + at, m)
        tl.store(u_in + at, total)
        tl.store(o_in + at * SIZE + e, o, mask=mask)
        drop = tl.load(fresh + row * chunks + chunk) != 0
        m_c, u_c = tl.load(m_of + at), tl.load(u_of + at)
        o_c = tl.load(o_of + at * SIZE + e, mask=mask, other=0.0)
        m = tl.where(drop, -float("inf"), m)
        top = tl.maximum(m, m_c)
        base = tl.where(top == -float("inf"), 0.0, top)
        old, new = tl.where(drop, 0.0, exp(m - base) * total), exp(m_c - base) * u_c
        m, total = top, old + new
        # no weight at all: the last value counts, as in the kernel above
        o = tl.where(old == 0.0, o_c, (old * o + new * o_c) / tl.where(total == 0.0, 1.0, total))


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _backward_kernel(
    do, v, p, a, before, k_in, c_in, ds, dv, change, k_out, c_out, length, span, chunks,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
    SUMMARY: tl.constexpr,
):  # fmt: skip
    # k and c are the gradients G and C that reach the state before a token, c for each channel
    _, _, _, _, groups, token, left, group = enter(length, span, chunks, HEADS, 1, GROUP, True)
    program = tl.program_id(0).to(tl.int64)
    head, e = program % HEADS, tl.arange(0, BLOCK)
    mask = e < SIZE
    stride: tl.constexpr = HEADS * SIZE
    at = token * HEADS + head
    states = before + (group * HEADS + head) * SIZE + e
    if SUMMARY:
        k_hi, k_lo, c_hi, c_lo = (tl.zeros([BLOCK], DTYPE),) * 4
        m_hi, m_lo = (tl.full((), 0.0, DTYPE),) * 2
    else:
        k_hi, k_lo = split(tl.load(k_in + program * SIZE + e, mask=mask, other=0.0), DTYPE)
        c_hi, c_lo = split(tl.load(c_in + program * SIZE + e, mask=mask, other=0.0), DTYPE)
    p_group = load_group(p + at, left, True, 0.0, HEADS, GROUP)
    a_group = load_group(a + at, left, True, 1.0, HEADS, GROUP)
    v_group = load_group(v + at * SIZE + e, left, mask, 0.0, stride, GROUP)
    do_group = load_group(do + at * SIZE + e, left, mask, 0.0, stride, GROUP)
    state = tl.load(states, mask=mask, other=0.0)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, True)
        next_at = at - GROUP * HEADS
        states -= stride
        p_next = load_group(p + next_at, next_left, True, 0.0, HEADS, GROUP)
        a_next = load_group(a + next_at, next_left, True, 1.0, HEADS, GROUP)
        v_next = load_group(v + next_at * SIZE + e, next_left, mask, 0.0, stride, GROUP)
        do_next = load_group(do + next_at * SIZE + e, next_left, mask, 0.0, stride, GROUP)
        state_next = tl.load(states, mask=mask & (next_left > 0), other=0.0)
        outputs = ()
        lo = tl.zeros([BLOCK], DTYPE)
        for u in tl.static_range(GROUP):
            added = p_group[u] * v_group[u].to(DTYPE)
            state, lo = mix_step(p_group[u], a_group[u], added, state, lo, added)
            outputs = outputs + (state + lo,)
        for u in tl.static_range(GROUP - 1, -1, -1):
            p_t, a_t, do_t = p_group[u], a_group[u], do_group[u].to(DTYPE)
            # select: a past that no gradient reaches may be infinite
            product = tl.where(do_t == 0.0, 0.0, do_t * outputs[u])
            if SUMMARY:
                m_t = tl.where(p_t < 0.5, -p_t, a_t - 1.0)
                m_hi, m_lo = difference_step(m_t, m_t, m_hi, m_lo, a_t == 0.0, -1.0)
            else:
                g, c = (k_hi + do_t) + k_lo, (c_hi + product) + c_lo
                tl.store(dv + (at + u * HEADS) * SIZE + e, p_t * g, mask=mask & (u < left))
                ds_t = p_t * tl.sum(v_group[u].to(DTYPE) * g - c, axis=0)
                tl.store(ds + at + u * HEADS, ds_t, mask=u < left)
            k_hi, k_lo = mix_step(p_t, a_t, a_t * do_t, k_hi, k_lo, 0.0)
            c_hi, c_lo = mix_step(p_t, a_t, a_t * product, c_hi, c_lo, 0.0)
        at, p_group, a_group, v_group, do_group = next_at, p_next, a_next, v_next, do_next
        left, state = next_left, state_next
    if SUMMARY:
        tl.store(change + program * SIZE + e, tl.zeros([BLOCK], tl.float64) + joined(m_hi, m_lo), mask=mask)
    tl.store(k_out + program * SIZE + e, joined(k_hi, k_lo), mask=mask)
    tl.store(c_out + program * SIZE + e, joined(c_hi, c_lo), mask=mask)


def _dtype(s: Tensor, v: Tensor) -> torch.dtype:
    return torch.promote_types(compute_dtype(s), compute_dtype(v))


def _plan(s: Tensor, v: Tensor, channels: int) -> tuple[int, int, int, dict[str, Any]]:
    """Span, chunks, programs and the constants of the kernels, of which ``channels`` go to a warp."""
    batch, length, heads, size = v.shape
    block = triton.next_power_of_2(size)
    warps = min(max(block // channels, 1), 32)
    span = _triton.span_of(batch * heads * warps, length, v.device)
    chunks = triton.cdiv(length, span)
    constants = {"HEADS": heads, "SIZE": size, "BLOCK": block, "GROUP": GROUP, "DTYPE": _dtype(s, v), "warps": warps}
    return span, chunks, batch * heads * chunks, constants


def _parts(like: Tensor, chunks: int) -> tuple[Tensor, Tensor, Tensor]:
    """m, u and o of every chunk."""
    batch, _, heads, size = like.shape
    m, u = (like.new_empty(batch, chunks, heads, dtype=torch.float64) for _ in range(2))
    return m, u, like.new_empty(batch, chunks, heads, size, dtype=torch.float64)


def _carries(
    s: Tensor, v: Tensor, reset: Tensor | None, first: tuple[Tensor, ...], span: int, chunks: int, constants: Any
) -> tuple[Tensor, ...]:
    """m, u and o that enter each chunk."""
    batch, length, heads, _ = v.shape
    summary, entering = _parts(v, chunks), _parts(v, chunks)
    arguments = (s, v, reset, *(None,) * 7, *summary, length, span, chunks)
    launch(_forward_kernel, batch * heads * chunks, *arguments, **constants, SUMMARY=True)
    fresh = s.new_zeros(batch, chunks, dtype=torch.bool)
    if reset is not None:
        padded = torch.nn.functional.pad(reset, (0, chunks * span - length))
        fresh = padded.view(batch, chunks, span).any(dim=2)
    kept = {name: constants[name] for name in ("HEADS", "SIZE", "BLOCK", "warps")}
    launch(_forward_prefix_kernel, batch * heads, *summary, fresh, *first, *entering, chunks, **kept)
    return entering


def _forward(s: Tensor, v: Tensor, z0: Tensor, o0: Tensor, reset: Tensor | None) -> tuple[Tensor, ...]:
    span, chunks, programs, constants = _plan(s, v, _CHANNELS)
    dtype = _dtype(s, v)
    z0 = z0.clamp(max=LARGEST.value)
    # m in the kernel's dtype; what that rounds off z is in u
    m0 = z0.to(dtype).to(torch.float64)
    u0 = torch.where(m0 == -math.inf, 0.0, torch.exp(z0 - m0))
    first: tuple[Tensor, ...] = (m0, u0, o0)
    if chunks > 1:
        first = _carries(s, v, reset, first, span, chunks, constants)
    o, p, a = torch.empty_like(v), torch.empty_like(s, dtype=dtype), torch.empty_like(s, dtype=dtype)
    before, parts = states_between(v, dtype), _parts(v, chunks)
    arguments = (s, v, reset, *first, o, p, a, before, *parts, v.shape[1], span, chunks)
    launch(_forward_kernel, programs, *arguments, **constants, SUMMARY=False)
    m, u, o_last = (part[:, -1] for part in parts)
    return o, m + torch.log(u), o_last.clone(), p, a, before


def _backward(
    do: Tensor,
    dz_last: Tensor,
    do_last: Tensor,
    s: Tensor,
    v: Tensor,
    p: Tensor,
    a: Tensor,
    before: Tensor,
    o0: Tensor,
    o_last: Tensor,
) -> tuple[Tensor, ...]:
    span, chunks, programs, constants = _plan(s, v, _BACKWARD_CHANNELS)
    batch, length, heads, size = v.shape
    ds, dv = torch.empty_like(s), torch.empty_like(v)
    change, k, c = (v.new_empty(batch, chunks, heads * size, dtype=torch.float64) for _ in range(3))
    k_in, c_in = do_last, _product(do_last, o_last)
    c_in[..., 0] -= dz_last
    inputs = (do, v, p, a, before)
    if chunks > 1:
        unused = (None,) * 4
        summary = (*inputs, *unused, change, k, c, length, span, chunks)
        launch(_backward_kernel, programs, *summary, **constants, SUMMARY=True)
        k_in = prefix(change, k, k_in.view(batch, -1), reverse=True)
        c_in = prefix(change, c, c_in.view(batch, -1), reverse=True)
    arguments = (*inputs, k_in, c_in, ds, dv, None, k, c, length, span, chunks)
    launch(_backward_kernel, programs, *arguments, **constants, SUMMARY=False)
    do0, c0 = (part[:, 0].reshape(batch, heads, size) for part in (k, c))
    return ds, dv, (_product(do0, o0) - c0).sum(dim=-1), do0.clone()


def _product(gradient: Tensor, o: Tensor) -> Tensor:
    """The product of each channel; an infinite o that no gradient reaches gives 0."""
    return torch.where(gradient == 0.0, 0.0, gradient * o)


def _private(s: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(s, dtype=_dtype(s, v), memory_format=torch.contiguous_format)


_node = differentiable_node(
    "softmax_scan_gpu",
    "CompositeExplicitAutograd",
    (
        "(Tensor s, Tensor v, Tensor z0, Tensor o0, Tensor? reset) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _forward,
    ),
    (
        "(Tensor do, Tensor dz_last, Tensor do_last, Tensor s, Tensor v, Tensor p, Tensor a, Tensor before, Tensor o0,"
        " Tensor o_last) -> (Tensor, Tensor, Tensor, Tensor)",
        _backward,
    ),
    forward_like=(1, 2, 3, _private, _private, lambda s, v, *rest: states_between(v, _dtype(s, v))),
    backward_like=(3, 4, 1, 8),
    kept=(0, 1, 8, 9, 10, 3, 7),
    gradient_of=(0, 1, 2, 3),
    private=3,
)
