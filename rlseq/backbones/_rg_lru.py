"""Griffin's recurrent block: a short convolution and a gated linear recurrence beside a GeLU branch.

    left  = rg_lru(conv(W_l x + b_l));  right = gelu(W_r x + b_r);  y = W_o (left * right) + b_o

Source: De et al. 2024, arXiv 2402.19427, figure 2c and section 2.3; RG-LRU is its section 2.4, eq. 1-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlseq.backbones._protocol import check_choice, check_positive, device_and_dtype
from rlseq.backbones._stack import MixerConfig, fan_in_linear, halves
from rlseq.kernels import causal_conv, geglu, rg_lru

CONV_WIDTH = 4
DECAY_EXPONENT = 8.0
HOLD_STEPS = 1e16  # why so many: see initial_decay

DecayInit: TypeAlias = Literal["paper", "released", "hold"]


@dataclass(frozen=True)
class RecurrentConfig(MixerConfig):
    """Options of a recurrent block."""

    kind: ClassVar[str] = "rec"

    heads: int = 4
    """Diagonal blocks of the gates' matrices."""
    decay_init: DecayInit = "paper"
    """Initial time constants at half-open gates: paper 19 to 2,000 steps, released 2.4 to 250 steps; hold: as released
    in every other entry, and 1e16 steps in the rest, which keep what the episode's first token wrote."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.where, heads=self.heads)
        check_choice(self.where, get_args(DecayInit), decay_init=self.decay_init)

    def mixer(self, width: int, dropout: float, output_std_scale: float) -> RecurrentMixer:
        """See ``MixerConfig.mixer``; the block has no dropout inside."""
        return RecurrentMixer(width, self.heads, self.decay_init, output_std_scale)


class RecurrentState(NamedTuple):
    """State of one recurrent block.

    Attributes:
        conv: (B, 3, R) the last three inputs of the convolution, oldest first; zeros before a reset.
        hidden: (B, R) float64, h of the RG-LRU.
    """

    conv: Tensor
    hidden: Tensor


def recurrent_width(width: int, heads: int) -> int:
    """R: 4 D / 3 rounded up to a multiple of 8 x heads, so that every head's block is a multiple of 8."""
    multiple = 8 * heads
    return -(-4 * width // (3 * multiple)) * multiple


class RecurrentMixer(nn.Module):
    """Griffin's recurrent block as a mixer.

    Args:
        width: D.
        heads: H, number of diagonal blocks of the gates' matrices.
        decay_init: "paper": a^c uniform in (0.9, 0.999); "released": a itself in (0.9, 0.999), uniform in a^2; "hold":
            the same in every other entry, and almost 1 in the rest.
        output_std_scale: factor on the standard deviation 1/sqrt(R) of W_o's initial values.
    """

    def __init__(
        self, width: int, heads: int = 4, decay_init: DecayInit = "paper", output_std_scale: float = 1.0
    ) -> None:
        super().__init__()
        inner = recurrent_width(width, heads)
        block = inner // heads
        self.heads = heads
        self.inner = fan_in_linear(width, 2 * inner)
        self.conv_weight = nn.Parameter(torch.empty(CONV_WIDTH, inner).normal_(std=(0.01 / CONV_WIDTH) ** 0.5))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.gate_weight = nn.Parameter(torch.empty(heads, block, 2 * block).normal_(std=block**-0.5))
        self.gate_bias = nn.Parameter(torch.zeros(heads, 1, 2 * block))
        self.decay = nn.Parameter(initial_decay(inner, decay_init))
        self.out = fan_in_linear(inner, width, output_std_scale)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        """Zeros; ``dtype`` is the convolution buffer's, the hidden state is float64."""
        device, dtype = device_and_dtype(self.decay, device, dtype)
        inner = len(self.decay)
        return RecurrentState(
            torch.zeros(batch_size, CONV_WIDTH - 1, inner, device=device, dtype=dtype),
            torch.zeros(batch_size, inner, device=device, dtype=torch.float64),
        )

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """(B, L, D), (B, L) -> (B, L, D), state after the last token."""
        conv_state, hidden = (None, None) if state is None else state
        left, right = halves(self.inner, x)
        left, conv_state = causal_conv(left, self.conv_weight, self.conv_bias, conv_state, reset)
        gate_x, gate_a = self._gates(left).permute(2, 1, 0, 3).reshape(2, *left.shape).unbind(0)
        left, hidden = rg_lru(left, gate_x, gate_a, self.decay, hidden, reset, c=DECAY_EXPONENT)
        return self.out(geglu(right, left)), RecurrentState(conv_state, hidden)

    def step(self, x: Tensor, state: RecurrentState, reset: Tensor | None = None) -> tuple[Tensor, RecurrentState]:
        """(B, D), (B,) -> (B, D), next state; plain tensor code, because acting is bound by the number of calls."""
        left, right = self.inner(x).chunk(2, dim=-1)
        conv_state, hidden = state
        if reset is not None:
            reset = reset.unsqueeze(1)
            conv_state = conv_state.masked_fill(reset.unsqueeze(1), 0.0)
            hidden = hidden.masked_fill(reset, 0.0)
        taps = torch.cat((conv_state.to(left.dtype), left.unsqueeze(1)), dim=1)
        left = (taps * self.conv_weight).sum(1) + self.conv_bias
        # one row of both gates: fewer calls than two blocks of all rows
        gates = self._gates(left).permute(1, 2, 0, 3).flatten(1)
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32)).sigmoid()
        input_gate, recurrence_gate = gates.chunk(2, dim=-1)
        # float64 like the hidden state: 1 - a^2 keeps its digits and its gradient
        log_decay = recurrence_gate.double() * (F.softplus(self.decay) * -DECAY_EXPONENT)
        drop = torch.expm1(log_decay)
        scale = torch.sqrt((-2.0 - drop) * drop)
        if reset is not None:
            scale = scale.masked_fill(reset, 1.0)
        hidden = torch.addcmul(scale * (input_gate * left), log_decay.exp(), hidden)
        return self.out(geglu(right, hidden.to(right.dtype))), RecurrentState(taps[:, 1:].to(conv_state.dtype), hidden)

    def _gates(self, x: Tensor) -> Tensor:
        """Logits (H, N, 2, R / H) of the input and the recurrence gate: block-diagonal linears of x (..., R)."""
        blocks = x.reshape(-1, self.heads, x.shape[-1] // self.heads).transpose(0, 1)
        return torch.baddbmm(self.gate_bias, blocks, self.gate_weight).unflatten(2, (2, -1))


def initial_decay(inner: int, decay_init: DecayInit) -> Tensor:
    """Lambda (R,) of a = sigmoid(-Lambda): softplus(Lambda) = -log a (RG-LRU's section 2.4).

    paper: a^8 uniform in (0.9, 0.999), time constants 19 to 2,000 steps at r = 0.5. released: a in (0.9, 0.999) with
    a^2 uniform, as in the authors' released code, 2.4 to 250 steps. hold: entries 0, 2, .. as released, the others
    -log a = 2 / (8 1e16), which is 1e16 steps at r = 0.5.

    A held entry's factor sqrt(1 - a^2) is 1e-8 at every token but an episode's first, where it is 1: written once,
    and T more tokens move it by T 1e-8 of their input. Of time constants in between, say 1e4 to 1e12, a training row of
    1,000 tokens shows nothing, and after more tokens they have drifted further than in any row.
    """
    low, high = 0.9, 0.999
    uniform = torch.rand(inner)
    if decay_init == "paper":
        minus_log_a = -torch.log(low + (high - low) * uniform) / DECAY_EXPONENT
    else:
        minus_log_a = -0.5 * torch.log(low**2 + (high**2 - low**2) * uniform)
    if decay_init == "hold":
        minus_log_a[1::2] = 2 / (DECAY_EXPONENT * HOLD_STEPS)
    return torch.log(torch.expm1(minus_log_a))
