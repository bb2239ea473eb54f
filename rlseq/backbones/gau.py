"""Stage 5 of 7: GAU, gated attention units over the last tokens (Hua et al. 2022, arXiv 2202.10447; FLASH-Quad).

Layers of x += gau(norm(x)), without an MLP (section 2.2, code 1):

    u, v, z = silu(W x + b)                                    u, v of 2 D entries, z of s = min(128, D)
    q, k = rope(gamma_q z + beta_q), rope(gamma_k z + beta_k)
    o_t = sum_j relu(q_t k_j / window + bias_{t-j})^2 v_j,     t - window < j <= t
    y_t = W_o (u_t * o_t) + b_o

Differs from the paper:
- Attention sees at most ``window`` tokens; where the sequence fits the window it is the paper's quadratic attention.
- The divisor is the constant window, not the length of the sequence, so that a step equals the same token of a whole
  sequence.
- Positions count from the episode's first token.
- The bias is one vector of ``window`` learned numbers, whatever the window; the paper's code has a Toeplitz matrix of
  learned numbers for sequences up to 512 tokens, and one made by RoPE of two learned vectors beyond.
- gamma starts as N(0, 1), the paper's as N(0, 0.02^2): with the constant divisor content would count only late. The
  bias of a distance starts at window^-1/2, so that a unit averages at first; the paper's starts as N(0, 0.02^2).
- W's initial values are N(0, 1/D), W_o's N(0, 2 / (depth 2 D)), as in Griffin.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlseq.backbones._gated_attention import GatedStackConfig, GauConfig
from rlseq.backbones._pattern import stack


@dataclass(frozen=True)
class Config(GauConfig, GatedStackConfig):
    """Options of GAU."""


def build(config: Config) -> nn.Module:
    """A Stack of GAU layers with fresh weights.

    Raises:
        ConfigError: the window is still None.
    """
    return stack(config, [config], norm=config.norm)
