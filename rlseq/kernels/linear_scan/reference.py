"""``linear_scan`` as a PyTorch loop over time: the oracle of the faster ones; autograd does its backward."""

from __future__ import annotations

import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype, initial_state


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.linear_scan``, arguments already checked."""
    dtype = compute_dtype(b)
    # unbind: the gradient of decay[:, t] would be a tensor of the whole length for every token
    decay, inputs = a.to(dtype).unbind(1), b.to(dtype).unbind(1)
    h = initial_state(h0, b)
    states = []
    for t in range(b.shape[1]):
        past = h if reset is None else torch.where(reset[:, t, None], 0.0, h)
        h = decay[t] * past + inputs[t]
        states.append(h)
    return torch.stack(states, dim=1).to(b.dtype), h
