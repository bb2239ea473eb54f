"""The gated attention unit: attention with one head of small queries, gated by a wide branch, and no MLP beside it.

    u, v, z = silu(W x + b),  u and v of 2 D entries, z of s = min(128, D)
    y_t = W_o (u_t * o_t) + b_o,  queries and keys are gamma z + beta, rotated by the position

GAU reads the last tokens quadratically: o_t = sum_j relu(q_t k_j / window + bias_{t-j})^2 v_j. FLASH does so inside a
chunk and adds, linearly, the mean of the earlier chunks: see ``rlseq.kernels.chunk_attention``.

Source: Hua et al. 2022, arXiv 2202.10447, sections 2.2 and 3.2, codes 1 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rlseq.backbones._attention import token_positions
from rlseq.backbones._protocol import check_choice, check_positive, device_and_dtype
from rlseq.backbones._rope import cosines_and_sines
from rlseq.backbones._stack import MixerConfig, StackConfig, WindowConfig, fan_in_linear
from rlseq.kernels import (
    AttentionState,
    ChunkState,
    chunk_attention,
    gated_projections,
    local_attention,
    local_attention_step,
)

KEY_SIZE = 128
EXPANSION = 2


@dataclass(frozen=True)
class GatedStackConfig(StackConfig):
    """Options of a Stack of gated attention units."""

    depth: int | None = 6
    """Number of layers; two have about the parameters of an attention layer and its MLP."""
    norm: Literal["layer", "scale"] = "layer"
    """layer: LayerNorm; scale: ScaleNorm, one learned number for all entries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.where, ("layer", "scale"), norm=self.norm)


@dataclass(frozen=True)
class GauConfig(WindowConfig):
    """Options of a GAU layer."""

    kind: ClassVar[str] = "gau"
    has_mlp: ClassVar[bool] = False

    def mixer(self, width: int, dropout: float, output_std_scale: float) -> GauMixer:
        """See ``MixerConfig.mixer``; relu^2 weights are not dropped."""
        return GauMixer(width, self.known_window(), output_std_scale)


@dataclass(frozen=True)
class FlashConfig(MixerConfig):
    """Options of a FLASH layer."""

    kind: ClassVar[str] = "flash"
    has_mlp: ClassVar[bool] = False

    chunk: int = 64
    """Tokens in a chunk: attention is exact inside one and a mean over the earlier ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.where, chunk=self.chunk)

    def mixer(self, width: int, dropout: float, output_std_scale: float) -> FlashMixer:
        """See ``MixerConfig.mixer``; relu^2 weights are not dropped."""
        return FlashMixer(width, self.chunk, output_std_scale)


class GatedAttention(nn.Module):
    """What GAU and FLASH share: the gate, the values, and ``views`` of the small vector as queries and keys.

    Args:
        width: D.
        views: number of queries and keys a token.
        reach: number of distances that have a bias of their own.
        output_std_scale: factor on the standard deviation 1/sqrt(2 D) of W_o's initial values.
    """

    def __init__(self, width: int, views: int, reach: int, output_std_scale: float) -> None:
        super().__init__()
        self.size = min(KEY_SIZE, width)
        self.expanded = EXPANSION * width
        self.inner = fan_in_linear(width, 2 * self.expanded + self.size)
        # std 1: scores are divided by the whole reach, so that from the paper's 0.02 content counted much later
        self.gamma = nn.Parameter(torch.randn(views, self.size))
        self.beta = nn.Parameter(torch.zeros(views, self.size))
        # relu(bias)^2 sums to 1 over the reach: at first the unit averages, and every distance has a gradient
        self.bias = nn.Parameter(torch.full((reach,), reach**-0.5))
        self.out = fan_in_linear(self.expanded, width, output_std_scale)

    def project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Gate u and values v (..., 2 D), and the queries and keys (..., s), of tokens (..., D) at positions (...)."""
        x = self.inner(x)
        rotation = cosines_and_sines(position, self.size // 2 * 2, x.dtype)
        u, v, *views = gated_projections(x, self.gamma, self.beta, *rotation)
        return u, v, tuple(views)


class GauMixer(GatedAttention):
    """GAU over the last ``window`` tokens of the episode; its state is a ring of them."""

    def __init__(self, width: int, window: int, output_std_scale: float = 1.0) -> None:
        super().__init__(width, 2, window, output_std_scale)
        self.window = window

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        """An empty ring: key (B, W, 1, s), value (B, W, 1, 2 D), count (B,) int64."""
        device, dtype = device_and_dtype(self.out.weight, device, dtype)
        return AttentionState.zeros(batch_size, self.window, 1, self.size, self.expanded, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """(B, L, D), (B, L) -> (B, L, D), ring after the last token."""
        u, q, k, v = self._queries(x, token_positions(x, state, reset))
        o, state = local_attention(q, k, v, self.window, "relu2", self.bias, state, reset)
        return self.out(u * o.squeeze(-2)), state

    def step(self, x: Tensor, state: AttentionState, reset: Tensor | None = None) -> tuple[Tensor, AttentionState]:
        """(B, D), (B,) -> (B, D), next ring."""
        state = state if reset is None else state._replace(count=state.count.masked_fill(reset, 0))
        u, q, k, v = self._queries(x, state.count)
        o, state = local_attention_step(q, k, v, "relu2", self.bias, state, reset)
        return self.out(u * o.squeeze(1)), state

    def _queries(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gate u (..., 2 D), q and k (..., 1, s) and v (..., 1, 2 D), with an axis of one head."""
        u, v, (q, k) = self.project(x, position)
        return u, q.unsqueeze(-2), k.unsqueeze(-2), v.unsqueeze(-2)


class FlashMixer(GatedAttention):
    """FLASH: quadratic inside a chunk, linear across chunks; its state is one matrix and one chunk of tokens."""

    def __init__(self, width: int, chunk: int, output_std_scale: float = 1.0) -> None:
        super().__init__(width, 4, chunk, output_std_scale)
        self.chunk = chunk

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ChunkState:
        """No tokens: mean (B, s, 2 D) float32 or finer, two keys (B, C, s), value (B, C, 2 D), count (B,) int64."""
        device, dtype = device_and_dtype(self.out.weight, device, dtype)
        return ChunkState.zeros(batch_size, self.chunk, self.size, self.expanded, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, state: ChunkState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, ChunkState]:
        """(B, L, D), (B, L) -> (B, L, D), state after the last token."""
        u, v, (q_quad, k_quad, q_lin, k_lin) = self.project(x, token_positions(x, state, reset))
        o, state = chunk_attention(q_quad, k_quad, q_lin, k_lin, v, self.chunk, self.bias, state, reset)
        return self.out(u * o), state

    def step(self, x: Tensor, state: ChunkState, reset: Tensor | None = None) -> tuple[Tensor, ChunkState]:
        """(B, D), (B,) -> (B, D), next state."""
        u, v, views = self.project(x, state.count if reset is None else state.count.masked_fill(reset, 0))
        q_quad, k_quad, q_lin, k_lin, v = (one.unsqueeze(1) for one in (*views, v))
        reset = None if reset is None else reset.unsqueeze(1)
        o, state = chunk_attention(q_quad, k_quad, q_lin, k_lin, v, self.chunk, self.bias, state, reset)
        return self.out(u * o.squeeze(1)), state
