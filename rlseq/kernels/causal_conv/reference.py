"""``causal_conv`` as a PyTorch loop over time: the oracle of the faster ones; autograd does its backward."""

from __future__ import annotations

import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.causal_conv``, arguments already checked."""
    dtype = compute_dtype(x)
    # split: the gradient of x[:, t : t + 1] would be a tensor of the whole length for every token
    tokens, taps, offset = x.to(dtype).split(1, dim=1), weight.to(dtype), bias.to(dtype)
    if state is None:
        past = torch.zeros(x.shape[0], weight.shape[0] - 1, x.shape[2], dtype=dtype, device=x.device)
    else:
        past = state.to(dtype)
    outputs = []
    for t in range(x.shape[1]):
        if reset is not None:
            past = torch.where(reset[:, t, None, None], 0.0, past)
        window = torch.cat([past, tokens[t]], dim=1)
        outputs.append((window * taps).sum(dim=1) + offset)
        past = window[:, 1:]
    return torch.stack(outputs, dim=1).to(x.dtype), past.to(x.dtype if state is None else state.dtype)
