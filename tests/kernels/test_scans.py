"""The scans: float64 oracle -> reference -> Numba, values and all gradients, under the whole contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlseq.kernels import SoftmaxState
from tests.kernels.cases import (
    RESET,
    SCANS,
    STATE,
    TOKENS,
    WILD,
    arguments,
    cast,
    error,
    implementation,
    part,
    public,
    with_gradients,
    with_state,
    worst,
)
from tests.oracles import kernels as oracles
from tests.tolerances import KERNELS

scans = pytest.mark.parametrize("op", SCANS)
implementations = pytest.mark.parametrize("name", ["reference", "cpu"])
lengths = st.one_of(st.sampled_from([1, 2, 3, 5, 7, 127, 300]), st.integers(1, 300))
widths = st.sampled_from([1, 7, 63, 128])
modest = settings(max_examples=12, deadline=None, derandomize=True)


def _numpy(op: str, args: list[Any]) -> list[Any]:
    tokens, filled = args[TOKENS[op][0]], list(args)
    for i, like in zip(STATE[op], _empty_state(op, args), strict=True):
        filled[i] = args[i] if args[i] is not None else like
    if args[RESET[op]] is None:
        filled[RESET[op]] = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    return [arg.numpy() if isinstance(arg, Tensor) else arg for arg in filled]


def _empty_state(op: str, args: list[Any]) -> list[Tensor]:
    """What no state equals."""
    v = args[TOKENS[op][-1]]
    if op == "softmax_scan":
        return list(SoftmaxState.empty(v.shape[0], *v.shape[2:]))
    shape = (v.shape[0], 3, v.shape[2]) if op == "causal_conv" else (v.shape[0], v.shape[2])
    return [torch.zeros(shape, dtype=torch.float64)]


@scans
@implementations
@pytest.mark.parametrize("length", [1, 2, 5, 23])
@pytest.mark.parametrize("resets", [None, 0.0, 0.2, 1.0])
@pytest.mark.parametrize("state", [True, False])
def test_values_equal_the_float64_oracle(op: str, name: str, length: int, resets: float | None, state: bool) -> None:
    args = arguments(op, 2, length, 3, resets=resets, state=state)
    expected = getattr(oracles, op)(*_numpy(op, args))
    got = implementation(op, name)(*args)
    assert worst(got, [torch.from_numpy(one) for one in expected]) < KERNELS[op][torch.float64]


@scans
@implementations
def test_gradients_pass_gradcheck_in_float64(op: str, name: str) -> None:
    *inputs, reset = arguments(op, 2, 5, 2, resets=0.3, seed=1)[: RESET[op] + 1]
    function = implementation(op, name)
    rest = [8.0] if op == "rg_lru" else []
    leaves = [one.requires_grad_() for one in inputs]
    assert torch.autograd.gradcheck(lambda *floats: function(*floats, reset, *rest), leaves)


@scans
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.integers(1, 4), lengths, widths, st.sampled_from([None, 0.02, 0.5]), st.booleans(), st.integers(0, 99))
@modest
def test_numba_equals_reference(
    op: str, dtype: torch.dtype, batch: int, length: int, width: int, resets: float | None, state: bool, seed: int
) -> None:
    args = cast(arguments(op, batch, length, width, resets=resets, state=state, seed=seed), dtype)
    got = with_gradients(implementation(op, "cpu"), args)
    expected = with_gradients(implementation(op, "reference"), cast(args, torch.float64))
    assert worst(got, expected) < KERNELS[op][dtype]


@scans
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_float32_gates_and_sums(op: str, dtype: torch.dtype) -> None:
    args = cast(arguments(op, 3, 200, 63, resets=0.02), dtype)
    got = with_gradients(implementation(op, "cpu"), args)
    expected = with_gradients(implementation(op, "reference"), cast(args, torch.float64))
    assert got[0].dtype is dtype
    assert worst(got, expected) < KERNELS[op][dtype]


@scans
@given(lengths.filter(lambda length: length > 1), st.data())
@modest
def test_a_sequence_in_pieces_with_the_state_carried_equals_the_whole(
    op: str, length: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), min_size=1, max_size=4)))
    args = arguments(op, 2, length, 7, resets=0.1)

    def in_pieces(*whole: Any) -> tuple[Tensor, ...]:
        state, outputs = [whole[i] for i in STATE[op]], []
        for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
            output, *state = public(op)(*part(op, whole, begin, end, state))
            outputs.append(output)
        return torch.cat(outputs, dim=1), *state

    assert worst(with_gradients(in_pieces, args), with_gradients(public(op), args)) < KERNELS[op][torch.float64]


@scans
def test_strides_do_not_matter_and_inputs_are_not_changed(op: str) -> None:
    args = cast(arguments(op, 3, 20, 7), torch.float32)
    strange = [
        arg.movedim(0, -1).contiguous().movedim(-1, 0) if isinstance(arg, Tensor) and arg.dim() > 1 else arg
        for arg in args
    ]
    before = [arg.clone() if isinstance(arg, Tensor) else arg for arg in strange]
    expected = with_gradients(public(op), args)
    leaves = [arg.requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in strange]
    assert not leaves[0].is_contiguous()
    output, *_ = public(op)(*leaves)
    output.movedim(0, -1).contiguous().movedim(-1, 0).square().sum().backward()
    assert torch.equal(output, expected[0])
    for one, other in zip(leaves, before, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@scans
@implementations
def test_an_infinity_before_a_reset_leaves_no_trace(op: str, name: str) -> None:
    args = cast(arguments(op, 2, 9, 5, resets=0.0), torch.float32)
    args[RESET[op]][:, 4] = True
    wild = with_state(op, args, [torch.full_like(args[i], math.inf) for i in STATE[op]])
    wild[WILD[op]] = args[WILD[op]].clone()
    wild[WILD[op]][:, 2] = math.inf
    clean, got = implementation(op, name)(*args), implementation(op, name)(*wild)
    assert torch.equal(got[0][:, 4:], clean[0][:, 4:])
    assert all(torch.equal(one, other) for one, other in zip(got[1:], clean[1:], strict=True))
    assert not torch.isfinite(got[0][:, :4]).all()

    leaves = list(wild)
    for i in (WILD[op], *STATE[op]):
        leaves[i] = wild[i].clone().requires_grad_()
    output, *last = implementation(op, name)(*leaves)
    loss = output[:, 4:].sum() + sum(one.sum() for one in last)
    tokens, *states = torch.autograd.grad(loss, [leaves[i] for i in (WILD[op], *STATE[op])])
    assert torch.isfinite(tokens[:, 4:]).all()
    if op != "softmax_scan":
        # there o itself is infinite, and its gradient 0 x inf
        assert not states[0].any()


@scans
@implementations
def test_a_state_of_infinities_is_forgotten_at_a_reset_and_gets_no_gradient(op: str, name: str) -> None:
    args = cast(arguments(op, 2, 9, 5, resets=0.0), torch.float32)
    args[RESET[op]][:, 0] = True
    wild = with_state(op, args, [torch.full_like(args[i], math.inf) for i in STATE[op]])
    got, expected = with_gradients(implementation(op, name), wild), with_gradients(implementation(op, name), args)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@scans
def test_a_reset_on_the_first_token_forgets_the_state(op: str) -> None:
    args = arguments(op, 2, 6, 3, resets=0.0)
    args[RESET[op]][:, 0] = True
    without = with_state(op, args, [None] * len(STATE[op]))
    for one, other in zip(public(op)(*args), public(op)(*without), strict=True):
        assert torch.equal(one, other)


def test_no_state_is_zeros_and_not_a_reset() -> None:
    x, gate_x, gate_a, a_param, _, reset, c = arguments("rg_lru", 2, 6, 3, resets=0.0)
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    begun = reset.clone()
    begun[:, 0] = True
    plain = public("rg_lru")(x, gate_x, gate_a, a_param, None, reset, c)[0]
    assert torch.equal(plain, public("rg_lru")(x, gate_x, gate_a, a_param, zeros, None, c)[0])
    first = public("rg_lru")(x, gate_x, gate_a, a_param, None, begun, c)[0][:, 0]
    assert torch.allclose(first, torch.sigmoid(gate_x[:, 0]) * x[:, 0])
    assert not torch.allclose(first, plain[:, 0])


@implementations
@pytest.mark.parametrize("gate", [-100.0, -20.0, 0.0, 20.0, 100.0])
def test_rg_lru_with_extreme_gates_and_decays_is_finite_and_right(name: str, gate: float) -> None:
    a_param = torch.cat([torch.linspace(-120.0, 20.0, 29), torch.tensor([-20.0, -1.0])])
    x, gate_x, gate_a, _, h0, reset, c = cast(arguments("rg_lru", 2, 12, 31), torch.float32)
    args = [x, gate_x, gate_a.sign() * gate, a_param, h0, reset, c]
    got = with_gradients(implementation("rg_lru", name), args)
    expected = with_gradients(implementation("rg_lru", "reference"), cast(args, torch.float64))
    assert worst(got, expected) < KERNELS["rg_lru extremes"][torch.float32]


@scans
@pytest.mark.parametrize("resets", [None, 0.3, 1.0])
def test_no_output_is_left_uninitialised(op: str, resets: float | None, poisoned: None) -> None:
    for one in with_gradients(implementation(op, "cpu"), arguments(op, 3, 17, 63, resets=resets)):
        assert torch.isfinite(one).all()


def test_65536_steps_of_decay_one_minus_a_millionth_stay_within_1e_5_of_float64() -> None:
    length, width = 65_536, 4
    b = torch.randn(1, length, width, generator=torch.Generator().manual_seed(0)) + 0.5
    a = torch.full_like(b, 1.0 - 1e-6)
    got = with_gradients(public("linear_scan"), [a, b, None, None])
    expected = with_gradients(public("linear_scan"), [a.double(), b.double(), None, None])
    assert worst(got, expected) < KERNELS["linear_scan"][torch.float32]

    # log a = -8 sigmoid(gate_a) softplus(a_param) = -1e-6
    gate_a = torch.zeros_like(b)
    a_param = torch.full((width,), math.log(math.expm1(1e-6 / 4.0)))
    got = with_gradients(public("rg_lru"), [b, gate_a, gate_a, a_param, None, None])
    expected = with_gradients(public("rg_lru"), cast([b, gate_a, gate_a, a_param, None, None], torch.float64))
    assert worst(got, expected) < KERNELS["rg_lru"][torch.float32]

    # equal scores: a weight of 1 / t, and a mean that does not tend to 0
    args = [torch.zeros(1, length, 1), b[:, :, None], None, None, None]
    got = with_gradients(public("softmax_scan"), args)
    expected = with_gradients(public("softmax_scan"), cast(args, torch.float64))
    assert worst(got, expected) < KERNELS["softmax_scan"][torch.float32]


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_scan_of_large_scores_and_dropped_tokens(name: str, scale: float) -> None:
    s, v, *_, reset = arguments("softmax_scan", 2, 60, 5, resets=0.05)
    s = (scale * s).float().double()
    s[:, ::7] = -math.inf
    s[0, :3] = -math.inf
    reset[0, :3] = False
    args = [s, v.float().double(), *SoftmaxState.empty(2, 2, 5), reset]
    expected = oracles.softmax_scan(*[arg.numpy() for arg in args])
    got = implementation("softmax_scan", name)(*cast(args, torch.float32))
    assert worst(got[:1], [torch.from_numpy(expected[0])]) < KERNELS["softmax_scan"][torch.float32]
    finite = torch.isfinite(torch.from_numpy(expected[1]))
    assert torch.equal(torch.isfinite(got[1]), finite)
    inputs = [one.float().requires_grad_() for one in args[:2]]
    output, *_ = implementation("softmax_scan", name)(*inputs, None, None, reset)
    assert all(torch.isfinite(one).all() for one in torch.autograd.grad(output.square().sum(), inputs))


@scans
def test_results_do_not_depend_on_the_number_of_threads(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlseq.kernels._threads._SMALL", 1)
    # few rows are cut into tiles of channels, many are not
    for rows in (1, 2, 5):
        args = cast(arguments(op, rows, 65, 160), torch.float32)
        runs = []
        for threads in ("1", "1", "2", "3"):
            monkeypatch.setenv("RLSEQ_NUM_THREADS", threads)
            runs.append(with_gradients(public(op), args))
        for run in runs[1:]:
            for one, other in zip(run, runs[0], strict=True):
                assert torch.equal(one, other)


@scans
def test_an_empty_batch_gives_empty_outputs(op: str) -> None:
    output, *last = public(op)(*arguments(op, 0, 8, 4))
    assert output.shape[:2] == (0, 8)
    assert all(one.shape[0] == 0 for one in last)


@scans
def test_carried_scan_states_are_float64(op: str) -> None:
    for length in (1, 8):
        for state in public(op)(*cast(arguments(op, 2, length, 4), torch.float32))[1:]:
            assert state.dtype is (torch.float32 if op == "causal_conv" else torch.float64)


def test_float32_error_of_the_vectorised_exponentials() -> None:
    import numba
    import numpy as np

    from rlseq.kernels._numba import decay_minus_one, sigmoid

    @numba.njit
    def both(x, out, gate):  # type: ignore[no-untyped-def]
        for i in range(x.size):
            out[i] = decay_minus_one(abs(x[i]))
            gate[i] = sigmoid(x[i])

    x = np.concatenate([np.logspace(-10, 1.9, 20_000), np.linspace(-86, 86, 20_001)]).astype(np.float32)
    out, gate = np.empty_like(x), np.empty_like(x)
    both(x, out, gate)
    exact, exact_gate = np.expm1(-np.abs(x.astype(np.float64))), 1.0 / (1.0 + np.exp(-x.astype(np.float64)))
    nonzero = exact != 0.0
    assert np.abs(out[nonzero] / exact[nonzero] - 1.0).max() < KERNELS["e^-u - 1"][torch.float32]
    assert np.abs(gate / exact_gate - 1.0).max() < KERNELS["sigmoid"][torch.float32]
    special = np.array([np.nan, 1e30, -1e30, np.inf], np.float32)
    out, gate = np.empty_like(special), np.empty_like(special)
    both(special, out, gate)
    assert np.isnan(out[0])
    assert np.isnan(gate[0])
    assert out[1:].tolist() == [-1.0, -1.0, -1.0]
    assert gate[1:] == pytest.approx([1.0, 0.0, 1.0], abs=1e-37)


def test_error_measures_the_largest_relative_difference() -> None:
    assert error(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0])) == pytest.approx(0.1)


@scans
@implementations
def test_a_nan_after_a_reset_leaves_no_trace_in_gradients_before_it(op: str, name: str) -> None:
    args = cast(arguments(op, 2, 9, 5, resets=0.0), torch.float32)
    args[RESET[op]][:, 4] = True
    wild = list(args)
    for i in TOKENS[op]:
        wild[i] = args[i].clone()
        wild[i][:, 6] = math.nan
    gradients = []
    for one in (args, wild):
        leaves = [one[i].clone().requires_grad_() for i in (*TOKENS[op], *STATE[op])]
        filled = list(one)
        for i, leaf in zip((*TOKENS[op], *STATE[op]), leaves, strict=True):
            filled[i] = leaf
        output, *_ = implementation(op, name)(*filled)
        gradients.append(torch.autograd.grad(output[:, :4].square().sum(), leaves))
    for clean, got in zip(*gradients, strict=True):
        if clean.dim() > 2 and clean.shape[1] == 9:
            clean, got = clean[:, :4], got[:, :4]
        assert torch.equal(clean, got)
