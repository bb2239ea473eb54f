"""Causal softmax attention over the last ``window`` tokens, with a ring buffer of keys and values as its state.

    o_t^h = sum_j softmax_j(q_t^h k_j^g / sqrt(E)) v_j^g,  t - window < j <= t,  g = the key head of query head h

Sources: multi-query heads, Shazeer 2019, arXiv 1911.02150; rotary positions, Su et al. 2021, arXiv 2104.09864.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlseq.backbones._protocol import check_fraction, check_positive, device_and_dtype
from rlseq.backbones._rope import rotate
from rlseq.backbones._stack import WindowConfig, fan_in_linear
from rlseq.errors import ConfigError
from rlseq.kernels import AttentionState, ChunkState, local_attention, local_attention_step, positions


@dataclass(frozen=True)
class HeadsConfig(WindowConfig):
    """Options of attention with several heads."""

    heads: int = 4
    """Query heads; they divide the width."""
    key_heads: int | None = None
    """Heads of keys and values; they divide the query heads, and 1 is multi-query. None: one for every query head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.where, heads=self.heads)
        if self.key_heads is not None:
            check_positive(self.where, key_heads=self.key_heads)


@dataclass(frozen=True)
class AttentionConfig(HeadsConfig):
    """Options of softmax attention."""

    kind: ClassVar[str] = "attn"

    rope: float = 1.0
    """Share of a head's entries that rotary position embedding turns, in [0, 1]; 0: no positions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.where, whole=True, rope=self.rope)

    def mixer(self, width: int, dropout: float, output_std_scale: float) -> AttentionMixer:
        """See ``MixerConfig.mixer``."""
        return AttentionMixer(
            width,
            self.heads,
            self.known_window(),
            dropout,
            key_heads=self.key_heads,
            rope=self.rope,
            output_std_scale=output_std_scale,
        )


@dataclass(frozen=True)
class LocalAttentionConfig(AttentionConfig):
    """Options of Griffin's local attention: a short window, multi-query, half of a head's entries rotated."""

    kind: ClassVar[str] = "local"

    window: int | None = 64
    """Keys a token sees, its own included; the state's size."""
    key_heads: int | None = 1
    """Heads of keys and values; they divide the query heads, and 1 is multi-query. None: one for every query head."""
    rope: float = 0.5
    """Share of a head's entries that rotary position embedding turns, in [0, 1]; 0: no positions."""


class AttentionMixer(nn.Module):
    """y_t = W_o concat_h o_t^h + b_o over the tokens t - W + 1 .. t of the episode.

    Args:
        width: D; E = D / heads.
        heads: H.
        window: W, number of keys a query sees, its own included.
        dropout: on the attention weights, in training only.
        key_heads: number of heads of keys and values; H if None.
        rope: share of a head's entries that are rotated by the position since the last reset; rounded down to pairs.
        output_std_scale: factor on the standard deviation 1/sqrt(D) of W_o's initial values.

    Raises:
        ConfigError: width is no multiple of heads, or heads none of key_heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        dropout: float = 0.0,
        *,
        key_heads: int | None = None,
        rope: float = 0.0,
        output_std_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.key_heads = heads if key_heads is None else key_heads
        for name, many, of, few in (("width", width, "heads", heads), ("heads", heads, "key_heads", self.key_heads)):
            if many % few:
                raise ConfigError(f"attention: {name} must be a multiple of {of}, got {many} and {few}. Change one.")
        self.heads = heads
        self.size = width // heads
        self.rotated = 2 * int(rope * self.size / 2)
        self.window = window
        self.dropout = dropout
        self.qkv = fan_in_linear(width, (heads + 2 * self.key_heads) * self.size)
        self.out = fan_in_linear(width, width, output_std_scale)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        """An empty ring: key and value (B, W, Hk, E), count (B,) int64."""
        device, dtype = device_and_dtype(self.out.weight, device, dtype)
        return AttentionState.zeros(batch_size, self.window, self.key_heads, self.size, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """(B, L, D), (B, L) -> (B, L, D), ring after the last token."""
        q, k, v = self._project(x, token_positions(x, state, reset))
        dropout = self.dropout if self.training else 0.0
        attended, state = local_attention(q, k, v, self.window, state=state, reset=reset, dropout=dropout)
        return self.out(attended.flatten(-2)), state

    def step(self, x: Tensor, state: AttentionState, reset: Tensor | None = None) -> tuple[Tensor, AttentionState]:
        """(B, D), (B,) -> (B, D), next ring."""
        state = state if reset is None else state._replace(count=state.count.masked_fill(reset, 0))
        q, k, v = self._project(x, state.count)
        dropout = self.dropout if self.training else 0.0
        attended, state = local_attention_step(q, k, v, "softmax", None, state, reset, dropout)
        return self.out(attended.flatten(1)), state

    def _project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., H, E), keys and values (..., Hk, E) of tokens (..., D) at positions (...)."""
        heads = self.qkv(x).unflatten(-1, (-1, self.size))
        qk, v = heads.split((self.heads + self.key_heads, self.key_heads), dim=-2)
        q, k = rotate(qk, position, self.rotated).split((self.heads, self.key_heads), dim=-2)
        return q, k, v


def token_positions(x: Tensor, state: AttentionState | ChunkState | None, reset: Tensor | None) -> Tensor:
    """Position since the last reset of every token of x (B, L, D), (B, L) int64; a state's count goes before them."""
    count = x.new_zeros(len(x), dtype=torch.int64) if state is None else state.count
    return positions(count, reset, x.shape[1])
