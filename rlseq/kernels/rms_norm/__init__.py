"""``rms_norm``: division by the root mean square, the norm of the recurrent backbones."""

from __future__ import annotations

from torch import Tensor

from rlseq.kernels._arguments import SHORT, all_float, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.rms_norm import reference

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Root mean square norm y = weight x / sqrt(mean(x^2) + eps) over the last axis.

    Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4, without the bias. Differentiable once.

    Args:
        x: (B, L, D) or (B, D); float32, bfloat16, float16 or float64.
        weight: (D,) float.
        eps: added to the mean square, > 0.

    Returns:
        y: shape and dtype of x.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows both shapes.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    if x.dim() not in (2, 3) or weight.shape != x.shape[-1:] or 0 in x.shape[-1:] or not all_float(x, weight):
        misfit("rms_norm", "x must be (B, L, D) or (B, D) float, D >= 1, and weight (D,) float", x=x, weight=weight)
    short = x.dim() == 2 or x.shape[1] <= SHORT
    run = reference.rms_norm if short else choose("rms_norm", x.device.type, x.dtype)
    y: Tensor = run(x, weight, eps)
    return y
