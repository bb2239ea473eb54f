"""Causal multi-head attention over the last ``window`` tokens, with a ring buffer of keys and values as its state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlseq.errors import ConfigError
from rlseq.kernels import AttentionState, local_attention


class AttentionMixer(nn.Module):
    """o_t = W_o concat_h softmax(q_t^h K^h / sqrt(E)) V^h + b_o over tokens t - W + 1 .. t of the episode.

    Args:
        width: D; E = D / heads.
        heads: H.
        window: W, number of keys a query sees, its own included.
        dropout: on the attention weights, in training only.

    Raises:
        ConfigError: width is no multiple of heads.
    """

    def __init__(self, width: int, heads: int, window: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"AttentionMixer: width must be a multiple of heads, got {width} and {heads}. Change one."
            )
        self.heads = heads
        self.window = window
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        """An empty ring: key and value (B, W, H, E), count (B,) int64."""
        weight = self.out.weight
        device = weight.device if device is None else device
        dtype = weight.dtype if dtype is None else dtype
        size = len(weight) // self.heads
        return AttentionState.zeros(batch_size, self.window, self.heads, size, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """(B, L, D), (B, L) -> (B, L, D), ring after the last token."""
        if state is not None and reset is not None:
            state = _forget(state, reset[:, 0])
        q, k, v = self.qkv(x).unflatten(-1, (3 * self.heads, -1)).chunk(3, dim=-2)
        dropout = self.dropout if self.training else 0.0
        attended, state = local_attention(q, k, v, self.window, state=state, reset=reset, dropout=dropout)
        return self.out(attended.flatten(-2)), state

    def step(self, x: Tensor, state: AttentionState, reset: Tensor | None = None) -> tuple[Tensor, AttentionState]:
        """(B, D), (B,) -> (B, D), next ring; plain tensor code, because acting is bound by the number of calls."""
        key, value, count = state if reset is None else _forget(state, reset)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        slot = torch.remainder(count, self.window).view(-1, 1, 1, 1).expand(-1, 1, *k.shape[1:])
        key = key.scatter(1, slot, k.unsqueeze(1).to(key.dtype))
        value = value.scatter(1, slot, v.unsqueeze(1).to(value.dtype))
        filled = torch.arange(self.window, device=count.device) <= count.unsqueeze(1)
        attended = F.scaled_dot_product_attention(
            q.unsqueeze(2),
            key.to(q.dtype).transpose(1, 2),
            value.to(q.dtype).transpose(1, 2),
            attn_mask=filled[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(attended.flatten(1)), AttentionState(key, value, count + 1)


def _forget(state: AttentionState, reset: Tensor) -> AttentionState:
    """Empty the rings of the rows (B,) that start anew; by selection, because a weight of 0 does not silence a NaN."""
    rows = reset[:, None, None, None]
    return AttentionState(
        state.key.masked_fill(rows, 0.0), state.value.masked_fill(rows, 0.0), state.count.masked_fill(reset, 0)
    )
