"""Stage 5 of 7: Hawk, a recurrent network of gated linear recurrences (De et al. 2024, arXiv 2402.19427).

Layers of x += recurrent_block(norm(x)); x += gated_mlp(norm(x)) (figure 2a, 2b) with the RG-LRU (section 2.4):

    r_t = sigmoid(W_a x_t + b_a)                               (eq. 1)
    i_t = sigmoid(W_x x_t + b_x)                               (eq. 2)
    a_t = a^(c r_t),  a = sigmoid(-Lambda),  c = 8             (eq. 3)
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)              (eq. 4)

Differs from the paper:
- Lambda has the opposite sign (a = sigmoid(-Lambda)), as in the authors' released code; the model is the same.
- At an episode's first token h_{t-1} is 0 and the factor sqrt(1 - a_t^2) is 1, as in the released code.
- W_a and W_x are block-diagonal with ``heads`` blocks (4 by default; the paper: 16 in its largest models).
- R = 4 D / 3 is rounded up to a multiple of 8 x heads.
- Optional dropout on what each half-layer adds; the paper has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from rlseq.backbones._protocol import check_choice, check_fraction, check_positive
from rlseq.backbones._rg_lru import DecayInit, RecurrentMixer
from rlseq.backbones._stack import Block, GatedMLP, Stack


@dataclass(frozen=True)
class Config:
    """Options of Hawk."""

    width: int = 128
    """Width D of tokens and features."""
    depth: int = 3
    """Number of layers."""
    dropout: float = 0.0
    """Fraction dropped of what each half-layer adds, in training only."""
    heads: int = 4
    """Diagonal blocks of the gates' matrices."""
    decay_init: DecayInit = "paper"
    """Initial time constants at half-open gates: paper 19 to 2,000 steps, released 2.4 to 250 steps."""

    def __post_init__(self) -> None:
        check_positive("hawk", width=self.width, depth=self.depth, heads=self.heads)
        check_fraction("hawk", dropout=self.dropout)
        check_choice("hawk", ("paper", "released"), decay_init=self.decay_init)


def build(config: Config) -> nn.Module:
    """A Stack of recurrent layers with fresh weights."""
    output_std_scale = math.sqrt(2.0 / config.depth)
    blocks = [
        Block(
            config.width,
            RecurrentMixer(config.width, config.heads, config.decay_init, output_std_scale),
            GatedMLP(config.width, 3, output_std_scale),
            dropout=config.dropout,
        )
        for _ in range(config.depth)
    ]
    return Stack(config.width, blocks)
