"""``rg_lru`` in Triton; the backward rebuilds gates and the states of a group from the one before it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from rlseq.kernels import _triton
from rlseq.kernels._arguments import compute_dtype, initial_state
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._triton import (
    GROUP,
    Plan,
    difference_step,
    enter,
    expm1,
    joined,
    launch,
    left_in_next,
    load_group,
    load_resets,
    prefix,
    sigmoid,
    split,
    states_between,
    why_not,
)

__all__ = ["rg_lru", "why_not"]


def rg_lru(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, h0: Tensor | None, reset: Tensor | None, c: float
) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.rg_lru``, arguments already checked."""
    flags = None if reset is None else reset.contiguous()
    tokens = [tensor.contiguous() for tensor in (x, gate_x, gate_a)]
    h, h_last = _node(*tokens, a_param.contiguous(), initial_state(h0, x).contiguous(), flags, c)
    return h, h_last


@triton.jit
def _input(x, gate_x, change, reset):
    """Beta i x, where change is a - 1 and beta^2 = 1 - a^2; beta is 1 at a reset."""
    gated = sigmoid(gate_x) * x
    return tl.where(reset, gated, tl.sqrt(-change * (change + 2.0)) * gated)


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _forward_kernel(
    x, gate_x, gate_a, rate, reset, carry, h, h_last, before, length, span, chunks,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    item, row, chunk, d, groups, token, left, group = enter(length, span, chunks, WIDTH, BLOCK, GROUP, False)
    mask = d < WIDTH
    hi, lo = split(tl.load(carry + item * WIDTH + d, mask=mask, other=0.0), DTYPE)
    slow = -tl.load(rate + d, mask=mask, other=0.0)
    at = token * WIDTH + d
    states = before + group * WIDTH + d
    x_group = load_group(x + at, left, mask, 0.0, WIDTH, GROUP)
    gate_x_group = load_group(gate_x + at, left, mask, 0.0, WIDTH, GROUP)
    # beyond the end the gate is shut, so that the state stays as it is
    gate_a_group = load_group(gate_a + at, left, mask, -float("inf"), WIDTH, GROUP)
    resets = load_resets(reset, token, left, GROUP)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, False)
        next_at = at + GROUP * WIDTH
        token += GROUP
        x_next = load_group(x + next_at, next_left, mask, 0.0, WIDTH, GROUP)
        gate_x_next = load_group(gate_x + next_at, next_left, mask, 0.0, WIDTH, GROUP)
        gate_a_next = load_group(gate_a + next_at, next_left, mask, -float("inf"), WIDTH, GROUP)
        resets_next = load_resets(reset, token, next_left, GROUP)
        tl.store(states, hi + lo, mask=mask)
        for u in tl.static_range(GROUP):
            change = expm1(slow * sigmoid(gate_a_group[u].to(DTYPE)))
            added = _input(x_group[u].to(DTYPE), gate_x_group[u].to(DTYPE), change, resets[u])
            hi, lo = difference_step(change, added, hi, lo, resets[u], added)
            tl.store(h + at + u * WIDTH, hi + lo, mask=mask & (u < left))
        at, x_group, gate_x_group, gate_a_group = next_at, x_next, gate_x_next, gate_a_next
        resets, left = resets_next, next_left
        states += WIDTH
    tl.store(h_last + row * WIDTH + d, joined(hi, lo), mask=mask & (chunk == chunks - 1))


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _backward_kernel(
    dh, x, gate_x, gate_a, rate, reset, before, carry, dx, dgate_x, dgate_a, sums, dh0, length, span, chunks,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    item, row, chunk, d, groups, token, left, group = enter(length, span, chunks, WIDTH, BLOCK, GROUP, True)
    mask = d < WIDTH
    hi, lo = split(tl.load(carry + item * WIDTH + d, mask=mask, other=0.0), DTYPE)
    fast = tl.load(rate + d, mask=mask, other=0.0)
    total = tl.zeros([BLOCK], tl.float64)
    at = token * WIDTH + d
    states = before + group * WIDTH + d
    x_group = load_group(x + at, left, mask, 0.0, WIDTH, GROUP)
    gate_x_group = load_group(gate_x + at, left, mask, 0.0, WIDTH, GROUP)
    gate_a_group = load_group(gate_a + at, left, mask, -float("inf"), WIDTH, GROUP)
    dh_group = load_group(dh + at, left, mask, 0.0, WIDTH, GROUP)
    resets = load_resets(reset, token, left, GROUP)
    state = tl.load(states, mask=mask, other=0.0)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, True)
        next_at = at - GROUP * WIDTH
        token -= GROUP
        states -= WIDTH
        x_next = load_group(x + next_at, next_left, mask, 0.0, WIDTH, GROUP)
        gate_x_next = load_group(gate_x + next_at, next_left, mask, 0.0, WIDTH, GROUP)
        gate_a_next = load_group(gate_a + next_at, next_left, mask, -float("inf"), WIDTH, GROUP)
        dh_next = load_group(dh + next_at, next_left, mask, 0.0, WIDTH, GROUP)
        resets_next = load_resets(reset, token, next_left, GROUP)
        state_next = tl.load(states, mask=mask & (next_left > 0), other=0.0)
        past, open_a, open_x, changes, betas = (), (), (), (), ()
        for u in tl.static_range(GROUP):
            past = past + (state,)
            r, i_t = sigmoid(gate_a_group[u].to(DTYPE)), sigmoid(gate_x_group[u].to(DTYPE))
            change = expm1(-fast * r)
            # the largest of it and the smallest normal number, so that u / beta is 0 at u = 0
            beta = tl.where(resets[u], 1.0, tl.sqrt(tl.maximum(-change * (change + 2.0), 1.1754944e-38)))
            added = beta * i_t * x_group[u].to(DTYPE)
            state = tl.where(resets[u], added, state + tl.fma(change, state, added))
            open_a, open_x, changes, betas = open_a + (r,), open_x + (i_t,), changes + (change,), betas + (beta,)
        part = tl.zeros([BLOCK], DTYPE)
        for u in tl.static_range(GROUP - 1, -1, -1):
            x_t, dh_t = x_group[u].to(DTYPE), dh_group[u].to(DTYPE)
            g = (hi + dh_t) + lo
            live = mask & (u < left)
            gated = g * open_x[u]
            dx_t = gated * betas[u]
            tl.store(dx + at + u * WIDTH, dx_t, mask=live)
            tl.store(dgate_x + at + u * WIDTH, dx_t * x_t * (1.0 - open_x[u]), mask=live)
            rate_t = fast * open_a[u]
            a_t = 1.0 + changes[u]
            slope = a_t * (gated * x_t * a_t * (rate_t / betas[u]) - rate_t * past[u] * g)
            slope = tl.where(resets[u], 0.0, slope)
            tl.store(dgate_a + at + u * WIDTH, slope * (1.0 - open_a[u]), mask=live)
            part += slope
            # what is carried is the gradient of the state before this token: a (dh + what came from later tokens)
            hi, lo = difference_step(changes[u], a_t * dh_t, hi, lo, resets[u], 0.0)
        total += part.to(tl.float64)
        at, x_group, gate_x_group, gate_a_group, dh_group = next_at, x_next, gate_x_next, gate_a_next, dh_next
        resets, left, state = resets_next, next_left, state_next
    tl.store(sums + item * WIDTH + d, total, mask=mask)
    tl.store(dh0 + row * WIDTH + d, joined(hi, lo), mask=mask & (chunk == 0))


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _summary_kernel(
    x, gate_x, gate_a, rate, reset, change, added, length, span, chunks,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    item, _, _, d, groups, token, left, _ = enter(length, span, chunks, WIDTH, BLOCK, GROUP, False)
    mask = d < WIDTH
    slow = -tl.load(rate + d, mask=mask, other=0.0)
    at = token * WIDTH + d
    hi, lo, m_hi, m_lo = (tl.zeros([BLOCK], DTYPE),) * 4
    x_group = load_group(x + at, left, mask, 0.0, WIDTH, GROUP)
    gate_x_group = load_group(gate_x + at, left, mask, 0.0, WIDTH, GROUP)
    gate_a_group = load_group(gate_a + at, left, mask, -float("inf"), WIDTH, GROUP)
    resets = load_resets(reset, token, left, GROUP)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, False)
        at += GROUP * WIDTH
        token += GROUP
        x_next = load_group(x + at, next_left, mask, 0.0, WIDTH, GROUP)
        gate_x_next = load_group(gate_x + at, next_left, mask, 0.0, WIDTH, GROUP)
        gate_a_next = load_group(gate_a + at, next_left, mask, -float("inf"), WIDTH, GROUP)
        resets_next = load_resets(reset, token, next_left, GROUP)
        for u in tl.static_range(GROUP):
            m = expm1(slow * sigmoid(gate_a_group[u].to(DTYPE)))
            added_t = _input(x_group[u].to(DTYPE), gate_x_group[u].to(DTYPE), m, resets[u])
            hi, lo = difference_step(m, added_t, hi, lo, resets[u], added_t)
            m_hi, m_lo = difference_step(m, m, m_hi, m_lo, resets[u], -1.0)
        x_group, gate_x_group, gate_a_group, resets = x_next, gate_x_next, gate_a_next, resets_next
        left = next_left
    tl.store(change + item * WIDTH + d, joined(m_hi, m_lo), mask=mask)
    tl.store(added + item * WIDTH + d, joined(hi, lo), mask=mask)


@triton.jit(do_not_specialize=["length", "span", "chunks"])
def _backward_summary_kernel(
    dh, gate_a, rate, reset, change, added, length, span, chunks,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    item, _, _, d, groups, token, left, _ = enter(length, span, chunks, WIDTH, BLOCK, GROUP, True)
    mask = d < WIDTH
    slow = -tl.load(rate + d, mask=mask, other=0.0)
    at = token * WIDTH + d
    hi, lo, m_hi, m_lo = (tl.zeros([BLOCK], DTYPE),) * 4
    dh_group = load_group(dh + at, left, mask, 0.0, WIDTH, GROUP)
    gate_a_group = load_group(gate_a + at, left, mask, -float("inf"), WIDTH, GROUP)
    resets = load_resets(reset, token, left, GROUP)
    for i in range(groups):
        next_left = left_in_next(i, groups, left, GROUP, True)
        at -= GROUP * WIDTH
        token -= GROUP
        dh_next = load_group(dh + at, next_left, mask, 0.0, WIDTH, GROUP)
        gate_a_next = load_group(gate_a + at, next_left, mask, -float("inf"), WIDTH, GROUP)
        resets_next = load_resets(reset, token, next_left, GROUP)
        for u in tl.static_range(GROUP - 1, -1, -1):
            m = expm1(slow * sigmoid(gate_a_group[u].to(DTYPE)))
            hi, lo = difference_step(m, (1.0 + m) * dh_group[u].to(DTYPE), hi, lo, resets[u], 0.0)
            m_hi, m_lo = difference_step(m, m, m_hi, m_lo, resets[u], -1.0)
        dh_group, gate_a_group, resets, left = dh_next, gate_a_next, resets_next, next_left
    tl.store(change + item * WIDTH + d, joined(m_hi, m_lo), mask=mask)
    tl.store(added + item * WIDTH + d, joined(hi, lo), mask=mask)


def _carries(kernel: object, inputs: tuple[Tensor | None, ...], first: Tensor, plan: Plan, like: Tensor) -> Tensor:
    """What enters each chunk; ``kernel`` composes the tokens of each."""
    if plan.chunks == 1:
        return first
    change, added = (first.new_empty(first.shape[0], plan.chunks, first.shape[1]) for _ in range(2))
    arguments = (*inputs, change, added, like.shape[1], plan.span, plan.chunks)
    launch(kernel, plan.programs, *arguments, **_constants(like, plan))
    return prefix(change, added, first, reverse=kernel is _backward_summary_kernel)


def _constants(x: Tensor, plan: Plan) -> dict[str, Any]:
    return {"WIDTH": x.shape[2], "BLOCK": plan.block, "GROUP": GROUP, "DTYPE": compute_dtype(x)}


def _rate(a_param: Tensor, c: float, like: Tensor) -> Tensor:
    return (c * functional.softplus(a_param.double(), threshold=40.0)).to(compute_dtype(like))


def _forward(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, h0: Tensor, reset: Tensor | None, c: float
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _triton.plan(x)
    h, h_last, before = torch.empty_like(x), torch.empty_like(h0), states_between(x)
    inputs = (x, gate_x, gate_a, _rate(a_param, c, x), reset)
    carry = _carries(_summary_kernel, inputs, h0, plan, x)
    arguments = (*inputs, carry, h, h_last, before, x.shape[1], plan.span, plan.chunks)
    launch(_forward_kernel, plan.programs, *arguments, **_constants(x, plan))
    return h, h_last, before


def _backward(
    dh: Tensor,
    dh_last: Tensor,
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    before: Tensor,
    reset: Tensor | None,
    c: float,
) -> tuple[Tensor, ...]:
    plan = _triton.plan(x)
    gradients = torch.empty_like(x), torch.empty_like(gate_x), torch.empty_like(gate_a)
    dh0 = torch.empty_like(dh_last)
    sums = dh_last.new_empty(x.shape[0], plan.chunks, x.shape[2])
    rate = _rate(a_param, c, x)
    carry = _carries(_backward_summary_kernel, (dh, gate_a, rate, reset), dh_last, plan, x)
    arguments = (dh, x, gate_x, gate_a, rate, reset, before, carry, *gradients, sums, dh0)
    launch(_backward_kernel, plan.programs, *arguments, x.shape[1], plan.span, plan.chunks, **_constants(x, plan))
    # sigmoid / softplus is 0 / 0 far below 0, where its limit is 1
    wide = a_param.double().clamp(min=-30.0)
    ratio = torch.sigmoid(wide) / functional.softplus(wide, threshold=40.0)
    return *gradients, (sums.sum(dim=(0, 1)) * ratio).to(a_param.dtype), dh0


_INPUTS = "Tensor x, Tensor gate_x, Tensor gate_a, Tensor a_param, "
_node = differentiable_node(
    "rg_lru_gpu",
    "CompositeExplicitAutograd",
    (f"({_INPUTS}Tensor h0, Tensor? reset, float c) -> (Tensor, Tensor, Tensor)", _forward),
    (
        f"(Tensor dh, Tensor dh_last, {_INPUTS}Tensor before, Tensor? reset, float c)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _backward,
    ),
    forward_like=(0, 4, lambda x, *rest: states_between(x)),
    backward_like=(2, 3, 4, 5, 1),
    kept=(0, 1, 2, 3, 9, 5),
    gradient_of=(0, 1, 2, 3, 4),
    constants=1,
    private=1,
)
