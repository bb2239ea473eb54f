"""Stage 6 of 7: features -> action."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DeterministicTanh(nn.Module):
    """a = tanh(W x + b), in [-1, 1]; `Agent.to_bounds` stretches it to the action space's bounds.

    The loss is the mean squared error in these scaled units (Chen et al. 2021, arXiv 2106.01345, algorithm 1), so a
    wide action dimension does not outweigh a narrow one.
    """

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, action_size)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., A) in [-1, 1]."""
        return torch.tanh(self.linear(features))


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid steps only: sum_{b,k} mask |prediction - target|^2 / (A sum mask).

    Args:
        prediction: (B, K, A).
        target: (B, K, A).
        mask: (B, K) bool; padded positions neither add to the sum nor to the divisor.
    """
    error = (prediction - target).square().mean(-1)
    return torch.where(mask, error, 0.0).sum() / mask.sum()
