"""``linear_scan`` in Numba: time outside, channels inside, the state in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype, initial_state
from rlseq.kernels._node import differentiable_node
from rlseq.kernels._numba import flat, jit, no_tensor
from rlseq.kernels._threads import over_rows


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """CPU tensors only."""
    return None if device == "cpu" else f"tensors are on {device}"


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``rlseq.kernels.linear_scan``, arguments already checked."""
    dtype = compute_dtype(b)
    flags = None if reset is None else reset.contiguous()
    h, h_last = _node(a.to(dtype).contiguous(), b.to(dtype).contiguous(), initial_state(h0, b).contiguous(), flags)
    return h.to(b.dtype), h_last


@jit
def _forward_kernel(a, b, h0, reset, h, h_last, length, width, tile, begin, end):
    tiles = (width + tile - 1) // tile
    for item in range(begin, end):
        row, low = item // tiles, (item % tiles) * tile
        n = min(tile, width - low)
        start = row * width + low
        carry = h_last[start : start + n]
        carry[:] = h0[start : start + n]
        for t in range(length):
            if reset.size > 0 and reset[row * length + t]:
                carry[:] = 0.0
            at = (row * length + t) * width + low
            a_t, b_t, h_t = a[at : at + n], b[at : at + n], h[at : at + n]
            for d in range(n):
                carry[d] = a_t[d] * carry[d] + b_t[d]
                h_t[d] = carry[d]


@jit
def _backward_kernel(dh, dh_last, a, h, h0, reset, da, db, dh0, length, width, tile, begin, end):
    tiles = (width + tile - 1) // tile
    for item in range(begin, end):
        row, low = item // tiles, (item % tiles) * tile
        n = min(tile, width - low)
        start = row * width + low
        carry = dh0[start : start + n]
        carry[:] = dh_last[start : start + n]
        for t in range(length - 1, -1, -1):
            at = (row * length + t) * width + low
            dh_t, da_t, db_t = dh[at : at + n], da[at : at + n], db[at : at + n]
            if reset.size > 0 and reset[row * length + t]:
                for d in range(n):
                    db_t[d] = carry[d] + dh_t[d]
                    da_t[d] = 0.0
                    carry[d] = 0.0
            else:
                a_t = a[at : at + n]
                past = h0[start : start + n] if t == 0 else h[at - width : at - width + n]
                for d in range(n):
                    g = carry[d] + dh_t[d]
                    db_t[d] = g
                    da_t[d] = g * past[d]
                    carry[d] = a_t[d] * g


def _forward(a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    h, h_last = torch.empty_like(b), torch.empty_like(h0)
    over_rows(_forward_kernel, flat(a, b, h0, no_tensor(reset), h, h_last), b.shape)
    return h, h_last


def _backward(
    dh: Tensor, dh_last: Tensor, a: Tensor, h: Tensor, h0: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    da, db, dh0 = torch.empty_like(a), torch.empty_like(a), torch.empty_like(h0)
    # in the dtype of h, so that both can be the past of a token
    past = h0.to(h.dtype)
    over_rows(_backward_kernel, flat(dh, dh_last, a, h, past, no_tensor(reset), da, db, dh0), a.shape)
    return da, db, dh0


_node = differentiable_node(
    "linear_scan_cpu",
    "CPU",
    ("(Tensor a, Tensor b, Tensor h0, Tensor? reset) -> (Tensor, Tensor)", _forward),
    (
        "(Tensor dh, Tensor dh_last, Tensor a, Tensor h, Tensor h0, Tensor? reset) -> (Tensor, Tensor, Tensor)",
        _backward,
    ),
    forward_like=(1, 2),
    backward_like=(2, 2, 4),
    kept=(0, 4, 2, 3),
    gradient_of=(0, 1, 2),
)
