"""Stage 5 of 7: any sequence of mixers in one stack: ``--backbone.pattern rec rec aaren flash local``.

Layers of x += mixer(norm(x)); x += mlp(norm(x)), the mixers in the order of the pattern:

    rec    gated linear recurrence of ``hawk``                   (arXiv 2402.19427, eq. 1-4)
    attn   softmax attention over the window                     (arXiv 1706.03762, eq. 1)
    local  the same over a short window, multi-query             (``griffin``)
    aaren  softmax attention of a learned query to all so far    (arXiv 2405.13956, section 3)
    gau    gated attention unit over the window, no MLP          (arXiv 2202.10447, section 2.2)
    flash  gated attention unit at linear cost, no MLP           (arXiv 2202.10447, section 3.2)

Each kind has options of its own (``--backbone.local.window 32``), the same for all of its layers. ``hawk``,
``griffin``, ``aaren``, ``transformer``, ``gau`` and ``flash`` are patterns of this stack.

Differs from the papers:
- None of them mixes more than two kinds of layers.
- Each kind differs from its paper as the backbone does that is named beside it.
- ``rec`` starts with the decays of Griffin's released code, not with the paper's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, cast, get_args

from torch import nn

from rlseq.backbones._aaren import AarenConfig
from rlseq.backbones._attention import AttentionConfig, LocalAttentionConfig
from rlseq.backbones._gated_attention import FlashConfig, GauConfig
from rlseq.backbones._pattern import LayersConfig, stack
from rlseq.backbones._rg_lru import RecurrentConfig
from rlseq.backbones._stack import MixerConfig, WindowConfig
from rlseq.errors import ConfigError, UnknownNameError

Kind = Literal["rec", "attn", "local", "aaren", "gau", "flash"]


@dataclass(frozen=True)
class Config(LayersConfig):
    """Options of a stack of mixers. A kind's options may be given as a dictionary; the kind must be a layer."""

    depth: int | None = None
    """Number of layers; the pattern repeats. None: one time through the pattern."""
    pattern: tuple[Kind, ...] = ("rec", "aaren", "local")
    """Kinds of the layers, first to last."""
    rec: RecurrentConfig = field(default_factory=lambda: RecurrentConfig(decay_init="released"))
    """Options of all recurrent layers."""
    attn: AttentionConfig = field(default_factory=AttentionConfig)
    """Options of all layers of attention over the window."""
    local: LocalAttentionConfig = field(default_factory=LocalAttentionConfig)
    """Options of all layers of local attention."""
    aaren: AarenConfig = field(default_factory=AarenConfig)
    """Options of all Aaren layers."""
    gau: GauConfig = field(default_factory=GauConfig)
    """Options of all GAU layers."""
    flash: FlashConfig = field(default_factory=FlashConfig)
    """Options of all FLASH layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pattern, list | tuple):
            raise ConfigError(
                f"hybrid: pattern must be a list of kinds of layers, got {self.pattern!r}. Give one, such as ['rec']."
            )
        # JSON has lists and dictionaries for tuples and records
        object.__setattr__(self, "pattern", tuple(self.pattern))
        if not self.pattern:
            raise ConfigError(
                "hybrid: pattern must name at least one kind of layer, got none. Give --backbone.pattern."
            )
        for kind in self.pattern:
            if kind not in get_args(Kind):
                raise UnknownNameError("kind of layer", str(kind), get_args(Kind))
        for name, default in self._defaults():
            object.__setattr__(self, name, _options(name, getattr(self, name), default))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of every layer, first to last."""
        depth = len(self.pattern) if self.depth is None else self.depth
        return tuple(itertools.islice(itertools.cycle(self.pattern), depth))

    @property
    def recurrent(self) -> bool:
        """Whether a layer carries what is older than any window."""
        return any(layer.recurrent for layer in self.layers)

    @property
    def layers(self) -> list[MixerConfig]:
        """The options of every layer, first to last."""
        return [getattr(self, kind) for kind in self.kinds]

    def for_tokens(self, tokens: int) -> Self:
        """With windows of ``tokens`` where layers have none yet.

        Raises:
            ConfigError: options that no layer has. Only here, where a training begins: a run from before the check
                can be loaded.
        """
        self._check_used()
        options = {kind: getattr(self, kind) for kind in set(self.kinds)}
        rings: dict[str, Any] = {k: v.for_tokens(tokens) for k, v in options.items() if isinstance(v, WindowConfig)}
        return replace(self, **rings)

    @classmethod
    def _defaults(cls) -> Iterator[tuple[str, MixerConfig]]:
        """Every kind with its options where none are given."""
        for option in fields(cls):
            if option.name in get_args(Kind):
                yield option.name, cast(Callable[[], MixerConfig], option.default_factory)()

    def _check_used(self) -> None:
        layers = " ".join(self.kinds)
        for kind, default in self._defaults():
            if kind not in self.kinds and getattr(self, kind) != default:
                raise ConfigError(
                    f"hybrid: {kind} must be a layer for its options to count, got the layers {layers}. "
                    "Add it to the pattern, or leave its options out."
                )
        if self.mlp != "gated" and not any(layer.has_mlp for layer in self.layers):
            raise ConfigError(f"hybrid: mlp must be gated where no layer has an MLP, got {layers}. Leave it out.")


def _options(kind: str, given: object, default: MixerConfig) -> MixerConfig:
    """A kind's options: given whole, or as a dictionary of those that differ from the default."""
    if isinstance(given, type(default)):
        return given
    if not isinstance(given, dict):
        raise ConfigError(
            f"hybrid: {kind} must be a dictionary or {type(default).__name__}, got {given!r}. Give one of them."
        )
    known = [option.name for option in fields(default)]
    for name in given:
        if name not in known:
            raise UnknownNameError(f"option of hybrid.{kind}", name, known)
    try:
        return replace(default, **given)
    except ConfigError as error:
        raise ConfigError(f"hybrid.{kind}: {str(error).partition(': ')[2]}") from error


def build(config: Config) -> nn.Module:
    """A Stack of the pattern's layers with fresh weights.

    Raises:
        ConfigError: a window that the pattern needs is still None, or heads do not divide the width.
    """
    return stack(config, config.layers, norm=config.norm, mlp=config.mlp)
