"""``gated_projections`` in PyTorch operations: the oracle of ``cpu``, and what other devices run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def gated_projections(x: Tensor, gamma: Tensor, beta: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    """As ``rlseq.kernels.gated_projections``, arguments already checked."""
    size, half = gamma.shape[1], cosine.shape[-1]
    expanded = (x.shape[-1] - size) // 2
    u, v, z = F.silu(x).split([expanded, expanded, size], dim=-1)
    # autocast makes x alone bfloat16
    gamma, beta, cosine, sine = (one.to(z.dtype) for one in (gamma, beta, cosine.unsqueeze(-2), sine.unsqueeze(-2)))
    views = torch.addcmul(beta, z.unsqueeze(-2), gamma)
    left, right, rest = views.split([half, half, size - 2 * half], dim=-1)
    views = torch.cat([left * cosine - right * sine, right * cosine + left * sine, rest], dim=-1)
    return u, v, *views.unbind(-2)
