"""``linear_scan`` in Triton; the backward rebuilds the states of a group from the one before it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlseq.kernels import _triton
from rlseq.kernels._arguments import compute_dtype, initial_state
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._triton import (
    GROUP,
    Plan,
    difference_step,
    enter,
    joined,
    launch,
    left_in_next,
    linear_step,
    load_group,
    load_resets,
    prefix,
    split,
    states_between,
    why_not,
)

__all__ = ["linear_scan", "why_not"]


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.linear_scan``, arguments already checked."""
    flags = None if reset is None else reset.contiguous()
    h, h_last = _node(a.contiguous(), b.contiguous(), initial_state(h0, b).contiguous(), flags)
    return h, h_last


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _forward_kernel(
    a, b, reset, carry, h, h_last, before, length, span, chunks,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    item, row, chunk, d, groups, token, left, group = enter(length, span, chunks, WIDTH, BLOCK, GROUP, False)
    mask = d < WIDTH
    hi, lo = split(tl.load(carry + item * WIDTH + d, mask=mask, other=0.0), DTYPE)
    at = token * WIDTH + d
    states = before + group * WIDTH + d
    a_group = load_group(a + at, left, mask, 1.0, WIDTH, GROUP)
    b_group = load_group(b + at, left, mask, 0.0, WIDTH, GROUP)
    resets = load_resets(reset, token, left, GROUP)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, False)
        next_at = at + GROUP * WIDTH
        token += GROUP
        a_next = load_group(a + next_at, next_left, mask, 1.0, WIDTH, GROUP)
        b_next = load_group(b + next_at, next_left, mask, 0.0, WIDTH, GROUP)
        resets_next = load_resets(reset, token, next_left, GROUP)
        tl.store(states, hi + lo, mask=mask)
        for u in tl.static_range(GROUP):
            b_t = b_group[u].to(DTYPE)
            hi, lo = linear_step(a_group[u].to(DTYPE), b_t, hi, lo, resets[u], b_t)
            tl.store(h + at + u * WIDTH, hi + lo, mask=mask & (u < left))
        at, a_group, b_group, resets, left = next_at, a_next, b_next, resets_next, next_left
        states += WIDTH
    tl.store(h_last + row * WIDTH + d, joined(hi, lo), mask=mask & (chunk == chunks - 1))


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _backward_kernel(
    dh, a, b, reset, before, carry, da, db, dh0, length, span, chunks,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    item, row, chunk, d, groups, token, left, group = enter(length, span, chunks, WIDTH, BLOCK, GROUP, True)
    mask = d < WIDTH
    hi, lo = split(tl.load(carry + item * WIDTH + d, mask=mask, other=0.0), DTYPE)
    at = token * WIDTH + d
    states = before + group * WIDTH + d
    a_group = load_group(a + at, left, mask, 1.0, WIDTH, GROUP)
    b_group = load_group(b + at, left, mask, 0.0, WIDTH, GROUP)
    dh_group = load_group(dh + at, left, mask, 0.0, WIDTH, GROUP)
    resets = load_resets(reset, token, left, GROUP)
    state = tl.load(states, mask=mask, other=0.0)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, True)
        next_at = at - GROUP * WIDTH
        token -= GROUP
        states -= WIDTH
        a_next = load_group(a + next_at, next_left, mask, 1.0, WIDTH, GROUP)
        b_next = load_group(b + next_at, next_left, mask, 0.0, WIDTH, GROUP)
        dh_next = load_group(dh + next_at, next_left, mask, 0.0, WIDTH, GROUP)
        resets_next = load_resets(reset, token, next_left, GROUP)
        state_next = tl.load(states, mask=mask & (next_left > 0), other=0.0)
        past = ()
        for u in tl.static_range(GROUP):
            past = past + (state,)
            b_t = b_group[u].to(DTYPE)
            state = tl.where(resets[u], b_t, tl.fma(a_group[u].to(DTYPE), state, b_t))
        for u in tl.static_range(GROUP - 1, -1, -1):
            a_t, dh_t = a_group[u].to(DTYPE), dh_group[u].to(DTYPE)
            g = (hi + dh_t) + lo
            live = mask & (u < left)
            tl.store(db + at + u * WIDTH, g, mask=live)
            tl.store(da + at + u * WIDTH, tl.where(resets[u], 0.0, g * past[u]), mask=live)
            # what is carried is the gradient of the state before this token: a (dh + what came from later tokens)
            hi, lo = linear_step(a_t, a_t * dh_t, hi, lo, resets[u], 0.0)
        at, a_group, b_group, dh_group, resets = next_at, a_next, b_next, dh_next, resets_next
        left, state = next_left, state_next
    tl.store(dh0 + row * WIDTH + d, joined(hi, lo), mask=mask & (chunk == 0))


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _summary_kernel(
    a, b, reset, change, added, length, span, chunks,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    # for REVERSE, b is dh and the chunk is composed from its last token to its first
    item, _, _, d, groups, token, left, _ = enter(length, span, chunks, WIDTH, BLOCK, GROUP, REVERSE)
    mask = d < WIDTH
    step: tl.constexpr = -GROUP if REVERSE else GROUP
    at = token * WIDTH + d
    hi, lo, m_hi, m_lo = (tl.zeros([BLOCK], DTYPE),) * 4
    a_group = load_group(a + at, left, mask, 1.0, WIDTH, GROUP)
    b_group = load_group(b + at, left, mask, 0.0, WIDTH, GROUP)
    resets = load_resets(reset, token, left, GROUP)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, REVERSE)
        at += step * WIDTH
        token += step
        a_next = load_group(a + at, next_left, mask, 1.0, WIDTH, GROUP)
        b_next = load_group(b + at, next_left, mask, 0.0, WIDTH, GROUP)
        resets_next = load_resets(reset, token, next_left, GROUP)
        for u in tl.static_range(GROUP - 1 if REVERSE else 0, -1 if REVERSE else GROUP, -1 if REVERSE else 1):
            a_t, b_t = a_group[u].to(DTYPE), b_group[u].to(DTYPE)
            if REVERSE:
                hi, lo = linear_step(a_t, a_t * b_t, hi, lo, resets[u], 0.0)
            else:
                hi, lo = linear_step(a_t, b_t, hi, lo, resets[u], b_t)
            m_hi, m_lo = difference_step(a_t - 1.0, a_t - 1.0, m_hi, m_lo, resets[u], -1.0)
        a_group, b_group, resets, left = a_next, b_next, resets_next, next_left
    tl.store(change + item * WIDTH + d, joined(m_hi, m_lo), mask=mask)
    tl.store(added + item * WIDTH + d, joined(hi, lo), mask=mask)


def _carries(a: Tensor, b: Tensor, first: Tensor, reset: Tensor | None, plan: Plan, *, reverse: bool) -> Tensor:
    if plan.chunks == 1:
        return first
    change, added = (first.new_empty(first.shape[0], plan.chunks, first.shape[1]) for _ in range(2))
    arguments = (a, b, reset, change, added, a.shape[1], plan.span, plan.chunks)
    launch(_summary_kernel, plan.programs, *arguments, **_constants(b, plan), REVERSE=reverse)
    return prefix(change, added, first, reverse=reverse)


def _constants(b: Tensor, plan: Plan) -> dict[str, Any]:
    return {"WIDTH": b.shape[2], "BLOCK": plan.block, "GROUP": GROUP, "DTYPE": compute_dtype(b)}


def _forward(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    plan = _triton.plan(b)
    h, h_last, before = torch.empty_like(b), torch.empty_like(h0), states_between(b)
    carry = _carries(a, b, h0, reset, plan, reverse=False)
    arguments = (a, b, reset, carry, h, h_last, before, b.shape[1], plan.span, plan.chunks)
    launch(_forward_kernel, plan.programs, *arguments, **_constants(b, plan))
    return h, h_last, before


def _backward(
    dh: Tensor, dh_last: Tensor, a: Tensor, b: Tensor, before: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _triton.plan(b)
    da, db, dh0 = torch.empty_like(a), torch.empty_like(b), torch.empty_like(dh_last)
    carry = _carries(a, dh, dh_last, reset, plan, reverse=True)
    arguments = (dh, a, b, reset, before, carry, da, db, dh0, b.shape[1], plan.span, plan.chunks)
    launch(_backward_kernel, plan.programs, *arguments, **_constants(b, plan))
    return da, db, dh0


_node = differentiable_node(
    "linear_scan_gpu",
    "CompositeExplicitAutograd",
    ("(Tensor a, Tensor b, Tensor h0, Tensor? reset) -> (Tensor, Tensor, Tensor)", _forward),
    (
        "(Tensor dh, Tensor dh_last, Tensor a, Tensor b, Tensor before, Tensor? reset) -> (Tensor, Tensor, Tensor)",
        _backward,
    ),
    forward_like=(1, 2, lambda a, b, h0, reset: states_between(b)),
    backward_like=(2, 3, 1),
    kept=(0, 1, 6, 3),
    gradient_of=(0, 1, 2),
    private=1,
)
