"""Stage 5 of 7: sequence models, (B, L, D) tokens -> (B, L, D) features, all under one contract.

The folder is the registry: every public file is a backbone, found by its name. A dotted name is a module outside rlseq
with the same two things in it: a frozen dataclass ``Config`` (with ``width`` and ``depth``) and ``build(config)``.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from rlseq.backbones._protocol import Backbone, Mixer, State, parameter_count, state_bytes, step_flops
from rlseq.backbones._stack import Block, GatedMLP, RMSNorm, Stack, TwoLayerMLP
from rlseq.errors import ConfigError, RlseqError, UnknownNameError

__all__ = [
    "Backbone",
    "Block",
    "GatedMLP",
    "Mixer",
    "RMSNorm",
    "Stack",
    "State",
    "TwoLayerMLP",
    "available",
    "build",
    "config_class",
    "configure",
    "for_tokens",
    "from_config",
    "is_recurrent",
    "load",
    "memory_errors",
    "parameter_count",
    "plug_in_errors",
    "state_bytes",
    "step_flops",
]


def available() -> list[str]:
    """Names of the backbones that come with rlseq, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """Import a backbone's module: a name of ``available()``, or the dotted name of an outside plug-in.

    Raises:
        UnknownNameError: no such file in the folder.
        ConfigError: the plug-in cannot be found or imported, or lacks ``Config`` or ``build``.
    """
    if "." not in name:
        if name not in available():
            raise UnknownNameError("backbone", name, available())
        return importlib.import_module(f"{__name__}.{name}")
    with plug_in_errors(name, "import"):
        if not _can_be_found(name):
            raise ConfigError(
                f"load: a backbone plug-in must be an importable module, got {name!r}. Is its folder on PYTHONPATH?"
            )
        module = importlib.import_module(name)
    missing = [part for part in ("Config", "build") if not callable(getattr(module, part, None))]
    if missing:
        raise ConfigError(
            f"load: a backbone plug-in must define Config and build, got {name!r} without {' and '.join(missing)}. "
            "rlseq/backbones/hawk.py is an example."
        )
    params = getattr(module.Config, "__dataclass_params__", None)
    options = dataclasses.fields(module.Config) if params is not None and params.frozen else ()
    if not {"width", "depth"} <= {option.name for option in options}:
        raise ConfigError(
            "load: Config of a backbone plug-in must be a frozen dataclass with width and depth, "
            f"got another in {name!r}. rlseq/backbones/hawk.py is an example."
        )
    return module


def config_class(name: str) -> type[Any]:
    """The frozen dataclass of a backbone's options."""
    return load(name).Config


def configure(name: str, /, **options: Any) -> Any:
    """A backbone's Config with these options; the others have their defaults.

    Raises:
        UnknownNameError: no such backbone, or no such option.
        ConfigError: an option outside its range, or one without a default that is not given.
    """
    config = config_class(name)
    known = [field.name for field in dataclasses.fields(config)]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of backbone {name}", option, known)
    needed = [
        field.name
        for field in dataclasses.fields(config)
        if field.init and field.default is field.default_factory is dataclasses.MISSING and field.name not in options
    ]
    if needed:
        raise ConfigError(
            f"configure: every option of {name} must have a default or a value, got no {', '.join(needed)}. "
            "Give it a default in Config."
        )
    with plug_in_errors(name, "take its options"):
        return config(**options)


def build(name: str, *, width: int, depth: int, **options: Any) -> nn.Module:
    """Build a backbone with fresh weights from torch's random generator.

    Args:
        name: a name of ``available()`` or a dotted plug-in.
        width: D, of tokens and features.
        depth: number of layers.
        options: further fields of the backbone's Config.

    Raises:
        UnknownNameError: no such backbone, or no such option.
        ConfigError: an option outside its range.
    """
    return from_config(name, configure(name, width=width, depth=depth, **options))


def from_config(name: str, config: Any) -> nn.Module:
    """A backbone of a Config with fresh weights from torch's random generator.

    Raises:
        UnknownNameError: no such backbone.
        ConfigError: options that do not fit each other or the memory, or a plug-in whose ``build`` fails.
    """
    module = load(name)
    with memory_errors(f"from_config: the weights of {name}", str(config)), plug_in_errors(name, "build"):
        model = module.build(config)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"from_config: build of {name} must return an nn.Module, got {type(model).__name__}. "
            "Return the model from it."
        )
    missing = [method for method in ("init_state", "step") if not callable(getattr(model, method, None))]
    if missing:
        raise ConfigError(
            f"from_config: the model of {name} must run step by step (rlseq.backbones.Backbone), got no "
            f"{', '.join(missing)}. Write it."
        )
    return model


@contextmanager
def memory_errors(what: str, given: str) -> Iterator[None]:
    """What is larger than the memory becomes a ConfigError of one line; other errors pass as they are.

    Args:
        what: is made inside, after the name of the caller.
        given: the options that it comes from.
    """
    try:
        yield
    except (RuntimeError, TypeError, OverflowError) as error:
        if not re.search("memory|overflow", str(error), re.IGNORECASE):
            raise
        raise ConfigError(f"{what} must fit into the memory, got {given}. Make it smaller.") from error


@contextmanager
def plug_in_errors(name: str, what: str) -> Iterator[None]:
    """A plug-in's exceptions become a ConfigError of one line; those of our own modules pass as they are.

    Args:
        name: of the backbone whose code runs inside.
        what: it must do, for the message.
    """
    try:
        yield
    except RlseqError:
        raise
    except Exception as error:
        if "." not in name or name.startswith(f"{__name__}."):
            raise
        told = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
        raise ConfigError(f"backbone plug-in {name}: it must {what}, got {told}. Mend the plug-in.") from error


def is_recurrent(config: Any) -> bool:
    """True unless the Config's ``recurrent`` is False; agents choose tokens and windows by it."""
    return bool(getattr(config, "recurrent", True))


def for_tokens(config: Any, tokens: int) -> Any:
    """The Config for training windows of ``tokens`` tokens: fills in what stands for them, such as a window of None.

    A plug-in's Config takes part by a method of that name.
    """
    with plug_in_errors(type(config).__module__, "take a number of tokens"):
        return config.for_tokens(tokens) if hasattr(config, "for_tokens") else config


def _can_be_found(name: str) -> bool:
    if "" in name.split("."):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            return False
        raise
