"""The state of ``softmax_scan``: what a softmax over all tokens so far comes to."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class SoftmaxState(NamedTuple):
    """The tokens so far count as one token of score z and value o.

    Attributes:
        z: (B, H) float64, log of the sum of e^score; -inf where there is no token yet.
        o: (B, H, E) float64, the softmax-weighted mean of the values.
    """

    z: Tensor
    o: Tensor

    @staticmethod
    def empty(batch_size: int, heads: int, size: int, *, device: torch.device | str | None = None) -> SoftmaxState:
        """No tokens, which equals state None."""
        return SoftmaxState(
            torch.full((batch_size, heads), -math.inf, dtype=torch.float64, device=device),
            torch.zeros(batch_size, heads, size, dtype=torch.float64, device=device),
        )
