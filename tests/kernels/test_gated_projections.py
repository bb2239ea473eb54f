"""gated_projections: equations -> float64 NumPy -> reference -> cpu, values and gradients; what torch sees of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlseq.errors import ShapeError
from rlseq.kernels import gated_projections
from tests.kernels.cases import cast, implementation, with_gradients, worst
from tests.tolerances import KERNELS

CLOSE = KERNELS["token ops"]
# rows, tokens, e, s, views, pairs that turn
SHAPES = ((2, 5, 3, 4, 2, 2), (1, 4, 1, 1, 4, 0), (3, 63, 33, 17, 4, 8), (1, 130, 20, 40, 2, 20))
VIEWS = pytest.mark.parametrize("views", [2, 4])


def arguments(rows: int, tokens: int, e: int, s: int, views: int, pairs: int, seed: int = 0) -> list[Tensor]:
    """float64 arguments in the order of the signature."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    angle = 9.0 * normal(rows, tokens, pairs)
    return [3.0 * normal(rows, tokens, 2 * e + s), normal(views, s), normal(views, s), angle.cos(), angle.sin()]


def paper(args: list[Tensor]) -> list[np.ndarray]:
    """The equations of the docstring."""
    x, gamma, beta, cosine, sine = (arg.numpy() for arg in args)
    s, half = gamma.shape[1], cosine.shape[-1]
    activated = x / (1.0 + np.exp(-x))
    u, v, z = np.split(activated, [(x.shape[-1] - s) // 2, x.shape[-1] - s], axis=-1)
    found = [u, v]
    for g, b in zip(gamma, beta, strict=True):
        view = g * z + b
        turned = (view[..., :half] + 1j * view[..., half : 2 * half]) * (cosine + 1j * sine)
        found.append(np.concatenate([turned.real, turned.imag, view[..., 2 * half :]], axis=-1))
    return found


def run(name: str, cosine: Tensor, sine: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """An implementation as a function of what has a gradient."""
    function = implementation("gated_projections", name)
    return lambda x, gamma, beta: function(x, gamma, beta, cosine, sine)


@VIEWS
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_values_are_the_equations(name: str, views: int) -> None:
    args = arguments(3, 6, 5, 7, views, 3)
    for got, expected in zip(implementation("gated_projections", name)(*args), paper(args), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=CLOSE[torch.float64])


@VIEWS
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gradients_pass_gradcheck(name: str, views: int) -> None:
    *args, cosine, sine = arguments(2, 4, 2, 3, views, 1)
    assert torch.autograd.gradcheck(run(name, cosine, sine), [arg.requires_grad_() for arg in args])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned")
def test_the_kernel_equals_the_reference_with_all_gradients(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    *args, cosine, sine = cast(arguments(*shape), dtype)
    expected = with_gradients(run("reference", cosine.double(), sine.double()), cast(args, torch.float64))
    got = with_gradients(run("cpu", cosine, sine), args)
    assert {one.dtype for one in got} == {dtype}
    assert worst(got, expected) < CLOSE[dtype]


def test_strides_make_no_difference() -> None:
    *args, cosine, sine = arguments(5, 4, 3, 6, 4, 2)
    expected = with_gradients(run("cpu", cosine, sine), args)
    strided = [arg.mT.contiguous().mT for arg in (*args, cosine, sine)]
    assert worst(with_gradients(run("cpu", *strided[3:]), strided[:3]), expected) == 0.0


def test_sums_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    *args, cosine, sine = cast(arguments(3, 900, 150, 101, 4, 50), torch.float32)
    results = []
    for threads in ("1", "2"):
        monkeypatch.setenv("RLSEQ_NUM_THREADS", threads)
        results.append(with_gradients(run("cpu", cosine, sine), args))
    assert worst(results[1], results[0]) == 0.0


@VIEWS
def test_a_step_equals_the_token_of_a_sequence(views: int) -> None:
    x, gamma, beta, cosine, sine = arguments(2, 5, 3, 7, views, 3)
    whole = gated_projections(x, gamma, beta, cosine, sine)
    for t in range(5):
        got = gated_projections(x[:, t], gamma, beta, cosine[:, t], sine[:, t])
        assert worst(got, [one[:, t] for one in whole]) < CLOSE[torch.float64]


def test_the_sums_of_many_tokens_are_those_of_float64() -> None:
    x, gamma, beta, cosine, sine = arguments(1, 100_000, 2, 4, 2, 0)
    x = x.abs().float()  # sums that grow
    gradients = []
    for dtype in (torch.float32, torch.float64):
        learned = gamma.to(dtype).requires_grad_()
        outputs = run("cpu", cosine.to(dtype), sine.to(dtype))(x.to(dtype), learned, beta.to(dtype))
        (gradient,) = torch.autograd.grad(sum(one.sum() for one in outputs[2:]), learned)
        gradients.append(gradient)
    assert worst(gradients[:1], gradients[1:]) < KERNELS["sums of gamma"][torch.float32]


@pytest.mark.parametrize("far", [-3e38, -1e4, -100.0, 100.0, 1e4])
def test_an_entry_far_from_zero_is_closed_or_open(far: float) -> None:
    *args, cosine, sine = cast(arguments(1, 5, 3, 4, 2, 2), torch.float32)
    args[0] = torch.full_like(args[0], far)
    u, *_, dx, _, _ = with_gradients(run("cpu", cosine, sine), args)
    torch.testing.assert_close(u, torch.full_like(u, max(far, 0.0)), rtol=0, atol=1e-6)
    assert torch.isfinite(dx).all()


@VIEWS
def test_opcheck_passes_on_forward_and_backward(views: int) -> None:
    args = cast(arguments(2, 5, 3, 4, views, 2), torch.float32)
    implementation("gated_projections", "cpu")
    forward, backward = (
        getattr(torch.ops.rlseq, f"gated_projections_{views}_cpu{end}").default for end in ("", "_backward")
    )
    torch.library.opcheck(forward, tuple(args))
    x, gamma, _, cosine, sine = args
    torch.library.opcheck(backward, (*(torch.ones_like(one) for one in forward(*args)), x, gamma, cosine, sine))


def test_arguments_that_do_not_fit_show_all_shapes() -> None:
    x, gamma, beta, cosine, sine = arguments(2, 5, 3, 4, 2, 2)
    wrong: dict[str, list[Any]] = {
        "views": [x, gamma[:1], beta[:1], cosine, sine],
        "beta": [x, gamma, beta[:, :3], cosine, sine],
        "width": [x[..., :4], gamma, beta, cosine, sine],
        "odd": [x[..., :9], gamma, beta, cosine, sine],
        "tokens": [x, gamma, beta, cosine[:, :4], sine[:, :4]],
        "pairs": [x, gamma[:, :3], beta[:, :3], cosine, sine],
        "integers": [x.long(), gamma, beta, cosine, sine],
        "rank": [x[0, 0], gamma, beta, cosine[0, 0], sine[0, 0]],
        "scalar": [x[0, 0, 0], gamma, beta, cosine, sine],
        "vector": [x, gamma[0, 0], beta[0, 0], cosine, sine],
    }
    for arguments_of in wrong.values():
        with pytest.raises(ShapeError, match=r"gated_projections: x must be .*, got x \(.*, gamma \(.*, sine \("):
            gated_projections(*arguments_of)
