"""Optimiser and learning-rate schedule: AdamW (arXiv 1711.05101) with linear warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from rlseq.errors import ConfigError, UnknownNameError

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are moved."""

    lr: float = 1e-3
    """Highest learning rate, reached after the warm-up."""

    weight_decay: float = 1e-4
    """Decoupled weight decay on every parameter of two or more axes: matrices and embedding tables, and with them the
    gamma and beta of gau and flash, the taps of a convolution and the gates' biases of a recurrent block. Parameters of
    fewer (other biases, norms, the decays of a recurrence, Aaren's query) have none."""

    warmup: int = 100
    """Updates of linear warm-up."""

    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or a half cosine down to 0 at the last update."""

    clip: float = 0.5
    """Largest norm of the gradient; longer ones are scaled down to it."""

    accumulate: int = 1
    """Batches whose gradients are averaged for one update."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"optim: {name} must be a positive number, got {value}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"optim: weight_decay must be at least 0, got {self.weight_decay}.")
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if self.warmup < 0 or self.accumulate < 1:
            raise ConfigError(f"optim: warmup must be >= 0 and accumulate >= 1, got {self.warmup}, {self.accumulate}.")


def build_optimizer(model: nn.Module, config: OptimConfig, updates: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over the parameters of model and its schedule over `updates` updates."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # fused: one pass over weights, gradients and moments instead of a dozen
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)

    def factor(update: int) -> float:
        rise = min(1.0, (update + 1) / config.warmup) if config.warmup else 1.0
        if config.schedule == "constant":
            return rise
        progress = min(1.0, max(0, update - config.warmup) / max(1, updates - config.warmup))
        return rise * 0.5 * (1 + math.cos(math.pi * progress))

    return optimizer, LambdaLR(optimizer, factor)
