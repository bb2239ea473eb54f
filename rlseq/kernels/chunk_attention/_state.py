"""The state of ``chunk_attention``: a mean over the chunks that are complete, and the tokens of the one that is not."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlseq.kernels._attention import broken, cut_out


class ChunkState(NamedTuple):
    """What the next token can see; its position is ``count``, its slot in the current chunk count mod C.

    Attributes:
        mean: (B, s, e) float64 mean of S_n over the complete chunks n; zeros if there is none.
        current: (B, s, e) float64 S of the tokens so far in the current chunk.
        key: (B, C, s) k_quad of those tokens; empty slots are zero.
        value: (B, C, e) v of those tokens; empty slots are zero.
        count: (B,) int64 tokens since the last reset.
    """

    mean: Tensor
    current: Tensor
    key: Tensor
    value: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls on a state

    @staticmethod
    def zeros(
        batch_size: int,
        chunk: int,
        key_size: int,
        value_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ChunkState:
        """No tokens, which equals state None; dtype is that of key and value."""
        return ChunkState(
            torch.zeros(batch_size, key_size, value_size, dtype=torch.float64, device=device),
            torch.zeros(batch_size, key_size, value_size, dtype=torch.float64, device=device),
            torch.zeros(batch_size, chunk, key_size, device=device, dtype=dtype),
            torch.zeros(batch_size, chunk, value_size, device=device, dtype=dtype),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
        )


def carried_sums(state: ChunkState, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean and the current sum in float64, zeros where empty or not finite, each with (B,) bool: not finite."""
    no_mean, no_current = state.count < chunk, torch.remainder(state.count, chunk) == 0
    out = []
    for one, empty in ((state.mean, no_mean), (state.current, no_current)):
        lost = broken(one[:, None])[:, 0] & ~empty
        out += [cut_out(one[:, None].to(torch.float64), (lost | empty)[:, None])[:, 0], lost]
    return out[0], out[1], out[2], out[3]


def marked(carried: Tensor, lost: Tensor) -> Tensor:
    """The (B, s, e) sum to carry: NaN where a token in it is not finite."""
    return cut_out(carried[:, None], lost[:, None], math.nan)[:, 0]
