"""One token of ``local_attention``: it is written into its slot and attends to the ring as it lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import by_head, distance_bias, put
from rlseq.kernels.local_attention._ring import AttentionState


def local_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    activation: str,
    bias: Tensor | None,
    state: AttentionState,
    reset: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, AttentionState]:
    """As ``local_attention`` for one token, W being the ring's; nothing is checked, because calls bound acting.

    Args:
        q: (B, H, E).
        k: (B, Hk, E), finite or NaN as a whole, as is v.
        v: (B, Hk, Ev).
        activation: "softmax" or "relu2".
        bias: (W,) by distance, or None.
        state: the ring before the token; its count is already 0 in the rows of reset.
        reset: (B,) bool, rows that are emptied before, even of NaN; or None.
        dropout: probability to drop an attention weight.

    Returns:
        o: (B, H, Ev), dtype of q; the ring after the token.
    """
    count, window = state.count, state.key.shape[1]
    slot = torch.remainder(count, window)
    key, value = put(state[:2], slot, (k, v), reset)
    distance = torch.remainder(slot[:, None] - torch.arange(window, device=q.device), window)
    seen, distance = (distance <= count[:, None])[:, None, None], distance[:, None, None]
    query = q.unflatten(1, (k.shape[1], -1))
    keys, values = (by_head(ring.to(q.dtype)) for ring in (key, value))
    if activation == "softmax":
        mask = seen if bias is None else torch.where(seen, distance_bias(bias.to(q.dtype), distance), -math.inf)
        o = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, dropout_p=dropout)
    else:
        dtype = compute_dtype(q)
        scores = (query.to(dtype) / window) @ keys.to(dtype).mT
        if bias is not None:
            scores = scores + distance_bias(bias.to(dtype), distance)
        # not relu, which may lose a NaN where the graph runs
        weights = functional.dropout(scores.masked_fill(~seen | (scores < 0), 0.0).square(), dropout)
        o = (weights @ values.to(dtype)).to(q.dtype)
    return o.flatten(1, 2), AttentionState(key, value, count + 1)
