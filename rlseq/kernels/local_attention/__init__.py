"""``local_attention``: causal attention over the last W tokens, softmax or relu^2; the state is a ring of keys."""

from __future__ import annotations

from torch import Tensor

from rlseq.errors import ConfigError, UnknownNameError
from rlseq.kernels._arguments import all_float, fits_reset, misfit
from rlseq.kernels._dispatch import choose
from rlseq.kernels.local_attention._ring import AttentionState
from rlseq.kernels.local_attention._step import local_attention_step

__all__ = ["AttentionState", "local_attention", "local_attention_step"]

ACTIVATIONS = ("softmax", "relu2")


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    activation: str = "softmax",
    bias: Tensor | None = None,
    state: AttentionState | None = None,
    reset: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, AttentionState]:
    """Causal attention o_t = sum_j w_tj v_j over the last W tokens j of the episode, t - W < j <= t.

    softmax: w_tj = softmax_j(q_t k_j / sqrt(E) + bias[t-j]).
    relu2: w_tj = relu(q_t k_j / W + bias[t-j])^2, not normalised further (GAU, arXiv 2202.10447, eq. 5-6).

    Tokens before the last reset at or before t do not count. With fewer key heads than query heads (GQA, MQA), query
    head h reads key head h // (H / Hk). There is no positional encoding inside: rotate q and k before, with positions
    counted from the last reset (``state.count`` is the position of the first token).

    Differs from the paper: relu2 divides by the constant W, not by the length of the sequence, so that a step equals
    the same token of a whole sequence.

    A token whose key or value has an entry that is NaN or infinite makes the outputs of those that see it NaN, and
    leaves no trace in others, neither in values nor in gradients; a query that is not finite spoils its own output.
    The ring keeps such a key or value as NaN.

    Args:
        q: (B, L, H, E), L >= 1; float32, bfloat16, float16 or float64.
        k: (B, L, Hk, E), H a multiple of Hk, dtype of q.
        v: (B, L, Hk, Ev), dtype of q.
        window: W, number of keys that a query sees, its own included.
        activation: "softmax" or "relu2".
        bias: (W,) float by distance t - j, the same for all heads; None means zeros.
        state: the ring of keys and values before the first token; None means no tokens.
        reset: (B, L) bool; True drops the past before that token.
        dropout: probability to drop an attention weight, in [0, 1); pass 0 when not training.

    Returns:
        o: (B, L, H, Ev), dtype of q; state: the ring after the last token, in the dtype of the state that came, else
            of k.

    Raises:
        ShapeError: the arguments do not fit each other; the message shows all shapes.
        ConfigError: window below 1, or dropout outside [0, 1).
        UnknownNameError: no activation of that name.
        KernelError: RLSEQ_KERNEL allows no implementation that can take these tensors.
    """
    if activation not in ACTIVATIONS:
        raise UnknownNameError("activation of local_attention", activation, ACTIVATIONS)
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
        or 0 in (k.shape[2], k.shape[3], v.shape[3])
        or q.shape[2] % k.shape[2]
    ):
        must = "q must be (B, L, H, E), k (B, L, Hk, E) and v (B, L, Hk, Ev), L, Hk, E, Ev >= 1, Hk dividing H"
    elif not q.dtype == k.dtype == v.dtype or not all_float(q, k, v):
        must = "q, k and v must have one float dtype and device"
    elif bias is not None and (bias.shape != (window,) or not all_float(q, bias)):
        must = f"bias must be ({window},) float"
    elif not fits_reset(reset, q):
        must = "reset must be (B, L) bool"
    elif state is not None and not _fits(state, k, v, window):
        must = f"state must hold key (B, {window}, Hk, E), value (B, {window}, Hk, Ev) and count (B,)"
    else:
        run = choose("local_attention", q.device.type, q.dtype)
        o, new = run(q, k, v, window, activation, bias, state, reset, dropout)
        return o, new
    key, value, count = (None, None, None) if state is None else state
    misfit("local_attention", must, q=q, k=k, v=v, bias=bias, reset=reset, key=key, value=value, count=count)


def _fits(state: AttentionState, k: Tensor, v: Tensor, window: int) -> bool:
    batch = k.shape[:1]
    return (
        state.key.shape == (*batch, window, *k.shape[2:])
        and state.value.shape == (*batch, window, *v.shape[2:])
        and state.count.shape == batch
    )
