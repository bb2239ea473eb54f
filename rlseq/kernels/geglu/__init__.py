"""``geglu``: the gate of a gated MLP and of the recurrent block, in one pass."""

from __future__ import annotations

from torch import Tensor

from rlseq.kernels._arguments import SHORT, all_float, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.geglu import reference

__all__ = ["geglu"]


def geglu(gate: Tensor, value: Tensor) -> Tensor:
    """Gated GeLU y = gelu(gate) value, gelu(g) = g sigmoid(2 sqrt(2 / pi) (g + 0.044715 g^3)).

    GeGLU (Shazeer 2020, arXiv 2002.05202, eq. 5) with the tanh form of the GeLU (Hendrycks and Gimpel 2016,
    arXiv 1606.08415, section 2). Differentiable once.

    Args:
        gate: (B, L, D) or (B, D); float32, bfloat16, float16 or float64.
        value: shape and dtype of gate.

    Returns:
        y: shape and dtype of gate.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows both shapes.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    if gate.dim() not in (2, 3) or gate.shape != value.shape or gate.dtype != value.dtype or not all_float(gate, value):
        misfit(
            "geglu", "gate and value must be (B, L, D) or (B, D) of one float dtype and device", gate=gate, value=value
        )
    short = gate.dim() == 2 or gate.shape[1] <= SHORT
    run = reference.geglu if short else choose("geglu", gate.device.type, gate.dtype)
    y: Tensor = run(gate, value)
    return y
