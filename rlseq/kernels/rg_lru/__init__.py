"""The op ``rg_lru``: the real-gated linear recurrent unit of Hawk and Griffin (De et al. 2024, arXiv 2402.19427)."""

from __future__ import annotations

from torch import Tensor

from rlseq.errors import ConfigError
from rlseq.kernels._arguments import SHORT, all_float, fits_reset, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.rg_lru import reference

__all__ = ["rg_lru"]


def rg_lru(
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    c: float = 8.0,
) -> tuple[Tensor, Tensor]:
    """Gated linear recurrence h_t = a_t h_{t-1} + beta_t i_t x_t for t = 1..L.

    r = sigmoid(gate_a); i = sigmoid(gate_x); u = c r softplus(a_param); a = exp(-u); beta = sqrt(1 - a^2). At a reset
    h_{t-1} is 0 and beta is 1. (arXiv 2402.19427, eq. 1-4, with their a = sigmoid(-a_param); their eq. 6 has a sign
    slip.)

    Gradient, with g_t = dh_t + a_{t+1} g_{t+1} the gradient that reaches h_t and dbeta = g i x: dx = g beta i;
    dgate_x = g beta x i (1 - i); dgate_a = S (1 - r) and da_param = sum S sigmoid(a_param) / softplus(a_param), where
    S = -u a h_{t-1} g + dbeta a^2 u / beta, and u / beta is 0 at u = 0. At a reset only x and gate_x get one. It
    needs no clipping of 1 / beta.

    Gates and decays in float32 (float64 for float64 x), the state as a value and its carried rounding error. The update
    is written as a difference, h += expm1(-u) h + beta i x, because a float32 decay of 1 - 1e-6 is 3 % wrong.

    Args:
        x: (B, L, D) input, L >= 1 and D >= 1; float32, bfloat16, float16 or float64.
        gate_x: (B, L, D) logit of the input gate i.
        gate_a: (B, L, D) logit of the recurrence gate r.
        a_param: (D,) decay parameter; larger forgets faster.
        h0: (B, D) state before the first token; None means zeros, which is not a reset.
        reset: (B, L) bool; True drops the past before that token (selects, so that an infinite past leaves no NaN).
        c: factor on log a, positive.

    Returns:
        h: (B, L, D) every state, dtype of x; h_last: (B, D) float64 state after the last token, feed it back as h0.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows all shapes.
        ConfigError: c is not positive.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    shape = x.shape
    if not c > 0.0:
        raise ConfigError(f"rg_lru: c must be positive, got {c}. The paper's is 8.")
    if len(shape) != 3 or gate_x.shape != shape or gate_a.shape != shape or 0 in shape[1:]:
        must = "x, gate_x and gate_a must be (B, L, D) of one shape with L >= 1 and D >= 1"
    elif a_param.shape != shape[2:] or (h0 is not None and h0.shape != shape[::2]) or not fits_reset(reset, x):
        must = "a_param must be (D,), h0 (B, D) and reset (B, L) bool"
    elif not all_float(x, gate_x, gate_a, a_param, h0):
        must = "every argument but reset must be float, and all on one device"
    else:
        run = reference.rg_lru if shape[1] <= SHORT else choose("rg_lru", x.device.type, x.dtype)
        h, h_last = run(x, gate_x, gate_a, a_param, h0, reset, c)
        return h, h_last
    misfit("rg_lru", must, x=x, gate_x=gate_x, gate_a=gate_a, a_param=a_param, h0=h0, reset=reset)
