"""Residual stack: x += mixer(norm(x)); x += mlp(norm(x)); a last norm. Its state is the tuple of its mixers' states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlseq.backbones._protocol import (
    Mixer,
    State,
    check_bool,
    check_fraction,
    check_positive,
    check_tokens,
    device_and_dtype,
)
from rlseq.errors import ConfigError, ShapeError
from rlseq.kernels import geglu, rms_norm


class Checked:
    """Base of all options: ``__post_init__`` may call its parent's, whichever it is."""

    kind: ClassVar[str] = "backbone"
    """What errors call these options where they are no backbone's own."""

    @property
    def where(self) -> str:
        """What errors call these options: the module of a backbone's Config, else the kind."""
        own = type(self)
        return own.__module__.rpartition(".")[2] if own.__name__ == "Config" else self.kind

    def __post_init__(self) -> None:
        """Checks the ranges."""


@dataclass(frozen=True)
class StackConfig(Checked):
    """Options of every backbone that is a Stack."""

    width: int = 128
    """Width D of tokens and features."""
    depth: int | None = 3
    """Number of layers; a pattern of several kinds repeats. None: one time through the pattern."""
    dropout: float = 0.0
    """Fraction dropped of what each half-layer adds, and of softmax attention's weights over a window, in training."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass and compute the rest again: less memory, more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.where, width=self.width)
        if self.depth is not None:
            check_positive(self.where, depth=self.depth)
        check_fraction(self.where, dropout=self.dropout)
        check_bool(self.where, gradient_checkpointing=self.gradient_checkpointing)


@dataclass(frozen=True)
class MixerConfig(Checked):
    """Options of one kind of mixer, and how it is made from them."""

    recurrent: ClassVar[bool] = True
    """The state does not grow with how far back the mixer looks."""
    has_mlp: ClassVar[bool] = True
    """A layer has an MLP beside the mixer."""

    def mixer(self, width: int, dropout: float, output_std_scale: float) -> Mixer:
        """A Mixer with fresh weights.

        Args:
            width: D.
            dropout: on attention weights, in training only.
            output_std_scale: factor on the initial values of the linear that writes to the residual stream.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class WindowConfig(MixerConfig):
    """Options of a mixer that keeps a ring of tokens."""

    recurrent: ClassVar[bool] = False

    window: int | None = None
    """Keys a token sees, its own included; the state's size. None: the agent sets it to a training window's tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            check_positive(self.where, window=self.window)

    def for_tokens(self, tokens: int) -> Self:
        """With a window of ``tokens`` where there is none yet."""
        return self if self.window is not None else replace(self, window=tokens)

    def known_window(self) -> int:
        """The window, a number of tokens.

        Raises:
            ConfigError: it is still None.
        """
        if self.window is None:
            raise ConfigError(
                f"{self.where}: window must be a number of tokens, got None. "
                "Give window=..., such as 3 tokens x K steps."
            )
        return self.window


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * (1 + scale), scale starting at 0 (Griffin, arXiv 2402.19427, section 2.1)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), dtype kept."""
        return rms_norm(x, self.scale + 1.0, self.eps)


class ScaleNorm(nn.Module):
    """y = g x / max(|x|, eps), one learned g that starts at sqrt(D) (Nguyen and Salazar 2019, arXiv 1910.05895, eq. 5).

    FLASH (arXiv 2202.10447, appendix A.1) divides by sqrt(mean(x^2)) instead and starts at 1, which is the same.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(width**0.5))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), dtype kept."""
        return self.scale * F.normalize(x, dim=-1, eps=self.eps)


class TwoLayerMLP(nn.Module):
    """W2 relu(W1 x + b1) + b2 with ``expansion`` D hidden units."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        check_positive("TwoLayerMLP", width=width, expansion=expansion)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(F.relu(self.up(x)))


class GatedMLP(nn.Module):
    """W3 (gelu(W1 x + b1) * (W2 x + b2)) + b3 ; hidden units: ``expansion`` D; gelu is the tanh form.

    Args:
        width: D.
        expansion: hidden units per D.
        output_std_scale: factor on the standard deviation 1/sqrt(fan-in) of W3's initial values.
    """

    def __init__(self, width: int, expansion: int = 3, output_std_scale: float = 1.0) -> None:
        super().__init__()
        check_positive("GatedMLP", width=width, expansion=expansion)
        hidden = expansion * width
        self.up = fan_in_linear(width, 2 * hidden)
        self.down = fan_in_linear(hidden, width, output_std_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(geglu(*halves(self.up, x)))


def halves(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of a linear's output, as two products: both are whole tensors, and so are their gradients."""
    weights, biases = linear.weight.chunk(2), linear.bias.chunk(2)
    first, second = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return first, second


def fan_in_linear(inputs: int, outputs: int, std_scale: float = 1.0) -> nn.Linear:
    """A linear with weights N(0, std_scale^2 / inputs) and bias 0."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std_scale * inputs**-0.5)
    nn.init.zeros_(linear.bias)
    return linear


class Block(nn.Module):
    """One layer: x += dropout(mixer(norm(x))), then, where there is an MLP, x += dropout(mlp(norm(x)))."""

    def __init__(
        self,
        width: int,
        mixer: Mixer,
        mlp: nn.Module | None,
        norm: Callable[[int], nn.Module] = RMSNorm,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer_norm = norm(width)
        self.mixer: Any = mixer
        self.mlp_norm = norm(width) if mlp is not None else None
        self.mlp = mlp
        self.dropout = dropout

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The mixer's initial state."""
        return self.mixer.init_state(batch_size, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """(B, L, D), (B, L) -> (B, L, D), state."""
        mixed, state = self.mixer(self.mixer_norm(x), state, reset)
        return self._feed_forward(x + self._drop(mixed)), state

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """(B, D), (B,) -> (B, D), state."""
        mixed, state = self.mixer.step(self.mixer_norm(x), state, reset)
        return self._feed_forward(x + self._drop(mixed)), state

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.mlp is None or self.mlp_norm is None:
            return x
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class Stack(nn.Module):
    """Blocks one after the other and a last norm: a Backbone out of any mixers.

    Args:
        width: D.
        blocks: the layers, first to last.
        norm: class of the last norm.
        gradient_checkpointing: in training, keep the layers' inputs alone for the backward pass and run each layer
            again in it (Chen et al. 2016, arXiv 1604.06174); the numbers stay the same.
    """

    def __init__(
        self,
        width: int,
        blocks: Sequence[Block],
        norm: Callable[[int], nn.Module] = RMSNorm,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.gradient_checkpointing = gradient_checkpointing
        self.blocks = nn.ModuleList(blocks)
        self.last_norm = norm(width)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[State, ...]:
        """Zeros: one state a layer (see ``Backbone.init_state``)."""
        device, dtype = device_and_dtype(next(self.last_norm.parameters()), device, dtype)
        return tuple(block.init_state(batch_size, device=device, dtype=dtype) for block in self._blocks())

    def forward(
        self, x: Tensor, state: tuple[State, ...] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Run over L tokens.

        Args:
            x: (B, L, D) tokens, L >= 1.
            state: from ``init_state``, ``forward`` or ``step``; zeros if None.
            reset: (B, L) bool, True on the first token of an episode; none if None.

        Returns:
            (B, L, D) features and the state after the last token.

        Raises:
            ShapeError: x, state or reset do not fit each other.
        """
        check_tokens("forward", x, self.width, reset, rank=3)
        states = (None,) * len(self.blocks) if state is None else state
        self._check_state("forward", states, x.shape[0])
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        following = []
        for block, block_state in zip(self._blocks(), states, strict=True):
            if recompute:
                x, block_state = checkpoint(block, x, block_state, reset, use_reentrant=False)
            else:
                x, block_state = block(x, block_state, reset)
            following.append(block_state)
        return self.last_norm(x), tuple(following)

    def step(
        self, x: Tensor, state: tuple[State, ...], reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Run over one token: (B, D) and (B,) bool -> (B, D) features and the next state.

        Raises:
            ShapeError: x, state or reset do not fit each other.
        """
        check_tokens("step", x, self.width, reset, rank=2)
        self._check_state("step", state, x.shape[0])
        following = []
        for block, block_state in zip(self._blocks(), state, strict=True):
            x, block_state = block.step(x, block_state, reset)
            following.append(block_state)
        return self.last_norm(x), tuple(following)

    def _blocks(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.blocks)

    def _check_state(self, where: str, state: tuple[State, ...], rows: int) -> None:
        if len(state) != len(self.blocks):
            raise ShapeError(
                f"{where}: state must have one entry for each of {len(self.blocks)} layers, got {len(state)}. "
                "Make it with init_state."
            )
        leaf = _first_tensor(state)
        if leaf is not None and (leaf.ndim == 0 or leaf.shape[0] != rows):
            raise ShapeError(
                f"{where}: state must have as many rows as x, {rows}, got {tuple(leaf.shape)}. "
                f"Make it with init_state({rows})."
            )


def _first_tensor(state: State) -> Tensor | None:
    """The first leaf of a state: all have the batch first. By hand, because a step is bound by such calls."""
    if isinstance(state, Tensor):
        return state
    if isinstance(state, dict):
        state = state.values()
    elif not isinstance(state, tuple | list):
        return None
    return next((leaf for part in state if (leaf := _first_tensor(part)) is not None), None)
