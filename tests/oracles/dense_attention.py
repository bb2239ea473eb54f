"""Softmax attention over all pairs of tokens under a mask, in torch float64, for autograd to differentiate.

Parameters go by their names in the module; x is (B, L, D), reset (B, L) bool or None.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters: TypeAlias = dict[str, Tensor]


def seen(reset: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(B, L, L) bool, whether a query sees a key; (B, L) position of a token in its episode."""
    index = torch.arange(reset.shape[1])
    episode = reset.long().cumsum(1)
    distance = index[:, None] - index
    same = episode[:, :, None] == episode[:, None, :]
    return same & (distance >= 0) & (distance < window), (same & (distance > 0)).sum(2)


def turned(x: Tensor, position: Tensor, size: int) -> Tensor:
    """arXiv 2104.09864, eq. 12-13: entries i and i + size / 2 of x (B, L, H, E) are one complex number."""
    if size == 0:
        return x
    half = size // 2
    angle = position[:, :, None, None] * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    z = torch.complex(x[..., :half], x[..., half:size]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag, x[..., size:]], dim=-1)


def attention(
    p: Parameters, x: Tensor, reset: Tensor | None, heads: int, key_heads: int, window: int, rotated: int
) -> Tensor:
    """arXiv 1706.03762, eq. 1, with key heads shared by heads / key_heads neighbouring query heads."""
    reset = torch.zeros(x.shape[:2], dtype=torch.bool) if reset is None else reset
    mask, position = seen(reset, window)
    projected = F.linear(x, p["qkv.weight"], p["qkv.bias"]).unflatten(-1, (heads + 2 * key_heads, -1))
    q, k, v = projected.split([heads, key_heads, key_heads], dim=2)
    q, k = turned(q, position, rotated), turned(k, position, rotated)
    k, v = (one.repeat_interleave(heads // key_heads, dim=2) for one in (k, v))
    scores = torch.einsum("bihe,bjhe->bhij", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    return F.linear(torch.einsum("bhij,bjhe->bihe", weights, v).flatten(2), p["out.weight"], p["out.bias"])


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale)


def modern_transformer(
    p: Parameters, x: Tensor, reset: Tensor | None, depth: int, heads: int, key_heads: int, window: int
) -> Tensor:
    """arXiv 2202.10447, section 4's Transformer++: RMSNorm, whole heads rotated, MLP with a GeLU gate."""
    rotated = x.shape[-1] // heads // 2 * 2
    for index in range(depth):
        name = f"blocks.{index}"
        mixer = {part: p[f"{name}.mixer.{part}"] for part in ("qkv.weight", "qkv.bias", "out.weight", "out.bias")}
        normed = rms_norm(x, p[f"{name}.mixer_norm.scale"])
        x = x + attention(mixer, normed, reset, heads, key_heads, window, rotated)
        up = F.linear(rms_norm(x, p[f"{name}.mlp_norm.scale"]), p[f"{name}.mlp.up.weight"], p[f"{name}.mlp.up.bias"])
        gate, value = up[..., : up.shape[-1] // 2], up[..., up.shape[-1] // 2 :]
        gated = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * value
        x = x + F.linear(gated, p[f"{name}.mlp.down.weight"], p[f"{name}.mlp.down.bias"])
    return rms_norm(x, p["last_norm.scale"])
