"""``local_attention`` with one dense mask over [ring, new tokens]: the oracle of ``blocked``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels.local_attention._ring import AttentionState, past_positions, positions, roll_on


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: AttentionState | None, reset: Tensor | None, dropout: float
) -> tuple[Tensor, AttentionState]:
    """As ``rlseq.kernels.local_attention``, arguments already checked."""
    batch, length, heads, size = q.shape
    state_dtype = k.dtype if state is None else state.key.dtype
    if state is None:
        state = AttentionState.zeros(batch, window, k.shape[2], size, v.shape[3], device=k.device, dtype=k.dtype)
    position, segment = positions(state.count, reset, length)
    segment = segment.expand(batch, length)
    before = past_positions(state.count, window)
    key_position = torch.cat([before, position], dim=1)
    key_segment = torch.cat([torch.zeros_like(before), segment], dim=1)
    distance = position[:, :, None] - key_position[:, None, :]
    seen = (distance >= 0) & (distance < window) & (key_position >= 0)[:, None, :]
    seen = (seen & (segment[:, :, None] == key_segment[:, None, :]))[:, None]

    dtype = compute_dtype(q)
    group = heads // k.shape[2]
    keys = torch.cat([state.key.to(dtype), k.to(dtype)], dim=1).repeat_interleave(group, dim=2)
    values = torch.cat([state.value.to(dtype), v.to(dtype)], dim=1).repeat_interleave(group, dim=2)
    scores = torch.einsum("blhe,bmhe->bhlm", q.to(dtype), keys) / math.sqrt(size)
    weights = functional.dropout(torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1), dropout)
    o = torch.einsum("bhlm,bmhe->blhe", weights, values)

    count = position[:, -1] + 1
    key = roll_on(state.key, k, count, state_dtype)
    return o.to(q.dtype), AttentionState(key, roll_on(state.value, v, count, state_dtype), count)
