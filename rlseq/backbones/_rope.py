"""Rotary position embedding: the scores of rotated queries and keys depend on their distance alone.

    (x_i, x_{i + R/2}) -> (x_i cos p f_i - x_{i + R/2} sin p f_i, x_{i + R/2} cos p f_i + x_i sin p f_i)
    f_i = 10000^(-2 i / R),  i = 0 .. R/2 - 1,  p = the token's position, R = number of rotated entries

Source: Su et al. 2021, arXiv 2104.09864, eq. 34, with the pairs half a vector apart as in Griffin's released code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LONGEST_WAVE = 10_000.0


def rotate(x: Tensor, position: Tensor, size: int) -> Tensor:
    """Rotate the first ``size`` entries of every vector by its token's position; the others stay.

    Angles are reduced in float64: in float32 they would be off by a twentieth of a turn at position 1,000,000.

    Args:
        x: (..., n, E) n vectors a token.
        position: (...) int64 tokens since the last reset.
        size: R, even, at most E; 0 rotates nothing.
    """
    if size == 0:
        return x
    index = torch.arange(0, size, 2, device=x.device, dtype=torch.float64)
    angle = torch.remainder(position[..., None, None] * LONGEST_WAVE ** (-index / size), 2 * math.pi)
    if x.dtype != torch.float64:
        angle = angle.float()
    cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x.split((size // 2, size // 2, x.shape[-1] - size), dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), dim=-1)
