"""``local_attention`` with one dense mask over [ring, new tokens]: the oracle of ``blocked``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import all_nan, broken, cut_out, positions
from rlseq.kernels.local_attention._ring import AttentionState, past_positions, roll_on


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    activation: str,
    bias: Tensor | None,
    state: AttentionState | None,
    reset: Tensor | None,
    dropout: float,
) -> tuple[Tensor, AttentionState]:
    """As ``rlseq.kernels.local_attention``, arguments already checked."""
    batch, length, heads, size = q.shape
    state_dtype = k.dtype if state is None else state.key.dtype
    if state is None:
        state = AttentionState.zeros(batch, window, k.shape[2], size, v.shape[3], device=k.device, dtype=k.dtype)
    position = positions(state.count, reset, length)
    index = torch.arange(length, device=q.device)
    first = torch.maximum(index - position, index - window + 1)
    past = past_positions(state.count, window) - state.count[:, None]
    time = torch.cat([past, index.expand(batch, length)], dim=1)[:, None, :]
    distance = index[:, None] - time
    seen = (time >= first[:, :, None]) & (distance >= 0)

    dtype = compute_dtype(q)
    group = heads // k.shape[2]
    keys = torch.cat([state.key.to(dtype), k.to(dtype)], dim=1).repeat_interleave(group, dim=2)
    values = torch.cat([state.value.to(dtype), v.to(dtype)], dim=1).repeat_interleave(group, dim=2)
    lost, lost_query = broken(keys, values), broken(q)
    keys, values, queries = cut_out(keys, lost), cut_out(values, lost), cut_out(q.to(dtype), lost_query)

    scores = torch.einsum("blhe,bmhe->bhlm", queries, keys)
    scores = scores / (math.sqrt(size) if activation == "softmax" else window)
    if bias is not None:
        scores = scores + bias.to(dtype)[distance.clamp(0, window - 1)][:, None]
    if activation == "softmax":
        weights = torch.softmax(scores.masked_fill(~seen[:, None], -math.inf), dim=-1)
    else:
        weights = scores.masked_fill(~seen[:, None], 0.0).relu().square()
    o = torch.einsum("bhlm,bmhe->blhe", functional.dropout(weights, dropout), values)
    o = cut_out(o, (seen & lost[:, None, :]).any(-1) | lost_query, math.nan)

    count = position[:, -1] + 1
    key, value = (
        roll_on(ring, all_nan(new.flatten(2)).view_as(new), count, window, state_dtype)
        for ring, new in ((state.key, k), (state.value, v))
    )
    return o.to(q.dtype), AttentionState(key, value, count)
