"""Holds a model against a NumPy oracle: features, and gradients by directional differences of the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from tests.oracles.backbones import Array, Parameters

STEP = 1e-5

Oracle: TypeAlias = Callable[[Parameters, Array, Array], Array]


def noisy(model: nn.Module, std: float = 0.2) -> nn.Module:
    """The model in float64 with noise on every parameter, so that one which starts at 0 counts too."""
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return model


def inputs(rows: int, length: int, width: int, resets: dict[int, list[int]]) -> tuple[Tensor, Tensor]:
    """Random float64 tokens (B, L, D) and (B, L) resets, True at the tokens named for a row."""
    x = torch.randn(rows, length, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reset = torch.zeros(rows, length, dtype=torch.bool)
    for row, tokens in resets.items():
        reset[row, tokens] = True
    return x, reset


def as_numpy(model: nn.Module) -> Parameters:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def of_rows(oracle: Oracle, p: Parameters, x: Array, reset: Array) -> Array:
    """The oracle's features (B, L, D), a row after the other."""
    return np.stack([oracle(p, *row) for row in zip(x, reset, strict=True)])


def largest_difference(model: nn.Module, oracle: Oracle, x: Tensor, reset: Tensor | None) -> float:
    """Between the model's features and the oracle's."""
    starts = torch.zeros(x.shape[:2], dtype=torch.bool) if reset is None else reset
    expected = of_rows(oracle, as_numpy(model), x.numpy(), starts.numpy())
    return float(np.abs(model(x, None, reset)[0].detach().numpy() - expected).max())


def directional_derivatives(
    model: nn.Module, oracle: Oracle, x: Tensor, reset: Tensor, seed: int
) -> Iterator[tuple[str, float, float]]:
    """A random loss's derivative along a random direction of x and of each parameter.

    Yields:
        name; the model's derivative, by its backward pass; the oracle's, as a central difference.
    """
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=tuple(x.shape))
    tokens = x.clone().requires_grad_()
    model.zero_grad()
    (model(tokens, None, reset)[0] * torch.from_numpy(weight)).sum().backward()
    gradients = {"x": tokens.grad} | {name: parameter.grad for name, parameter in model.named_parameters()}
    values = {"x": x.numpy()} | as_numpy(model)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        direction = rng.normal(size=values[name].shape)
        losses = []
        for sign in (1, -1):
            moved = values | {name: values[name] + sign * STEP * direction}
            losses.append((of_rows(oracle, moved, moved["x"], reset.numpy()) * weight).sum())
        yield name, float((gradient.numpy() * direction).sum()), float(losses[0] - losses[1]) / (2 * STEP)
