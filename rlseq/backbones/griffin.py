"""Stage 5 of 7: Griffin, gated linear recurrences and local attention in turn (De et al. 2024, arXiv 2402.19427).

Layers of x += mixer(norm(x)); x += gated_mlp(norm(x)) (figure 2a, 2b) whose mixers are recurrent, recurrent, local
attention, and again (section 2.3). The recurrent block and its RG-LRU (eq. 1-4) are Hawk's. Local attention:

    o_t^h = sum_j softmax_j(q_t^h k_j / sqrt(E)) v_j,  t - window < j <= t

with one head of keys and values for all heads of queries (multi-query), and rotary positions on the first half of a
head's entries, counted from the episode's first token.

Differs from the paper:
- Whatever ``hawk`` lists.
- Queries, keys and values have biases; the released code's have none.
- The window is 64 tokens by default (the paper: 1,024), and counts the query's own token, which the released code's
  window does not: theirs is one less.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlseq.backbones._attention import LocalAttentionConfig
from rlseq.backbones._pattern import stack
from rlseq.backbones._protocol import check_positive
from rlseq.backbones._rg_lru import RecurrentConfig
from rlseq.backbones._stack import StackConfig


@dataclass(frozen=True)
class Config(RecurrentConfig, StackConfig):
    """Options of Griffin."""

    heads: int = 4
    """Diagonal blocks of the gates' matrices, and heads of queries; they divide the width."""
    window: int = 64
    """Keys a token sees in the layers of local attention, its own included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.where, window=self.window)


def build(config: Config) -> nn.Module:
    """A Stack of recurrent, recurrent and local layers, repeated, with fresh weights."""
    local = LocalAttentionConfig(window=config.window, heads=config.heads)
    return stack(config, [config, config, local])
