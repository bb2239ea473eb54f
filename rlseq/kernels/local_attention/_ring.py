"""The state of ``local_attention``: a ring of the last W keys and values, and the arithmetic of positions in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionState(NamedTuple):
    """The token at position p since the last reset lies in slot p mod W; slots that no token has filled are zero.

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


def roll_on(old: Tensor, new: Tensor, count: Tensor, dtype: torch.dtype) -> Tensor:
    """The ring after the new tokens, gathered out of place so that gradients flow through it.

    Args:
        old: (B, W, Hk, E) ring before.
        new: (B, L, Hk, E) new tokens.
        count: (B,) tokens since the last reset after the new tokens.
        dtype: of the result.
    """
    window = old.shape[1]
    new = new[:, -window:]
    position = past_positions(count, window)
    index = new.shape[1] - (count[:, None] - position)
    slot = torch.arange(window, device=count.device)
    source = torch.where(index >= 0, window + index, slot)
    both = torch.cat([old.to(dtype), new.to(dtype)], dim=1)
    rolled = both.gather(1, source[:, :, None, None].expand(-1, -1, *both.shape[2:]))
    return torch.where((position >= 0)[:, :, None, None], rolled, 0.0)
