"""``chunk_attention`` on blocks of tokens: linear in the length, torch operations and ``linear_scan``, any device.

Few tokens attend to all before them one by one, many in blocks: see ``_blocks``. The tokens of a carried, unfinished
chunk go before the new ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import (
    Attention,
    Span,
    all_nan,
    attend,
    broken,
    chosen,
    cut_out,
    later_resets,
    latest,
    may_hold,
    positions,
    spans,
    surely_finite,
)
from rlseq.kernels.chunk_attention._blocks import Tokens, over_blocks
from rlseq.kernels.chunk_attention._state import ChunkState, carried_mean, mean_dtype

_PIECE = 1 << 21
"""Values (rows x tokens x e) that are worked on at a time on a CPU: more falls out of its caches, and what is freed in
large blocks comes back as new pages every time."""
_FEW = 4
"""Chunks up to which tokens attend to each other one by one: sums over chunks take more products there."""


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs wherever torch does."""
    return None


class _Times(NamedTuple):
    """Where each query's past begins; times are counted from the first key, which may be a carried one."""

    past: int
    """Number of carried keys."""
    episode: Tensor
    """(B, L) first token of the query's episode; below 0 where only the carried mean knows it."""
    begin: Tensor
    """(B, L) first token of its chunk."""


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
    tokens = (q_quad, k_quad, q_lin, k_lin, v)
    if state is None:
        reset = later_resets(reset)
    aligned = state is None and reset is None
    if v.device.type != "cpu" or torch.compiler.is_compiling():
        return _piece(tokens, chunk, bias, state, reset, aligned)
    return _in_pieces(tokens, chunk, bias, state, reset, aligned)


def _in_pieces(
    tokens: tuple[Tensor, ...],
    chunk: int,
    bias: Tensor | None,
    state: ChunkState | None,
    reset: Tensor | None,
    aligned: bool,
) -> tuple[Tensor, ChunkState]:
    batch, length, width = tokens[-1].shape
    rows, span = max(1, _PIECE // (length * width)), chunk * max(1, _PIECE // (chunk * width))
    outputs = []
    # split, because the gradient of a slice is a tensor of the whole size
    if rows < batch:
        states = []
        resets = itertools.repeat(None) if reset is None else reset.split(rows)
        parts = zip(*[one.split(rows) for one in tokens], strict=True)
        carried = itertools.repeat(None) if state is None else _rows(state, rows)
        for part, part_state, part_reset in zip(parts, carried, resets, strict=False):
            o, last = _in_pieces(part, chunk, bias, part_state, part_reset, aligned)
            outputs.append(o)
            states.append(last)
        return torch.cat(outputs), ChunkState(*[torch.cat(one) for one in zip(*states, strict=True)])
    if span < length:
        resets = itertools.repeat(None) if reset is None else reset.split(span, dim=1)
        parts = zip(*[one.split(span, dim=1) for one in tokens], strict=True)
        if state is None:
            sizes = (batch, chunk, tokens[1].shape[2], width)
            state = ChunkState.zeros(*sizes, device=tokens[-1].device, dtype=tokens[-1].dtype)
        # between pieces the state keeps all its bits
        dtypes = [one.dtype for one in state]
        finest = [torch.promote_types(one, tokens[-1].dtype) for one in dtypes[1:4]]
        state = _as(state, [torch.float64, *finest, dtypes[4]])
        for part, part_reset in zip(parts, resets, strict=False):
            o, state = _piece(part, chunk, bias, state, part_reset, aligned)
            outputs.append(o)
        return torch.cat(outputs, dim=1), _as(state, dtypes)
    return _piece(tokens, chunk, bias, state, reset, aligned)


def _as(state: ChunkState, dtypes: list[torch.dtype]) -> ChunkState:
    return ChunkState(*[one.to(dtype) for one, dtype in zip(state, dtypes, strict=True)])


def _rows(state: ChunkState, rows: int) -> Iterator[ChunkState]:
    return itertools.starmap(ChunkState, zip(*[one.split(rows) for one in state], strict=True))


def _piece(
    given: tuple[Tensor, ...],
    chunk: int,
    bias: Tensor | None,
    state: ChunkState | None,
    reset: Tensor | None,
    aligned: bool,
) -> tuple[Tensor, ChunkState]:
    """The op on some rows and a span of time; aligned says that each row begins a chunk, and no reset comes."""
    (batch, length, _), dtype = given[-1].shape, compute_dtype(given[-1])
    # the carried tokens in the order of time, newest last; empty slots are zero: which of them comes first is no matter
    carried: tuple[Tensor, ...] = ()
    if state is not None and not aligned:
        slot = torch.remainder(state.count[:, None] + torch.arange(chunk, device=state.count.device), chunk)
        carried = tuple(chosen(one, slot) for one in state[1:4])
        complete = torch.remainder(state.count, chunk) == 0
        if may_hold(complete):
            # their tokens are in the mean
            carried = tuple(cut_out(one, complete[:, None].expand(-1, chunk)) for one in carried)
    past = chunk if carried else 0
    count = given[-1].new_zeros(batch, dtype=torch.int64) if state is None else state.count
    position = positions(count, reset, length)
    index = torch.arange(past, past + length, device=position.device)
    times = _Times(past, index - position, index - torch.remainder(position, chunk))

    q_quad, k_quad, q_lin, k_lin, v = (one.to(dtype) for one in given)
    keys: tuple[Tensor, ...] = (k_quad, k_lin, v)
    kept = [given[1], given[3], given[4]]
    if carried:
        keys = tuple(torch.cat([one.to(dtype), new], dim=1) for one, new in zip(carried, keys, strict=True))
    mean, mean_lost = (None, None) if state is None else carried_mean(state, chunk)
    lost_lin, spoiled = None, None
    if not surely_finite(q_quad, q_lin, *keys):
        lost_query, (lost_key, lost_lin, lost_value) = broken(q_quad, q_lin), map(broken, keys)
        q_quad, q_lin = cut_out(q_quad, lost_query), cut_out(q_lin, lost_query)
        keys = tuple(cut_out(one, lost) for one, lost in zip(keys, (lost_key, lost_lin, lost_value), strict=True))
        kept = [all_nan(one) for one in kept]
        lost_lin = lost_lin | lost_value
        own_chunk = latest(lost_key | lost_value)[:, past:] >= times.begin
        spoiled = lost_query | own_chunk | _between(lost_lin, times.episode, times.begin)
    if mean_lost is not None and may_hold(mean_lost):
        lost = mean_lost[:, None] & (times.episode < past)
        spoiled = lost if spoiled is None else spoiled | lost

    if state is not None or length > chunk:
        earlier = torch.div(position, chunk, rounding_mode="floor")
        q_lin = q_lin * torch.where(earlier > 0, 1.0 / (chunk * earlier.to(dtype)), 0.0)[..., None]
    before, older = torch.div(count, chunk, rounding_mode="floor"), None
    if mean is not None and (mean.requires_grad or may_hold(before > 0)):
        # C times the sum of S_n over the complete chunks
        older = chunk * before[:, None, None] * mean
    tokens = Tokens(q_quad, keys[0], q_lin, keys[1], keys[2])
    bias = None if bias is None else bias.to(dtype)
    if past + length <= _FEW * chunk:
        o, total = _few(tokens, bias, older, chunk, times, aligned), None
    else:
        starts = None if aligned else (times.episode, times.begin)
        o, total = over_blocks(tokens, bias, older, chunk, starts)
    if spoiled is not None:
        o = cut_out(o, spoiled, math.nan)

    after = position[:, -1] + 1
    mean = _mean(tokens, total, mean, before, chunk, times, after)
    mean = mean.to(mean_dtype(given[-1].dtype) if state is None else state.mean.dtype)
    if lost_lin is not None or mean_lost is not None:
        lost = torch.zeros_like(after, dtype=torch.bool)
        begin = (past + length - torch.remainder(after, chunk))[:, None]
        if lost_lin is not None:
            lost = lost | _between(lost_lin, times.episode[:, -1:], begin)[:, 0]
        if mean_lost is not None:
            lost = lost | (mean_lost & (times.episode[:, -1] < past))
        if may_hold(lost):
            mean = torch.where(lost[:, None, None], math.nan, mean)
    key_quad, key_lin, value = (
        _unfinished(one, carried[n] if carried else None, chunk, after, aligned).to(
            one.dtype if state is None else state[n + 1].dtype
        )
        for n, one in enumerate(kept)
    )
    return o.to(given[-1].dtype), ChunkState(mean, key_quad, key_lin, value, after)


def _between(flags: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Whether a token at first <= time < end is marked in flags (B, M); first and end (B, L), end at most M."""
    return (end > 0) & (latest(flags).gather(1, (end - 1).clamp_min(0)) >= first.clamp_min(0))


def _few(tokens: Tokens, bias: Tensor | None, older: Tensor | None, chunk: int, times: _Times, aligned: bool) -> Tensor:
    """Each query attends to its chunk and to the chunks before, token by token, and to what is older than the keys."""
    length = tokens.v.shape[1] - times.past
    linear = times.past > 0 or length > chunk
    begin, episode = (None, None) if aligned else (times.begin, times.episode)
    if aligned:
        ends = [*range(chunk, length, chunk), length]
        parts = [
            Span(first + one.begin, first + one.end, first, first)
            for first, end in zip([0, *ends[:-1]], ends, strict=True)
            for one in spans(end - first, 0, chunk, linear=False)
        ]
    else:
        parts = spans(length, times.past, chunk, linear=linear)
    attention = Attention(tokens.q_quad, tokens.k_quad, tokens.v, bias, tokens.q_lin, tokens.k_lin)
    o = attend(attention, chunk, parts, begin, episode)
    if older is None:
        return o
    q_older = torch.where((times.episode < times.past)[..., None], tokens.q_lin, 0.0)
    return torch.baddbmm(o, q_older, older.to(o.dtype))


def _mean(
    tokens: Tokens,
    total: Tensor | None,
    mean: Tensor | None,
    before: Tensor,
    chunk: int,
    times: _Times,
    count: Tensor,
) -> Tensor:
    """(B, s, e) mean over the complete chunks after the last token, which is at position count (B,) - 1.

    It is float64, but for zeros. total is what ``over_blocks`` gives; mean is the carried one, over before (B,) chunks.
    """
    batch, keys, width = tokens.v.shape
    complete, episode = torch.div(count, chunk, rounding_mode="floor"), times.episode[:, -1:]
    carried = episode[:, 0] < times.past if mean is not None else torch.zeros_like(count, dtype=torch.bool)
    if keys < chunk or not may_hold(complete > torch.where(carried, before, 0)):
        if mean is None:
            return tokens.v.new_zeros(()).expand(batch, tokens.k_lin.shape[2], width)
        return torch.where(carried[:, None, None], mean, 0.0) if may_hold(~carried) else mean
    begin, complete = keys - torch.remainder(count, chunk)[:, None], complete.clamp_min(1)
    if total is not None:
        unfinished = (torch.arange(keys - chunk, keys, device=count.device) >= begin)[..., None]
        k_lin, v = (one.split([keys - chunk, chunk], dim=1)[1] for one in (tokens.k_lin, tokens.v))
        total = total - torch.where(unfinished, k_lin, 0.0).mT @ v
        return torch.where((count >= chunk)[:, None, None], total / (chunk * complete[:, None, None]), 0.0)
    index = torch.arange(keys, device=count.device)
    own = (index >= episode) & (index < begin)
    # the divisor goes to the smallest array
    weight = torch.where(own, 1.0 / (chunk * complete[:, None]).to(tokens.v.dtype), 0.0)
    added = ((tokens.k_lin * weight[..., None]).mT @ tokens.v).to(torch.float64)
    if mean is None:
        return added
    return added + torch.where(carried, before / complete.to(torch.float64), 0.0)[:, None, None] * mean


def _unfinished(new: Tensor, carried: Tensor | None, chunk: int, count: Tensor, aligned: bool) -> Tensor:
    """(B, C, ...) the tokens of the unfinished chunk in their slots, out of L new and C carried ones before them."""
    length = new.shape[1]
    if aligned:
        begun = length % chunk
        zeros = new.new_zeros(()).expand(new.shape[0], chunk - begun, new.shape[2])
        return torch.cat([new[:, length - begun :], zeros], dim=1)
    newest = new[:, -chunk:]
    if carried is not None and length < chunk:
        newest = torch.cat([carried.to(torch.promote_types(carried.dtype, new.dtype)), newest], dim=1)
    slot = torch.arange(chunk, device=count.device)
    filled = torch.remainder(count, chunk)[:, None]
    return chosen(newest, newest.shape[1] - filled + slot, slot < filled)
