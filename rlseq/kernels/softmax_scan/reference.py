"""``softmax_scan`` as a PyTorch loop over time: the oracle of the faster ones; autograd does its backward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype
from rlseq.kernels.softmax_scan._state import SoftmaxState


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def softmax_scan(s: Tensor, v: Tensor, state: SoftmaxState | None, reset: Tensor | None) -> tuple[Tensor, SoftmaxState]:
    """As ``rlseq.kernels.softmax_scan``, arguments already checked."""
    # unbind: the gradient of v[:, t] would be a tensor of the whole length for every token
    scores, values = s.to(torch.float64).unbind(1), v.to(compute_dtype(v)).unbind(1)
    batch, length, heads, size = v.shape
    z, o = SoftmaxState.empty(batch, heads, size, device=v.device) if state is None else state
    z, o = z.to(torch.float64), o.to(torch.float64)
    outputs = []
    for t in range(length):
        if reset is not None:
            z = torch.where(reset[:, t, None], -math.inf, z)
            o = torch.where(reset[:, t, None, None], 0.0, o)
        # -inf - -inf is NaN: select before, so that neither the weight nor its gradient is
        alone = z == -math.inf
        difference = scores[t] - torch.where(alone, 0.0, z)
        p = torch.where(alone, 1.0, torch.sigmoid(difference))[..., None]
        o = torch.where(alone[..., None], values[t], o + p * (values[t] - o))
        z = torch.where(alone, scores[t], torch.logaddexp(torch.where(alone, 0.0, z), scores[t]))
        outputs.append(o)
    return torch.stack(outputs, dim=1).to(v.dtype), SoftmaxState(z, o)
