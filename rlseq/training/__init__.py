"""Training: knows agents and batches, neither environments nor data sources."""

from rlseq.training.loop import Trainer, TrainingConfig
from rlseq.training.optim import OptimConfig

__all__ = ["OptimConfig", "Trainer", "TrainingConfig"]
