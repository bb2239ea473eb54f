"""What every op does with its arguments before any arithmetic: fit the shapes, choose the dtypes."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from rlseq.errors import ShapeError

SHORT = 3
"""Up to this many tokens a scan is a plain loop of torch ops: cheaper than a kernel call, and it exports to ONNX."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def misfit(op: str, must: str, **arguments: Tensor | None) -> NoReturn:
    """Raise a ShapeError that shows the shape and dtype of every argument."""
    several = len({value.device for value in arguments.values() if value is not None}) > 1
    came = ", ".join(
        f"{name} None"
        if value is None
        else f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" + f" on {value.device}" * several
        for name, value in arguments.items()
    )
    raise ShapeError(f"{op}: {must}, got {came}. Reshape or cast the argument that does not fit.")


def all_float(like: Tensor, *tensors: Tensor | None) -> bool:
    """Whether each tensor that is given has one of the four float dtypes and is where the first is."""
    device = like.device
    return like.dtype in FLOATS and all(
        tensor is None or (tensor.dtype in FLOATS and tensor.device == device) for tensor in tensors
    )


def ready(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """The tensors in a dtype and contiguous, as the kernels read them."""
    return [
        tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()
        for tensor in tensors
    ]


def fits_reset(reset: Tensor | None, like: Tensor) -> bool:
    """Whether reset is None, or (B, L) bool for a (B, L, ...) tensor and on its device."""
    return reset is None or (
        reset.shape == like.shape[:2] and reset.dtype is torch.bool and reset.device == like.device
    )


def compute_dtype(like: Tensor) -> torch.dtype:
    """float64 for float64 tensors, float32 for all others: the dtype of gates, decays and sums."""
    return torch.float64 if like.dtype is torch.float64 else torch.float32


def initial_state(h0: Tensor | None, like: Tensor) -> Tensor:
    """h0 as float64, or (B, D) float64 zeros for a (B, L, D) tensor."""
    if h0 is None:
        return torch.zeros(like.shape[0], like.shape[2], dtype=torch.float64, device=like.device)
    return h0.to(torch.float64)
