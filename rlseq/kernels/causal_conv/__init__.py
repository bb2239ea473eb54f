"""The op ``causal_conv``: a depthwise convolution over the last W tokens that stops at resets."""

from __future__ import annotations

from torch import Tensor

from rlseq.kernels._arguments import SHORT, all_float, fits_reset, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.causal_conv import reference

__all__ = ["causal_conv"]


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution y_t = bias + sum_{j < W} weight[W-1-j] x_{t-j} for t = 1..L.

    A tap counts only if no reset lies between it and the current token (the token's own reset included, for j > 0);
    weight[W-1] multiplies the current token, as in ``torch.nn.Conv1d``. Sums in float32 (float64 for float64 x).

    Gradient: dx_t = sum_j weight[W-1-j] dy_{t+j}, the same taps; dweight[W-1-j] = sum_{B, t} dy_t x_{t-j}; dbias =
    sum dy. The final state passes its gradient to the tokens that it holds.

    Args:
        x: (B, L, D) input, L >= 1; float32, bfloat16, float16 or float64.
        weight: (W, D), W >= 1.
        bias: (D,).
        state: (B, W-1, D) the tokens before the first, oldest first; None means zeros.
        reset: (B, L) bool; True drops the past before that token (selects, so that an infinite past leaves no NaN).

    Returns:
        y: (B, L, D), dtype of x; state: (B, W-1, D) the last W-1 tokens, those before a reset as zeros; dtype of the
            state that came, else of x.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows all shapes.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    if x.dim() != 3 or weight.dim() != 2 or x.shape[1] == 0 or weight.shape[0] == 0 or weight.shape[1] != x.shape[2]:
        must = "x must be (B, L, D) and weight (W, D) with L >= 1 and W >= 1"
    elif bias.shape != x.shape[2:] or not fits_reset(reset, x):
        must = "bias must be (D,) and reset (B, L) bool"
    elif state is not None and state.shape != (x.shape[0], weight.shape[0] - 1, x.shape[2]):
        must = "state must be (B, W-1, D)"
    elif not all_float(x, weight, bias, state):
        must = "every argument but reset must be float, and all on one device"
    else:
        run = reference.causal_conv if x.shape[1] <= SHORT else choose("causal_conv", x.device.type, x.dtype)
        y, last = run(x, weight, bias, state, reset)
        return y, last
    misfit("causal_conv", must, x=x, weight=weight, bias=bias, state=state, reset=reset)
