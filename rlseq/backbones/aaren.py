"""Stage 5 of 7: Aaren, attention as a recurrent network (Feng et al. 2024, arXiv 2405.13956).

Layers of x += aaren(norm(x)); x += W_2 relu(W_1 norm(x)), where the query of a head is the same for all tokens, made of
one learned vector a layer, so that softmax attention to all tokens so far is a recurrence (section 3):

    s_t = q k_t / sqrt(E),  q = W_q query + b_q,  k_t = W_k x_t + b_k,  v_t = W_v x_t + b_v
    z_t = log(e^(z_{t-1}) + e^(s_t))                           z_0 = -infinity
    o_t = o_{t-1} + e^(s_t - z_t) (v_t - o_{t-1})              y_t = W_o concat_h o_t^h + b_o

The paper's state is the triple (m, u, w) of the largest score and of numerator and denominator scaled by it; here
z = m + log u and o = w / u.

Differs from the paper:
- LayerNorm before each half-layer, as in ``transformer``, and no dropout on attention weights: they are never formed.
- The state is kept in float64.
- The query starts as N(0, 0.02^2), the linears as torch's nn.Linear, biases included; the paper does not say.
- Options ``norm`` and ``mlp``, for layers like Hawk's: see docs/results.md for what they change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from rlseq.backbones._aaren import AarenConfig
from rlseq.backbones._pattern import LayersConfig, stack


@dataclass(frozen=True)
class Config(AarenConfig, LayersConfig):
    """Options of Aaren."""

    norm: Literal["rms", "layer", "scale"] = "layer"
    """Norm of every layer and after the last: RMSNorm, LayerNorm or ScaleNorm."""
    mlp: Literal["gated", "relu"] = "relu"
    """relu: two linears with 4 D units; gated: GeLU-gated MLP of 3 D units."""


def build(config: Config) -> nn.Module:
    """A Stack of Aaren layers with fresh weights."""
    return stack(config, [config], norm=config.norm, mlp=config.mlp)
