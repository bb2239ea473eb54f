"""``gated_projections``: the gate, the values and the rotated queries and keys of a gated attention unit."""

from __future__ import annotations

from torch import Tensor

from rlseq.kernels._arguments import SHORT, all_float, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.gated_projections import reference

__all__ = ["gated_projections"]

VIEWS = (2, 4)


def gated_projections(x: Tensor, gamma: Tensor, beta: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    """Parts u, v, z = silu(x) and the n vectors rope(gamma_k z + beta_k), k = 1 .. n, of every token.

    Hua et al. 2022, arXiv 2202.10447, code 1 (n = 2) and code 8 (n = 4). rope turns the pairs (i, i + R/2) of the first
    R entries: (a, b) -> (a cos - b sin, b cos + a sin). Differentiable once, in x, gamma and beta.

    Args:
        x: (B, L, 2 e + s) or (B, 2 e + s), e >= 1; float32, bfloat16, float16 or float64.
        gamma: (n, s) float, n = 2 or 4, s >= 1.
        beta: (n, s) float.
        cosine: (B, L, R / 2) or (B, R / 2) float of every token's angles, R <= s.
        sine: shape of cosine.

    Returns:
        u and v: (B, L, e) or (B, e); and n vectors (B, L, s) or (B, s); dtype of x.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows all shapes.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    ranks = x.dim() in (2, 3) and gamma.dim() == 2 and cosine.dim() == x.dim()
    parts = x.shape[-1] - gamma.shape[-1] if ranks else 0
    if (
        not ranks
        or gamma.shape != beta.shape
        or gamma.shape[0] not in VIEWS
        or gamma.shape[1] == 0
        or parts < 2
        or parts % 2
        or cosine.shape != sine.shape
        or cosine.shape[:-1] != x.shape[:-1]
        or 2 * cosine.shape[-1] > gamma.shape[1]
        or not all_float(x, gamma, beta, cosine, sine)
    ):
        misfit(
            "gated_projections",
            "x must be (B, L, 2 e + s) or (B, 2 e + s), gamma and beta (2 or 4, s), cosine and sine x's first axes and "
            "R / 2 <= s / 2",
            x=x,
            gamma=gamma,
            beta=beta,
            cosine=cosine,
            sine=sine,
        )
    short = x.dim() == 2 or x.shape[1] <= SHORT
    run = reference.gated_projections if short else choose("gated_projections", x.device.type, x.dtype)
    outputs: tuple[Tensor, ...] = run(x, gamma, beta, cosine, sine)
    return outputs
