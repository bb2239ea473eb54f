"""Stage 4 of 7: environment steps -> tokens.

``interleaved`` makes three tokens a step, (return-to-go, obs, action), as the Decision Transformer was published
(Chen et al. 2021, arXiv 2106.01345, section 3). ``joint`` makes one token a step of (return-to-go, obs), a third of the
work; the previous action and the previous reward are options, off by default because they invite copying.

A training window and an acting step read the same `Inputs`, made by the same code, so both see the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Inputs(NamedTuple):
    """What the tokens are made of: normalised, scaled, K steps (K = 1 when acting).

    Attributes:
        obs: (B, K, S) float32 with the dataset's mean 0 and deviation 1.
        return_to_go_scaled: (B, K, 1) float32, raw return-to-go / return scale.
        action: (B, K, A) float32 in [-1, 1], the action that follows obs; when acting it is not known yet and unused.
        previous_action: (B, K, A) float32 in [-1, 1], zeros where
            there was none or a window does not show it.
        previous_reward_scaled: (B, K, 1) float32, divided by the return scale, zero likewise.
        timestep: (B, K) int64.
        reset: (B, K) bool.
    """

    obs: Tensor
    return_to_go_scaled: Tensor
    action: Tensor
    previous_action: Tensor
    previous_reward_scaled: Tensor
    timestep: Tensor
    reset: Tensor


class Tokens(nn.Module):
    """What both kinds of tokens share: the timestep table, the LayerNorm on the embeddings, dropout.

    Args:
        width: D.
        max_timestep: rows of the timestep table; 0 for none.
        norm: LayerNorm on the embeddings.
        dropout: probability of zeroing an element of a token, in training.
    """

    per_step: int

    def __init__(self, width: int, *, max_timestep: int, norm: bool, dropout: float) -> None:
        super().__init__()
        self.timestep = nn.Embedding(max_timestep, width) if max_timestep else None
        if self.timestep is not None:
            nn.init.normal_(self.timestep.weight, std=0.02)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def _finish(self, x: Tensor, timestep: Tensor) -> Tensor:
        if self.timestep is not None:
            x = x + self.timestep(timestep)
        return self.dropout(self.norm(x))


class InterleavedTokens(Tokens):
    """Three tokens a step (return-to-go, obs, action), each the sum of its embedding and the timestep's."""

    per_step = 3

    def __init__(
        self, obs_size: int, action_size: int, width: int, *, max_timestep: int, norm: bool, dropout: float
    ) -> None:
        super().__init__(width, max_timestep=max_timestep, norm=norm, dropout=dropout)
        self.return_to_go = nn.Linear(1, width)
        self.obs = nn.Linear(obs_size, width)
        self.action = nn.Linear(action_size, width)
        for linear in (self.return_to_go, self.obs, self.action):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Tokens of whole windows.

        Returns:
            x (B, 3K, D) and reset (B, 3K), True on an episode's first return-to-go token.
        """
        parts = [self.return_to_go(inputs.return_to_go_scaled), self.obs(inputs.obs), self.action(inputs.action)]
        x = self._finish(torch.stack(parts, dim=2), inputs.timestep.unsqueeze(2)).flatten(1, 2)
        inner = torch.zeros_like(inputs.reset)
        return x, torch.stack([inputs.reset, inner, inner], dim=2).flatten(1, 2)

    def step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The three tokens that an acting step adds: (previous action, return-to-go, obs).

        On an episode's first step there is no previous action; its token is forgotten because reset sits on the next.

        Returns:
            x (B, 3, D), whose last token the head reads, and reset (B, 3).
        """
        parts = [
            self.action(inputs.previous_action),
            self.return_to_go(inputs.return_to_go_scaled),
            self.obs(inputs.obs),
        ]
        timestep = torch.cat([(inputs.timestep - 1).clamp_min(0), inputs.timestep, inputs.timestep], dim=1)
        x = self._finish(torch.cat(parts, dim=1), timestep)
        inner = torch.zeros_like(inputs.reset)
        return x, torch.cat([inner, inputs.reset, inner], dim=1)

    @staticmethod
    def read_out(features: Tensor) -> Tensor:
        """(B, 3K, D) -> (B, K, D): the features of the obs tokens, from which the actions are read."""
        return features[:, 1::3]


class JointTokens(Tokens):
    """One token a step: a linear map of (return-to-go, obs) and, as options, the previous action and reward."""

    per_step = 1

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        width: int,
        *,
        max_timestep: int,
        norm: bool,
        dropout: float,
        previous_action: bool,
        previous_reward: bool,
    ) -> None:
        super().__init__(width, max_timestep=max_timestep, norm=norm, dropout=dropout)
        self.previous_action, self.previous_reward = previous_action, previous_reward
        size = 1 + obs_size + action_size * previous_action + previous_reward
        self.embed = nn.Linear(size, width)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Tokens of whole windows: x (B, K, D) and reset (B, K)."""
        parts = [inputs.return_to_go_scaled, inputs.obs]
        if self.previous_action:
            parts.append(inputs.previous_action)
        if self.previous_reward:
            parts.append(inputs.previous_reward_scaled)
        return self._finish(self.embed(torch.cat(parts, dim=-1)), inputs.timestep), inputs.reset

    step = forward

    @staticmethod
    def read_out(features: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, D): every token is read."""
        return features
