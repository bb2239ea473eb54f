"""Local attention: float64 oracle -> dense reference -> blocks, values and gradients, with rings and resets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlseq.kernels import AttentionState, local_attention
from tests.kernels.cases import implementation, with_gradients, worst
from tests.oracles import kernels as oracles
from tests.tolerances import KERNELS

implementations = pytest.mark.parametrize("name", ["reference", "blocked"])
EXACT = KERNELS["local_attention"][torch.float64]


def _inputs(
    length: int, *, batch: int = 2, heads: tuple[int, int] = (4, 2), resets: float | None = 0.2, seed: int = 0
) -> Any:
    random = torch.Generator().manual_seed(seed)

    def normal(count: int, size: int) -> Tensor:
        return torch.randn(batch, length, count, size, generator=random, dtype=torch.float64)

    reset = None if resets is None else torch.rand(batch, length, generator=random) < resets
    return normal(heads[0], 6), normal(heads[1], 6), normal(heads[1], 5), reset


def _dense(name: str, window: int) -> Any:
    """The op as a function of (q, k, v, key, value, count, reset) -> (o, key, value)."""

    def function(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *ring, reset = rest
        state = AttentionState(*ring) if ring else None
        o, new = implementation("local_attention", name)(q, k, v, window, state, reset, 0.0)
        return o, new.key, new.value

    return function


@implementations
@pytest.mark.parametrize("window", [1, 3, 8, 40])
@pytest.mark.parametrize("length", [1, 2, 5, 24])
@pytest.mark.parametrize("resets", [None, 0.2, 1.0])
def test_values_equal_the_float64_oracle(name: str, window: int, length: int, resets: float | None) -> None:
    q, k, v, reset = _inputs(length, resets=resets)
    o, state = implementation("local_attention", name)(q, k, v, window, None, reset, 0.0)
    flags = torch.zeros(q.shape[:2], dtype=torch.bool) if reset is None else reset
    arrays = [one.numpy() for one in (q, k, v)]
    assert worst([o], [torch.from_numpy(oracles.local_attention(*arrays, window, flags.numpy()))]) < EXACT

    after, after_k, after_v, _ = _inputs(7, seed=1)
    got, _ = implementation("local_attention", name)(after, after_k, after_v, window, state, None, 0.0)
    whole = [torch.cat(pair, dim=1).numpy() for pair in ((q, after), (k, after_k), (v, after_v))]
    longer = torch.cat([flags, torch.zeros(2, 7, dtype=torch.bool)], dim=1).numpy()
    assert worst([got], [torch.from_numpy(oracles.local_attention(*whole, window, longer))[:, length:]]) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(
    st.one_of(st.sampled_from([1, 2, 3, 7, 61]), st.integers(1, 61)),
    st.sampled_from([1, 2, 5, 16, 64]),
    st.sampled_from([(1, 1), (4, 1), (4, 2)]),
    st.sampled_from([None, 0.05, 0.5]),
    st.booleans(),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_blocks_equal_the_dense_reference_with_all_gradients(
    dtype: torch.dtype, length: int, window: int, heads: tuple[int, int], resets: float | None, state: bool
) -> None:
    q, k, v, reset = _inputs(length, heads=heads, resets=resets)
    ring: tuple[Tensor, ...] = ()
    if state:
        past = _inputs(9, heads=heads, seed=2)
        ring = implementation("local_attention", "reference")(*past[:3], window, None, past[3], 0.0)[1]
    args = [one.to(dtype) if one.is_floating_point() else one for one in (q, k, v, *ring)]
    exact = [one.double() if one.is_floating_point() else one for one in args]
    got = with_gradients(_dense("blocked", window), [*args, reset])
    expected = with_gradients(_dense("reference", window), [*exact, reset])
    assert worst(got, expected) < KERNELS["local_attention"][dtype]


@implementations
def test_gradients_pass_gradcheck_through_both_states(name: str) -> None:
    q, k, v, reset = _inputs(5, heads=(2, 1), resets=0.3)
    _, ring = local_attention(*_inputs(2, heads=(2, 1), seed=1)[:3], 3)
    leaves = [one.requires_grad_() for one in (q, k, v, ring.key, ring.value)]
    function = _dense(name, 3)
    assert torch.autograd.gradcheck(lambda *floats: function(*floats, ring.count, reset), leaves)


@given(st.sets(st.integers(1, 39), max_size=6), st.sampled_from([1, 4, 16, 64]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_sequence_in_pieces_with_the_ring_carried_equals_the_whole(cuts: set[int], window: int) -> None:
    q, k, v, reset = _inputs(40, resets=0.1)
    whole, last = local_attention(q, k, v, window, reset=reset)
    state, outputs = AttentionState.zeros(2, window, 2, 6, 5, dtype=torch.float64), []
    for begin, end in itertools.pairwise([0, *sorted(cuts), 40]):
        o, state = local_attention(*[one[:, begin:end] for one in (q, k, v)], window, state, reset[:, begin:end])
        outputs.append(o)
    assert worst([torch.cat(outputs, dim=1), state.key, state.value], [whole, last.key, last.value]) < EXACT
    assert torch.equal(state.count, last.count)


def test_steps_equal_the_forward_and_leave_the_old_ring_alone() -> None:
    q, k, v, reset = _inputs(30, resets=0.1)
    whole, _ = local_attention(q, k, v, 7, reset=reset)
    state = AttentionState.zeros(2, 7, 2, 6, 5, dtype=torch.float64)
    for t in range(30):
        before = [one.clone() for one in state]
        o, new = local_attention(*[one[:, t : t + 1] for one in (q, k, v)], 7, state, reset[:, t : t + 1])
        assert worst([o[:, 0]], [whole[:, t]]) < EXACT
        assert all(torch.equal(one, other) for one, other in zip(state, before, strict=True))
        state = new


def test_the_window_counts_the_query_itself() -> None:
    q, k, v, _ = _inputs(6, heads=(1, 1))
    o, state = local_attention(q, k, v, 1)
    assert torch.allclose(o, v)
    assert torch.equal(state.key, k[:, -1:])
    assert state.count.tolist() == [6, 6]


def test_a_ring_of_infinities_is_forgotten_at_a_reset() -> None:
    q, k, v, _ = _inputs(2)
    bad = torch.full((2, 4, 2, 6), math.inf, dtype=torch.float64)
    state = AttentionState(bad, bad[..., :5], torch.tensor([9, 9]))
    reset = torch.tensor([[True], [True]])
    o, state = local_attention(q[:, :1], k[:, :1], v[:, :1], 4, state, reset)
    assert torch.isfinite(o).all()
    o, state = local_attention(q[:, 1:], k[:, 1:], v[:, 1:], 4, state)
    assert worst([o], [local_attention(q, k, v, 4)[0][:, 1:]]) < EXACT
    assert state.count.tolist() == [2, 2]


def test_the_state_keeps_its_dtype() -> None:
    q, k, v, _ = _inputs(5)
    state = AttentionState.zeros(2, 4, 2, 6, 5, dtype=torch.bfloat16)
    for length in (5, 1):
        args = [one[:, :length].float() for one in (q, k, v)]
        assert local_attention(*args, 4, state)[1].key.dtype is torch.bfloat16


@implementations
def test_dropout_keeps_the_mean_and_drops_weights(name: str) -> None:
    q, k, v = (torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    torch.manual_seed(0)
    function = implementation("local_attention", name)
    outputs = [function(q, k, v, 4, None, None, 0.5)[0][0, 0, 0, 0].item() for _ in range(400)]
    assert set(outputs) == {0.0, 2.0}
    assert sum(outputs) / 400 == pytest.approx(1.0, abs=0.2)
