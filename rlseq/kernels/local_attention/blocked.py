"""``local_attention`` over blocks of W tokens: linear in the length, torch operations only, any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import (
    Attention,
    all_nan,
    attend,
    broken,
    chosen,
    cut_out,
    distance_bias,
    later_resets,
    latest,
    positions,
    spans,
    squared_relu,
    surely_finite,
)
from rlseq.kernels.local_attention._ring import AttentionState, roll_on
from rlseq.kernels.local_attention._step import local_attention_step

FEW = 3
"""Most tokens after a state that go one by one where there are no gradients: an environment step has as many."""
_SPANNED = 512
"""Most queries that are worked on span by span: each span is a call of its own."""


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
    if state is not None and q.shape[1] <= FEW and not torch.is_grad_enabled():
        return _one_by_one(q, k, v, activation, bias, state, reset, dropout)
    if state is None:
        reset = later_resets(reset)
    length, state_dtype = q.shape[1], k.dtype if state is None else state.key.dtype
    index = torch.arange(length, device=q.device)
    position = positions(index.new_zeros(q.shape[0]) if state is None else state.count, reset, length)
    # time of the first token that each query sees
    first = torch.maximum(index - position, index - window + 1)
    queries, keys, values, spoiled = _finite(q, k, v, window, state, first)

    past = keys.shape[1] - length
    fits = past == 0 and length <= window
    if activation == "relu2" and _in_spans(q, k, dropout):
        o = _spanned(queries, keys, values, window, bias, first, fits and reset is None)
    elif fits and reset is None and activation == "softmax" and bias is None:
        o = _softmax(queries, keys, values, None, dropout)
    elif fits:
        distance = index[:, None] - index
        seen = (distance >= 0) if reset is None else (distance >= 0) & (index >= first[:, :, None])
        o = _attend(queries, keys, values, window, activation, bias, seen, distance, dropout)
    else:
        if past == 0:
            keys, values = (functional.pad(one, (0, 0, 0, 0, window, 0)) for one in (keys, values))
        o = _banded(queries, keys, values, window, activation, bias, first, dropout)
    if spoiled is not None:
        o = cut_out(o, spoiled, math.nan)
        k, v = (all_nan(one.flatten(2)).view_as(one) for one in (k, v))
    count = position[:, -1] + 1
    key, value = (
        roll_on(ring, new, count, window, state_dtype)
        for ring, new in zip((None, None) if state is None else state[:2], (k, v), strict=True)
    )
    return o, AttentionState(key, value, count)


def _finite(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: AttentionState | None, first: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, and keys and values after the ring's, zero where not finite; (B, L) who sees one of those, or None."""
    past: tuple[Tensor, ...] = ()
    if state is not None:
        # in the order of time, oldest first; empty slots are zero
        order = torch.remainder(state.count[:, None] + torch.arange(window, device=q.device), window)
        past = tuple(chosen(ring.to(k.dtype), order) for ring in state[:2])
    if surely_finite(q, k, v, *past):
        spoiled = None
    else:
        lost_query, lost = broken(q), broken(k, v)
        q, k, v, before = cut_out(q, lost_query), cut_out(k, lost), cut_out(v, lost), 0
        if past:
            lost_past, before = broken(*past), window
            past = tuple(cut_out(one, lost_past) for one in past)
            lost = torch.cat([lost_past, lost], dim=1)
        spoiled = (latest(lost, -before)[:, before:] >= first) | lost_query
    if past:
        k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
    return q, k, v, spoiled


def _in_spans(q: Tensor, k: Tensor, dropout: float) -> bool:
    """Whether relu^2 goes span by span, not over all blocks at once: on a CPU, as long as the spans are few."""
    return q.device.type == "cpu" and q.shape[2] == k.shape[2] and dropout == 0.0 and q.shape[1] <= _SPANNED


def _spanned(q: Tensor, k: Tensor, v: Tensor, window: int, bias: Tensor | None, first: Tensor, causal: bool) -> Tensor:
    """Attention of (B, L, H, E) queries to (B, P + L, H, E) keys with relu^2, the last L keys being the queries' own.

    first (B, L) is the time of the first token that each query sees; causal says that it is the first of all.
    """
    (batch, length, heads, _), dtype = q.shape, compute_dtype(q)
    past = k.shape[1] - length
    queries, keys, values = (one.to(dtype).transpose(1, 2).flatten(0, 1) for one in (q, k, v))
    begin = None if causal else (first + past).clamp_min(0).repeat_interleave(heads, 0)
    tokens = Attention(queries, keys, values, None if bias is None else bias.to(dtype), None, None)
    o = attend(tokens, window, spans(length, past, window, linear=False), begin, None)
    return o.unflatten(0, (batch, heads)).transpose(1, 2).to(q.dtype)


def _softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention of (B, L, H, E) queries to (B, M, Hk, E) keys; mask (B or nothing, 1, L, M), None: causal."""
    o = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return o.transpose(1, 2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    activation: str,
    bias: Tensor | None,
    seen: Tensor,
    distance: Tensor,
    dropout: float,
) -> Tensor:
    """Attention of (B, L, H, E) queries to (B, M, Hk, E) keys.

    seen (B or nothing, L, M) is bool. distance, of that shape, is int64 from key to query, any number where a key is
    not seen. The rest is as in the public function.
    """
    mask = seen.unsqueeze(-3)
    if bias is None and activation == "softmax":
        return _softmax(q, k, v, mask, dropout)
    queries, keys, values = (one.to(compute_dtype(q)) for one in (q, k, v))
    if bias is not None:
        bias = distance_bias(bias.to(queries.dtype), distance).unsqueeze(-3)
        if activation == "softmax":
            return _softmax(queries, keys, values, torch.where(mask, bias, -math.inf), dropout).to(q.dtype)
    queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    # query heads that share a key head are rows of one product
    heads, key_heads = q.shape[2], k.shape[2]
    group = heads // key_heads
    scores = (queries / window).unflatten(1, (key_heads, group)).flatten(2, 3) @ keys.mT
    mask = mask.tile(group, 1)
    scores = scores if bias is None else scores.add_(bias.tile(group, 1))
    weights = functional.dropout(squared_relu(scores, mask), dropout)
    return (weights @ values).unflatten(2, (group, q.shape[1])).flatten(1, 2).transpose(1, 2).to(q.dtype)


def _one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    activation: str,
    bias: Tensor | None,
    state: AttentionState,
    reset: Tensor | None,
    dropout: float,
) -> tuple[Tensor, AttentionState]:
    """A few tokens, each written into its slot before it attends to the ring: the ring is not laid out anew.

    Without gradients NaN spoils what it should by itself: a token that is not finite is NaN as a whole, and no slot
    that a query does not see holds one.
    """
    q, k, v = (all_nan(one.flatten(2)).view_as(one) for one in (q, k, v))
    # between the tokens of a call the ring keeps all their bits
    key, value = (ring.to(torch.promote_types(ring.dtype, k.dtype)) for ring in state[:2])
    inside, outputs = AttentionState(key, value, state.count), []
    for t in range(q.shape[1]):
        fresh = None if reset is None else reset[:, t]
        if fresh is not None:
            inside = inside._replace(count=inside.count.masked_fill(fresh, 0))
        o, inside = local_attention_step(q[:, t], k[:, t], v[:, t], activation, bias, inside, fresh, dropout)
        outputs.append(o)
    key, value = (ring.to(before.dtype) for ring, before in zip(inside[:2], state[:2], strict=True))
    return torch.stack(outputs, dim=1), AttentionState(key, value, inside.count)


def _banded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    activation: str,
    bias: Tensor | None,
    first: Tensor,
    dropout: float,
) -> Tensor:
    """Blocks of up to W tokens, each attending to the W tokens before it and to itself.

    k and v have W tokens before the queries' own; first (B, L) is the time of the first token that each query sees. The
    rest is as in the public function.
    """
    batch, length = q.shape[:2]
    block = min(window, length)
    blocks = -(-length // block)
    padding = blocks * block - length

    def keys_of_blocks(joined: Tensor) -> Tensor:
        joined = functional.pad(joined, (0, 0, 0, 0, 0, padding))
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
    keys, values = keys_of_blocks(k), keys_of_blocks(v)
    o = _attend(queries, keys, values, window, activation, bias, seen, distance, dropout)
    return o.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :length]
