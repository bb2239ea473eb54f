"""``rms_norm`` by PyTorch: the oracle of ``cpu``, and what other devices run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As ``rlseq.kernels.rms_norm``, arguments already checked."""
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
