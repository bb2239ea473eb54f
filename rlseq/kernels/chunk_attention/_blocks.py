"""Many tokens of ``chunk_attention`` in blocks of C.

Where every chunk is a block, a block attends to itself, and to everything older through one sum. Where chunks begin
anywhere, tokens are moved apart until that holds, at the price of empty places before each episode. Where that
takes too many of them, or a size would depend on values that a graph does not know, blocks lie fixed in time: the chunk
that a token is in began in its block or in the one before, and each block attends to these two under masks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlseq.kernels._attention import can_look, distance_bias, squared_relu
from rlseq.kernels.linear_scan import linear_scan

_MOST_EMPTY = 0.25
"""Empty places to a token above which masks are cheaper."""


class Tokens(NamedTuple):
    """Finite tokens in the dtype of the arithmetic: (B, L, s or e), or in N blocks of n (B, N, n, s or e)."""

    q_quad: Tensor
    k_quad: Tensor
    q_lin: Tensor
    """Divided by C times the number of earlier chunks; zero where there is none."""
    k_lin: Tensor
    v: Tensor


def over_blocks(
    tokens: Tokens, bias: Tensor | None, older: Tensor | None, chunk: int, starts: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Attention of L > 3 C queries.

    Args:
        tokens: the tokens; there may be C more keys than queries, before all: of one episode in each row.
        bias: (C,) or None.
        older: (B, s, e) float64, C times the sum over the complete chunks before the keys; None means zeros.
        chunk: C.
        starts: (B, L) times of the first token of each query's episode and chunk, counted from the first key; None if
            each row begins a chunk, and no episode begins later.

    Returns:
        o: (B, L, e); total: (B, s, e) float64, C times the sum over the tokens of the last one's episode.
    """
    length = tokens.q_lin.shape[1]
    padding = -length % chunk

    def in_blocks(one: Tensor) -> Tensor:
        padded = functional.pad(one, (0, 0, 0, padding)) if padding else one
        return padded.unflatten(1, (-1, chunk))

    tokens = tokens._replace(q_quad=tokens.q_quad / chunk)
    if starts is not None and can_look(tokens.v) and tokens.v.shape[0]:
        layout = _layout(*starts, tokens.v.shape[1] - length, chunk)
        if layout.places <= (1 + _MOST_EMPTY) * tokens.v.shape[1]:
            return _moved(tokens, bias, older, chunk, layout)
    blocks = Tokens(*map(in_blocks, tokens))
    if starts is None:
        o, total = _aligned(blocks, bias, older)
    else:
        # padding belongs to the last token's episode and chunk
        episode, begin = (
            torch.cat([one, one[:, -1:].expand(-1, padding)], dim=1).unflatten(1, (-1, chunk)) for one in starts
        )
        o, total = _masked(blocks, bias, older, chunk, episode, begin)
    return o.flatten(1, 2)[:, :length], total


def _attend(
    queries: Tokens,
    keys: Tokens,
    bias: Tensor | None,
    before: int,
    seen: Tensor,
    linear_seen: Tensor | None,
    past: Tensor | None,
) -> Tensor:
    """Attention (B, N, n, e) of each block of queries to m keys, added to past where there is one.

    Args:
        queries: tokens of which q_quad and q_lin are used.
        keys: tokens of which k_quad, k_lin and v are used, (B, N, m, s or e).
        bias: (C,) or None.
        before: how many tokens before a block its keys begin.
        seen: (B, N, n, m) or (n, m) bool, keys of the query's own chunk.
        linear_seen: the same for keys of an earlier chunk; None means that there are none.
        past: (B, N, n, e) or None.
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
    o = torch.bmm(weights, v) if past is None else torch.baddbmm(past.flatten(0, 1), weights, v)
    return o.unflatten(0, (batch, blocks))


def _sums(tokens: Tokens, alive: Tensor | None, first: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of k_lin v^T over the episode's tokens up to each block's end, (B, N, s, e), and the last one in float64.

    Args:
        tokens: the tokens.
        alive: (B, N, n) bool, tokens that belong to the episode at the end of their block; None means all.
        first: (B, s, e) float64, the sum before the first block; None means zeros.
        reset: (B, N) bool, blocks in which an episode begins; None means none.
    """
    batch, blocks, _, size = tokens.k_lin.shape
    width = tokens.v.shape[3]
    k_lin = tokens.k_lin if alive is None else torch.where(alive[..., None], tokens.k_lin, tokens.k_lin.new_zeros(()))
    own = torch.bmm(k_lin.flatten(0, 1).mT, tokens.v.flatten(0, 1)).view(batch, blocks, size * width)
    first = None if first is None else first.flatten(1)
    sums, last = linear_scan(own.new_ones(()).expand_as(own), own, first, reset)
    return sums.unflatten(2, (size, width)), last.unflatten(1, (size, width))


def _all_but(blocks: Tensor, count: int) -> Tensor:
    """Without the last count of (B, N, ...); by split, because the gradient of a slice fills the whole tensor first."""
    return blocks.split([blocks.shape[1] - count, count], dim=1)[0]


def _all_but_first(blocks: Tensor, count: int) -> Tensor:
    """Without the first count of (B, N, ...)."""
    return blocks.split([count, blocks.shape[1] - count], dim=1)[1] if count else blocks


class _Layout(NamedTuple):
    """Where tokens go so that a chunk is a block."""

    place: Tensor
    """(B, M) place of each key in its row; the last L are those of the queries."""
    places: int
    """Of a row, a multiple of C."""
    reset: Tensor
    """(B, places / C) bool, blocks at which an episode begins."""


def _layout(episode: Tensor, begin: Tensor, carried: int, chunk: int) -> _Layout:
    """Places for the queries whose ``starts`` are given, and for the keys carried before them: C of them, or none."""
    batch, length = episode.shape
    time = torch.arange(carried, carried + length, device=episode.device)
    fresh, position = episode == time, time - begin
    # an episode leaves the rest of the block empty in which the one before it ends
    gap = torch.where(fresh[:, 1:], torch.remainder(-1 - position[:, :-1], chunk), 0).cumsum(1)
    place = time + position[:, :1] + functional.pad(gap, (1, 0))
    blocks = int(place[:, -1].max()) // chunk + 1
    reset = torch.zeros(batch, blocks, dtype=torch.bool, device=episode.device)
    row, column = fresh.nonzero(as_tuple=True)
    reset[row, place[row, column] // chunk] = True
    # the keys of an unfinished chunk are the newest that are carried, those before them are zeros
    before = torch.arange(carried, device=episode.device) + position[:, :1]
    return _Layout(torch.cat([before, place], dim=1), blocks * chunk, reset)


class _Spread(torch.autograd.Function):
    """Tokens (n, ...) at index (n,) of count places, zeros elsewhere: no two of them at one place."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(index)
        return tokens.new_zeros(count, *tokens.shape[1:]).index_copy_(0, index, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


class _Collect(torch.autograd.Function):
    """The inverse of ``_Spread``; index_select would add up its gradient, which no two tokens share."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = places.shape[0]
        return places.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, *gradient.shape[1:]).index_copy_(0, index, gradient), None


def _moved(
    tokens: Tokens, bias: Tensor | None, older: Tensor | None, chunk: int, layout: _Layout
) -> tuple[Tensor, Tensor]:
    """``over_blocks`` by way of ``_aligned``."""
    batch, length = tokens.q_lin.shape[:2]
    index = layout.place + torch.arange(batch, device=tokens.v.device)[:, None] * layout.places
    flat = {length: index[:, -length:].flatten(), tokens.v.shape[1]: index.flatten()}

    def in_blocks(one: Tensor) -> Tensor:
        spread: Tensor = _Spread.apply(one.flatten(0, 1), flat[one.shape[1]], batch * layout.places)
        return spread.view(batch, -1, chunk, one.shape[2])

    o, total = _aligned(Tokens(*map(in_blocks, tokens)), bias, older, layout.reset)
    collected: Tensor = _Collect.apply(o.flatten(0, 2), flat[length])
    return collected.unflatten(0, (batch, length)), total


def _aligned(
    tokens: Tokens, bias: Tensor | None, older: Tensor | None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Every chunk is a block; (B, N) reset marks those that begin an episode."""
    blocks, block = tokens.v.shape[1:3]
    seen = torch.ones(block, block, dtype=torch.bool, device=tokens.v.device).tril()
    sums, total = _sums(tokens, None, older, reset)
    q_first, q_rest = tokens.q_lin.split([1, blocks - 1], dim=1)
    if older is None:
        first = torch.zeros_like(tokens.v[:, :1])
    else:
        first = q_first @ older.to(tokens.v.dtype)[:, None]
    past = torch.cat([first, q_rest @ _all_but(sums, 1)], dim=1)
    return _attend(tokens, tokens, bias, 0, seen, None, past), total


def _masked(
    tokens: Tokens, bias: Tensor | None, older: Tensor | None, chunk: int, episode: Tensor, begin: Tensor
) -> tuple[Tensor, Tensor]:
    """Every block of queries attends to the one before and itself; the keys may have one block more, before all.

    episode and begin (B, N, C) are times of first tokens, counted from the first key.
    """
    device, blocks = tokens.v.device, tokens.q_quad.shape[1]
    carried = tokens.v.shape[1] - blocks
    base = torch.arange(carried, carried + blocks, device=device)[:, None] * chunk
    own = torch.arange(chunk, device=device)
    # of the blocks of keys: the first token of the episode at the end; a carried block is of one episode
    last_episode = functional.pad(episode[:, :, -1], (carried, 0), value=-1)
    key_base = torch.arange(carried + blocks, device=device)[:, None] * chunk
    sums, total = _sums(tokens, last_episode[..., None] <= key_base + own, older, last_episode >= key_base[:, 0])

    # the sum before the previous block
    q_past = torch.where((episode < (base - chunk).clamp_min(carried * chunk))[..., None], tokens.q_lin, 0.0)
    q_first, q_rest = q_past.split([2 - carried, blocks - 2 + carried], dim=1)
    if older is None:
        first = torch.zeros_like(tokens.v[:, : 2 - carried])
    else:
        first = q_first @ older.to(tokens.v.dtype)[:, None]
    past = torch.cat([first, q_rest @ _all_but(sums, 2)], dim=1)

    def attend_to(keys: Tokens, queries: Tokens, before: int, rows: slice, o: Tensor) -> Tensor:
        column = torch.arange(-before, chunk - before, device=device)
        early = column < (begin - base)[:, rows, :, None]
        seen, linear_seen = ~early & (column <= own[:, None]), early & (column >= (episode - base)[:, rows, :, None])
        return _attend(queries, keys, bias, before, seen, linear_seen, o)

    # two products, because one over [previous, own] would copy every token twice
    o = attend_to(Tokens(*[_all_but_first(one, carried) for one in tokens]), tokens, 0, slice(None), past)
    previous = Tokens(*[_all_but(one, 1) for one in tokens])
    if carried:
        return attend_to(previous, tokens, chunk, slice(None), o), total
    first, rest = o.split([1, blocks - 1], dim=1)
    queries = Tokens(*[_all_but_first(one, 1) for one in tokens])
    return torch.cat([first, attend_to(previous, queries, chunk, slice(1, None), rest)], dim=1), total
