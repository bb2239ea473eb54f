"""The op ``softmax_scan``: a softmax over all tokens so far, as a recurrence (Feng et al. 2024, arXiv 2405.13956)."""

from __future__ import annotations

from torch import Tensor

from rlseq.kernels._arguments import SHORT, all_float, fits_reset, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.softmax_scan import reference
from rlseq.kernels.softmax_scan._state import SoftmaxState

__all__ = ["SoftmaxState", "softmax_scan"]


def softmax_scan(
    s: Tensor, v: Tensor, state: SoftmaxState | None = None, reset: Tensor | None = None
) -> tuple[Tensor, SoftmaxState]:
    """Prefix softmax o_t = sum_{i <= t} e^{s_i} v_i / sum_{i <= t} e^{s_i} for t = 1..L, over the tokens since a reset.

    As a gated linear recurrence, with z_0 = -inf at the start and at a reset: z_t = log(e^{z_{t-1}} + e^{s_t});
    p_t = sigmoid(s_t - z_{t-1}); a_t = sigmoid(z_{t-1} - s_t); o_t = o_{t-1} + p_t (v_t - o_{t-1}). Where both z_{t-1}
    and s_t are -inf, p_t = 1. (The triple (m, u, w) of arXiv 2405.13956, section 3.2, is the same monoid.)

    Gradient: G_t = do_t + a_{t+1} G_{t+1}; C_t = <do_t, o_t> + a_{t+1} C_{t+1}; dv_t = p_t G_t; ds_t = p_t (<v_t, G_t>
    - C_t). At the end G also gets do_L of the state and C gets <do_L, o_L> - dz_L; do_0 = a_1 G_1; dz_0 = a_1 (<o_0,
    G_1> - C_1). Nothing crosses a reset.

    z is carried in float64 or as a pair of numbers, because float32 z is 3e-3 off at scores of 1e4.

    Args:
        s: (B, L, H) score of each token, L >= 1; float32, bfloat16, float16 or float64; -inf drops a token.
        v: (B, L, H, E) values, E >= 1.
        state: the tokens before the first; None means none.
        reset: (B, L) bool; True drops the past before that token (selects, so that an infinite past leaves no NaN).

    Returns:
        o: (B, L, H, E), dtype of v; state: float64, feed it back.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows all shapes.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    z0, o0 = (None, None) if state is None else state
    if v.dim() != 4 or s.shape != v.shape[:3] or v.shape[1] == 0 or v.shape[3] == 0:
        must = "s must be (B, L, H) and v (B, L, H, E) with L >= 1 and E >= 1"
    elif z0 is not None and (z0.shape != s.shape[::2] or o0 is None or o0.shape != (*z0.shape, v.shape[3])):
        must = "state must hold z (B, H) and o (B, H, E)"
    elif not fits_reset(reset, s):
        must = "reset must be (B, L) bool"
    elif not all_float(s, v, z0, o0):
        must = "every argument but reset must be float, and all on one device"
    else:
        run = reference.softmax_scan if v.shape[1] <= SHORT else choose("softmax_scan", v.device.type, v.dtype)
        o, last = run(s, v, state, reset)
        return o, last
    misfit("softmax_scan", must, s=s, v=v, z=z0, o=o0, reset=reset)
