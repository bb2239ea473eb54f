"""Behaviour cloning: the control beside every score. An MLP reads the present observation alone.

    a_t = bounds(tanh(MLP(s_t)))            or, return-conditioned, MLP(R_t, s_t)

Return-conditioned, it is the K = 1 case of a Decision Transformer (RvS-R, Emmons et al. 2021, arXiv 2112.10751, with
the return-to-go as the outcome): a sequence model that does not beat it has not used the past.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlseq.agents.agent import Agent, AgentConfig
from rlseq.agents.heads import head_for
from rlseq.agents.tokens import Inputs
from rlseq.errors import ConfigError
from rlseq.types import DatasetInfo, DatasetStats


@dataclass(frozen=True)
class Config(AgentConfig):
    """Options of behaviour cloning."""

    uses_backbone: ClassVar[bool] = False

    width: int = 512
    """Units of a hidden layer."""

    depth: int = 2
    """Hidden layers."""

    dropout: float = 0.0
    """Dropout after every hidden layer, in [0, 1)."""

    return_conditioned: bool = False
    """Read the return-to-go beside the observation."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if self.width < 1 or self.depth < 1:
            raise ConfigError(f"behaviour_cloning: width and depth must be >= 1, got {self.width}, {self.depth}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"behaviour_cloning: dropout must be in [0, 1), got {self.dropout}.")


class BehaviourCloning(Agent):
    """An MLP with ReLU from the observation to the action; its state is empty."""

    reads_past = False

    def __init__(self, info: DatasetInfo, stats: DatasetStats, *, window: int, config: Config) -> None:
        super().__init__(info, stats, window=window, config=config)
        self.config = config
        sizes = [info.obs_size + config.return_conditioned, *[config.width] * config.depth]
        self.hidden = nn.Sequential(
            *(nn.Sequential(nn.Linear(i, o), nn.ReLU(), nn.Dropout(config.dropout)) for i, o in pairwise(sizes))
        )
        self.head = head_for(config.width, info.action_size, discrete=info.discrete)

    def init_state(self, batch_size: int) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def forward(self, inputs: Inputs, state: Any = None) -> tuple[Tensor, Any]:
        """See `Agent.forward`."""
        x = inputs.obs
        if self.config.return_conditioned:
            x = torch.cat([inputs.return_to_go_scaled, x], dim=-1)
        return self.head(self.hidden(x)), ()

    def step(self, inputs: Inputs, state: Any) -> tuple[Tensor, Any]:
        """See `Agent.step`."""
        action, state = self(inputs, state)
        return action[:, 0], state


def build(config: Config, info: DatasetInfo, stats: DatasetStats, *, window: int) -> BehaviourCloning:
    """The agent of a config."""
    return BehaviourCloning(info, stats, window=window, config=config)
