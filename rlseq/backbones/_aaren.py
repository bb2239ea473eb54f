"""Aaren's mixer: multi-head attention whose query is one learned vector, so that it is a recurrence.

    s_t^h = q^h k_t^h / sqrt(E),  q = W_q query + b_q,  k = W_k x + b_k
    o_t^h = sum_{i <= t} e^{s_i^h} v_i^h / sum_{i <= t} e^{s_i^h},  y = W_o concat_h o^h + b_o

Source: Feng et al. 2024, "Attention as an RNN", arXiv 2405.13956, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlseq.backbones._protocol import check_positive, device_and_dtype
from rlseq.backbones._stack import MixerConfig
from rlseq.errors import ConfigError
from rlseq.kernels import SoftmaxState, softmax_scan


@dataclass(frozen=True)
class AarenConfig(MixerConfig):
    """Options of an Aaren mixer."""

    kind: ClassVar[str] = "aaren"

    heads: int = 4
    """Attention heads; they divide the width. Each has one score for every token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.where, heads=self.heads)

    def mixer(self, width: int, dropout: float, output_std_scale: float) -> AarenMixer:
        """See ``MixerConfig.mixer``; attention weights are never formed, so none is dropped."""
        return AarenMixer(width, self.heads)


class AarenMixer(nn.Module):
    """Attention of a learned query to all tokens of the episode so far.

    The query does not depend on the token, so W_k folds into it: s = x (W_k^T q) / sqrt(E), and no key is formed.

    Args:
        width: D; E = D / heads.
        heads: H.

    Raises:
        ConfigError: width is no multiple of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"aaren: width must be a multiple of heads, got {width} and {heads}. Change one.")
        self.heads = heads
        self.query = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SoftmaxState:
        """No tokens; float64, whatever ``dtype`` is."""
        device, _ = device_and_dtype(self.query, device, dtype)
        return SoftmaxState.empty(batch_size, self.heads, len(self.query) // self.heads, device=device)

    def forward(
        self, x: Tensor, state: SoftmaxState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, SoftmaxState]:
        """(B, L, D), (B, L) -> (B, L, D), state after the last token."""
        scores, values = self._scores_and_values(x)
        o, state = softmax_scan(scores, values, state, reset)
        return self.out(o.flatten(-2)), state

    def step(self, x: Tensor, state: SoftmaxState, reset: Tensor | None = None) -> tuple[Tensor, SoftmaxState]:
        """(B, D), (B,) -> (B, D), next state; plain tensor code, because acting is bound by the number of calls."""
        scores, values = self._scores_and_values(x)
        z, o = state
        if reset is not None:
            z, o = z.masked_fill(reset[:, None], -torch.inf), o.masked_fill(reset[:, None, None], 0.0)
        following = torch.logaddexp(z, scores.double())
        o = torch.lerp(o, values.double(), torch.exp(scores - following)[..., None])
        return self.out(o.to(values.dtype).flatten(-2)), SoftmaxState(following, o)

    def _scores_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (..., H) and values (..., H, E) of tokens (..., D)."""
        size = x.shape[-1] // self.heads
        query = (self.to_query(self.query) * size**-0.5).view(self.heads, size)
        keys = self.to_key.weight.view(self.heads, size, -1)
        folded = torch.einsum("he,hed->dh", query, keys)
        bias = (query * self.to_key.bias.view(self.heads, size)).sum(-1)
        return x @ folded + bias, self.to_value(x).unflatten(-1, (self.heads, size))
