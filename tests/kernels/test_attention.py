"""Local attention: float64 oracle -> dense reference -> blocks, values and gradients, with rings and resets."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlseq.errors import UnknownNameError
from rlseq.kernels import AttentionState, local_attention
from tests.kernels.cases import cast, implementation, with_gradients, worst
from tests.oracles import attention as oracles
from tests.tolerances import KERNELS

implementations = pytest.mark.parametrize("name", ["reference", "blocked"])
activations = pytest.mark.parametrize("activation", ["softmax", "relu2"])
EXACT = KERNELS["local_attention"][torch.float64]


def _inputs(
    length: int, *, batch: int = 2, heads: tuple[int, int] = (4, 2), resets: float | None = 0.2, seed: int = 0
) -> Any:
    random = torch.Generator().manual_seed(seed)

    def normal(count: int, size: int) -> Tensor:
        return torch.randn(batch, length, count, size, generator=random, dtype=torch.float64)

    reset = None if resets is None else torch.rand(batch, length, generator=random) < resets
    return normal(heads[0], 6), normal(heads[1], 6), normal(heads[1], 5), reset


def _bias(window: int) -> Tensor:
    return 0.5 * torch.randn(window, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _both(name: str, window: int, activation: str) -> Any:
    """The op as a function of (q, k, v, bias, key, value, count, reset) -> (o, key, value)."""

    def function(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        *ring, reset = rest
        state = AttentionState(*ring) if ring else None
        o, new = implementation("local_attention", name)(q, k, v, window, activation, bias, state, reset, 0.0)
        return o, new.key, new.value

    return function


@implementations
@activations
@pytest.mark.parametrize("window", [1, 3, 8, 40])
@pytest.mark.parametrize("length", [1, 2, 5, 24])
@pytest.mark.parametrize("resets", [None, 0.2, 1.0])
def test_values_equal_the_float64_oracle(
    name: str, activation: str, window: int, length: int, resets: float | None
) -> None:
    q, k, v, reset = _inputs(length, resets=resets)
    flags = torch.zeros(q.shape[:2], dtype=torch.bool) if reset is None else reset
    after = _inputs(7, seed=1)[:3]
    whole = [torch.cat(pair, dim=1).numpy() for pair in zip((q, k, v), after, strict=True)]
    longer = torch.cat([flags, torch.zeros(2, 7, dtype=torch.bool)], dim=1).numpy()
    function = implementation("local_attention", name)
    for bias in (None, _bias(window)):
        offset = None if bias is None else bias.numpy()
        expected = torch.from_numpy(oracles.local_attention(*whole, window, activation, offset, longer))
        o, state = function(q, k, v, window, activation, bias, None, reset, 0.0)
        got, _ = function(*after, window, activation, bias, state, None, 0.0)
        assert worst([torch.cat([o, got], dim=1)], [expected]) < EXACT


@activations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@given(
    st.one_of(st.sampled_from([1, 2, 3, 7, 61]), st.integers(1, 61)),
    st.sampled_from([1, 2, 5, 16, 64]),
    st.sampled_from([(1, 1), (4, 1), (4, 2)]),
    st.sampled_from([None, 0.05, 0.5]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_blocks_equal_the_dense_reference_with_all_gradients(
    activation: str,
    dtype: torch.dtype,
    length: int,
    window: int,
    heads: tuple[int, int],
    resets: float | None,
    biased: bool,
    state: bool,
) -> None:
    q, k, v, reset = _inputs(length, heads=heads, resets=resets)
    ring: tuple[Tensor, ...] = ()
    if state:
        past = _inputs(9, heads=heads, seed=2)
        ring = local_attention(*past[:3], window, reset=past[3])[1]
    args = cast([q, k, v, _bias(window) if biased else None, *ring, reset], dtype)
    got = with_gradients(_both("blocked", window, activation), args)
    expected = with_gradients(_both("reference", window, activation), cast(args, torch.float64))
    assert worst(got, expected) < KERNELS["local_attention"][dtype]


@pytest.mark.parametrize("window", [5, 64, 300])
@pytest.mark.parametrize("resets", [None, 0.02])
@pytest.mark.parametrize("state", [False, True])
def test_spans_of_queries_equal_blocks_and_the_dense_reference(
    window: int, resets: float | None, state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v, reset = _inputs(200, heads=(2, 2), resets=resets)
    ring = local_attention(*_inputs(90, heads=(2, 2), seed=2)[:3], window)[1] if state else ()
    args = [q, k, v, _bias(window), *ring, reset]
    expected = with_gradients(_both("reference", window, "relu2"), args)
    assert worst(with_gradients(_both("blocked", window, "relu2"), args), expected) < EXACT
    monkeypatch.setattr(importlib.import_module("rlseq.kernels.local_attention.blocked"), "_SPANNED", 0)
    assert worst(with_gradients(_both("blocked", window, "relu2"), args), expected) < EXACT


@implementations
@activations
@pytest.mark.parametrize("length", [1, 5])
def test_gradients_pass_gradcheck_through_both_states(name: str, activation: str, length: int) -> None:
    q, k, v, reset = _inputs(length, heads=(2, 1), resets=0.3)
    _, ring = local_attention(*_inputs(2, heads=(2, 1), seed=1)[:3], 3)
    leaves = [one.requires_grad_() for one in (q, k, v, _bias(3), ring.key, ring.value)]
    function = _both(name, 3, activation)
    assert torch.autograd.gradcheck(lambda *floats: function(*floats, ring.count, reset), leaves)


@implementations
@activations
@pytest.mark.parametrize("length", [1, 3])
def test_slots_that_no_token_has_filled_get_no_gradient(name: str, activation: str, length: int) -> None:
    q, k, v, _ = _inputs(length, resets=None)
    ring = local_attention(*_inputs(2, seed=1)[:3], 6)[1]
    *_, key, value = with_gradients(_both(name, 6, activation), [q, k, v, _bias(6), *ring, None])
    for one in (key, value):
        assert one[:, :2].abs().min() > 0
        assert not one[:, 2:].any()


@activations
@given(st.sets(st.integers(1, 39), max_size=6), st.sampled_from([1, 4, 16, 64]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_sequence_in_pieces_with_the_ring_carried_equals_the_whole(
    activation: str, cuts: set[int], window: int
) -> None:
    q, k, v, reset = _inputs(40, resets=0.1)
    bias = _bias(window)
    whole, last = local_attention(q, k, v, window, activation, bias, reset=reset)
    state, outputs = AttentionState.zeros(2, window, 2, 6, 5, dtype=torch.float64), []
    for begin, end in itertools.pairwise([0, *sorted(cuts), 40]):
        part = [one[:, begin:end] for one in (q, k, v)]
        o, state = local_attention(*part, window, activation, bias, state, reset[:, begin:end])
        outputs.append(o)
    assert worst([torch.cat(outputs, dim=1), state.key, state.value], [whole, last.key, last.value]) < EXACT
    assert torch.equal(state.count, last.count)


@activations
def test_steps_equal_the_forward_and_leave_the_old_ring_alone(activation: str) -> None:
    q, k, v, reset = _inputs(30, resets=0.1)
    bias = _bias(7)
    whole, _ = local_attention(q, k, v, 7, activation, bias, reset=reset)
    state = AttentionState.zeros(2, 7, 2, 6, 5, dtype=torch.float64)
    for t in range(30):
        before = [one.clone() for one in state]
        part = [one[:, t : t + 1] for one in (q, k, v)]
        o, new = local_attention(*part, 7, activation, bias, state, reset[:, t : t + 1])
        assert worst([o[:, 0]], [whole[:, t]]) < EXACT
        for one, other, after in zip(state, before, new, strict=True):
            assert torch.equal(one, other)
            assert (one.shape, one.dtype) == (after.shape, after.dtype)
        state = new


@activations
def test_strides_do_not_matter_inputs_stay_and_results_repeat(activation: str) -> None:
    q, k, v, reset = _inputs(20)
    strange = [one.movedim(0, -1).contiguous().movedim(-1, 0) for one in (q, k, v)]
    before = [one.clone() for one in strange]
    args = [[*tokens, _bias(5), reset] for tokens in ((q, k, v), strange, strange)]
    plain, *others = [with_gradients(_both("blocked", 5, activation), one) for one in args]
    assert all(torch.equal(one, other) for one, other in zip(strange, before, strict=True))
    assert worst(others[0], plain) < EXACT
    assert all(torch.equal(one, other) for one, other in zip(*others, strict=True))


@activations
@pytest.mark.parametrize("resets", [None, 0.1])
def test_no_output_is_left_uninitialised(activation: str, resets: float | None, poisoned: None) -> None:
    *tokens, reset = _inputs(37, resets=resets)
    for state in ((), local_attention(*_inputs(3, seed=2)[:3], 8)[1]):
        for one in with_gradients(_both("blocked", 8, activation), [*tokens, _bias(8), *state, reset]):
            assert torch.isfinite(one).all()


def _seers(lost: list[tuple[int, int]], reset: Tensor, window: int, query: bool) -> Tensor:
    """Whether each token sees one of ``lost`` (row, time); by a plain loop."""
    seen = torch.zeros(reset.shape, dtype=torch.bool)
    for row, j in lost:
        for t in range(j, reset.shape[1]):
            seen[row, t] |= t == j if query else t - j < window and not any(reset[row, j + 1 : t + 1])
    return seen


@implementations
@activations
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("window", "resets"), [(4, 0.08), (64, 0.08), (64, 0.0)])
def test_a_token_that_is_not_finite_spoils_those_that_see_it_and_leaves_no_trace_in_others(
    name: str, activation: str, which: int, wild: float, window: int, resets: float
) -> None:
    q, k, v, reset = _inputs(37, resets=resets, seed=2)
    args = [q, k, v, _bias(window) if resets else None, reset if resets else None]
    lost = [(0, 5), (0, 17), (1, 30)]
    spoiled = list(args)
    spoiled[which] = args[which].clone()
    for row, t in lost:
        spoiled[which][row, t, -1, 1] = wild
    seen = _seers(lost, reset, window, which == 0)
    kept = ~seen[..., None, None]
    function = _both(name, window, activation)

    def seen_alone(*given: Any) -> tuple[Tensor, ...]:
        return (torch.where(kept, function(*given)[0], 0.0),)

    o, key, value = function(*spoiled)
    assert torch.equal(o.isnan(), ~kept.expand_as(o))
    # the ring holds what the last token sees
    whole = key.isfinite().flatten(1).all(1) & value.isfinite().flatten(1).all(1)
    assert torch.equal(whole, ~seen[:, -1] | (which == 0))
    assert worst(with_gradients(seen_alone, spoiled), with_gradients(seen_alone, args)) < EXACT
    leaves = [one.detach().requires_grad_() for one in spoiled[:3]]
    gradients = torch.autograd.grad(function(*leaves, *spoiled[3:])[0].sum(), leaves)
    assert all(torch.isfinite(one).all() for one in gradients)


@activations
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_the_ring_remembers_what_is_not_finite(activation: str, which: int, guarded: bool, wild: float) -> None:
    *tokens, reset = _inputs(40, resets=0.05, seed=4)
    tokens[which][0, 3, 0, 0] = tokens[which][1, 21, 1, 2] = wild
    whole, last = local_attention(*tokens, 6, activation, _bias(6), reset=reset)
    for sizes in ([1] * 40, [2, 3] * 8, [6, 5, 4, 1, 20, 4], [3, 37]):
        state, outputs, at = AttentionState.zeros(2, 6, 2, 6, 5, dtype=torch.float64), [], 0
        for size in sizes:
            part = [one[:, at : at + size] for one in tokens]
            with torch.set_grad_enabled(guarded):
                o, state = local_attention(*part, 6, activation, _bias(6), state, reset[:, at : at + size])
            outputs.append(o)
            at += size
        for one, other in zip((torch.cat(outputs, dim=1), *state), (whole, *last), strict=True):
            assert torch.allclose(one, other, rtol=0.0, atol=EXACT, equal_nan=True)


def test_plain_causal_attention_makes_no_table_of_tokens_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(importlib.import_module("rlseq.kernels.local_attention.blocked"), "_attend")
    q, k, v = torch.randn(3, 2, 9, 2, 4)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[:, 0] = True
    local_attention(q, k, v, 9, reset=reset)
    reset[:, 4] = True
    with pytest.raises(NameError, match="_attend"):
        local_attention(q, k, v, 9, reset=reset)


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
    o, state = local_attention(q[:, :1], k[:, :1], v[:, :1], 4, state=state, reset=reset)
    assert torch.isfinite(o).all()
    o, state = local_attention(q[:, 1:], k[:, 1:], v[:, 1:], 4, state=state)
    assert worst([o], [local_attention(q, k, v, 4)[0][:, 1:]]) < EXACT
    assert state.count.tolist() == [2, 2]


def test_the_state_keeps_its_dtype() -> None:
    q, k, v, _ = _inputs(5)
    state = AttentionState.zeros(2, 4, 2, 6, 5, dtype=torch.bfloat16)
    for length in (5, 1):
        args = [one[:, :length].float() for one in (q, k, v)]
        assert local_attention(*args, 4, state=state)[1].key.dtype is torch.bfloat16


@implementations
@activations
def test_dropout_keeps_the_mean_and_drops_weights(name: str, activation: str) -> None:
    q, k, v = (torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    torch.manual_seed(0)
    function = implementation("local_attention", name)
    # a score of 1 has weight 1 under both activations
    bias = torch.ones(4)
    for state in (None, AttentionState.zeros(1, 4, 1, 4)):
        outputs = [function(q, k, v, 4, activation, bias, state, None, 0.5)[0][0, 0, 0, 0].item() for _ in range(400)]
        assert set(outputs) == {0.0, 2.0}
        assert sum(outputs) / 400 == pytest.approx(1.0, abs=0.2)


def test_an_unknown_activation_names_the_nearest() -> None:
    q, k, v, _ = _inputs(3)
    with pytest.raises(UnknownNameError, match=r"'relu'. Did you mean 'relu2'\? Known: relu2, softmax"):
        local_attention(q, k, v, 4, "relu")


def test_an_empty_batch_gives_empty_outputs() -> None:
    q, k, v, _ = _inputs(9, batch=0)
    for window, activation in itertools.product((4, 16), ("softmax", "relu2")):
        assert local_attention(q, k, v, window, activation)[0].shape == (0, 9, 4, 5)


class _Layer(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.bias = nn.Parameter(_bias(4).float())

    def forward(self, tokens: tuple[Tensor, ...], state: AttentionState | None, reset: Tensor | None) -> Any:
        return local_attention(*tokens, 4, self.activation, self.bias, state, reset)


# torch.compile itself makes an object of the class when it traces an autograd.Function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@activations
def test_a_compiled_layer_is_one_graph_and_equals_eager_forward_and_backward(activation: str) -> None:
    *tokens, reset = cast(_inputs(19), torch.float32)
    layer = _Layer(activation)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def run(function: Any) -> list[Tensor]:
        leaves = [one.clone().requires_grad_() for one in tokens]
        o, new = function(tuple(leaves), None, reset)
        gradients = torch.autograd.grad(o.square().sum() + new.key.sum(), [*leaves, layer.bias])
        return [o.detach(), new.value.detach(), *gradients]

    assert worst(run(compiled), run(layer)) < KERNELS["local_attention"][torch.float32]


@activations
def test_a_step_exports_without_custom_operators(activation: str) -> None:
    *tokens, _ = cast(_inputs(1), torch.float32)
    args = (tuple(tokens), AttentionState.zeros(2, 4, 2, 6, 5), torch.tensor([[True], [False]]))
    program = torch.export.export(_Layer(activation), args)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if target.startswith("rlseq")]
    assert torch.allclose(program.module()(*args)[0], _Layer(activation)(*args)[0])
