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

from rlseq.backbones._aaren import AarenConfig
from rlseq.backbones._pattern import stack
from rlseq.backbones._stack import StackConfig


@dataclass(frozen=True)
class Config(AarenConfig, StackConfig):
    """Options of Aaren."""


def build(config: Config) -> nn.Module:
    """A Stack of Aaren layers with fresh weights."""
    return stack(config, [config], norm="layer", mlp="relu")
