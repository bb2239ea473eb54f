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
- ``decay_init``: the paper draws a^c from (0.9, 0.999); ``released`` draws a, as the authors' released code does, and
  ``hold`` is rlseq's own: half of the entries start with a decay of almost 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlseq.backbones._pattern import stack
from rlseq.backbones._rg_lru import RecurrentConfig
from rlseq.backbones._stack import StackConfig


@dataclass(frozen=True)
class Config(RecurrentConfig, StackConfig):
    """Options of Hawk."""


def build(config: Config) -> nn.Module:
    """A Stack of recurrent layers with fresh weights."""
    return stack(config, [config])
