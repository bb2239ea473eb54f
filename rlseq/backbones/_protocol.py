"""The contract of a backbone, and the few helpers that every backbone shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from rlseq.errors import ConfigError, ShapeError

State: TypeAlias = Any
"""A pytree of tensors, batch first, whose size does not depend on time."""


@runtime_checkable
class Backbone(Protocol):
    """A causal sequence model that can be run over a whole sequence or one token at a time, with the same result.

    ``reset[b, t]`` is True on the first token of an episode: what came before in row b is forgotten, exactly.
    ``state=None`` equals ``init_state`` and is not a reset. States are never changed in place: each call returns a new
    one. ``rlseq.conformance`` checks the laws that follow from this.
    """

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The empty past of ``batch_size`` rows: zeros, or what stands for no token.

        Args:
            batch_size: B.
            device: of the state; the parameters' if None.
            dtype: of keys, values and convolution buffers, the parameters' if None; scan states are float64 always,
                a mean of chunks float32 or finer.
        """
        ...

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """(B, L, D) tokens and (B, L) bool resets -> (B, L, D) features and the state after the last token."""
        ...

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """(B, D) token and (B,) bool reset -> (B, D) features and the next state; equals forward with L = 1."""
        ...


@runtime_checkable
class Mixer(Protocol):
    """One layer's mixing over time: the same three methods as a Backbone, for ``rlseq.backbones.Stack`` to stack."""

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State: ...

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]: ...

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]: ...


def state_bytes(state: State) -> int:
    """Bytes of all tensors in a state."""
    return sum(leaf.numel() * leaf.element_size() for leaf in _pytree.tree_leaves(state) if isinstance(leaf, Tensor))


def parameter_count(module: nn.Module) -> int:
    """Number of trainable numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def step_flops(backbone: Any, width: int) -> int:
    """Floating-point operations of the matrix products of one token's step, two a multiply-add; full windows."""
    from torch.utils.flop_counter import FlopCounterMode

    parameter = next(backbone.parameters())
    x = torch.zeros(1, width, device=parameter.device, dtype=parameter.dtype)
    state = backbone.init_state(1)
    # with gradients, because the counter hooks into them
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        backbone.step(x, state)
    return counter.get_total_flops()


def device_and_dtype(
    parameter: Tensor, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device | str, torch.dtype]:
    """Those of a new state: the parameter's where None."""
    return parameter.device if device is None else device, parameter.dtype if dtype is None else dtype


def check_tokens(where: str, x: Tensor, width: int, reset: Tensor | None, *, rank: int) -> None:
    """Raise ShapeError unless x is (..., width) of the rank and reset, where given, bool with x's leading shape."""
    if x.ndim != rank or x.shape[-1] != width:
        form = "(B, L, D)" if rank == 3 else "(B, D)"
        raise ShapeError(
            f"{where}: x must be {form} with D = {width}, got {tuple(x.shape)}. Project the tokens to the width."
        )
    if reset is not None and (reset.dtype != torch.bool or reset.shape != x.shape[:-1]):
        raise ShapeError(
            f"{where}: reset must be bool of shape {tuple(x.shape[:-1])}, got {reset.dtype} {tuple(reset.shape)}. "
            "True marks an episode's first token."
        )


def check_positive(where: str, **values: object) -> None:
    """Raise ConfigError for the first value that is not a whole number >= 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{where}: {name} must be a whole number >= 1, got {value!r}. Give one.")


def check_fraction(where: str, *, whole: bool = False, **values: object) -> None:
    """Raise ConfigError for the first value outside [0, 1), or outside [0, 1] where the whole is a choice too."""
    for name, value in values.items():
        fits = not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= 1
        if not fits or (value == 1 and not whole):
            raise ConfigError(
                f"{where}: {name} must be in [0, 1{']' if whole else ')'}, got {value!r}. 0 turns it off."
            )


def check_bool(where: str, **values: object) -> None:
    """Raise ConfigError for the first value that is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {name} must be True or False, got {value!r}. Give one of them.")


def check_choice(where: str, choices: Iterable[str], **values: object) -> None:
    """Raise ConfigError for the first value that is not one of the choices."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(
                f"{where}: {name} must be one of {', '.join(choices)}, got {value!r}. Choose one of them."
            )
