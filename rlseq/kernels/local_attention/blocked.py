"""``local_attention`` as scaled_dot_product_attention over blocks of W tokens: linear in the length, any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels.local_attention._ring import AttentionState, past_positions, positions, roll_on


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs wherever torch does."""
    return None


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: AttentionState | None, reset: Tensor | None, dropout: float
) -> tuple[Tensor, AttentionState]:
    """As ``rlseq.kernels.local_attention``, arguments already checked."""
    if q.shape[1] == 1 and state is not None:
        return _step(q, k, v, window, state, reset, dropout)
    state_dtype = k.dtype if state is None else state.key.dtype
    started = state is not None
    if state is None:
        sizes = (k.shape[2], k.shape[3], v.shape[3])
        state = AttentionState.zeros(k.shape[0], window, *sizes, device=k.device, dtype=k.dtype)
    position, segment = positions(state.count, reset, q.shape[1])
    if started or q.shape[1] > window:
        o = _banded(q, k, v, window, state, segment, dropout)
    elif reset is None:
        o = _attend(q, k, v, None, dropout)
    else:
        same = segment[:, :, None] == segment[:, None, :]
        o = _attend(q, k, v, same.tril()[:, None], dropout)
    count = position[:, -1] + 1
    key = roll_on(state.key, k, count, state_dtype)
    return o, AttentionState(key, roll_on(state.value, v, count, state_dtype), count)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, dropout: float) -> Tensor:
    """Attention of (B, L, H, E) queries to (B, M, Hk, E) keys; seen None means causal, L = M."""
    o = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=seen,
        dropout_p=dropout,
        is_causal=seen is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return o.transpose(1, 2)


def _step(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: AttentionState, reset: Tensor | None, dropout: float
) -> tuple[Tensor, AttentionState]:
    """One token: select its slot out of place, attend to the filled slots."""
    key, value, count = state
    if reset is not None:
        # the ring forgets by selection, so that a stale infinity cannot come back as 0 x inf
        gone = reset[:, :, None, None]
        key, value, count = (
            torch.where(gone, 0.0, key),
            torch.where(gone, 0.0, value),
            torch.where(reset[:, 0], 0, count),
        )
    slots = torch.arange(window, device=count.device)
    own = (slots == torch.remainder(count, window)[:, None])[:, :, None, None]
    key, value = torch.where(own, k.to(key.dtype), key), torch.where(own, v.to(value.dtype), value)
    seen = (slots <= count[:, None])[:, None, None, :]
    return _attend(q, key.to(q.dtype), value.to(q.dtype), seen, dropout), AttentionState(key, value, count + 1)


def _banded(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: AttentionState, segment: Tensor, dropout: float
) -> Tensor:
    """Blocks of up to W tokens, each attending to the W tokens before it and to itself."""
    batch, length = q.shape[:2]
    block = min(window, length)
    blocks = -(-length // block)
    padding = blocks * block - length

    # the ring in the order of time, oldest first
    age = torch.arange(window, device=q.device)
    order = torch.remainder(state.count[:, None] + age, window)
    filled = torch.gather(past_positions(state.count, window), 1, order) >= 0

    def keys_of_blocks(ring: Tensor, new: Tensor) -> Tensor:
        past = ring.to(new.dtype).gather(1, order[:, :, None, None].expand(-1, -1, *ring.shape[2:]))
        joined = functional.pad(torch.cat([past, new], dim=1), (0, 0, 0, 0, 0, padding))
        return joined.unfold(1, window + block, block).movedim(-1, 2).flatten(0, 1)

    queries = functional.pad(q, (0, 0, 0, 0, 0, padding)).unflatten(1, (blocks, block)).flatten(0, 1)
    segment = functional.pad(segment.expand(batch, length), (0, padding), value=-1)
    # an empty slot gets a segment that no token has
    past_segment = torch.where(filled, 0, -2)
    key_segment = torch.cat([past_segment, segment], dim=1).unfold(1, window + block, block)
    distance = torch.arange(window, window + block, device=q.device)[:, None] - torch.arange(
        window + block, device=q.device
    )
    band = (distance >= 0) & (distance < window)
    seen = band & (segment.unflatten(1, (blocks, block))[..., None] == key_segment[:, :, None, :])
    o = _attend(
        queries, keys_of_blocks(state.key, k), keys_of_blocks(state.value, v), seen.flatten(0, 1)[:, None], dropout
    )
    return o.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :length]
