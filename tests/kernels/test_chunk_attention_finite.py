"""Mixed-chunk attention: tokens that are not finite, and what a state that holds them, or stale ones, gives later."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlseq.kernels import ChunkState, chunk_attention
from tests.kernels.cases import implementation, with_gradients, worst
from tests.kernels.test_chunk_attention import EXACT, _bias, _both, _inputs, _seen, _state, implementations


def _seers(lost: list[tuple[int, int]], reset: Tensor, chunk: int, which: int) -> Tensor:
    """Whether each token sees one of ``lost`` (row, time), not finite in argument ``which``; by a plain loop."""
    seen = torch.zeros(reset.shape, dtype=torch.bool)
    for row, j in lost:
        begin = max([t for t in range(j + 1) if reset[row, t]], default=0)
        for t in range(reset.shape[1]):
            if any(reset[row, j + 1 : t + 1]):
                break
            same = t >= j and (t - begin) // chunk == (j - begin) // chunk
            later = t > j and not same
            seen[row, t] |= (t == j, same, t == j, later, same or later)[which]
    return seen


@implementations
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_a_token_that_is_not_finite_spoils_those_that_see_it_and_leaves_no_trace_in_others(
    name: str, which: int, wild: float
) -> None:
    *tokens, reset = _inputs(41, resets=0.06, seed=2)
    args = [*tokens, _bias(4), reset]
    lost = [(0, 5), (0, 17), (1, 30)]
    spoiled = list(args)
    spoiled[which] = args[which].clone()
    for row, t in lost:
        spoiled[which][row, t, 1] = wild
    kept = ~_seers(lost, reset, 4, which)[..., None]

    def seen_alone(*given: Any) -> tuple[Tensor, ...]:
        return (torch.where(kept, _both(name, 4)(*given)[0], 0.0),)

    o = _both(name, 4)(*spoiled)[0]
    assert torch.equal(o.isnan(), ~kept.expand_as(o))
    # the same without the loss: values, and gradients of those that do not see it
    got, clean = with_gradients(seen_alone, spoiled), with_gradients(seen_alone, args)
    assert worst(got, clean) < EXACT
    # all outputs and states in the loss: still no gradient is NaN
    leaves = [one.detach().requires_grad_() for one in spoiled[:6]]
    outputs = _both(name, 4)(*leaves, reset)
    for one in torch.autograd.grad([outputs[0], *outputs[1:]], leaves, [torch.ones_like(one) for one in outputs]):
        assert torch.isfinite(one).all()


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_steps_without_gradients_lose_the_same_tokens_to_one_that_is_not_finite(which: int, wild: float) -> None:
    *tokens, reset = _inputs(30, resets=0.06, seed=2)
    tokens[which][0, 5, 1] = tokens[which][1, 17, 0] = wild
    expected, last = chunk_attention(*tokens, 4, _bias(4), None, reset)
    state, outputs = ChunkState.zeros(2, 4, 4, 5, dtype=torch.float64), []
    with torch.no_grad():
        for t in range(30):
            one = [part[:, t : t + 1] for part in tokens]
            o, state = chunk_attention(*one, 4, _bias(4), state, reset[:, t : t + 1])
            outputs.append(o)
    assert expected.isnan().any()
    for got, wanted in zip((torch.cat(outputs, dim=1), *_seen(state)), (expected, *_seen(last)), strict=True):
        assert torch.allclose(got, wanted, rtol=0.0, atol=EXACT, equal_nan=True)


@implementations
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("wild", [1e3, math.inf, math.nan])
def test_a_chunk_that_is_complete_is_seen_by_its_mean_alone(name: str, length: int, wild: float) -> None:
    *tokens, _ = _inputs(length)
    state = _state(4, 8)._replace(count=torch.tensor([8, 6]))
    stale = [one.clone() for one in state[1:4]]
    for one in stale:
        one[0] = wild
    function = implementation("chunk_attention", name)
    for guarded in (True, False):
        with torch.set_grad_enabled(guarded):
            got, new = function(*tokens, 4, _bias(4), ChunkState(state.mean, *stale, state.count), None)
            expected, other = function(*tokens, 4, _bias(4), state, None)
        assert worst([got, *_seen(new)], [expected, *_seen(other)]) < EXACT


@pytest.mark.parametrize("which", range(5))
def test_the_carried_state_remembers_what_is_not_finite_until_a_reset(which: int) -> None:
    *tokens, reset = _inputs(40, resets=0.04, seed=4)
    tokens[which][0, 3, 0] = tokens[which][1, 21, 2] = math.inf
    whole, last = chunk_attention(*tokens, 4, _bias(4), reset=reset)
    for sizes in ([1] * 40, [6, 5, 4, 1, 20, 4], [3, 37]):
        state, outputs, at = None, [], 0
        for size in sizes:
            part = [one[:, at : at + size] for one in tokens]
            o, state = chunk_attention(*part, 4, _bias(4), state, reset[:, at : at + size])
            outputs.append(o)
            at += size
        for one, other in zip((torch.cat(outputs, dim=1), *_seen(state)), (whole, *_seen(last)), strict=True):
            assert torch.allclose(one, other, rtol=0.0, atol=EXACT, equal_nan=True)


@implementations
@pytest.mark.parametrize("length", [1, 9])
def test_a_state_of_infinities_is_forgotten_at_a_reset(name: str, length: int) -> None:
    *tokens, _ = _inputs(length)
    state = _state(4, 10)
    wild = [torch.full_like(one, math.inf).requires_grad_() for one in state[:4]]
    reset = torch.zeros(2, length, dtype=torch.bool)
    reset[:, 0] = True
    function = implementation("chunk_attention", name)
    o, new = function(*tokens, 4, None, ChunkState(*wild, state.count), reset)
    expected, other = function(*tokens, 4, None, None, reset)
    assert worst([o, *_seen(new)], [expected, *_seen(other)]) < EXACT
    for one in torch.autograd.grad(o.sum() + sum(part.sum() for part in new[:4]), wild):
        assert torch.equal(one, torch.zeros_like(one))
