"""Stage 5 of 7: FLASH, gated attention units at linear cost (Hua et al. 2022, arXiv 2202.10447).

Layers of x += flash(norm(x)), without an MLP (section 3.2, code 8): GAU's u, v, z, four views of z instead of two,

    q_quad, k_quad, q_lin, k_lin = rope(gamma z + beta)        each with a gamma and beta of its own
    o_t = sum_j relu(q_quad_t k_quad_j / C + bias_{t-j})^2 v_j + q_lin_t^T mean_n S_n
    y_t = W_o (u_t * o_t) + b_o

where j <= t runs over the tokens of t's own chunk of C, and S_n = sum_j k_lin_j v_j^T / C over those of chunk n, the
mean over the chunks before t's own.

Differs from the paper:
- The divisors are the constant C, and earlier chunks enter by their mean, not by their sum over the sequence's length,
  so that a step equals the same token of a whole sequence, however long.
- Positions and chunks count from the episode's first token.
- The chunk is 64 tokens by default (the paper: 256 at a length of 8,192).
- Initial values as ``gau`` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlseq.backbones._gated_attention import FlashConfig, GatedStackConfig
from rlseq.backbones._pattern import stack


@dataclass(frozen=True)
class Config(FlashConfig, GatedStackConfig):
    """Options of FLASH."""


def build(config: Config) -> nn.Module:
    """A Stack of FLASH layers with fresh weights."""
    return stack(config, [config], norm=config.norm)
