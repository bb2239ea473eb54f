"""``local_attention``: causal softmax attention over the last W tokens; the state is a ring of keys and values."""

from __future__ import annotations

from torch import Tensor

from rlseq.errors import ConfigError
from rlseq.kernels._arguments import all_float, fits_reset, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.local_attention._ring import AttentionState

__all__ = ["AttentionState", "local_attention"]


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    state: AttentionState | None = None,
    reset: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, AttentionState]:
    """Causal softmax attention o_t = sum_j softmax_j(q_t k_j / sqrt(E)) v_j over the last W tokens j, t - W < j <= t.

    Tokens before the last reset at or before t do not count. With fewer key heads than query heads (GQA, MQA), query
    head h reads key head h // (H / Hk). There is no positional encoding inside: rotate q and k before, with positions
    counted from the last reset (``state.count`` is the position of the first token).

    Keys and values must be finite: unlike the scans, an infinity before a reset still reaches the tokens whose window
    it is in (0 x inf); the carried state forgets it.

    Args:
        q: (B, L, H, E), L >= 1.
        k: (B, L, Hk, E), H a multiple of Hk, dtype of q.
        v: (B, L, Hk, Ev), dtype of q.
        window: W, number of keys that a query sees, its own included.
        state: the ring of keys and values before the first token; None means no tokens.
        reset: (B, L) bool; True drops the past before that token.
        dropout: probability to drop an attention weight, in [0, 1); pass 0 when not training.

    Returns:
        o: (B, L, H, Ev), dtype of q; state: the ring after the last token, in the dtype of the state that came, else
            of k.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows all shapes.
        ConfigError: window below 1, or dropout outside [0, 1).
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    if window < 1 or not 0.0 <= dropout < 1.0:
        raise ConfigError(
            "local_attention: window must be at least 1 and dropout in [0, 1), "
            f"got window {window} and dropout {dropout}. Change them."
        )
    if (
        not q.dim() == k.dim() == v.dim() == 4
        or not q.shape[:2] == k.shape[:2] == v.shape[:2]
        or q.shape[1] == 0
        or q.shape[3] != k.shape[3]
        or k.shape[2] != v.shape[2]
        or k.shape[2] == 0
        or q.shape[2] % k.shape[2]
    ):
        must = "q must be (B, L, H, E), k (B, L, Hk, E) and v (B, L, Hk, Ev), L >= 1 and H a multiple of Hk"
    elif not q.dtype == k.dtype == v.dtype or not all_float(q):
        must = "q, k and v must have one float dtype"
    elif not fits_reset(reset, q):
        must = "reset must be (B, L) bool"
    elif state is not None and not _fits(state, k, v, window):
        must = f"state must hold key (B, {window}, Hk, E), value (B, {window}, Hk, Ev) and count (B,)"
    else:
        o, new = choose("local_attention", q.device.type, q.dtype)(q, k, v, window, state, reset, dropout)
        return o, new
    key, value, count = (None, None, None) if state is None else state
    misfit("local_attention", must, q=q, k=k, v=v, reset=reset, key=key, value=value, count=count)


def _fits(state: AttentionState, k: Tensor, v: Tensor, window: int) -> bool:
    batch = k.shape[:1]
    return (
        state.key.shape == (*batch, window, *k.shape[2:])
        and state.value.shape == (*batch, window, *v.shape[2:])
        and state.count.shape == batch
    )
