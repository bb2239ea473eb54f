"""``chunk_attention``: FLASH's mixed-chunk attention, quadratic inside a chunk and linear across chunks."""

from __future__ import annotations

from torch import Tensor

from rlseq.errors import ConfigError
from rlseq.kernels._arguments import SHORT, all_float, fits_reset, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.chunk_attention import reference
from rlseq.kernels.chunk_attention._state import ChunkState

__all__ = ["ChunkState", "chunk_attention"]


def chunk_attention(
    q_quad: Tensor,
    k_quad: Tensor,
    q_lin: Tensor,
    k_lin: Tensor,
    v: Tensor,
    chunk: int,
    bias: Tensor | None = None,
    state: ChunkState | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, ChunkState]:
    """Mixed-chunk attention o_t = sum_j w_tj v_j + q_lin_t^T mean_n S_n (FLASH, arXiv 2202.10447, section 3).

    w_tj = relu(q_quad_t k_quad_j / C + bias[t-j])^2 over the tokens j <= t of the same chunk;
    S_n = sum_j k_lin_j v_j^T / C over the tokens of chunk n, its mean over the strictly earlier chunks, 0 if there is
    none. The token at position p since the last reset of its row is in chunk p // C: what came before a reset does
    not count, and a row of several episodes equals the episodes apart.

    Differs from the paper: the divisor is the constant C, never a length, and earlier chunks enter by their mean, not
    by a sum that grows with the length; so a step equals the same token of a whole sequence.

    A token whose key or value has an entry that is NaN or infinite makes the outputs of those that see it NaN, and
    leaves no trace in others, neither in values nor in gradients; a query that is not finite spoils its own output.
    k_quad is seen in its own chunk, k_lin in later ones, v in both. The state keeps NaN in its place until its
    chunk is complete; then the whole mean is NaN.

    Args:
        q_quad: (B, L, s) queries inside a chunk, L >= 1; float32, bfloat16, float16 or float64.
        k_quad: (B, L, s) keys inside a chunk, dtype of q_quad.
        q_lin: (B, L, s) queries across chunks, dtype of q_quad.
        k_lin: (B, L, s) keys across chunks, dtype of q_quad.
        v: (B, L, e), dtype of q_quad.
        chunk: C, number of tokens in a chunk.
        bias: (C,) float by distance t - j; None means zeros.
        state: what came before the first token; None means nothing, and is not a reset.
        reset: (B, L) bool; True drops the past before that token and begins a chunk.

    Returns:
        o: (B, L, e), dtype of v; state: after the last token, of constant size, its keys and values in the dtype of
            the state that came, else of v, its mean in that of the state that came, else as ChunkState says. The mean
            may be the one that came, or one zero that is repeated.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows all shapes.
        ConfigError: chunk below 1.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    if chunk < 1:
        raise ConfigError(f"chunk_attention: chunk must be at least 1, got {chunk}. Change it.")
    shape = q_quad.shape
    if len(shape) != 3 or shape[1] == 0 or not shape == k_quad.shape == q_lin.shape == k_lin.shape:
        must = "q_quad, k_quad, q_lin and k_lin must be (B, L, s) of one shape with L >= 1"
    elif v.dim() != 3 or v.shape[:2] != shape[:2] or 0 in (shape[2], v.shape[2]):
        must = "v must be (B, L, e) with B and L of q_quad, s and e at least 1"
    elif not q_quad.dtype == k_quad.dtype == q_lin.dtype == k_lin.dtype == v.dtype or not all_float(
        q_quad, k_quad, q_lin, k_lin, v
    ):
        must = "q_quad, k_quad, q_lin, k_lin and v must have one float dtype and device"
    elif bias is not None and (bias.shape != (chunk,) or not all_float(v, bias)):
        must = f"bias must be ({chunk},) float"
    elif not fits_reset(reset, v):
        must = "reset must be (B, L) bool"
    elif state is not None and not _fits(state, q_quad, v, chunk):
        must = (
            f"state must hold mean (B, s, e), key_quad and key_lin (B, {chunk}, s) and value (B, {chunk}, e), "
            "all float, and count (B,)"
        )
    else:
        short = shape[1] <= SHORT
        run = reference.chunk_attention if short else choose("chunk_attention", v.device.type, v.dtype)
        o, new = run(q_quad, k_quad, q_lin, k_lin, v, chunk, bias, state, reset)
        return o, new
    parts = dict.fromkeys(ChunkState._fields) if state is None else state._asdict()
    misfit(
        "chunk_attention",
        must,
        q_quad=q_quad,
        k_quad=k_quad,
        q_lin=q_lin,
        k_lin=k_lin,
        v=v,
        bias=bias,
        reset=reset,
        **parts,
    )


def _fits(state: ChunkState, k: Tensor, v: Tensor, chunk: int) -> bool:
    batch, _, size = k.shape
    width = v.shape[2]
    return (
        state.mean.shape == (batch, size, width)
        and state.key_quad.shape == state.key_lin.shape == (batch, chunk, size)
        and state.value.shape == (batch, chunk, width)
        and state.count.shape == (batch,)
        and all_float(*state[:4])
    )
