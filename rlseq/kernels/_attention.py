"""What the attention ops share: positions since the last reset, tokens that are not finite, relu^2 under a mask.

Time is counted in tokens of the call: new tokens are at 0 .. L - 1, carried ones before 0. A token that is not finite
is cut out before any product, because a weight of 0 does not silence it (0 x inf is NaN); who sees it is then told by
comparing times.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

NEVER = torch.iinfo(torch.int64).min
"""A time before all others."""


def positions(count: Tensor, reset: Tensor | None, length: int) -> Tensor:
    """Tokens since the last reset before each new token, (B, L) int64, of rows that begin at position count (B,)."""
    index = torch.arange(length, device=count.device)
    if reset is None:
        return count[:, None] + index
    started = latest(reset)
    return torch.where(started >= 0, index - started, count[:, None] + index)


def can_look(tensor: Tensor) -> bool:
    """Whether to read a value takes no waiting and breaks no graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def may_hold(flags: Tensor) -> bool:
    """False if no flag is set; True if one is, or if it is not known yet."""
    return not can_look(flags) or bool(flags.any())


def surely_finite(*tensors: Tensor) -> bool:
    """True if no entry of the tensors is NaN or infinite; False if one is, or if it is not known yet."""
    # one pass; a sum of finite numbers that overflows is no harm
    return can_look(tensors[0]) and all(math.isfinite(one.detach().sum()) for one in tensors)


def later_resets(reset: Tensor | None) -> Tensor | None:
    """The resets of rows without a past, for which one at the first token is none; None if that leaves none."""
    return reset if reset is not None and may_hold(reset[:, 1:]) else None


def broken(*tensors: Tensor) -> Tensor:
    """Whether a token has an entry that is NaN or infinite in one of the (B, L, ...) tensors: (B, L) bool."""
    # the largest of NaN and a number is NaN
    largest = [one.detach().flatten(2).abs().amax(-1) for one in tensors]
    return ~(functools.reduce(torch.maximum, largest) < math.inf)


def cut_out(tokens: Tensor, flags: Tensor, value: float = 0.0) -> Tensor:
    """(B, L, ...) tokens with value in place of those that flags (B, L) marks; they get no gradient."""
    flags = flags.reshape(*flags.shape, *[1] * (tokens.dim() - 2))
    # a tensor, because a number takes a slower path
    return torch.where(flags, tokens.new_full((), value), tokens)


def latest(flags: Tensor, first: int = 0) -> Tensor:
    """Time of the last marked token up to each one, NEVER if there is none; flags (B, L) begin at time ``first``."""
    index = torch.arange(first, first + flags.shape[1], device=flags.device)
    marked = torch.where(flags, index, NEVER)
    if flags.shape[1] == 1:
        return marked
    if torch.compiler.is_exporting():  # ONNX has no running maximum
        before = torch.ones(len(index), len(index), dtype=torch.bool, device=flags.device).tril()
        return torch.where(before, marked.unsqueeze(1), NEVER).amax(-1)
    return marked.cummax(dim=1).values


def all_nan(tokens: Tensor) -> Tensor:
    """Tokens (..., s), each that has an entry that is not finite NaN as a whole: then a product with it is NaN."""
    return tokens + (tokens * 0.0).sum(-1, keepdim=True)


def rows_of(flags: Tensor) -> Tensor | None:
    """Indices (n,) of the rows that flags (B,) marks; None where no size may depend on values."""
    if can_look(flags) or (torch.compiler.is_exporting() and flags.device.type == "cpu"):
        return flags.nonzero().flatten()
    return None


def put(rings: Sequence[Tensor], slot: Tensor, tokens: Sequence[Tensor], fresh: Tensor | None) -> list[Tensor]:
    """Rings (B, W, ...) with a token (B, ...) in a slot (B,) each, out of place; (B,) rows that are fresh are emptied.

    A fresh row's slot is 0. It is one scatter a ring: what a row costs does not depend on W unless it is fresh.
    """
    tokens = [token.to(ring.dtype) for ring, token in zip(rings, tokens, strict=True)]
    index = torch.arange(slot.shape[0], device=slot.device)
    if fresh is not None and may_hold(fresh):
        rows, window = rows_of(fresh), rings[0].shape[1]
        if rows is None:
            rings = [cut_out(ring, fresh[:, None].expand(-1, window)) for ring in rings]
        else:
            rest = torch.arange(1, window, device=slot.device).expand(rows.shape[0], -1)
            index = torch.cat([index, rows[:, None].expand_as(rest).flatten()])
            slot = torch.cat([slot, rest.flatten()])
            tokens = [
                torch.cat([token, token.new_zeros(()).expand(rest.numel(), *token.shape[1:])]) for token in tokens
            ]
    return [ring.index_put((index, slot), token) for ring, token in zip(rings, tokens, strict=True)]


def by_head(ring: Tensor) -> Tensor:
    """(B, W, H, E) -> (B, H, W, E); with one head it is a view that every engine knows to be one."""
    return ring.squeeze(2).unsqueeze(1) if ring.shape[2] == 1 else ring.transpose(1, 2)


def chosen(tokens: Tensor, index: Tensor, filled: Tensor | None = None) -> Tensor:
    """Copy tokens (B, M, ...) at index (B, C), zeros where filled (B, C) is False; whole ones, as gather does not."""
    batch, length = tokens.shape[:2]
    index = index + torch.arange(batch, device=index.device)[:, None] * length
    flat = tokens.flatten(0, 1)
    if filled is not None:
        # a token of zeros after the last
        flat = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
        index = torch.where(filled, index, batch * length)
    return flat.index_select(0, index.flatten()).unflatten(0, index.shape)


def distance_bias(bias: Tensor, distance: Tensor) -> Tensor:
    """The entry of bias (W,) at each distance, any entry outside 0 .. W - 1; shape of distance."""
    # index_select, because the gradient of an advanced index is slow
    return bias.index_select(0, distance.clamp(0, bias.shape[0] - 1).flatten()).view_as(distance)


class _SquaredRelu(torch.autograd.Function):
    """relu(scores)^2 where seen, plus linear where linear_seen, with few passes over memory."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, seen: Tensor, linear: Tensor | None, linear_seen: Tensor | None) -> Tensor:
        zero = scores.new_zeros(())
        root = torch.where(seen, scores, zero).relu_()
        ctx.save_for_backward(root, linear_seen)
        if linear is None or linear_seen is None:
            return root * root
        return torch.where(linear_seen, linear, zero).addcmul_(root, root)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        root, linear_seen = ctx.saved_tensors
        linear = None if linear_seen is None else torch.where(linear_seen, gradient, gradient.new_zeros(()))
        return (gradient * root).mul_(2.0), None, linear, None


def squared_relu(
    scores: Tensor, seen: Tensor, linear: Tensor | None = None, linear_seen: Tensor | None = None
) -> Tensor:
    """relu(scores)^2 where seen, plus linear where linear_seen, else 0; differentiable once in scores and linear."""
    function: Callable[..., Tensor] = _SquaredRelu.apply
    return function(scores, seen, linear, linear_seen)


class Span(NamedTuple):
    """Queries that are worked on together, and the keys that one of them may see."""

    begin: int
    """First query, counted from the first new token."""
    end: int
    first: int
    """First key with a weight of relu^2, counted from the first key; the last one is the query's own token."""
    linear: int
    """End of the keys with a linear weight, which begin at 0."""


def spans(length: int, past: int, reach: int, linear: bool) -> list[Span]:
    """Spans of about 50 of ``length`` queries after ``past`` more keys, with relu^2 weights on ``reach`` keys each.

    Fewer would leave more keys on the wrong side of the diagonal, more would make the products too small.
    """
    count = max(1, length // 64)
    ends = [length * (n + 1) // count for n in range(count)]
    return [
        Span(begin, end, max(0, past + begin - reach + 1), past + end - 1 if linear else 0)
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


class Attention(NamedTuple):
    """The tokens that ``attend`` takes, finite, of one dtype, float32 or float64."""

    q: Tensor
    """(B, L, s) queries of the relu^2 weights."""
    k: Tensor
    """(B, M, s) their keys; the last L are the queries' own tokens."""
    v: Tensor
    """(B, M, e) values."""
    bias: Tensor | None
    """(W,) by distance."""
    q_lin: Tensor | None
    """(B, L, s) queries of the linear weights."""
    k_lin: Tensor | None
    """(B, M, s) their keys."""


def attend(
    tokens: Attention, divisor: int, parts: Sequence[Span], begin: Tensor | None, episode: Tensor | None
) -> Tensor:
    """o_t = sum_j w_tj v_j, (B, L, e), span by span; differentiable once.

    w_tj = relu(q_t k_j / divisor + bias[t-j])^2 for the keys from begin_t up to t's own, q_lin_t k_lin_j for those from
    episode_t up to begin_t. Indices are counted from the first key.

    Args:
        tokens: see there.
        divisor: of the scores under relu^2.
        parts: cover all queries, in order.
        begin: (B, L) int64; None means the first key of the span, for both weights.
        episode: (B, L) int64, at most begin; not read where there are no linear weights.
    """
    function: Callable[..., Tensor] = _Attend.apply
    return function(*tokens, divisor, parts, begin, episode)


class _Attend(torch.autograd.Function):
    """By hand, because the gradients of slices are tensors of the whole size."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        tokens, (divisor, parts, begin, episode) = Attention(*given[:6]), given[6:]
        outputs, kept = [], []
        with torch.autocast(tokens.v.device.type, enabled=False):
            for span in parts:
                root, linear, seen = _weights(tokens, divisor, span, begin, episode)
                last = tokens.k.shape[1] - tokens.q.shape[1] + span.end
                weights, first = _joined(root, linear, span)
                outputs.append(torch.bmm(weights, tokens.v[:, first:last]))
                kept += [root, None if linear is None else weights, seen]
        ctx.save_for_backward(*tokens, *kept)
        ctx.rest = divisor, parts
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # once, because a checkpoint computes them again each time
        saved = ctx.saved_tensors
        tokens: Any = Attention(*saved[:6])
        kept = saved[6:]
        divisor, parts = ctx.rest
        past = tokens.k.shape[1] - tokens.q.shape[1]
        d_q, d_k, d_v = torch.empty_like(tokens.q), None, None
        d_bias, d_q_lin, d_k_lin = (None if one is None else torch.zeros_like(one) for one in tokens[3:])
        # the last span first: it sees all keys, or most
        for n, span in reversed(list(enumerate(parts))):
            root, weights, seen = kept[3 * n : 3 * n + 3]
            own, last = slice(span.begin, span.end), past + span.end
            first = span.first if weights is None else 0
            do, v = gradient[:, own], tokens.v[:, first:last]
            d_weights = torch.bmm(do, v.mT)
            d_v = _product_added(d_v, tokens.v, first, (root * root if weights is None else weights).mT, do)
            if weights is not None and d_q_lin is not None and d_k_lin is not None:
                d_linear = d_weights[..., : span.linear]
                d_linear = d_linear if seen is None else torch.where(seen, d_linear, d_linear.new_zeros(()))
                d_q_lin[:, own] = torch.bmm(d_linear, tokens.k_lin[:, : span.linear])
                d_k_lin[:, : span.linear].baddbmm_(d_linear.mT, tokens.q_lin[:, own])
            d_scores = (d_weights[..., span.first - first :] * root).mul_(2.0)
            if d_bias is not None:
                _add_by_distance(d_bias, d_scores.sum(0))
            d_scores.div_(divisor)
            d_q[:, own] = torch.bmm(d_scores, tokens.k[:, span.first : last])
            d_k = _product_added(d_k, tokens.k, span.first, d_scores.mT, tokens.q[:, own])
        return (d_q, d_k, d_v, d_bias, d_q_lin, d_k_lin, None, None, None, None)


def _product_added(total: Tensor | None, like: Tensor, first: int, a: Tensor, b: Tensor) -> Tensor:
    """The total (B, M, ...) of the shape of ``like``, zeros if None, plus a b from the row ``first`` on."""
    if total is None and a.shape[1] == like.shape[1]:
        return torch.bmm(a, b)
    total = torch.zeros_like(like) if total is None else total
    total[:, first : first + a.shape[1]].baddbmm_(a, b)
    return total


def _weights(
    tokens: Attention, divisor: int, span: Span, begin: Tensor | None, episode: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Roots of the relu^2 weights, the linear weights, and where those are seen, None meaning everywhere."""
    past, own = tokens.k.shape[1] - tokens.q.shape[1], slice(span.begin, span.end)
    last, zero, device = past + span.end, tokens.q.new_zeros(()), tokens.q.device
    column = torch.arange(span.first, last, device=device)
    seen = column <= torch.arange(past + span.begin, last, device=device)[:, None]
    if begin is not None:
        seen = seen & (column >= begin[:, own, None])
    q, k = tokens.q[:, own], tokens.k[:, span.first : last].mT
    if tokens.bias is None:
        scores = torch.bmm(q, k).div_(divisor)
    else:
        bias = _by_distance(tokens.bias, *seen.shape[-2:])
        scores = torch.baddbmm(bias, q, k, alpha=1.0 / divisor)
    root = torch.where(seen, scores, zero).relu_()
    if tokens.q_lin is None or tokens.k_lin is None or span.linear == 0:
        return root, None, None
    linear = torch.bmm(tokens.q_lin[:, own], tokens.k_lin[:, : span.linear].mT)
    if begin is None or episode is None:
        return root, linear, None
    column = torch.arange(span.linear, device=device)
    linear_seen = (column < begin[:, own, None]) & (column >= episode[:, own, None])
    return root, torch.where(linear_seen, linear, zero), linear_seen


def _joined(root: Tensor, linear: Tensor | None, span: Span) -> tuple[Tensor, int]:
    """All weights of a span, and the first key that they are for."""
    if linear is None:
        return root * root, span.first
    if span.first == span.linear:
        return torch.cat([linear, root * root], dim=-1), 0
    weights = functional.pad(linear, (0, span.first + root.shape[-1] - span.linear))
    weights[..., span.first :].addcmul_(root, root)
    return weights, 0


def _by_distance(bias: Tensor, rows: int, columns: int) -> Tensor:
    """The bias (W,) at the distance columns - rows + row - column, zero outside 0 .. W - 1; (rows, columns)."""
    kept = bias[:columns]
    # in a matrix one column wider than its diagonals are apart, a row begins one later in the flat memory
    line = functional.pad(kept, (rows, columns - kept.shape[0])).flip(0)
    flat = line.expand(rows, -1).reshape(-1)[rows - 1 : rows * (rows + columns) - 1]
    return flat.view(rows, rows + columns - 1)[:, :columns]


def _add_by_distance(total: Tensor, matrix: Tensor) -> None:
    """Adds to total (W,) the sums of the matrix's diagonals: the gradient of ``_by_distance``."""
    rows, columns = matrix.shape
    flat = functional.pad(matrix.flip(1), (0, rows)).flatten()[: rows * (rows + columns - 1)]
    end = min(columns, total.shape[0])
    total[:end] += flat.view(rows, rows + columns - 1).sum(0)[rows - 1 : rows - 1 + end]
