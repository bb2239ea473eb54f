"""``rg_lru`` as a PyTorch loop over time: the oracle of the faster ones; autograd does its backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlseq.kernels._arguments import compute_dtype, initial_state


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def rg_lru(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, h0: Tensor | None, reset: Tensor | None, c: float
) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.rg_lru``, arguments already checked."""
    dtype = compute_dtype(x)
    # softplus' default threshold of 20 is 1e-10 off, which float64 can see
    rate = c * functional.softplus(a_param.to(dtype), threshold=40.0)
    change = torch.expm1(-rate * torch.sigmoid(gate_a.to(dtype)))
    square = -change * (change + 2.0)
    # sqrt has an infinite slope at 0: select before and after, so that a decay of exactly 1 gets gradient 0, not NaN
    positive = square > 0.0
    beta = torch.where(positive, torch.sqrt(torch.where(positive, square, 1.0)), 0.0)
    if reset is not None:
        beta = torch.where(reset[..., None], 1.0, beta)
    inputs = beta * torch.sigmoid(gate_x.to(dtype)) * x.to(dtype)
    # unbind: the gradient of change[:, t] would be a tensor of the whole length for every token
    changes, added = change.unbind(1), inputs.unbind(1)
    h = initial_state(h0, x)
    states = []
    for t in range(x.shape[1]):
        past = h if reset is None else torch.where(reset[:, t, None], 0.0, h)
        h = past + changes[t] * past + added[t]
        states.append(h)
    return torch.stack(states, dim=1).to(x.dtype), h
