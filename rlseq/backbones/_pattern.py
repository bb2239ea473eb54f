"""A Stack from a pattern of mixers: what ``hybrid`` offers, and what most backbones are one line of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from rlseq.backbones._protocol import Mixer, check_choice
from rlseq.backbones._stack import (
    Block,
    GatedMLP,
    MixerConfig,
    RMSNorm,
    ScaleNorm,
    Stack,
    StackConfig,
    TwoLayerMLP,
)
from rlseq.errors import ConfigError

NORMS: dict[str, Callable[[int], nn.Module]] = {"rms": RMSNorm, "layer": nn.LayerNorm, "scale": ScaleNorm}
MLPS: dict[str, Callable[[int, float], nn.Module]] = {
    "gated": lambda width, output_std_scale: GatedMLP(width, 3, output_std_scale),
    "relu": lambda width, output_std_scale: TwoLayerMLP(width, 4),
}


@dataclass(frozen=True)
class LayersConfig(StackConfig):
    """Options of a Stack whose norms and MLPs may be chosen."""

    norm: Literal["rms", "layer", "scale"] = "rms"
    """Norm of every layer and after the last: RMSNorm, LayerNorm or ScaleNorm."""
    mlp: Literal["gated", "relu"] = "gated"
    """gated: GeLU-gated MLP of 3 D units; relu: two linears with 4 D units. gau and flash layers have none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.where, NORMS, norm=self.norm)
        check_choice(self.where, MLPS, mlp=self.mlp)


def stack(config: StackConfig, pattern: Sequence[MixerConfig], norm: str = "rms", mlp: str = "gated") -> Stack:
    """``config.depth`` layers whose mixers repeat the pattern, one time through it if None, with fresh weights.

    Args:
        config: sizes of the stack.
        pattern: the mixers' options, first layer first.
        norm: a name of NORMS, for all layers and after the last one.
        mlp: a name of MLPS, for the layers that have one.

    Raises:
        ConfigError: options that do not fit the width.
    """
    depth = len(pattern) if config.depth is None else config.depth
    output_std_scale = math.sqrt(2.0 / depth)

    def mixer(layer: MixerConfig) -> Mixer:
        try:
            return layer.mixer(config.width, config.dropout, output_std_scale)
        except ConfigError as error:
            # whose option it is: the backbone's, or that of a kind of layer where it has options by kind
            where = f"{config.where}.{layer.kind}" if hasattr(config, layer.kind) else config.where
            raise ConfigError(f"{where}: {str(error).partition(': ')[2]}") from error

    blocks = [
        Block(
            config.width,
            mixer(layer),
            MLPS[mlp](config.width, output_std_scale) if layer.has_mlp else None,
            norm=NORMS[norm],
            dropout=config.dropout,
        )
        for layer in itertools.islice(itertools.cycle(pattern), depth)
    ]
    return Stack(config.width, blocks, NORMS[norm], config.gradient_checkpointing)
