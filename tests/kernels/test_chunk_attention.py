"""Mixed-chunk attention: float64 oracle -> loop over time -> blocks, values and all gradients, states and resets."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlseq.errors import ConfigError, ShapeError
from rlseq.kernels import ChunkState, chunk_attention
from rlseq.kernels._arguments import SHORT
from tests.kernels.cases import cast, implementation, with_gradients, worst
from tests.oracles import attention as oracles
from tests.tolerances import KERNELS

implementations = pytest.mark.parametrize("name", ["reference", "blocked"])
EXACT = KERNELS["chunk_attention"][torch.float64]
lengths = st.one_of(st.sampled_from([1, 2, 3, 7, 31, 127, 300]), st.integers(1, 300))
resets_of = st.sampled_from([None, 0.0, 0.02, 0.3, 1.0])


def _inputs(
    length: int, *, batch: int = 2, size: int = 4, width: int = 5, resets: float | None = 0.2, seed: int = 0
) -> list[Any]:
    """q_quad, k_quad, q_lin, k_lin, v and reset."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, size)] * 4 + [(batch, length, width)]
    tokens = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return [*tokens, None if resets is None else torch.rand(batch, length, generator=random) < resets]


def _bias(chunk: int) -> Tensor:
    return 0.5 * torch.randn(chunk, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _state(chunk: int, past: int, seed: int = 5, **sizes: int) -> ChunkState:
    """After ``past`` tokens, some of them resets."""
    *tokens, reset = _inputs(past, resets=0.5 / chunk, seed=seed, **sizes)
    return implementation("chunk_attention", "reference")(*tokens, chunk, _bias(chunk), None, reset)[1]


def _seen(state: ChunkState) -> list[Tensor]:
    """The floats of a state that a later token can see: a chunk that is complete is in the mean."""
    chunk = state.key_quad.shape[1]
    complete = (state.count % chunk == 0)[:, None, None]
    return [state.mean, *(torch.where(complete, 0.0, one) for one in state[1:4])]


def _flat(function: Any, chunk: int) -> Any:
    """The op as a function of (tokens, bias, mean, key_quad, key_lin, value, count, reset), the state's floats last."""

    def run(*given: Any) -> tuple[Tensor, ...]:
        tokens, bias, parts, reset = given[:5], given[5], given[6:-1], given[-1]
        o, new = function(*tokens, chunk, bias, ChunkState(*parts) if parts else None, reset)
        return o, *_seen(new)

    return run


def _both(name: str, chunk: int) -> Any:
    return _flat(implementation("chunk_attention", name), chunk)


@implementations
@pytest.mark.parametrize("chunk", [1, 3, 8, 40])
@pytest.mark.parametrize("length", [1, 2, 5, 24])
@pytest.mark.parametrize("resets", [None, 0.0, 0.15, 1.0])
def test_values_and_states_equal_the_float64_oracle(name: str, chunk: int, length: int, resets: float | None) -> None:
    *tokens, reset = _inputs(length, resets=resets)
    flags = torch.zeros(2, length, dtype=torch.bool) if reset is None else reset
    for bias in (None, _bias(chunk)):
        o, state = implementation("chunk_attention", name)(*tokens, chunk, bias, None, reset)
        arrays = [one.numpy() for one in tokens]
        expected = oracles.chunk_attention(*arrays, chunk, None if bias is None else bias.numpy(), flags.numpy())
        *floats, count = [torch.from_numpy(one) for one in expected]
        assert worst([o, *_seen(state)], floats) < EXACT
        assert torch.equal(state.count, count)


@implementations
@pytest.mark.parametrize(("chunk", "past"), [(2, 3), (3, 7), (4, 2)])
def test_gradients_pass_gradcheck_through_both_states(name: str, chunk: int, past: int) -> None:
    *tokens, reset = _inputs(5, size=2, width=2, resets=0.2, seed=1)
    state = _state(chunk, past, size=2, width=2)
    leaves = [one.detach().requires_grad_() for one in (*tokens, _bias(chunk), *state[:4])]
    function = _both(name, chunk)
    assert torch.autograd.gradcheck(lambda *floats: function(*floats, state.count, reset), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    st.integers(1, 3),
    lengths,
    st.sampled_from([(1, 7), (7, 1), (16, 63)]),
    st.sampled_from([1, 2, 5, 16, 64]),
    resets_of,
    st.one_of(st.none(), st.integers(1, 150)),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_blocks_equal_the_loop_with_all_gradients(
    dtype: torch.dtype,
    batch: int,
    length: int,
    sizes: tuple[int, int],
    chunk: int,
    resets: float | None,
    past: int | None,
    strided: bool,
    seed: int,
) -> None:
    shape = {"batch": batch, "size": sizes[0], "width": sizes[1]}
    *tokens, reset = _inputs(length, resets=resets, seed=seed, **shape)
    state = () if past is None else _state(chunk, past, **shape)
    args = cast([*tokens, _bias(chunk), *state, reset], dtype)
    # sums are carried in float64 whatever the dtype
    expected = with_gradients(_both("reference", chunk), cast(args, torch.float64))
    if strided:
        args[:5] = [one.movedim(0, -1).contiguous().movedim(-1, 0) for one in args[:5]]
    got = with_gradients(_both("blocked", chunk), args)
    assert worst(got, expected) < KERNELS["chunk_attention"][dtype]


@implementations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_float32_weights_and_sums(name: str, dtype: torch.dtype) -> None:
    *tokens, reset = cast(_inputs(100, size=16, width=33, resets=0.02), dtype)
    args = [*tokens, _bias(16).to(dtype), reset]
    got = with_gradients(_both(name, 16), args)
    expected = with_gradients(_both("reference", 16), cast(args, torch.float64))
    assert got[0].dtype is got[2].dtype is got[3].dtype is got[4].dtype is dtype
    assert got[1].dtype is torch.float32
    assert worst(got, expected) < KERNELS["chunk_attention"][dtype]


@given(st.sets(st.integers(1, 99), max_size=6), st.sampled_from([1, 4, 16, 64]), resets_of)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_sequence_in_pieces_with_the_state_carried_equals_the_whole(
    cuts: set[int], chunk: int, resets: float | None
) -> None:
    args = [*_inputs(100, resets=None)[:5], _bias(chunk), *_state(chunk, 37), _inputs(100, resets=resets)[5]]

    def in_pieces(*given: Any) -> tuple[Tensor, ...]:
        state, outputs, reset = ChunkState(*given[6:-1]), [], given[-1]
        for begin, end in itertools.pairwise([0, *sorted(cuts), 100]):
            part = [one[:, begin:end] for one in given[:5]]
            flags = None if reset is None else reset[:, begin:end]
            o, state = chunk_attention(*part, chunk, given[5], state, flags)
            outputs.append(o)
        return torch.cat(outputs, dim=1), *_seen(state)

    assert worst(with_gradients(in_pieces, args), with_gradients(_flat(chunk_attention, chunk), args)) < EXACT


@pytest.mark.parametrize("resets", [None, 0.05])
@pytest.mark.parametrize("past", [None, 7])
def test_the_size_of_the_pieces_worked_on_does_not_matter(
    resets: float | None, past: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    *tokens, reset = _inputs(61, batch=3, resets=resets)
    args = [*tokens, _bias(4), *(() if past is None else _state(4, past, batch=3)), reset]
    whole = with_gradients(_both("blocked", 4), args)
    for piece in (1, 100, 700):
        monkeypatch.setattr(importlib.import_module("rlseq.kernels.chunk_attention.blocked"), "_PIECE", piece)
        assert worst(with_gradients(_both("blocked", 4), args), whole) < EXACT


@pytest.mark.parametrize("resets", [None, 0.05])
@pytest.mark.parametrize("past", [None, 3, 7])
def test_attention_token_by_token_equals_blocks(
    resets: float | None, past: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    *tokens, reset = _inputs(150, batch=3, resets=resets)
    args = [*tokens, _bias(8), *(() if past is None else _state(8, past, batch=3)), reset]
    blocks = with_gradients(_both("blocked", 8), args)
    monkeypatch.setattr(importlib.import_module("rlseq.kernels.chunk_attention.blocked"), "_FEW", 100)
    assert worst(with_gradients(_both("blocked", 8), args), blocks) < EXACT


@pytest.mark.parametrize("resets", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("past", [None, 3, 8, 15])
def test_tokens_moved_to_whole_chunks_equal_masks(
    resets: float, past: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    *tokens, reset = _inputs(67, batch=3, resets=resets)
    reset[0, 0] = True
    args = [*tokens, _bias(8), *(() if past is None else _state(8, past, batch=3)), reset]
    found = []
    for most, calls in ((-1.0, 0), (math.inf, 1)):
        blocks = importlib.import_module("rlseq.kernels.chunk_attention._blocks")
        moved = Mock(side_effect=blocks._moved)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "_MOST_EMPTY", most)
            patch.setattr(blocks, "_moved", moved)
            found.append(with_gradients(_both("blocked", 8), args))
        assert moved.call_count == calls
    assert worst(found[1], found[0]) < EXACT


@pytest.mark.parametrize("length", [1, 9])
def test_rows_that_complete_no_chunk_keep_their_mean_and_no_state_costs_no_matrix(length: int) -> None:
    *tokens, _ = _inputs(length)
    state = _state(64, 70)._replace(count=torch.tensor([65, 70]))
    assert torch.equal(chunk_attention(*tokens, 64, state=state)[1].mean, state.mean)
    if length > SHORT:
        assert chunk_attention(*tokens, 64)[1].mean.untyped_storage().nbytes() == 8


def test_steps_equal_the_forward_and_leave_an_old_state_of_constant_size_alone() -> None:
    *tokens, reset = _inputs(40, resets=0.05)
    whole, last = chunk_attention(*tokens, 7, _bias(7), reset=reset)
    state = ChunkState.zeros(2, 7, 4, 5, dtype=torch.float64)
    for t in range(40):
        before = [one.clone() for one in state]
        o, new = chunk_attention(*[one[:, t : t + 1] for one in tokens], 7, _bias(7), state, reset[:, t : t + 1])
        assert worst([o[:, 0]], [whole[:, t]]) < EXACT
        for one, other, after in zip(state, before, new, strict=True):
            assert torch.equal(one, other)
            assert (one.shape, one.dtype) == (after.shape, after.dtype)
        state = new
    assert worst(_seen(state), _seen(last)) < EXACT
    assert torch.equal(state.count, last.count)


@implementations
def test_a_mean_in_float32_is_off_by_the_root_of_the_chunks(name: str) -> None:
    torch.manual_seed(0)
    run = implementation("chunk_attention", name)
    states = [ChunkState.zeros(2, 2, 4, 5, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    for chunks in range(1, 1001):
        tokens = [1.0 + torch.randn(2, 2, size) for size in (4, 4, 4, 4, 5)]
        states = [run(*[one.to(state.mean.dtype) for one in tokens], 2, None, state, None)[1] for state in states]
        if chunks in (100, 1000):
            single, double = (state.mean for state in states)
            assert single.dtype is torch.float32
            assert worst([single], [double]) < KERNELS["mean, over sqrt(n)"][torch.float32] * chunks**0.5


def test_a_packed_row_equals_its_episodes_apart() -> None:
    *tokens, _ = _inputs(50, batch=1)
    reset = torch.zeros(1, 50, dtype=torch.bool)
    cuts = [0, 3, 20, 21, 50]
    reset[:, cuts[:-1]] = True
    packed, _ = chunk_attention(*tokens, 8, _bias(8), reset=reset)
    apart = [chunk_attention(*[one[:, a:b] for one in tokens], 8, _bias(8))[0] for a, b in itertools.pairwise(cuts)]
    assert worst([packed], [torch.cat(apart, dim=1)]) < EXACT


def test_zeros_equal_no_state_and_a_first_reset_forgets() -> None:
    *tokens, reset = _inputs(30)
    plain = chunk_attention(*tokens, 4, None, None, reset)
    zeros = ChunkState.zeros(2, 4, 4, 5, dtype=torch.float64)
    assert worst([chunk_attention(*tokens, 4, None, zeros, reset)[0]], [plain[0]]) < EXACT
    reset[:, 0] = True
    forgotten = chunk_attention(*tokens, 4, None, _state(4, 9), reset)
    for one, other in zip((forgotten[0], *_seen(forgotten[1])), (plain[0], *_seen(plain[1])), strict=True):
        assert torch.allclose(one, other, rtol=0.0, atol=EXACT)


def test_the_state_keeps_its_dtype() -> None:
    tokens = cast(_inputs(9)[:5], torch.float32)
    state = ChunkState.zeros(2, 4, 4, 5, dtype=torch.bfloat16)
    for length in (9, 1):
        new = chunk_attention(*[one[:, :length] for one in tokens], 4, state=state)[1]
        assert [one.dtype for one in new] == [one.dtype for one in state]


@pytest.mark.parametrize("resets", [None, 0.1])
def test_no_output_is_left_uninitialised_and_results_repeat(resets: float | None, poisoned: None) -> None:
    *tokens, reset = cast(_inputs(61, size=7, width=63, resets=resets), torch.float32)
    args = [*tokens, _bias(16).float(), reset]
    runs = [with_gradients(_both("blocked", 16), args) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


def test_4096_tokens_in_float32_stay_within_1e_5_of_float64() -> None:
    *tokens, _ = _inputs(4096, batch=1, size=16, width=16, resets=None)
    args = [*tokens, _bias(64), None]
    exact = with_gradients(_both("blocked", 64), args)
    assert worst(exact[:5], _both("reference", 64)(*args)) < EXACT
    got = with_gradients(_both("blocked", 64), cast(args, torch.float32))
    assert worst(got, exact) < KERNELS["chunk_attention long"][torch.float32] <= 1e-5


def test_an_empty_batch_gives_empty_outputs() -> None:
    *tokens, reset = _inputs(40, batch=0)
    for length in (1, 9, 40):
        for before in (None, ChunkState.zeros(0, 4, 4, 5)):
            o, state = chunk_attention(*[one[:, :length] for one in tokens], 4, None, before, reset[:, :length])
            assert o.shape == (0, length, 5)
            assert state.mean.shape == (0, 4, 5)


def test_arguments_that_do_not_fit_show_every_shape() -> None:
    *tokens, _ = _inputs(6)
    q, v = tokens[0], tokens[4]
    state = _state(3, 5)
    for bad in (
        lambda: chunk_attention(q, q, q, q[:, :4], v, 3),
        lambda: chunk_attention(q, q, q, q, v[:, :4], 3),
        lambda: chunk_attention(q, q, q, q, v.float(), 3),
        lambda: chunk_attention(q, q, q, q, v, 3, bias=torch.zeros(4)),
        lambda: chunk_attention(q, q, q, q, v, 3, reset=torch.zeros(2, 6)),
        lambda: chunk_attention(q, q, q, q, v, 4, state=state),
        lambda: chunk_attention(q, q, q, q, v, 3, state=state._replace(count=state.count[:1])),
    ):
        with pytest.raises(ShapeError, match=r"q_quad \(2, 6, 4\) float64, k_quad .* bias .* mean .* count "):
            bad()
    with pytest.raises(ConfigError, match="chunk must be at least 1, got 0"):
        chunk_attention(*tokens, 0)


class _Layer(nn.Module):
    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.bias = nn.Parameter(_bias(chunk).float())

    def forward(self, tokens: tuple[Tensor, ...], state: ChunkState | None, reset: Tensor | None) -> Any:
        return chunk_attention(*tokens, self.chunk, self.bias, state, reset)


# torch.compile itself makes an object of the class when it traces an autograd.Function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("carried", [False, True])
def test_a_compiled_layer_is_one_graph_and_equals_eager_forward_and_backward(carried: bool) -> None:
    *tokens, reset = cast(_inputs(29), torch.float32)
    layer = _Layer(4)
    state = ChunkState(*cast(_state(4, 7), torch.float32)) if carried else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def run(function: Any) -> list[Tensor]:
        leaves = [one.clone().requires_grad_() for one in tokens]
        o, new = function(tuple(leaves), state, reset if carried else None)
        loss = o.square().sum() + sum(one.square().sum() for one in new[:4])
        return [o.detach(), *[one.detach() for one in new], *torch.autograd.grad(loss, [*leaves, layer.bias])]

    assert worst(run(compiled), run(layer)) < KERNELS["chunk_attention"][torch.float32]


def test_a_step_exports_without_custom_operators() -> None:
    tokens = tuple(cast(_inputs(1)[:5], torch.float32))
    args = (tokens, ChunkState(*cast(_state(4, 7), torch.float32)), torch.tensor([[True], [False]]))
    program = torch.export.export(_Layer(4), args)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if target.startswith("rlseq")]
    assert torch.allclose(program.module()(*args)[0], _Layer(4)(*args)[0])
