"""``chunk_attention`` as a PyTorch loop over time: the oracle of ``blocked``; autograd does its backward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import broken, cut_out, distance_bias
from rlseq.kernels.chunk_attention._state import ChunkState, carried_sums, marked


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
    mean, mean_lost, current, current_lost = carried_sums(state, chunk)
    key, value, count = state.key.to(dtype), state.value.to(dtype), state.count
    bias = None if bias is None else bias.to(dtype)
    slots = torch.arange(chunk, device=v.device)

    # what goes into the sums, in float64; a token that is not finite goes in as zeros and leaves a mark
    lost_query, lost_sum = broken(q_quad, q_lin), broken(k_lin, v)
    sum_key, sum_value = (cut_out(one.to(torch.float64), lost_sum) for one in (k_lin, v))
    quad_query, lin_query = cut_out(q_quad.to(dtype), lost_query), cut_out(q_lin.to(torch.float64), lost_query)
    # unbind: the gradient of v[:, t] would be a tensor of the whole length for every token
    tokens = [one.unbind(1) for one in (quad_query, k_quad.to(dtype), lin_query, sum_key, sum_value, v.to(dtype))]
    outputs = []
    for t, (query, new_key, query_lin, key_lin, value_lin, new_value) in enumerate(zip(*tokens, strict=True)):
        if reset is not None:
            gone = reset[:, t]
            count = torch.where(gone, 0, count)
            mean_lost, current_lost = mean_lost & ~gone, current_lost & ~gone
            mean, current, key, value = (
                torch.where(gone[:, None, None], 0.0, one) for one in (mean, current, key, value)
            )
        distance = torch.remainder(count, chunk)[:, None] - slots
        own = (distance == 0)[..., None]
        key, value = torch.where(own, new_key[:, None], key), torch.where(own, new_value[:, None], value)

        # empty slots are zero: what is not finite here is of this chunk
        lost = broken(key, value)
        scores = (cut_out(key, lost) @ query[:, :, None])[..., 0] / chunk
        if bias is not None:
            scores = scores + distance_bias(bias, distance)
        weights = scores.masked_fill(distance < 0, 0.0).relu().square()
        o = (weights[:, None] @ cut_out(value, lost))[:, 0]
        o = o + (query_lin[:, None] @ mean)[:, 0].to(dtype)
        outputs.append(torch.where((lost.any(1) | mean_lost | lost_query[:, t])[:, None], math.nan, o))

        current, current_lost = (
            current + key_lin[:, :, None] * (value_lin / chunk)[:, None],
            current_lost | lost_sum[:, t],
        )
        count = count + 1
        filled = torch.remainder(count, chunk)[:, None]
        full = filled[:, 0] == 0
        complete = torch.div(count, chunk, rounding_mode="floor").clamp_min(1)[:, None, None]
        mean = torch.where(full[:, None, None], mean + (current - mean) / complete, mean)
        mean_lost, current_lost = mean_lost | (full & current_lost), current_lost & ~full
        current = torch.where(full[:, None, None], 0.0, current)
        key, value = (torch.where((slots < filled)[..., None], one, 0.0) for one in (key, value))
    o = torch.stack(outputs, dim=1).to(v.dtype)
    key, value = key.to(state.key.dtype), value.to(state.value.dtype)
    return o, ChunkState(marked(mean, mean_lost), marked(current, current_lost), key, value, count)
