"""``chunk_attention`` as a PyTorch loop over time: the step, and the oracle of ``blocked``; autograd differentiates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import broken, can_look, cut_out, distance_bias, may_hold, surely_finite
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
    mean, mean_lost = carried_mean(state, chunk)
    carried = [one.dtype for one in state[1:4]]
    # between the tokens of a call they keep all their bits
    buffers = [one.to(torch.promote_types(one.dtype, v.dtype)) for one in state[1:4]]
    count, slots = state.count, torch.arange(chunk, device=v.device)
    if any(one.requires_grad for one in buffers):
        # empty slots are zeros already, but get no gradient
        empty = slots >= torch.remainder(count, chunk)[:, None]
        buffers = [cut_out(one, empty) for one in buffers]
    bias = None if bias is None else bias.to(dtype)
    lost_query = broken(q_quad, q_lin)
    queries = [cut_out(one, lost_query) for one in (q_quad.to(dtype), q_lin.to(torch.float64))]
    # unbind: the gradient of v[:, t] would be a tensor of the whole length for every token
    tokens = zip(*[one.unbind(1) for one in (*queries, lost_query)], strict=True)
    added = zip(*[one.split(1, 1) for one in (k_quad, k_lin, v)], strict=True)
    outputs = []
    for t, ((query, query_lin, lost), new) in enumerate(zip(tokens, added, strict=True)):
        if reset is not None and may_hold(reset[:, t]):
            gone = reset[:, t]
            count, mean_lost = torch.where(gone, 0, count), mean_lost & ~gone
            mean, *buffers = (torch.where(gone[:, None, None], 0.0, one) for one in (mean, *buffers))
        index = torch.remainder(count, chunk)[:, None, None]
        buffers = [
            one.scatter(1, index.expand(-1, 1, one.shape[2]), token.to(one.dtype))
            for one, token in zip(buffers, new, strict=True)
        ]
        key, key_lin, value = (one.to(dtype) for one in buffers)
        # empty slots are zero: what is not finite here is of this chunk
        sum_lost = None
        if not surely_finite(key, key_lin, value):
            lost_key, lost_lin, lost_value = broken(key), broken(key_lin), broken(value)
            lost = lost | (lost_key | lost_value).any(1)
            sum_lost = (lost_lin | lost_value).any(1)
            key, key_lin = cut_out(key, lost_key | lost_value), cut_out(key_lin, lost_lin | lost_value)
            value = cut_out(value, lost_value)
        distance = index[..., 0] - slots
        scores = (key @ query[:, :, None])[..., 0] / chunk
        if bias is not None:
            scores = scores + distance_bias(bias, distance)
        weights = scores.masked_fill(distance < 0, 0.0).relu().square()
        o = (weights[:, None] @ value)[:, 0]
        o = o + (query_lin[:, None] @ mean)[:, 0].to(dtype)
        outputs.append(torch.where((lost | mean_lost)[:, None], math.nan, o))

        count = count + 1
        full = torch.remainder(count, chunk) == 0
        if may_hold(full):
            # of the rows alone that need it, where those can be told
            rows = full.nonzero()[:, 0] if can_look(full) else slice(None)
            complete = torch.div(count[rows], chunk, rounding_mode="floor").clamp_min(1)[:, None, None]
            own = (key_lin[rows].mT @ value[rows]).to(torch.float64) / chunk
            own = mean[rows] + (own - mean[rows]) / complete
            mean = (
                torch.where(full[:, None, None], own, mean)
                if isinstance(rows, slice)
                else mean.index_copy(0, rows, own)
            )
            mean_lost = mean_lost if sum_lost is None else mean_lost | (full & sum_lost)
            buffers = [torch.where(full[:, None, None], 0.0, one) for one in buffers]
    if may_hold(mean_lost):
        mean = torch.where(mean_lost[:, None, None], math.nan, mean)
    key_quad, key_lin, value = (one.to(before) for one, before in zip(buffers, carried, strict=True))
    return torch.stack(outputs, dim=1).to(v.dtype), ChunkState(mean, key_quad, key_lin, value, count)
