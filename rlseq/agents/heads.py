"""Stage 6 of 7: features -> action. A head predicts, measures a prediction against the dataset, and decides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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

    def decide(self, prediction: Tensor) -> Tensor:
        """The action in [-1, 1] (..., A): the prediction itself."""
        return prediction

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """sum_{b,k} mask |prediction - target|^2 / (A sum mask), over (B, K, A) and (B, K)."""
        return masked_mean((prediction - target).square().mean(-1), mask)


class Categorical(nn.Module):
    """p(a) = softmax(W x + b) over A choices; the action is the likeliest one, as a row of A numbers, 1 and else -1.

    The loss is the cross-entropy, mean over valid steps, as for the published agent's discrete actions (Chen et al.
    2021, arXiv 2106.01345, section 4.1).
    """

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, action_size)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., A) logits."""
        return self.linear(features)

    def decide(self, prediction: Tensor) -> Tensor:
        """(..., A) logits -> (..., A), 1 for the likeliest choice and -1 for the others."""
        chosen = F.one_hot(prediction.argmax(-1), prediction.shape[-1])
        return 2.0 * chosen.to(prediction.dtype) - 1.0

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """sum_{b,k} mask -log p(target) / sum mask, over (B, K, A) and (B, K)."""
        loss = F.cross_entropy(prediction.flatten(0, 1), target.argmax(-1).flatten(), reduction="none")
        return masked_mean(loss.view_as(mask), mask)


def head_for(width: int, action_size: int, *, discrete: bool) -> DeterministicTanh | Categorical:
    """The head of a kind of action space."""
    return (Categorical if discrete else DeterministicTanh)(width, action_size)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid steps only: padded positions neither add to the sum nor to the divisor; both (B, K)."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()
