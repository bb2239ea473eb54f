"""Stage 5 of 7: causal Transformer with a ring buffer of ``window`` tokens, the baseline.

x += W_o attention(norm(x)); x += W_2 relu(W_1 norm(x)); a last norm, as Decision Transformer (Chen et al. 2021,
arXiv 2106.01345, section 3 and appendix A) takes it over from GPT-2: LayerNorm, learned biases, weights N(0, 0.02),
dropout on attention weights and on what each half-layer adds.

Differs from the paper:
- Timestep embeddings and the embedding's LayerNorm are the tokens' business (rlseq/agents/tokens.py).
- Attention sees at most ``window`` tokens, wherever a training window begins. With window = all tokens of a training
  window the two are the same in training.
- GPT-2's own position embedding is left out, as in the paper's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from rlseq.backbones._attention import AttentionMixer
from rlseq.backbones._protocol import check_choice, check_fraction, check_positive
from rlseq.backbones._stack import Block, Stack, TwoLayerMLP
from rlseq.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """Options of the Transformer."""

    recurrent: ClassVar[bool] = False

    width: int = 128
    """Width D of tokens and features."""
    depth: int = 3
    """Number of layers."""
    dropout: float = 0.1
    """Fraction dropped of attention weights and of what each half-layer adds, in training only."""
    heads: int = 1
    """Attention heads; they divide the width."""
    window: int | None = None
    """Keys a token sees, its own included; the state's size. None: the agent sets it to a training window's tokens."""
    preset: Literal["decision-transformer"] = "decision-transformer"
    """Kind of layer: decision-transformer has LayerNorm, a ReLU MLP of 4 D units, and no position encoding."""

    def __post_init__(self) -> None:
        check_positive("transformer", width=self.width, depth=self.depth, heads=self.heads)
        if self.window is not None:
            check_positive("transformer", window=self.window)
        if self.width % self.heads:
            raise ConfigError(
                f"transformer: width must be a multiple of heads, got {self.width} and {self.heads} heads. Change one."
            )
        check_fraction("transformer", dropout=self.dropout)
        check_choice("transformer", ("decision-transformer",), preset=self.preset)


def build(config: Config) -> nn.Module:
    """A Stack of attention layers with fresh weights.

    Raises:
        ConfigError: the window is still None.
    """
    if config.window is None:
        raise ConfigError(
            "transformer: window must be a number of tokens, got None. Give window=..., such as 3 tokens x K steps."
        )
    blocks = [
        Block(
            config.width,
            AttentionMixer(config.width, config.heads, config.window, config.dropout),
            TwoLayerMLP(config.width, expansion=4),
            norm=nn.LayerNorm,
            dropout=config.dropout,
        )
        for _ in range(config.depth)
    ]
    stack = Stack(config.width, blocks, norm=nn.LayerNorm)
    for module in stack.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return stack
