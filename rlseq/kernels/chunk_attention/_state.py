"""The state of ``chunk_attention``: a mean over the chunks that are complete, and the tokens of the one that is not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlseq.kernels._attention import cut_out, may_hold


class ChunkState(NamedTuple):
    """What the next token can see; its position is ``count``, its slot in the current chunk count mod C.

    A key or value that has an entry that is not finite is kept as NaN.

    Attributes:
        mean: (B, s, e) mean of S_n over the complete chunks n; zeros if there is none. A new one is float32, because
            every token reads all of it, or float64 beside float64 keys. Rounded once a chunk, it is off by about
            sqrt(n) times 4e-8 of its size after n chunks, and does not follow what changes it by less than 6e-8.
        key_quad: (B, C, s) k_quad of the tokens so far in the current chunk; empty slots are zero, but a chunk that is
            complete may stay until the next token comes.
        key_lin: (B, C, s) k_lin of those tokens, likewise.
        value: (B, C, e) v of those tokens, likewise.
        count: (B,) int64 tokens since the last reset.
    """

    mean: Tensor
    key_quad: Tensor
    key_lin: Tensor
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
        """No tokens, which equals state None; dtype is that of the keys and values, torch's default if None."""
        return ChunkState(
            torch.zeros(batch_size, key_size, value_size, dtype=mean_dtype(dtype), device=device),
            torch.zeros(batch_size, chunk, key_size, device=device, dtype=dtype),
            torch.zeros(batch_size, chunk, key_size, device=device, dtype=dtype),
            torch.zeros(batch_size, chunk, value_size, device=device, dtype=dtype),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
        )


def mean_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Of the mean beside keys and values of this dtype."""
    return torch.float64 if (dtype or torch.get_default_dtype()) is torch.float64 else torch.float32


def carried_mean(state: ChunkState, chunk: int) -> tuple[Tensor, Tensor]:
    """The mean in float64, zeros where there is none or it is lost, and (B,) whether it is lost: as a whole then."""
    none = state.count < chunk
    lost = ~state.mean[:, 0, 0].detach().isfinite()
    mean = state.mean.to(torch.float64)
    # where there is none it is zeros already, but gets no gradient
    if may_hold(lost) or (mean.requires_grad and may_hold(none)):
        mean = cut_out(mean[:, None], (none | lost)[:, None])[:, 0]
    return mean, lost & ~none
