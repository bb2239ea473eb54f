"""What benchmarks/kernels.py times: every op at its shapes, with the reference it is checked against and its rivals."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rlseq import kernels

TAPS, WINDOW, CHUNK = 4, 128, 64
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One op at one shape: its inputs, ours, and what is timed beside it."""

    op: str
    inputs: list[Tensor]
    ours: Function
    reference: Function
    """Of float64 inputs."""
    element: int
    """Index of the input that has the output's shape: an element is an entry of it."""
    moved: tuple[float, float]
    """Least numbers read and written per element, forward and forward + backward."""
    rivals: dict[str, Function] = field(default_factory=dict)
    rival_inputs: list[Tensor] | None = None
    """Of rivals that compute something else; None where they compute the same, and so are checked too."""
    passes: tuple[bool, ...] = (False, True)
    """Of the rivals: False is forward, True is forward + backward."""
    bars: dict[bool, float] = field(default_factory=dict)
    """Least time of the rival / ours, by pass."""
    checked: tuple[int | None, int | None] = (None, None)
    """Rows and tokens that are checked, all if None: some float64 references need much memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output."""
        return tuple(self.inputs[self.element].shape)

    def to(self, device: str) -> Case:
        """The same with its inputs on another device."""
        rivals = None if self.rival_inputs is None else [one.to(device) for one in self.rival_inputs]
        return replace(self, inputs=[one.to(device) for one in self.inputs], rival_inputs=rivals)


def reference(op: str) -> Callable[..., Any]:
    """The plain PyTorch form of an op."""
    function: Callable[..., Any] = getattr(importlib.import_module(f"rlseq.kernels.{op}.reference"), op)
    return function


def elementwise_rg_lru(x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor) -> Tensor:
    """The same unit in torch's elementwise ops around linear_scan."""
    u = 8.0 * torch.sigmoid(gate_a) * functional.softplus(a_param)
    beta = torch.sqrt(-torch.expm1(-2.0 * u))
    return kernels.linear_scan(torch.exp(-u), beta * torch.sigmoid(gate_x) * x)[0]


def causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention: what a softmax over the past costs without a recurrence."""
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same convolution with groups, its transposes included."""
    padded = functional.pad(x.transpose(1, 2), (weight.shape[0] - 1, 0))
    y = functional.conv1d(padded, weight.t()[:, None], bias, groups=weight.shape[1])
    return y.transpose(1, 2).contiguous()


def band_attention(band: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same attention as one dense call with a band mask, made beforehand."""
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=band).transpose(1, 2).contiguous()


def dense_relu2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal relu^2 attention over all tokens: chunk_attention's quadratic part without chunks."""
    return functional.relu(q @ k.mT / v.shape[1]).square().tril() @ v


def _normal(seed: int, *shapes: Sequence[int]) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=random) for shape in shapes]


def linear_scan(shape: Sequence[int]) -> Case:
    """(B, L, D); the rival moves the same three arrays and is a bound, not the same function."""
    a, b = _normal(0, shape, shape)
    inputs = [torch.sigmoid(a), b]
    return Case(
        "linear_scan",
        inputs,
        lambda *i: kernels.linear_scan(*i)[0],
        lambda *i: reference("linear_scan")(*i, None, None)[0],
        element=1,
        moved=(3, 8),
        rivals={"torch.add": torch.add},
        rival_inputs=inputs,
        passes=(False,),
        bars={False: 0.8},
    )


def rg_lru(shape: Sequence[int]) -> Case:
    """(B, L, D)."""
    x, gate_x, gate_a, a_param = _normal(0, shape, shape, shape, shape[2:])
    return Case(
        "rg_lru",
        [x, gate_x, gate_a, a_param - 3.0],
        lambda *i: kernels.rg_lru(*i)[0],
        lambda *i: reference("rg_lru")(*i, None, None, 8.0)[0],
        element=0,
        moved=(4, 12),
        rivals={"torch elementwise + linear_scan": elementwise_rg_lru},
        bars={False: 3.0, True: 4.0},
    )


def softmax_scan(shape: Sequence[int]) -> Case:
    """(B, L, H, E)."""
    s, v = _normal(0, shape[:3], shape)
    return Case(
        "softmax_scan",
        [s, v],
        lambda *i: kernels.softmax_scan(*i)[0],
        lambda *i: reference("softmax_scan")(*i, None, None)[0],
        element=1,
        moved=(2, 6),
        rivals={"causal SDPA": causal_sdpa},
        rival_inputs=_normal(1, shape, shape, shape),
        passes=(True,),
        bars={True: 20.0},
        checked=(2, None),
    )


def causal_conv(shape: Sequence[int]) -> Case:
    """(B, L, D), 4 taps."""
    inputs = _normal(0, shape, (TAPS, shape[2]), shape[2:])
    return Case(
        "causal_conv",
        inputs,
        lambda *i: kernels.causal_conv(*i)[0],
        lambda *i: reference("causal_conv")(*i, None, None)[0],
        element=0,
        moved=(2, 5),
        rivals={"conv1d with groups": conv1d},
        bars={True: 2.0},
    )


def local_attention(shape: Sequence[int], window: int = WINDOW, *, dense: bool = True) -> Case:
    """(B, L, H, E)."""
    rivals: dict[str, Function] = {}
    if dense:
        distance = torch.arange(shape[1])[:, None] - torch.arange(shape[1])
        band = torch.where((distance >= 0) & (distance < window), 0.0, -math.inf)
        rivals["SDPA with a band mask"] = functools.partial(band_attention, band)
    return Case(
        "local_attention",
        _normal(0, shape, shape, shape),
        lambda *i: kernels.local_attention(*i, window)[0],
        lambda *i: reference("local_attention")(*i, window, "softmax", None, None, None, 0.0)[0],
        element=2,
        moved=(4, 12),
        rivals=rivals,
        passes=(True,),
        bars={True: 5.0},
        checked=(2, 8 * window),
    )


def chunk_attention(shape: Sequence[int], size: int = 64, chunk: int = CHUNK, *, dense: bool = True) -> Case:
    """(B, L, e); queries and keys (B, L, s)."""
    narrow = (*shape[:2], size)
    inputs = _normal(0, narrow, narrow, narrow, narrow, shape)
    return Case(
        "chunk_attention",
        inputs,
        lambda *i: kernels.chunk_attention(*i, chunk)[0],
        lambda *i: reference("chunk_attention")(*i, chunk, None, None, None)[0],
        element=4,
        moved=(2 + 4 * size / shape[2], 6 + 12 * size / shape[2]),
        rivals={"dense relu^2 attention": dense_relu2} if dense else {},
        rival_inputs=[inputs[0], inputs[1], inputs[4]],
        passes=(True,),
        bars={True: 5.0},
        checked=(1, 4 * chunk),
    )


def geglu(shape: Sequence[int]) -> Case:
    """(B, L, D); the rival is torch's two operations, which are the reference too."""
    return Case(
        "geglu",
        _normal(0, shape, shape),
        kernels.geglu,
        reference("geglu"),
        element=0,
        moved=(3, 8),
        rivals={"gelu(gate) * value": reference("geglu")},
    )


def rms_norm(shape: Sequence[int]) -> Case:
    """(B, L, D); the rival is torch's own, which is the reference too."""
    return Case(
        "rms_norm",
        _normal(0, shape, shape[2:]),
        kernels.rms_norm,
        lambda *i: reference("rms_norm")(*i, 1e-6),
        element=0,
        moved=(2, 5),
        rivals={"torch.nn.functional.rms_norm": lambda *i: reference("rms_norm")(*i, 1e-6)},
    )


def gated_projections(shape: Sequence[int], size: int = 128) -> Case:
    """(B, L, 2 e + s), four views; the rival is torch's operations, which are the reference too.

    A case has one output: both concatenate u, v and the sum of the views, and that is timed too.
    """
    angle = 6.0 * torch.rand(*shape[:2], size // 2, generator=torch.Generator().manual_seed(1))
    turns = (angle.cos(), angle.sin())

    def joined(function: Function) -> Function:
        def one(x: Tensor, *learned: Tensor) -> Tensor:
            u, v, *views = function(x, *learned, *(part.to(x) for part in turns))
            return torch.cat([u, v, functools.reduce(torch.add, views)], dim=-1)

        return one

    return Case(
        "gated_projections",
        _normal(0, shape, (4, size), (4, size)),
        joined(kernels.gated_projections),
        joined(reference("gated_projections")),
        element=0,
        moved=(2, 4),
        rivals={"silu, addcmul, rotation": joined(reference("gated_projections"))},
    )


CASES: dict[str, tuple[Callable[[], Case], ...]] = {
    "linear_scan": tuple(functools.partial(linear_scan, shape) for shape in ((64, 60, 128), (16, 4096, 256))),
    "rg_lru": tuple(functools.partial(rg_lru, shape) for shape in ((64, 60, 128), (16, 1000, 128))),
    "softmax_scan": (functools.partial(softmax_scan, (8, 3072, 4, 32)),),
    "causal_conv": (functools.partial(causal_conv, (16, 1000, 128)),),
    "local_attention": (functools.partial(local_attention, (4, 3072, 4, 32)),),
    "chunk_attention": (functools.partial(chunk_attention, (4, 3072, 256)),),
    "geglu": (functools.partial(geglu, (64, 20, 384)),),
    "rms_norm": (functools.partial(rms_norm, (64, 20, 128)),),
    "gated_projections": (functools.partial(gated_projections, (64, 20, 640)),),
}
SWEEP: dict[str, Callable[[int], Case]] = {
    "linear_scan": lambda length: linear_scan((1, length, 128)),
    "rg_lru": lambda length: rg_lru((1, length, 128)),
    "softmax_scan": lambda length: softmax_scan((1, length, 4, 32)),
    "causal_conv": lambda length: causal_conv((1, length, 128)),
    "local_attention": lambda length: local_attention((1, length, 4, 32), dense=False),
    "chunk_attention": lambda length: chunk_attention((1, length, 256), dense=False),
}
"""One row of every op at any length, without rivals."""
