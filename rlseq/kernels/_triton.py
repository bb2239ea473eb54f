"""What the Triton kernels share: launching, the plan of programs, carries, exponentials. Only ``gpu.py`` imports this.

A program is one warp that walks through one chunk of one row for a block of channels. Time is a chain, so what hides
the latency of memory is the number of loads in flight: tokens come in groups of ``GROUP``, and the next group is
loaded before the current one is computed. Where rows and channels give too few programs to fill the chip, time is cut
into chunks: a summary kernel composes the tokens of each chunk, ``prefix`` turns the summaries into one carry per
chunk, and the plain kernel then starts each chunk from its carry.

A carry is float64 in memory and a pair of float32 (value, rounding error) in registers, because consumer chips do
float64 at 1/64 of the speed. Contraction is off at every launch: the pairs rest on single roundings, and a fused
multiply-add is written where one is meant.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlseq.kernels._arguments import compute_dtype

GROUP = 8
"""Tokens loaded at once. A chunk begins on a multiple of it, and forward leaves the state before each group."""
BLOCKS = {2: 64, 4: 32, 8: 32}
"""Channels of a program by the bytes of an element: 128 bytes a load, which is what a warp gets in one transaction."""
_SHORTEST = 512
"""Fewer tokens than this are not cut into chunks: the second reading costs more than the idle chip."""
_LEAST_SPAN = 128
_FEW, _ENOUGH = 4, 12
"""Programs per multiprocessor: below the first, time is cut so as to reach the second. 12 warps with 2 KiB of loads
each are about the bandwidth x latency of a multiprocessor; 4 reach nearly half, and reading everything twice costs as
much."""

_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 when triton was imported."""
    return bool(triton.knobs.runtime.interpret)


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """CUDA tensors; CPU tensors only in the interpreter and only where RLSEQ_KERNEL asks for it: it is for tests."""
    asked = "gpu" in [name.strip() for name in os.environ.get("RLSEQ_KERNEL", "").split(",")]
    if device == "cuda" or (device == "cpu" and asked and interpreted()):
        return None
    return f"tensors are on {device}"


class Plan(NamedTuple):
    """How (B, L, D) is cut: ``programs`` = B x ``chunks`` of ``span`` tokens x blocks of ``block`` channels."""

    programs: int
    span: int
    chunks: int
    block: int


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def span_of(programs: int, length: int, device: torch.device) -> int:
    """Tokens of a chunk, a multiple of GROUP, for ``programs`` programs a chunk."""
    chunks = 1
    if length >= _SHORTEST and 0 < programs < _FEW * _multiprocessors(device):
        chunks = max(1, min(triton.cdiv(_ENOUGH * _multiprocessors(device), programs), length // _LEAST_SPAN))
    return triton.cdiv(triton.cdiv(length, chunks), GROUP) * GROUP


def plan(like: Tensor) -> Plan:
    """The plan for a scan over a (B, L, D) tensor."""
    batch, length, width = like.shape
    block = BLOCKS[like.element_size()]
    programs = batch * triton.cdiv(width, block)
    span = span_of(programs, length, like.device)
    chunks = triton.cdiv(length, span)
    return Plan(programs * chunks, span, chunks, block)


def states_between(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised (B, groups, ...) array for the state before each group, in the dtype of the sums."""
    batch, length, *rest = like.shape
    groups = (length + GROUP - 1) // GROUP
    return like.new_empty(batch, groups, *rest, dtype=dtype or compute_dtype(like))


def launch(kernel: Any, programs: int, *arguments: Any, warps: int = 1, **constants: Any) -> None:
    """Run ``programs`` programs of a kernel; dtypes among the constants may be torch's."""
    if programs == 0:
        return
    like = next(argument for argument in arguments if isinstance(argument, Tensor))
    constants = {name: _TYPES.get(value, value) for name, value in constants.items()}
    with torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **constants, num_warps=warps, num_stages=1, enable_fp_fusion=False)


def prefix(change: Tensor, added: Tensor, first: Tensor, *, reverse: bool) -> Tensor:
    """What is carried into each chunk, (B, chunks, D) float64, from the summaries and the first carry (B, D)."""
    batch, chunks, width = change.shape
    carries = torch.empty_like(added)
    block = BLOCKS[8]
    constants = {"WIDTH": width, "BLOCK": block, "GROUP": GROUP, "REVERSE": reverse}
    launch(_prefix_kernel, batch * triton.cdiv(width, block), change, added, first, carries, chunks, **constants)
    return carries


@triton.jit
def place(chunks, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The row x chunk of this program, its row, its chunk and its channels; 64 bits, for B L D beyond 2^31."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(WIDTH, BLOCK)
    item = program // blocks
    return item, item // chunks, item % chunks, (program % blocks) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def enter(length, span, chunks, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, REVERSE: tl.constexpr):
    """Where this program begins, at the last group for REVERSE.

    Returns ``place``'s four, then how many groups its chunk has; of the group that comes first, the token that it
    begins with, the number of tokens from there to the chunk's end, and its index among the groups of all rows.
    """
    item, row, chunk, d = place(chunks, WIDTH, BLOCK)
    begin = chunk * span
    count = tl.minimum(length - begin, span).to(tl.int32)
    groups = tl.cdiv(count, GROUP)
    skipped = groups - 1 if REVERSE else 0
    group = row * tl.cdiv(length, GROUP) + begin // GROUP + skipped
    return item, row, chunk, d, groups, row * length + begin + skipped * GROUP, count - skipped * GROUP, group


@triton.jit
def left_in_next(i, groups, left, GROUP: tl.constexpr, REVERSE: tl.constexpr):
    """Tokens from the group after the i-th to the end; none where there is no such group."""
    return tl.where(i < groups - 1, GROUP, 0) if REVERSE else left - GROUP


@triton.jit
def load_group(pointers, count, mask, other, STRIDE: tl.constexpr, GROUP: tl.constexpr):
    """The values of GROUP tokens, all loads at once; ``other`` from token ``count`` on."""
    values = ()
    for u in tl.static_range(GROUP):
        values = values + (tl.load(pointers + u * STRIDE, mask=mask & (u < count), other=other),)
    return values


@triton.jit
def load_resets(reset, at, count, GROUP: tl.constexpr):
    """The resets of GROUP tokens from token ``at`` on; False from token ``count`` on and where there are none."""
    values = ()
    for u in tl.static_range(GROUP):
        if reset is None:
            values = values + (count < 0,)
        else:
            values = values + (tl.load(reset + at + u, mask=u < count, other=0) != 0,)
    return values


@triton.jit
def split(x, DTYPE: tl.constexpr):
    """A float64 carry as a pair: its value in DTYPE and what that rounds off."""
    hi = x.to(DTYPE)
    return hi, (x - hi.to(tl.float64)).to(DTYPE)


@triton.jit
def joined(hi, lo):
    """A pair as float64."""
    return hi.to(tl.float64) + lo.to(tl.float64)


@triton.jit
def linear_step(a, b, hi, lo, reset, fresh):
    """The pair of a h + b, or ``fresh`` at a reset."""
    if hi.dtype == tl.float64:
        n = a * hi + b
    else:
        n = tl.fma(a, hi, b)
        # the rounding of the product is in the first term, that of the sum in both
        lo = tl.where(reset, 0.0, tl.fma(a, lo, tl.fma(a, hi, -n) + b))
    return tl.where(reset, fresh, n), lo


@triton.jit
def difference_step(change, added, hi, lo, reset, fresh):
    """The pair of h + (change h + added), or ``fresh`` at a reset: for decays 1 + change too near 1 for float32."""
    d = tl.fma(change, hi, added)
    n = hi + d
    if hi.dtype != tl.float64:
        lo = tl.where(reset, 0.0, lo + tl.fma(change, lo, (hi - n) + d))
    return tl.where(reset, fresh, n), lo


@triton.jit
def mix_step(p, a, added, hi, lo, fresh):
    """The pair of (1 - p) h + added, where a is 1 - p computed apart, or ``fresh`` where a is 0, as at a reset."""
    near = p < 0.5
    base = tl.where(near, hi, 0.0)
    # h - p h keeps an a near 1 exact, a h one near 0
    factor = tl.where(near, -p, a)
    d = tl.fma(factor, hi, added)
    n = base + d
    if hi.dtype != tl.float64:
        kept = tl.where(near, lo, 0.0)
        lo = tl.where(a == 0.0, 0.0, kept + tl.fma(factor, lo, (base - n) + d))
    return tl.where(a == 0.0, fresh, n), lo


@triton.jit
def _two_to_the(rounded):
    """2^n from n + 1.5 x 2^23 (float64: 2^52): its low bits, moved into the exponent."""
    if rounded.dtype == tl.float64:
        return ((rounded.to(tl.int64, bitcast=True) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((rounded.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _reduced(x):
    """(2^n, e^r - 1) with x = n log 2 + r and |r| <= log(2) / 2, x at least the log of the smallest normal number."""
    if x.dtype == tl.float64:
        # written so that NaN fails the comparison and stays NaN
        x = tl.where(x < -708.0, -708.0, x)
        rounded = x * 1.4426950408889634 + 6755399441055744.0
        n = rounded - 6755399441055744.0
        r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
        # Taylor, 1/2 (1 + r/3 (1 + r/4 (...))): 0.35^14 / 15! is 3e-19
        rest = tl.full(r.shape, 0.5, tl.float64)
        for k in tl.static_range(13):
            rest = 0.5 + rest * (r * (1.0 / (15 - k)))
    else:
        x = tl.where(x < -87.0, -87.0, x)
        rounded = tl.fma(x, 1.4426950408889634, 12582912.0)
        n = rounded - 12582912.0
        r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, x))
        # minimax for (expm1(r) - r) / r^2, weighted for the relative error of expm1, which is 1.3e-8
        rest = tl.fma(r, 0.0013946448047245847, 0.00836658409547955)
        rest = tl.fma(r, tl.fma(r, rest, 0.0416662820518525), 0.16666542690553598)
        rest = tl.fma(r, rest, 0.5000000061931148)
    return _two_to_the(rounded), tl.fma(r * r, rest, r)


@triton.jit
def expm1(x):
    """exp(x) - 1 without cancellation, for x up to 88."""
    scale, rest = _reduced(x)
    return tl.fma(scale, rest, scale - 1.0)


@triton.jit
def exp(x):
    """The exponential, exactly 0 at -inf. Triton's float64 one is a library's, which the interpreter has not."""
    if x.dtype == tl.float64:
        scale, rest = _reduced(x)
        return tl.where(x < -708.0, 0.0, scale * rest + scale)
    else:
        return tl.exp(x)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    lowest = -708.0 if x.dtype == tl.float64 else -87.0
    return 1.0 / (1.0 + exp(-tl.where(x < lowest, lowest, x)))


@triton.jit(do_not_specialize=["chunks"])
def _prefix_kernel(
    change, added, first, carries, chunks, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    row, _, _, d = place(1, WIDTH, BLOCK)
    mask = d < WIDTH
    carry = tl.load(first + row * WIDTH + d, mask=mask, other=0.0)
    stride: tl.constexpr = -WIDTH if REVERSE else WIDTH
    at = row * chunks * WIDTH + d
    if REVERSE:
        at += (chunks - 1) * WIDTH
    for begin in range(0, chunks, GROUP):
        m = load_group(change + at, chunks - begin, mask, 0.0, stride, GROUP)
        h = load_group(added + at, chunks - begin, mask, 0.0, stride, GROUP)
        for u in tl.static_range(GROUP):
            tl.store(carries + at + u * stride, carry, mask=mask & (begin + u < chunks))
            # a change of exactly -1 is a reset: select, because 0 times an infinite carry is NaN
            carry = tl.where(m[u] == -1.0, h[u], carry + (m[u] * carry + h[u]))
        at += GROUP * stride
