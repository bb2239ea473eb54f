"""``chunk_attention`` as a PyTorch loop over time: the step, and the oracle of ``blocked``; autograd differentiates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import (
    all_nan,
    broken,
    cut_out,
    distance_bias,
    may_hold,
    put,
    rows_of,
    surely_finite,
)
from rlseq.kernels.chunk_attention._state import ChunkState, carried_mean


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def chunk_attention(
    q_quad: Tensor,
    k_quad: Tensor,
    q_lin: Tensor,
    k_lin: Tensor,
    v: Tensor,
    chunk: int,
    bias: Tensor | None,
    state: ChunkState | None,
    reset: Tensor | None,
) -> tuple[Tensor, ChunkState]:
    """As ``rlseq.kernels.chunk_attention``, arguments already checked."""
    dtype = compute_dtype(v)
    if state is None:
        state = ChunkState.zeros(v.shape[0], chunk, k_quad.shape[2], v.shape[2], device=v.device, dtype=v.dtype)
    # without gradients NaN spoils what it should by itself, because a token that is not finite is NaN as a whole
    guarded = torch.is_grad_enabled()
    mean, mean_lost, finest = state.mean, None, torch.promote_types(state.mean.dtype, dtype)
    if guarded:
        mean, mean_lost = carried_mean(state, chunk)
    mean = mean.to(finest)
    carried = [one.dtype for one in state[1:4]]
    # between the tokens of a call they keep all their bits
    buffers = [one.to(torch.promote_types(one.dtype, v.dtype)) for one in state[1:4]]
    count, slots = state.count, torch.arange(chunk, device=v.device)
    if any(one.requires_grad for one in buffers):
        # no token will see them: they get no gradient
        empty = slots >= torch.remainder(count, chunk)[:, None]
        buffers = [cut_out(one, empty) for one in buffers]
    bias = None if bias is None else bias.to(dtype)
    lost_query = broken(q_quad, q_lin) if guarded else None
    queries = [
        all_nan(one) if lost_query is None else cut_out(one, lost_query) for one in (q_quad.to(dtype), q_lin.to(finest))
    ]
    # unbind: the gradient of v[:, t] would be a tensor of the whole length for every token
    tokens = zip(*[one.unbind(1) for one in (*queries, *map(all_nan, (k_quad, k_lin, v)))], strict=True)
    outputs = []
    for t, (query, query_lin, *new) in enumerate(tokens):
        gone = reset[:, t] if reset is not None and may_hold(reset[:, t]) else None
        if gone is not None:
            count, mean_lost = torch.where(gone, 0, count), None if mean_lost is None else mean_lost & ~gone
        slot = torch.remainder(count, chunk)
        buffers = put(buffers, slot, new, slot == 0)
        key, key_lin, value = (one.to(dtype) for one in buffers)
        lost, sum_lost = None if lost_query is None else lost_query[:, t], None
        if lost is not None and not surely_finite(key, key_lin, value):
            lost_key, lost_lin, lost_value = broken(key), broken(key_lin), broken(value)
            lost = lost | (lost_key | lost_value).any(1)
            sum_lost = (lost_lin | lost_value).any(1)
            key, key_lin = cut_out(key, lost_key | lost_value), cut_out(key_lin, lost_lin | lost_value)
            value = cut_out(value, lost_value)
        distance = slot[:, None] - slots
        scores = (key @ query[:, :, None])[..., 0] / chunk
        if bias is not None:
            scores = scores + distance_bias(bias, distance)
        # not relu, which may lose a NaN where the graph runs
        weights = scores.masked_fill((distance < 0) | (scores < 0), 0.0).square()
        linear, mean = _linear(query_lin, mean, key_lin, value, count + 1, chunk, gone)
        o = (weights[:, None] @ value)[:, 0] + linear.to(dtype)
        if lost is not None and mean_lost is not None:
            o = torch.where((lost | mean_lost)[:, None], math.nan, o)
        outputs.append(o)
        count = count + 1
        if mean_lost is not None and sum_lost is not None:
            mean_lost = mean_lost | (sum_lost & (torch.remainder(count, chunk) == 0))
    if mean_lost is not None and may_hold(mean_lost):
        mean = torch.where(mean_lost[:, None, None], math.nan, mean)
    key_quad, key_lin, value = (one.to(before) for one, before in zip(buffers, carried, strict=True))
    return torch.stack(outputs, dim=1).to(v.dtype), ChunkState(
        mean.to(state.mean.dtype), key_quad, key_lin, value, count
    )


def _linear(
    query: Tensor, mean: Tensor, key: Tensor, value: Tensor, count: Tensor, chunk: int, gone: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the token sees of the chunks before its own (B, e), and the mean after it.

    Args:
        query: (B, s), dtype of mean.
        mean: (B, s, e) before the token.
        key: (B, C, s) linear keys of the chunk, the token's own included.
        value: (B, C, e).
        count: (B,) tokens of the episode with this one.
        chunk: C.
        gone: (B,) rows whose mean is to be forgotten; None means none.
    """
    full = torch.remainder(count, chunk) == 0
    changed = full if gone is None else full | gone
    if not may_hold(changed):
        return (query[:, None] @ mean)[:, 0], mean
    rows = rows_of(changed)

    def those(one: Tensor) -> Tensor:
        return one if rows is None else one.index_select(0, rows)

    old, key, value, count = those(mean), those(key), those(value), those(count)[:, None, None]
    old = old if gone is None else torch.where(those(gone)[:, None, None], 0.0, old)
    own = (key.mT @ value).to(old.dtype) / chunk
    complete = torch.div(count, chunk, rounding_mode="floor").clamp_min(1)
    new = torch.where(those(full)[:, None, None], old + (own - old) / complete, old)
    linear = (those(query)[:, None] @ old)[:, 0]
    if rows is None:
        return linear, new
    # the other rows are read after the write: whoever owns the mean may write it in place
    mean = mean.index_put((rows,), new)
    return (query[:, None] @ mean)[:, 0].index_put((rows,), linear), mean
