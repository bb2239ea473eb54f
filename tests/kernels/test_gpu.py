"""The Triton kernels against the references: in Triton's interpreter, or natively where there is a CUDA device.

The interpreter needs about 0.1 ms an operation, so grids are small here; it does not fuse multiply-adds.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from typing import Any
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlseq.kernels import _dispatch, _triton, linear_scan
from rlseq.kernels._triton import GROUP, expm1, launch, plan, sigmoid, span_of
from tests.kernels.cases import (
    RESET,
    SCANS,
    STATE,
    WILD,
    arguments,
    cast,
    error,
    implementation,
    with_gradients,
    with_state,
    worst,
)
from tests.tolerances import GPU

NATIVE = torch.cuda.is_available()
DEVICE = "cuda" if NATIVE else "cpu"

ops = pytest.mark.parametrize("op", SCANS)
# no shrinking: it would take minutes in the interpreter
few = settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate])


def gpu(op: str) -> Any:
    """The implementation, from CPU tensors to CPU tensors."""
    run = implementation(op, "gpu")

    def moved(*args: Any) -> tuple[Tensor, ...]:
        return tuple(one.cpu() for one in run(*[arg.to(DEVICE) if isinstance(arg, Tensor) else arg for arg in args]))

    return moved if NATIVE else run


def expected(op: str, args: list[Any]) -> list[Tensor]:
    return with_gradients(implementation(op, "reference"), cast(args, torch.float64))


@contextlib.contextmanager
def chunks_of(span: int | None):
    """Time cut into chunks of ``span`` tokens (the convolution's backward into such strips); None leaves the plan."""
    if span is None:
        yield
        return
    conv = importlib.import_module("rlseq.kernels.causal_conv.gpu")
    with mock.patch.object(_triton, "span_of", return_value=span), mock.patch.object(conv, "_STRIP", span):
        yield


@ops
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 5, 8, 9, 17]),
    st.sampled_from([1, 7, 33, 63]),
    st.sampled_from([None, 0.3, 1.0]),
    st.booleans(),
    st.integers(0, 99),
)
@few
def test_values_and_gradients_equal_the_reference(
    op: str, dtype: torch.dtype, batch: int, length: int, width: int, resets: float | None, state: bool, seed: int
) -> None:
    args = cast(arguments(op, batch, length, width, resets=resets, state=state, seed=seed), dtype)
    assert worst(with_gradients(gpu(op), args), expected(op, args)) < GPU[op][dtype]


@pytest.mark.parametrize(
    ("op", "shape"), [(op, (1, 65, 7)) for op in SCANS] + [("linear_scan", (2, 9, 128)), ("causal_conv", (2, 40, 128))]
)
def test_several_groups_and_blocks(op: str, shape: tuple[int, int, int]) -> None:
    args = cast(arguments(op, *shape, resets=0.1), torch.float32)
    assert worst(with_gradients(gpu(op), args), expected(op, args)) < GPU[op][torch.float32]


@ops
@pytest.mark.parametrize(("span", "length", "resets"), [(8, 17, ()), (8, 19, (5, 8)), (16, 37, (15, 16, 24, 31, 36))])
def test_chunks_with_resets_inside_at_and_before_their_borders(
    op: str, span: int, length: int, resets: tuple[int, ...]
) -> None:
    args = arguments(op, 1, length, 3, resets=0.0, seed=1)
    args[RESET[op]][:, list(resets)] = True
    args = cast(args, torch.float32)
    with chunks_of(span):
        got = with_gradients(gpu(op), args)
    assert worst(got, expected(op, args)) < GPU[op][torch.float32]


@pytest.mark.parametrize("op", ["linear_scan", "softmax_scan"])
def test_chunks_lose_nothing_in_float64(op: str) -> None:
    args = arguments(op, 1, 21, 3, resets=0.05, seed=2)
    with chunks_of(8):
        got = with_gradients(gpu(op), args)
    assert worst(got, expected(op, args)) < GPU[op][torch.float64]


@ops
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_float32_gates_and_sums(op: str, dtype: torch.dtype) -> None:
    args = cast(arguments(op, 1, 20, 9, resets=0.05), dtype)
    got = with_gradients(gpu(op), args)
    assert got[0].dtype is dtype
    assert worst(got, expected(op, args)) < GPU[op][dtype]


# NumPy, which the interpreter runs on, warns of inf - inf and 0 x inf before the reset
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@ops
@pytest.mark.parametrize(("span", "at"), [(None, 4), (8, 8)])
def test_an_infinity_before_a_reset_leaves_no_trace(op: str, span: int | None, at: int) -> None:
    args = cast(arguments(op, 1, 12, 2, resets=0.0), torch.float32)
    args[RESET[op]][:, at] = True
    wild = list(args)
    wild[WILD[op]] = args[WILD[op]].clone()
    wild[WILD[op]][:, 2] = math.inf
    for i in STATE[op]:
        wild[i] = torch.full_like(args[i], math.inf)
    leaves = [one.clone().requires_grad_() if isinstance(one, Tensor) and i != RESET[op] else one
              for i, one in enumerate(wild)]  # fmt: skip
    with chunks_of(span):
        clean, got = gpu(op)(*args), gpu(op)(*leaves)
        (got[0][:, at:].sum() + sum(last.sum() for last in got[1:])).backward()
    assert torch.equal(got[0][:, at:], clean[0][:, at:])
    assert not torch.isfinite(got[0][:, :at]).all()
    for one, other in zip(got[1:], clean[1:], strict=True):
        assert torch.equal(one, other)
    assert torch.isfinite(leaves[WILD[op]].grad[:, at:]).all()
    for i in STATE[op]:
        assert torch.equal(leaves[i].grad, torch.zeros_like(leaves[i]))


@ops
@pytest.mark.parametrize(("span", "resets"), [(None, 1.0), (8, 0.3)])
def test_no_output_is_left_uninitialised(op: str, span: int | None, resets: float | None, poisoned: None) -> None:
    with chunks_of(span):
        for one in with_gradients(gpu(op), arguments(op, 1, 11, 3, resets=resets)):
            assert torch.isfinite(one).all()


@ops
def test_strides_do_not_matter_inputs_stay_and_results_repeat(op: str) -> None:
    args = cast(arguments(op, 2, 9, 2), torch.float32)
    strange = [
        arg.movedim(0, -1).contiguous().movedim(-1, 0) if isinstance(arg, Tensor) and arg.dim() > 1 else arg
        for arg in args
    ]
    before = [arg.clone() if isinstance(arg, Tensor) else arg for arg in strange]
    assert not strange[0].is_contiguous()
    with chunks_of(8):
        run, again = (with_gradients(gpu(op), some) for some in (args, strange))
    assert all(torch.equal(one, other) for one, other in zip(run, again, strict=True))
    for one, other in zip(strange, before, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@ops
def test_opcheck_passes_on_forward_and_backward(op: str) -> None:
    args = cast(arguments(op, 1, 5, 2), torch.float32)
    if op != "causal_conv":
        args = with_state(op, args, [args[i].double() for i in STATE[op]])
    args = [arg.to(DEVICE) if isinstance(arg, Tensor) else arg for arg in args]
    implementation(op, "gpu")
    forward = getattr(torch.ops.rlseq, f"{op}_gpu").default
    outputs = forward(*args)
    gradients = [torch.ones_like(one) for one in outputs]
    backward = {
        "causal_conv": lambda: [*gradients, *args],
        "linear_scan": lambda: [*gradients[:2], *args[:2], outputs[2], args[3]],
        "rg_lru": lambda: [*gradients[:2], *args[:4], outputs[2], *args[5:]],
        "softmax_scan": lambda: [*gradients[:3], *args[:2], *outputs[3:], args[3], outputs[2]],
    }[op]()
    torch.library.opcheck(forward, tuple(args))
    torch.library.opcheck(getattr(torch.ops.rlseq, f"{op}_gpu_backward").default, tuple(backward))


@ops
def test_gradients_pass_gradcheck_in_float64(op: str) -> None:
    args = arguments(op, 1, 4, 1, resets=0.3, seed=1)
    leaves = [one for one in args if isinstance(one, Tensor) and one.is_floating_point()]

    def run(*floats: Tensor) -> tuple[Tensor, ...]:
        return gpu(op)(*floats, *args[len(leaves) :])

    assert torch.autograd.gradcheck(run, [one.requires_grad_() for one in leaves], fast_mode=True)


@pytest.mark.parametrize("gate", [-100.0, 0.0, 20.0, 100.0])
def test_rg_lru_with_extreme_gates_and_decays_is_finite_and_right(gate: float) -> None:
    a_param = torch.cat([torch.linspace(-120.0, 20.0, 29), torch.tensor([-20.0, -1.0])])
    x, gate_x, gate_a, _, h0, reset, c = cast(arguments("rg_lru", 1, 7, 31), torch.float32)
    args = [x, gate_x, gate_a.sign() * gate, a_param, h0, reset, c]
    assert worst(with_gradients(gpu("rg_lru"), args), expected("rg_lru", args)) < GPU["extremes"][torch.float32]


def test_softmax_scan_with_scores_of_ten_thousand_and_dropped_tokens() -> None:
    s, v, z, o, reset = cast(arguments("softmax_scan", 1, 12, 3, resets=0.0), torch.float32)
    near = s + 9999.5
    s = s + torch.linspace(-1e4, 1e4, 12)[None, :, None].roll(5, dims=1)
    s[:, 3], s[:, 8] = -math.inf, -math.inf
    reset[:, 8] = True
    for args in ([s, v, z, o, reset], [near, v, z + 1e4, o, None], [s, v, None, None, None]):
        got, want = with_gradients(gpu("softmax_scan"), args), expected("softmax_scan", args)
        assert torch.isfinite(torch.cat([one.flatten() for one in got])).all()
        assert worst(got, want) < GPU["extremes"][torch.float32]


@pytest.mark.parametrize(("op", "short"), [("linear_scan", 512), ("rg_lru", 128), ("softmax_scan", 128)])
def test_a_decay_of_one_minus_a_millionth_stays_within_1e_5_of_float64(op: str, short: int) -> None:
    length = 65_536 if NATIVE else short
    random = torch.Generator().manual_seed(0)
    b = torch.randn(1, length, 2, generator=random) + 0.5
    if op == "linear_scan":
        args = [torch.full_like(b, 1.0 - 1e-6), b, None, None]
    elif op == "rg_lru":
        # log a = -8 sigmoid(gate_a) softplus(a_param) = -1e-6
        a_param = torch.full((2,), math.log(math.expm1(1e-6 / 4.0)))
        args = [b, torch.zeros_like(b), torch.zeros_like(b), a_param, None, None, 8.0]
    else:
        args = [torch.randn(1, length, 1, generator=random), b[:, :, None], None, None, None]
    run = with_gradients if NATIVE else lambda of, args: of(*args)
    got = run(gpu(op), args)
    assert worst(got, run(implementation(op, "reference"), cast(args, torch.float64))) < GPU["long"][torch.float32]


def test_an_empty_batch_gives_empty_outputs() -> None:
    for op in SCANS:
        output, *last = with_gradients(gpu(op), arguments(op, 0, 8, 4))
        assert output.shape[:2] == (0, 8)
        assert all(one.isfinite().all() for one in last)


def test_few_programs_are_cut_into_chunks_of_whole_groups() -> None:
    for length in (1, 9, 511, 513, 10_001):
        span = span_of(1, length, torch.device("cpu"))
        assert span % GROUP == 0
        assert (-(-length // span) > 1) == (length > 512)
    assert span_of(10_000, 10_001, torch.device("cpu")) >= 10_001
    cut = plan(torch.empty(2, 1000, 3))
    assert cut.programs == 2 * cut.chunks > 2


@pytest.mark.skipif(NATIVE, reason="there is a GPU: CPU tensors have no business in Triton")
def test_cpu_tensors_go_through_triton_only_when_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.rand(1, 5, 2)
    usual = linear_scan(a, a)[0]
    assert _triton.why_not("cpu", torch.float32) == "tensors are on cpu"
    monkeypatch.setenv("RLSEQ_KERNEL", "gpu")
    assert _dispatch.choose("linear_scan", "cpu", torch.float32) is implementation("linear_scan", "gpu")
    assert error(linear_scan(a, a)[0], usual) < GPU["linear_scan"][torch.float32]
    assert _triton.why_not("meta", torch.float32) == "tensors are on meta"


@triton.jit
def _both_kernel(x, out, gate, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, expm1(tl.load(x + at)))
    tl.store(gate + at, sigmoid(tl.load(x + at)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relative_error_of_the_exponentials(dtype: torch.dtype) -> None:
    x = torch.cat([-torch.logspace(-10, 1.9, 8191), torch.linspace(-80, 80, 8192), torch.tensor([math.nan])])
    x = x.to(DEVICE, dtype)
    out, gate = torch.empty_like(x), torch.empty_like(x)
    launch(_both_kernel, 1, x, out, gate, SIZE=x.numel())
    assert out[-1].isnan()
    assert gate[-1].isnan()
    x, out, gate = x[:-1].double(), out[:-1].double(), gate[:-1].double()
    exact = torch.expm1(x)
    nonzero = exact != 0.0
    assert (out / exact - 1.0)[nonzero].abs().max() < GPU["expm1"][dtype]
    # relative to 1 + |x|: the argument of 2^x is rounded
    assert ((gate * (1.0 + torch.exp(-x)) - 1.0) / (1.0 + x.abs())).abs().max() < GPU["sigmoid"][dtype]
