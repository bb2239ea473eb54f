"""``chunk_attention`` over blocks of C tokens: linear in the length, torch operations and ``linear_scan``, any device.

Blocks lie fixed in time while a chunk begins anywhere, so the chunk that a token is in began in the token's block or
in the one before. Each block therefore attends to these two under masks, and to everything older through one sum.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels._attention import broken, cut_out, distance_bias, latest, positions, squared_relu
from rlseq.kernels.chunk_attention._state import ChunkState, carried_sums, marked
from rlseq.kernels.linear_scan import linear_scan

_PIECE = 1 << 21
"""Values (rows x tokens x e) that are worked on at a time on a CPU: more falls out of its caches, and what is freed in
large blocks comes back as new pages every time."""


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs wherever torch does."""
    return None


class _Tokens(NamedTuple):
    """Finite tokens in the dtype of the arithmetic, in N blocks of n, padded with zeros: (B, N, n, s or e)."""

    q_quad: Tensor
    """Divided by C."""
    k_quad: Tensor
    q_lin: Tensor
    """Divided by the number of earlier chunks; zero where there is none."""
    k_lin: Tensor
    """Divided by C."""
    v: Tensor


class _Past(NamedTuple):
    """A carried state, finite, and what is lost of it."""

    older: Tensor
    """(B, s, e) float64, the sum of S_n over the complete chunks."""
    mean: Tensor
    current: Tensor
    key: Tensor
    """(B, C, s), and value (B, C, e): not cut out yet, in the order of time, the newest last."""
    value: Tensor
    mean_lost: Tensor
    current_lost: Tensor
    buffer_lost: Tensor


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
    tokens, aligned = (q_quad, k_quad, q_lin, k_lin, v), state is None and reset is None
    if state is None:
        sizes = (v.shape[0], chunk, k_quad.shape[2], v.shape[2])
        state = ChunkState.zeros(*sizes, device=v.device, dtype=v.dtype)
    if v.device.type != "cpu" or torch.compiler.is_compiling():
        return _piece(tokens, chunk, bias, state, reset, aligned)
    return _in_pieces(tokens, chunk, bias, state, reset, aligned)


def _in_pieces(
    tokens: tuple[Tensor, ...],
    chunk: int,
    bias: Tensor | None,
    state: ChunkState,
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
        carried = zip(*[one.split(rows) for one in state], strict=True)
        for part, part_state, part_reset in zip(parts, carried, resets, strict=False):
            o, last = _in_pieces(part, chunk, bias, ChunkState(*part_state), part_reset, aligned)
            outputs.append(o)
            states.append(last)
        return torch.cat(outputs), ChunkState(*[torch.cat(one) for one in zip(*states, strict=True)])
    if span < length:
        resets = itertools.repeat(None) if reset is None else reset.split(span, dim=1)
        parts = zip(*[one.split(span, dim=1) for one in tokens], strict=True)
        # between pieces the tokens keep all their bits
        key, value, dtype = state.key, state.value, tokens[-1].dtype
        finest = torch.promote_types(dtype, key.dtype), torch.promote_types(dtype, value.dtype)
        state = state._replace(key=key.to(finest[0]), value=value.to(finest[1]))
        for part, part_reset in zip(parts, resets, strict=False):
            o, state = _piece(part, chunk, bias, state, part_reset, aligned)
            outputs.append(o)
        state = state._replace(key=state.key.to(key.dtype), value=state.value.to(value.dtype))
        return torch.cat(outputs, dim=1), state
    return _piece(tokens, chunk, bias, state, reset, aligned)


def _piece(
    given: tuple[Tensor, ...],
    chunk: int,
    bias: Tensor | None,
    state: ChunkState,
    reset: Tensor | None,
    aligned: bool,
) -> tuple[Tensor, ChunkState]:
    """The op on some rows and a span of time; aligned says that each row begins a chunk, and no reset comes."""
    q_quad, k_quad, q_lin, k_lin, v = given
    length, dtype = v.shape[1], compute_dtype(v)
    past = _past(state, chunk)
    block = min(chunk, length)
    blocks = -(-length // block)
    padding = blocks * block - length

    index = torch.arange(blocks * block, device=v.device)
    if reset is not None:
        reset = functional.pad(reset, (0, padding))
    position = positions(state.count, reset, len(index))
    # time of the first token of each token's episode and chunk; before 0 where it is carried
    episode, begin = index - position, index - torch.remainder(position, chunk)
    earlier = torch.div(position[:, :length, None], chunk, rounding_mode="floor").to(dtype)
    scale = torch.where(earlier > 0, 1.0 / earlier, 0.0)

    def in_blocks(one: Tensor) -> Tensor:
        padded = functional.pad(one, (0, 0, 0, padding)) if padding else one
        return padded.unflatten(1, (blocks, block))

    lost_query, lost_key, lost_lin, lost_value = broken(q_quad, q_lin), broken(k_quad), broken(k_lin), broken(v)
    tokens = _Tokens(
        in_blocks(cut_out(q_quad.to(dtype), lost_query) / chunk),
        in_blocks(cut_out(k_quad.to(dtype), lost_key)),
        in_blocks(cut_out(q_lin.to(dtype), lost_query) * scale),
        in_blocks(cut_out(k_lin.to(dtype), lost_lin) / chunk),
        in_blocks(cut_out(v.to(dtype), lost_value)),
    )
    if aligned:
        o, total = _aligned(tokens, bias, past)
    else:
        starts = (episode.unflatten(1, (blocks, block)), begin.unflatten(1, (blocks, block)))
        o, total = _masked(tokens, bias, past, *starts)

    lost_key, lost_lin = lost_key | lost_value, lost_lin | lost_value
    sees = lost_query | _sees_lost(lost_key, lost_lin, past, episode[:, :length], begin[:, :length])
    o = cut_out(o.flatten(1, 2)[:, :length], sees, math.nan).to(v.dtype)
    return o, _final(k_quad, v, tokens, total, past, state, lost_lin, position[:, length - 1] + 1)


def _past(state: ChunkState, chunk: int) -> _Past:
    mean, mean_lost, current, current_lost = carried_sums(state, chunk)
    older = torch.div(state.count, chunk, rounding_mode="floor")[:, None, None] * mean
    # slot of each of the C times before 0; empty slots are zero, so it does not matter which of them comes where
    slot = torch.remainder(state.count[:, None] + torch.arange(chunk, device=mean.device), chunk)
    key, value = (
        buffer.gather(1, slot[..., None].expand(-1, -1, buffer.shape[2])) for buffer in (state.key, state.value)
    )
    lost = broken(key, value)
    return _Past(older, mean, current, key, value, mean_lost, current_lost, lost)


def _attend(
    queries: _Tokens,
    keys: _Tokens,
    bias: Tensor | None,
    before: int,
    seen: Tensor,
    linear_seen: Tensor | None,
    past: Tensor,
) -> Tensor:
    """Attention (B, N, n, e) of each block of queries to m keys, added to past.

    Args:
        queries: tokens of which q_quad and q_lin are used.
        keys: tokens of which k_quad, k_lin and v are used, (B, N, m, s or e).
        bias: (C,) or None.
        before: how many tokens before a block its keys begin.
        seen: (B, N, n, m) or (n, m) bool, keys of the query's own chunk.
        linear_seen: the same for keys of an earlier chunk; None means that there are none.
        past: (B, N, n, e).
    """
    batch, blocks, block, _ = queries.q_quad.shape
    q, k, v = queries.q_quad.flatten(0, 1), keys.k_quad.flatten(0, 1), keys.v.flatten(0, 1)
    if bias is None:
        scores = torch.bmm(q, k.mT)
    else:
        row = torch.arange(before, before + block, device=q.device)[:, None]
        distance = row - torch.arange(k.shape[1], device=q.device)
        scores = torch.baddbmm(distance_bias(bias.to(q.dtype), distance), q, k.mT)
    if linear_seen is None:
        weights = squared_relu(scores, seen)
    else:
        linear = torch.bmm(queries.q_lin.flatten(0, 1), keys.k_lin.flatten(0, 1).mT)
        weights = squared_relu(scores, seen.flatten(0, 1), linear, linear_seen.flatten(0, 1))
    return torch.baddbmm(past.flatten(0, 1), weights, v).unflatten(0, (batch, blocks))


def _sums(tokens: _Tokens, alive: Tensor | None, first: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of k_lin v^T over the episode's tokens up to each block's end, (B, N, s, e), and the last one in float64.

    Args:
        tokens: the tokens.
        alive: (B, N, n) bool, tokens that belong to the episode at the end of their block; None means all.
        first: (B, s, e) float64, the sum before the first block.
        reset: (B, N) bool, blocks in which an episode begins; None means none.
    """
    batch, blocks, _, size = tokens.k_lin.shape
    width = tokens.v.shape[3]
    k_lin = tokens.k_lin if alive is None else torch.where(alive[..., None], tokens.k_lin, tokens.k_lin.new_zeros(()))
    own = torch.bmm(k_lin.flatten(0, 1).mT, tokens.v.flatten(0, 1)).view(batch, blocks, size * width)
    sums, last = linear_scan(own.new_ones(()).expand_as(own), own, first.flatten(1), reset)
    return sums.unflatten(2, (size, width)), last.unflatten(1, (size, width))


def _all_but(blocks: Tensor, count: int) -> Tensor:
    """Without the last count of (B, N, ...); by split, because the gradient of a slice fills the whole tensor first."""
    return blocks.split([blocks.shape[1] - count, count], dim=1)[0]


def _aligned(tokens: _Tokens, bias: Tensor | None, past: _Past) -> tuple[Tensor, Tensor]:
    """Every row begins a chunk at its first token: block = chunk."""
    block = tokens.v.shape[2]
    seen = torch.ones(block, block, dtype=torch.bool, device=tokens.v.device).tril()
    sums, total = _sums(tokens, None, past.older, None)
    parts = [tokens.q_lin[:, :1] @ past.older.to(tokens.v.dtype)[:, None], tokens.q_lin[:, 1:] @ _all_but(sums, 1)]
    return _attend(tokens, tokens, bias, 0, seen, None, torch.cat(parts, dim=1)), total


def _masked(tokens: _Tokens, bias: Tensor | None, past: _Past, episode: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
    """Every block attends to the one before and itself; episode and begin (B, N, n) are times of first tokens."""
    device, dtype = tokens.v.device, tokens.v.dtype
    blocks, block = tokens.v.shape[1:3]
    chunk = past.key.shape[1]
    base = torch.arange(blocks, device=device)[:, None] * block
    last_episode = episode[:, :, -1]
    alive = last_episode[..., None] <= base + torch.arange(block, device=device)
    sums, total = _sums(tokens, alive, past.older + past.current, last_episode >= base[:, 0])

    def previous(before: Tensor, own: Tensor) -> Tensor:
        before = before.to(dtype)[:, None]
        return before if blocks == 1 else torch.cat([before, _all_but(own, 1)], dim=1)

    # what lies before the first block has no k_lin: it is in the carried sums
    keys = tokens._replace(
        k_quad=previous(cut_out(past.key, past.buffer_lost), tokens.k_quad),
        k_lin=previous(torch.zeros_like(past.key), tokens.k_lin),
        v=previous(cut_out(past.value, past.buffer_lost), tokens.v),
    )

    def masks(first: int, size: int) -> tuple[Tensor, Tensor]:
        column = torch.arange(first, first + size, device=device)
        early = column < (begin - base)[..., None]
        causal = column <= torch.arange(block, device=device)[:, None]
        return ~early & causal, early & (column >= (episode - base)[..., None])

    # the sum before the previous block
    q_past = torch.where((episode < (base - chunk).clamp_min(0))[..., None], tokens.q_lin, 0.0)
    q_first = torch.where((begin[:, 0] >= 0)[..., None], q_past[:, 0], 0.0)
    parts = [(q_past[:, 0] @ past.older.to(dtype) + q_first @ past.current.to(dtype))[:, None]]
    if blocks > 1:
        parts.append((q_past[:, 1] @ (past.older + past.current).to(dtype))[:, None])
    if blocks > 2:
        parts.append(q_past[:, 2:] @ _all_but(sums, 2))
    # two products, because one over [previous, own] would copy every token twice
    o = _attend(tokens, keys, bias, chunk, *masks(-chunk, chunk), torch.cat(parts, dim=1))
    return _attend(tokens, tokens, bias, 0, *masks(0, block), o), total


def _between(flags: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Whether a token at first <= time < end is marked in flags (B, L); first and end (B, M), end at most L."""
    return (end > 0) & (latest(flags).gather(1, (end - 1).clamp_min(0)) >= first)


def _sees_lost(lost_key: Tensor, lost_lin: Tensor, past: _Past, episode: Tensor, begin: Tensor) -> Tensor:
    """Whether each query (B, L) sees a token that is not finite."""
    chunk = past.key.shape[1]
    own_chunk = latest(torch.cat([past.buffer_lost, lost_key], dim=1), -chunk)[:, chunk:] >= begin
    carried = past.mean_lost[:, None] | (past.current_lost[:, None] & (begin >= 0))
    return own_chunk | _between(lost_lin, episode, begin) | (carried & (episode < 0))


def _final(
    k_quad: Tensor,
    v: Tensor,
    tokens: _Tokens,
    total: Tensor,
    past: _Past,
    state: ChunkState,
    lost_lin: Tensor,
    count: Tensor,
) -> ChunkState:
    """The state after the last token; total (B, s, e) is the sum over its episode, count (B,) its position."""
    length, chunk = v.shape[1], past.key.shape[1]
    filled = torch.remainder(count, chunk)[:, None]
    begin = length - filled
    slot = torch.arange(chunk, device=v.device)
    # into [buffer in its slots, newest tokens]
    newest = min(chunk, length)
    time = begin + slot
    source = torch.where(time >= 0, chunk + time - (length - newest), slot).clamp_max(chunk + newest - 1)

    def gathered(before: Tensor, new: Tensor) -> Tensor:
        both = torch.cat([before, new[:, -newest:].to(before.dtype)], dim=1)
        chosen = both.gather(1, source[..., None].expand(-1, -1, both.shape[2]))
        return torch.where((slot < filled)[..., None], chosen, 0.0)

    def own(new: Tensor) -> Tensor:
        new = new.flatten(1, 2)[:, :length].to(torch.float64)
        return gathered(new.new_zeros(len(new), chunk, new.shape[2]), new)

    carried, alone = begin < 0, (length - count)[:, None] < 0
    current = own(tokens.k_lin).mT @ own(tokens.v) + torch.where(carried[..., None], past.current, 0.0)
    complete = torch.div(count, chunk, rounding_mode="floor")[:, None, None]
    mean = torch.where(complete > 0, (total - current) / complete.clamp_min(1), 0.0)
    mean = torch.where(carried[..., None], past.mean, mean)

    end = torch.full_like(begin, length)
    current_lost = _between(lost_lin, begin, end) | (carried & past.current_lost[:, None])
    mean_lost = _between(lost_lin, length - count[:, None], begin)
    mean_lost = mean_lost | (alone & (past.mean_lost[:, None] | (past.current_lost[:, None] & ~carried)))
    return ChunkState(
        marked(mean, mean_lost[:, 0]),
        marked(current, current_lost[:, 0]),
        gathered(state.key, k_quad),
        gathered(state.value, v),
        count,
    )
