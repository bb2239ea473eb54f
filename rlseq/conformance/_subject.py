"""What the laws are tried on: small models, and random tokens, resets and cuts from fixed seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlseq import backbones
from rlseq.backbones._protocol import check_positive

SMALL = {"width": 16, "depth": 3, "heads": 2, "window": 5, "chunk": 4}
"""Options of the models under test, where a Config or a record in it has them: windows that the cases run past."""


@dataclass(frozen=True)
class Subject:
    """A backbone under test."""

    make: Callable[[], Any]
    """Makes the model with fresh weights: an nn.Module that keeps the contract."""
    width: int
    """Width D of its tokens and features."""
    config: Any = None
    """The dataclass that it was made from, if there is one."""
    cases: int = 12
    """Random cases a law."""
    steps: int = 10_000
    """Steps over which the state must not grow."""
    compiler: str = "inductor"
    """Backend of torch.compile; inductor needs a C++ compiler on the machine, aot_eager does not."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_positive("conformance", cases=self.cases, steps=self.steps)

    def model(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        """A model in evaluation mode; noise on every parameter, so that a bias that starts at 0 counts too."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make().to(torch.float64).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.to(dtype)


@dataclass(frozen=True)
class Case:
    """One random model and input: x (B, L, D), reset (B, L) or None, and a token to cut at, 1 <= cut < L."""

    name: str
    model: Any
    x: Tensor
    reset: Tensor | None
    cut: int
    generator: torch.Generator


def subject(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    cases: int = 12,
    steps: int = 10_000,
    compiler: str = "inductor",
) -> Subject:
    """The Subject of a backbone's name (or dotted module), small, with the options given.

    Raises:
        UnknownNameError, ConfigError: as ``rlseq.backbones.build``; or build gives no module.
    """
    options = options or {}
    config = backbones.for_tokens(backbones.configure(name, **options), SMALL["window"])
    small = {option: value for option, value in _small(config).items() if option not in options}
    config = dataclasses.replace(config, **small)
    backbones.from_config(name, config)  # what cannot be built is an error here, not a broken law
    return Subject(lambda: backbones.from_config(name, config), config.width, config, cases, steps, compiler)


def _small(config: Any) -> dict[str, Any]:
    """The options of SMALL that a Config has, also in records inside it; what None stands for stays open."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    options: dict[str, Any] = {
        name: SMALL[name] for name, value in values.items() if name in SMALL and value is not None
    }
    for name, value in values.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            options[name] = dataclasses.replace(value, **_small(value))
    return options


def cases(subject: Subject, dtype: torch.dtype = torch.float64, resets: bool | None = None) -> Iterator[Case]:
    """The random cases of a subject; two of three have resets, all or none where ``resets`` says so."""
    for seed in range(subject.cases):
        generator = torch.Generator().manual_seed(seed)
        rows, length = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 5), (2, 25)))
        x = torch.randn(rows, length, subject.width, generator=generator, dtype=torch.float64).to(dtype)
        reset = torch.rand(rows, length, generator=generator) < 0.2
        with_resets = seed % 3 > 0 if resets is None else resets
        name = f"{dtype}, seed {seed}, B={rows}, L={length}, {'resets' if with_resets else 'no resets'}"
        cut = int(torch.randint(1, length, (), generator=generator))
        yield Case(name, subject.model(dtype, seed), x, reset if with_resets else None, cut, generator)
