"""What blocks of tokens see of the blocks before them, block by block: the sum stays in the processor's caches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Earlier(torch.autograd.Function):
    """Products of queries with the sum of k v^T over the episode's tokens in earlier blocks, and the last such sum."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The products and the sum over the episode at the end.

        Args:
            ctx: autograd's.
            q: (B, N, n, s).
            k: (B, N, n, s).
            v: (B, N, n, e).
            first: (B, s, e) float64, the sum before the first block; None means zeros.
            reset: (B, N) bool, blocks at which an episode begins; None means none.

        Returns:
            past: (B, N, n, e); total: (B, s, e) float64.
        """
        batch, blocks, _, size = k.shape
        width = v.shape[3]
        total = v.new_zeros(batch, size, width, dtype=torch.float64) if first is None else first.clone()
        past, sums = torch.empty_like(v), v.new_empty(blocks, batch, size, width)
        begins = [False] * blocks if reset is None else reset.any(0).tolist()
        for n in range(blocks):
            if reset is not None and begins[n]:
                total[reset[:, n]] = 0.0
            past[:, n] = q[:, n] @ sums[n].copy_(total)
            total += k[:, n].mT @ v[:, n]
        ctx.save_for_backward(q, k, v, sums, reset)
        ctx.begins, ctx.given = begins, first is not None
        return past, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, total: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and first; the sum is differentiated in float64, as it is added up."""
        q, k, v, sums, reset = ctx.saved_tensors
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        total, rounded = total.clone(), torch.empty_like(sums[0])
        for n in reversed(range(q.shape[1])):
            rounded.copy_(total)
            of_k[:, n], of_v[:, n] = v[:, n] @ rounded.mT, k[:, n] @ rounded
            of_q[:, n] = gradient[:, n] @ sums[n].mT
            total += q[:, n].mT @ gradient[:, n]
            if ctx.begins[n]:
                total[reset[:, n]] = 0.0
        return of_q, of_k, of_v, total if ctx.given else None, None
