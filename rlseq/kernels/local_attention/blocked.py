"""``local_attention`` over blocks of W tokens: linear in the length, torch operations only, any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import broken, cut_out, distance_bias, latest, positions, squared_relu
from rlseq.kernels.local_attention._ring import AttentionState, roll_on


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs wherever torch does."""
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
    if q.shape[1] == 1 and state is not None:
        return _step(q, k, v, window, activation, bias, state, reset, dropout)
    state_dtype = k.dtype if state is None else state.key.dtype
    started = state is not None
    if state is None:
        sizes = (k.shape[2], k.shape[3], v.shape[3])
        state = AttentionState.zeros(k.shape[0], window, *sizes, device=k.device, dtype=k.dtype)
    length = q.shape[1]
    index = torch.arange(length, device=q.device)
    position = positions(state.count, reset, length)
    first = torch.maximum(index - position, index - window + 1)

    lost_query, lost = broken(q), broken(k, v)
    clean_q, clean_k, clean_v = cut_out(q, lost_query), cut_out(k, lost), cut_out(v, lost)
    if started or length > window:
        o, lost = _banded(clean_q, clean_k, clean_v, window, activation, bias, state, first, lost, dropout)
    else:
        distance = index[:, None] - index
        seen = (distance >= 0) if reset is None else (distance >= 0) & (index >= first[:, :, None])
        plain = reset is None and activation == "softmax" and bias is None
        o = _attend(clean_q, clean_k, clean_v, window, activation, bias, None if plain else seen, distance, dropout)
        lost = latest(lost) >= first
    o = cut_out(o, lost | lost_query, math.nan)
    count = position[:, -1] + 1
    key = roll_on(state.key, k, count, state_dtype)
    return o, AttentionState(key, roll_on(state.value, v, count, state_dtype), count)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    activation: str,
    bias: Tensor | None,
    seen: Tensor | None,
    distance: Tensor,
    dropout: float,
) -> Tensor:
    """Attention of (B, L, H, E) queries to (B, M, Hk, E) keys.

    seen (B or nothing, L, M) is bool; None means causal, L = M, and is for a plain softmax. distance, of that shape, is
    int64 from key to query, any number where a key is not seen. The rest is as in the public function.
    """
    heads, key_heads = q.shape[2], k.shape[2]
    queries, keys, values = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = None if seen is None else seen.unsqueeze(-3)
    if bias is not None or activation == "relu2":
        dtype = compute_dtype(q)
        queries, keys, values = queries.to(dtype), keys.to(dtype), values.to(dtype)
    if bias is not None:
        bias = distance_bias(bias.to(queries.dtype), distance).unsqueeze(-3)
    if mask is None or activation == "softmax":
        o = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask if bias is None or mask is None else torch.where(mask, bias, -math.inf),
            dropout_p=dropout,
            is_causal=mask is None,
            enable_gqa=heads != key_heads,
        )
        return o.transpose(1, 2).to(q.dtype)
    # query heads that share a key head are rows of one product
    group = heads // key_heads
    scores = (queries / window).unflatten(1, (key_heads, group)).flatten(2, 3) @ keys.mT
    mask = mask.tile(group, 1)
    scores = scores if bias is None else scores.add_(bias.tile(group, 1))
    weights = functional.dropout(squared_relu(scores, mask), dropout)
    return (weights @ values).unflatten(2, (group, q.shape[1])).flatten(1, 2).transpose(1, 2).to(q.dtype)


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    activation: str,
    bias: Tensor | None,
    state: AttentionState,
    reset: Tensor | None,
    dropout: float,
) -> tuple[Tensor, AttentionState]:
    """One token: select its slot out of place, attend to the filled slots."""
    key, value, count = state
    if reset is not None:
        gone = reset[:, :, None, None]
        key, value, count = (
            torch.where(gone, 0.0, key),
            torch.where(gone, 0.0, value),
            torch.where(reset[:, 0], 0, count),
        )
    slots = torch.arange(window, device=count.device)
    distance = torch.remainder(count[:, None] - slots, window)[:, None]
    own = (distance == 0).mT[..., None]
    key, value = torch.where(own, k.to(key.dtype), key), torch.where(own, v.to(value.dtype), value)
    seen = (slots <= count[:, None])[:, None]
    # slots that are not filled are zero
    lost, lost_query = broken(key, value), broken(q)
    clean_k, clean_v = cut_out(key, lost).to(q.dtype), cut_out(value, lost).to(q.dtype)
    o = _attend(cut_out(q, lost_query), clean_k, clean_v, window, activation, bias, seen, distance, dropout)
    o = cut_out(o, lost.any(1, keepdim=True) | lost_query, math.nan)
    return o, AttentionState(key, value, count + 1)


def _banded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    activation: str,
    bias: Tensor | None,
    state: AttentionState,
    first: Tensor,
    lost: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Blocks of up to W tokens, each attending to the W tokens before it and to itself.

    The tokens are finite. first (B, L) is the time of the first token that each query sees; lost (B, L) marks tokens
    whose key or value was not finite; second result is whether each query sees one. The rest is as in the public
    function.
    """
    batch, length = q.shape[:2]
    block = min(window, length)
    blocks = -(-length // block)
    padding = blocks * block - length

    # the ring in the order of time, oldest first
    order = torch.remainder(state.count[:, None] + torch.arange(window, device=q.device), window)
    past_k, past_v = (
        ring.to(k.dtype).gather(1, order[:, :, None, None].expand(-1, -1, *ring.shape[2:]))
        for ring in (state.key, state.value)
    )
    past_lost = broken(past_k, past_v)

    def keys_of_blocks(past: Tensor, new: Tensor) -> Tensor:
        joined = functional.pad(torch.cat([cut_out(past, past_lost), new], dim=1), (0, 0, 0, 0, 0, padding))
        if blocks == 1:
            return joined
        # not unfold, whose gradient is slow
        parts = joined.unflatten(1, (blocks + 1, window))
        return torch.cat([parts[:, :-1], parts[:, 1:]], dim=2).flatten(0, 1)

    queries = functional.pad(q, (0, 0, 0, 0, 0, padding)).unflatten(1, (blocks, block)).flatten(0, 1)
    # times within a block's keys; padding sees the window's keys
    begin = torch.arange(blocks, device=q.device)[:, None] * block - window
    bound = (functional.pad(first, (0, padding)).unflatten(1, (blocks, block)) - begin)[..., None]
    column = torch.arange(window + block, device=q.device)
    distance = torch.arange(window, window + block, device=q.device)[:, None] - column
    seen = ((column >= bound) & (distance >= 0)).flatten(0, 1)
    keys, values = keys_of_blocks(past_k, k), keys_of_blocks(past_v, v)
    o = _attend(queries, keys, values, window, activation, bias, seen, distance, dropout)
    seen_lost = latest(torch.cat([past_lost, lost], dim=1), -window)[:, window:] >= first
    return o.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :length], seen_lost
