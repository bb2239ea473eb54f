"""Stage 5 of 7: causal Transformer with a ring buffer of ``window`` tokens, the baseline.

Softmax attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1) of every head h to the last ``window`` tokens:

    o_t^h = sum_j softmax_j(q_t^h k_j^h / sqrt(E)) v_j^h,  t - window < j <= t

preset decision-transformer: x += W_o attention(norm(x)); x += W_2 relu(W_1 norm(x)); a last norm, as Decision
Transformer (Chen et al. 2021, arXiv 2106.01345, section 3 and appendix A) takes it over from GPT-2: LayerNorm, learned
biases, weights N(0, 0.02^2), dropout on attention weights and on what each half-layer adds.

preset modern: RMSNorm, rotary positions on whole heads, counted from the episode's first token, and a GeLU-gated MLP of
3 D units: the Transformer++ of FLASH (Hua et al. 2022, arXiv 2202.10447, section 4) with Griffin's MLP.

Differs from the papers:
- Timestep embeddings and the embedding's LayerNorm are the tokens' business (rlseq/agents/tokens.py).
- Attention sees at most ``window`` tokens, wherever a training window begins. With window = all tokens of a training
  window the two are the same in training.
- GPT-2's own position embedding is left out, as in the paper's code.
- Transformer++ has no biases; here linears have them. Weights of ``modern`` start as N(0, 1 / fan-in), those that write
  to the residual stream times 2 / depth, and its dropout is 0.1 as in the other preset unless told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from rlseq.backbones._attention import AttentionConfig, HeadsConfig
from rlseq.backbones._pattern import stack
from rlseq.backbones._protocol import check_choice
from rlseq.backbones._stack import StackConfig

Preset = Literal["decision-transformer", "modern"]


@dataclass(frozen=True)
class Config(HeadsConfig, StackConfig):
    """Options of the Transformer."""

    dropout: float = 0.1
    """Fraction dropped of attention weights and of what each half-layer adds, in training only."""
    heads: int = 1
    """Attention heads; they divide the width."""
    preset: Preset = "decision-transformer"
    """decision-transformer: LayerNorm, ReLU MLP, no positions; modern: RMSNorm, gated MLP, rotary positions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.where, get_args(Preset), preset=self.preset)

    def attention(self) -> AttentionConfig:
        """The options of every layer's attention."""
        rope = 1.0 if self.preset == "modern" else 0.0
        return AttentionConfig(window=self.window, heads=self.heads, key_heads=self.key_heads, rope=rope)


def build(config: Config) -> nn.Module:
    """A Stack of attention layers with fresh weights.

    Raises:
        ConfigError: the window is still None, or heads do not divide the width.
    """
    if config.preset == "modern":
        return stack(config, [config.attention()])
    model = stack(config, [config.attention()], norm="layer", mlp="relu")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return model
