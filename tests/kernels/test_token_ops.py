"""geglu and rms_norm: equations -> float64 NumPy -> reference -> cpu, values and gradients; what torch sees of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlseq.errors import KernelError, ShapeError
from rlseq.kernels import geglu, rms_norm
from tests.kernels.cases import cast, implementation, with_gradients, worst
from tests.tolerances import KERNELS

EPS = 1e-6
Arguments = list[Any]


def arguments(op: str, *shape: int, seed: int = 0) -> Arguments:
    """float64 arguments in the order of the signature."""
    random = torch.Generator().manual_seed(seed)
    x = 3.0 * torch.randn(shape, generator=random, dtype=torch.float64)
    if op == "geglu":
        return [x, torch.randn(shape, generator=random, dtype=torch.float64)]
    return [x, torch.randn(shape[-1:], generator=random, dtype=torch.float64), EPS]


def paper(op: str, args: Arguments) -> np.ndarray:
    """The equations of the two docstrings."""
    first, second = args[0].numpy(), args[1].numpy()
    if op == "geglu":
        inner = math.sqrt(2.0 / math.pi) * (first + 0.044715 * first**3)
        return 0.5 * first * (1.0 + np.tanh(inner)) * second
    return second * first / np.sqrt((first**2).mean(-1, keepdims=True) + EPS)


def run(op: str, name: str) -> Callable[..., tuple[Tensor, ...]]:
    function = implementation(op, name)
    return lambda *args: (function(*args),)  # type: ignore[return-value]


OPS = ("geglu", "rms_norm")
SHAPES = ((2, 5, 7), (1, 4, 1), (3, 63, 33), (1, 130, 500))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_values_are_the_equations(op: str, name: str) -> None:
    args = arguments(op, 3, 6, 11)
    (got,) = run(op, name)(*args)
    np.testing.assert_allclose(got.numpy(), paper(op, args), rtol=0, atol=KERNELS["token ops"][torch.float64])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gradients_pass_gradcheck(op: str, name: str) -> None:
    args = [arg.requires_grad_() if isinstance(arg, Tensor) else arg for arg in arguments(op, 2, 5, 3)]
    assert torch.autograd.gradcheck(run(op, name), args)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", KERNELS["token ops"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned")
def test_the_kernel_equals_the_reference_with_all_gradients(
    op: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    args = cast(arguments(op, *shape), dtype)
    expected = with_gradients(run(op, "reference"), cast(args, torch.float64))
    got = with_gradients(run(op, "cpu"), args)
    assert {one.dtype for one in got} == {dtype}
    assert worst(got, expected) < KERNELS["token ops"][dtype]


@pytest.mark.parametrize("op", OPS)
def test_strides_make_no_difference(op: str) -> None:
    args = arguments(op, 5, 4, 6)
    expected = with_gradients(run(op, "cpu"), args)
    strided = [arg.mT.contiguous().mT if isinstance(arg, Tensor) and arg.dim() == 3 else arg for arg in args]
    got = with_gradients(run(op, "cpu"), strided)
    assert worst(got, expected) == 0.0


@pytest.mark.parametrize("op", OPS)
def test_sums_do_not_depend_on_the_threads(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = cast(arguments(op, 3, 900, 401), torch.float32)
    results = []
    for threads in ("1", "2"):
        monkeypatch.setenv("RLSEQ_NUM_THREADS", threads)
        results.append(with_gradients(run(op, "cpu"), args))
    assert worst(results[1], results[0]) == 0.0


@pytest.mark.parametrize("gate", [-1e4, -100.0, -12.0, 0.0, 12.0, 1e4])
def test_a_gate_far_from_zero_is_closed_or_open(gate: float) -> None:
    args = [torch.full((1, 5, 2), gate), torch.full((1, 5, 2), 2.0)]
    y, dgate, dvalue = with_gradients(run("geglu", "cpu"), args)
    assert torch.isfinite(dgate).all()
    assert torch.isfinite(dvalue).all()
    torch.testing.assert_close(y, torch.full_like(y, 2.0 * max(gate, 0.0)), rtol=0, atol=1e-6)


def test_a_token_of_zeros_is_normed_to_zeros_with_a_finite_gradient() -> None:
    y, dx, dweight = with_gradients(run("rms_norm", "cpu"), [torch.zeros(1, 5, 3), torch.ones(3), EPS])
    assert not y.any()
    assert torch.isfinite(dx).all()
    assert not dweight.any()


def test_a_token_that_is_not_finite_stays_alone() -> None:
    x = torch.randn(2, 5, 3)
    clean = rms_norm(x, torch.ones(3))
    x[0, 1, 2], x[1, 0, 0] = math.nan, math.inf
    y = rms_norm(x, torch.ones(3))
    assert torch.isnan(y[0, 1]).all()
    rest = [0, 2, 3, 4]
    torch.testing.assert_close(y[0, rest], clean[0, rest], rtol=0, atol=0)
    torch.testing.assert_close(y[1, 1:], clean[1, 1:], rtol=0, atol=0)


@pytest.mark.parametrize("op", OPS)
def test_a_step_equals_the_token_of_a_sequence(op: str) -> None:
    function, args = {"geglu": geglu, "rms_norm": rms_norm}[op], arguments(op, 2, 5, 7)
    whole = function(*args)
    for t in range(5):
        token = [arg[:, t] if isinstance(arg, Tensor) and arg.dim() == 3 else arg for arg in args]
        assert worst([function(*token)], [whole[:, t]]) < KERNELS["token ops"][torch.float64]


@pytest.mark.parametrize("op", OPS)
def test_opcheck_passes_on_forward_and_backward(op: str) -> None:
    run(op, "cpu")
    args = cast(arguments(op, 2, 5, 7), torch.float32)
    forward, backward = (getattr(torch.ops.rlseq, f"{op}_cpu{end}").default for end in ("", "_backward"))
    torch.library.opcheck(forward, tuple(args))
    outputs = forward(*args)
    dy = torch.ones(2, 5, 7)
    given = [dy, *args] if op == "geglu" else [dy, args[0], args[1], outputs[1], args[2]]
    torch.library.opcheck(backward, tuple(given))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_layer_is_one_graph_and_equals_eager() -> None:
    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return geglu(rms_norm(x, weight), x)

    args = [torch.randn(2, 9, 8), torch.randn(8)]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = with_gradients(lambda *a: (layer(*a),), args)
    assert worst(with_gradients(lambda *a: (compiled(*a),), args), expected) < KERNELS["token ops"][torch.float32]


def test_arguments_that_do_not_fit_show_both_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 5, 3)
    with pytest.raises(ShapeError, match=r"gate \(2, 5, 3\) float32, value \(2, 5, 2\) float32"):
        geglu(x, x[..., :2])
    with pytest.raises(ShapeError, match=r"x \(2, 5, 3\) float32, weight \(4,\) float32"):
        rms_norm(x, torch.ones(4))
    for bad in (
        lambda: geglu(x, x.double()),
        lambda: geglu(x[0, 0], x[0, 0]),
        lambda: geglu(x.long(), x.long()),
        lambda: rms_norm(x[..., :0], torch.ones(0)),
        lambda: rms_norm(x, torch.ones(3, device="meta")),
    ):
        with pytest.raises(ShapeError, match="got "):
            bad()
    monkeypatch.setenv("RLSEQ_KERNEL", "cpu")
    with pytest.raises(KernelError, match="geglu: one implementation must be able to take"):
        geglu(x.to("meta"), x.to("meta"))
