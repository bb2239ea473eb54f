"""The state of ``local_attention``: a ring of the last W keys and values, and the arithmetic of positions in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlseq.kernels._attention import chosen, may_hold


class AttentionState(NamedTuple):
    """The token at position p since the last reset lies in slot p mod W; slots that no token has filled are zero.

    A key or value that has an entry that is not finite is kept as NaN.

    Attributes:
        key: (B, W, Hk, E).
        value: (B, W, Hk, Ev).
        count: (B,) int64 tokens since the last reset, which is the position of the next token.
    """

    key: Tensor
    value: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls on a state

    @staticmethod
    def zeros(
        batch_size: int,
        window: int,
        key_heads: int,
        key_size: int,
        value_size: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> AttentionState:
        """The empty ring, which equals state None; value_size is key_size unless given."""
        value_size = key_size if value_size is None else value_size
        return AttentionState(
            torch.zeros(batch_size, window, key_heads, key_size, device=device, dtype=dtype),
            torch.zeros(batch_size, window, key_heads, value_size, device=device, dtype=dtype),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
        )


def past_positions(count: Tensor, window: int) -> Tensor:
    """Position of the token in each slot of the ring before it, (B, W) int64; negative where the slot is empty."""
    newest = count[:, None] - 1
    return newest - torch.remainder(newest - torch.arange(window, device=count.device), window)


def roll_on(old: Tensor | None, new: Tensor, count: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """The ring after the new tokens, copied out of place so that gradients flow through it.

    Args:
        old: (B, W, Hk, E) ring before, None if there was none.
        new: (B, L, Hk, E) new tokens.
        count: (B,) tokens since the last reset after the new tokens.
        window: W.
        dtype: of the result.
    """
    length = new.shape[1]
    new = new[:, -window:].to(dtype)
    if old is None and not may_hold(count != length):
        # the tokens in the order of time, from slot 0 on
        if length > window:
            return new.roll(length % window, 1)
        return torch.cat([new, new.new_zeros(()).expand(new.shape[0], window - length, *new.shape[2:])], dim=1)
    position = past_positions(count, window)
    index = new.shape[1] - (count[:, None] - position)
    if old is not None:
        index = torch.where(index >= 0, window + index, torch.arange(window, device=count.device))
        new = torch.cat([old.to(dtype), new], dim=1)
    return chosen(new, index, position >= 0)
