"""Stage 5 of 7: Aaren, attention as a recurrent network (Feng et al. 2024, arXiv 2405.13956).

Layers of x += aaren(norm(x)); x += W_2 relu(W_1 norm(x)), where the attention's query is one learned vector a layer and
the softmax over all tokens so far is a recurrence (section 3.2: the state is the triple (m, u, w); here z = m + log u
and o = w / u; section 3.4: the learned query).

Differs from the paper:
- LayerNorm before each half-layer, as in ``transformer``, and no dropout on attention weights: they are never formed.
- The state is kept in float64.
- The query starts as N(0, 0.02); the paper does not say.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlseq.backbones._aaren import AarenMixer
from rlseq.backbones._protocol import check_fraction, check_positive
from rlseq.backbones._stack import Block, Stack, TwoLayerMLP
from rlseq.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """Options of Aaren."""

    width: int = 128
    """Width D of tokens and features."""
    depth: int = 3
    """Number of layers."""
    dropout: float = 0.0
    """Fraction dropped of what each half-layer adds, in training only."""
    heads: int = 4
    """Attention heads; they divide the width. Each has one score for every token."""

    def __post_init__(self) -> None:
        check_positive("aaren", width=self.width, depth=self.depth, heads=self.heads)
        if self.width % self.heads:
            raise ConfigError(
                f"aaren: width must be a multiple of heads, got {self.width} and {self.heads} heads. Change one."
            )
        check_fraction("aaren", dropout=self.dropout)


def build(config: Config) -> nn.Module:
    """A Stack of Aaren layers with fresh weights."""
    blocks = [
        Block(
            config.width,
            AarenMixer(config.width, config.heads),
            TwoLayerMLP(config.width, expansion=4),
            norm=nn.LayerNorm,
            dropout=config.dropout,
        )
        for _ in range(config.depth)
    ]
    return Stack(config.width, blocks, norm=nn.LayerNorm)
