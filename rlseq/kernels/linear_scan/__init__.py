"""The op ``linear_scan``: a diagonal linear recurrence, the generic block for plug-ins."""

from __future__ import annotations

from torch import Tensor

from rlseq.kernels._arguments import SHORT, all_float, fits_reset, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.linear_scan import reference

__all__ = ["linear_scan"]


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Diagonal linear recurrence h_t = a_t h_{t-1} + b_t for t = 1..L, with h_{t-1} = 0 at a reset.

    Gradient, with g_t the gradient that reaches h_t: g_t = dh_t + a_{t+1} g_{t+1}, where g_L starts from the gradient
    of h_last and nothing crosses a reset; db = g; da_t = g_t h_{t-1}, 0 at a reset; dh0 = a_1 g_1, 0 if the first
    token is a reset.

    Accumulates in float32 pairs of a value and its carried rounding error whatever the input (float64 for float64),
    because 1,000 products of decays near 1 lose all 8 bits of bfloat16 and a float32 sum drifts over 1,000,000 steps.

    Args:
        a: (B, L, D) decay, L >= 1; float32, bfloat16, float16 or float64.
        b: (B, L, D) input, already gated.
        h0: (B, D) state before the first token; None means zeros, which is not a reset.
        reset: (B, L) bool; True drops the past before that token (selects, so that an infinite past leaves no NaN).

    Returns:
        h: (B, L, D) every state, dtype of b; h_last: (B, D) float64 state after the last token, feed it back as h0.

    Raises:
        ShapeError: a, b, h0 or reset do not fit each other; the message shows all four shapes.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    shape = b.shape
    if len(shape) != 3 or a.shape != shape or shape[1] == 0 or not all_float(a, b):
        misfit("linear_scan", "a and b must be (B, L, D) floats of one shape with L >= 1", a=a, b=b, h0=h0, reset=reset)
    if (h0 is not None and h0.shape != shape[::2]) or not fits_reset(reset, b) or not all_float(b, h0):
        misfit(
            "linear_scan",
            "h0 must be (B, D) float and reset (B, L) bool, on the device of b",
            a=a,
            b=b,
            h0=h0,
            reset=reset,
        )
    if shape[1] <= SHORT:
        return reference.linear_scan(a, b, h0, reset)
    h, h_last = choose("linear_scan", b.device.type, b.dtype)(a, b, h0, reset)
    return h, h_last
