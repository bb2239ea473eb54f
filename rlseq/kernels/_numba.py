"""What the Numba kernels share: compile options, and exponentials that vectorise. Only ``cpu.py`` files import this.

libm's exp is called one element at a time (4 ns and more). Here e^-x is a power of two: a polynomial of degree 6 for
the fraction, and the integer moved into the exponent's bits, which LLVM vectorises. Relative error at most 3e-7 in
float32 for arguments up to 10, growing by 1.3e-8 a unit. float64 goes through libm: it is for checks, not for speed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.extending import intrinsic, overload, register_jitable
from torch import Tensor


class _NoAlias(Compiler):
    """Tells LLVM that no two array arguments overlap: loops over many arrays do not vectorise without it."""

    def __init__(self, typingctx, targetctx, library, args, return_type, flags, locals) -> None:  # type: ignore[no-untyped-def]
        flags.noalias = True
        super().__init__(typingctx, targetctx, library, args, return_type, flags, locals)


# only fused multiply-add is allowed: the flags that forbid NaN or infinity would break the selection at resets
jit: Callable[..., Callable[..., Any]] = functools.partial(
    numba.njit, nogil=True, cache=True, error_model="numpy", fastmath={"contract"}, pipeline_class=_NoAlias
)
_F = np.float32
_MINUS_LOG2_E = _F(-1.4426950408889634)
# adding 1.5 x 2^23 rounds a float32 to an integer and leaves it in the low bits
_ROUND = _F(12582912.0)
_LOWEST, _HIGHEST = _F(-87.0), _F(87.0)
# minimax for (2^f - 1) / f on |f| <= 1/2, weighted for the relative error of 2^f - 1, which is 1.1e-8
_C1, _C2, _C3 = _F(0.69314718792668567), _F(0.2402264979496441), _F(0.055503574336481868)
_C4, _C5, _C6 = _F(0.0096182374941833146), _F(0.0013390735475399872), _F(0.00015403512618661003)
_ONE = _F(1.0)
_AT_ONCE = 512


def _fma_intrinsic(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """The product a b plus c rounded once, whatever the compiler would make of the expression."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), codegen


def _power_of_two_intrinsic(typingctx: Any, rounded: Any) -> Any:
    """2^n from n + 1.5 x 2^23 in float32: its low bits, moved into the exponent."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = numba.types.int32
        bits = builder.bitcast(arguments[0], context.get_value_type(integer))
        shifted = builder.shl(bits, context.get_constant(integer, 23))
        exponent = builder.add(shifted, context.get_constant(integer, 127 << 23))
        return builder.bitcast(exponent, context.get_value_type(numba.types.float32))

    return numba.types.float32(numba.types.float32), codegen


def _prefetch_intrinsic(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index]; nothing waits for it, and an index outside the array does no harm."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(struct.data, [arguments[1]])
        i32, i8_pointer = ir.IntType(32), ir.PointerType(ir.IntType(8))
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [i8_pointer, i32, i32, i32]), "llvm.prefetch.p0"
        )
        builder.call(function, [builder.bitcast(pointer, i8_pointer), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return numba.types.void(array, numba.types.intp), codegen


fma: Any = intrinsic(_fma_intrinsic)
_prefetch: Any = intrinsic(_prefetch_intrinsic)
_power_of_two: Any = intrinsic(_power_of_two_intrinsic)


@register_jitable
def _reduced(x):  # type: ignore[no-untyped-def]
    """2^n and 2^f - 1 with e^-x = 2^n 2^f, for x in [-87, 87] or NaN."""
    rounded = fma(x, _MINUS_LOG2_E, _ROUND)
    f = fma(x, _MINUS_LOG2_E, _ROUND - rounded)
    rest = f * fma(f, fma(f, fma(f, fma(f, fma(f, _C6, _C5), _C4), _C3), _C2), _C1)
    return _power_of_two(rounded), rest


@register_jitable
def _decay_minus_one_float32(u):  # type: ignore[no-untyped-def]
    # NaN fails the comparison and stays NaN
    scale, rest = _reduced(_HIGHEST if u > _HIGHEST else u)
    return fma(scale, rest, scale - _ONE)


@register_jitable
def _sigmoid_float32(x):  # type: ignore[no-untyped-def]
    x = _LOWEST if x < _LOWEST else x
    scale, rest = _reduced(_HIGHEST if x > _HIGHEST else x)
    return _ONE / (_ONE + fma(scale, rest, scale))


def decay_minus_one(u: float) -> float:
    """e^-u - 1 without cancellation, for u >= 0; float32 stops at u = 87."""
    return math.expm1(-u)


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), in [0, 1]; float32 clamps x to [-87, 87]."""
    return 1.0 / (1.0 + math.exp(-x))


@overload(decay_minus_one)
def _decay_minus_one(u):  # type: ignore[no-untyped-def]
    if u is numba.types.float32:
        return lambda u: _decay_minus_one_float32(u)
    return lambda u: math.expm1(-u)


@overload(sigmoid)
def _sigmoid(x):  # type: ignore[no-untyped-def]
    if x is numba.types.float32:
        return lambda x: _sigmoid_float32(x)
    return lambda x: 1.0 / (1.0 + math.exp(-x))


@functools.partial(jit, fastmath={"contract", "reassoc"})
def dot(a, b):  # type: ignore[no-untyped-def]
    """Sum of a b; in an order that vectorises, the same in every call."""
    total = a[0] * b[0]
    for d in range(1, a.size):
        total += a[d] * b[d]
    return total


@jit
def prefetch(array, begin, end):  # type: ignore[no-untyped-def]
    """Start to load array[begin:end] while other work goes on."""
    for index in range(max(begin, 0), min(end, array.size), 64 // array.itemsize):
        _prefetch(array, index)


@jit
def tokens_at_once(width, tile):  # type: ignore[no-untyped-def]
    """Tokens whose channels lie end to end in memory and, with what is computed of them, in the first-level cache."""
    return max(1, _AT_ONCE // tile) if tile == width else 1


@jit
def split(state, high, low):  # type: ignore[no-untyped-def]
    """A float64 state as a sum high + low of two numbers of their precision."""
    for d in range(state.size):
        high[d] = state[d]
        low[d] = state[d] - high[d]


@jit
def join(high, low, state):  # type: ignore[no-untyped-def]
    """The float64 state that is high + low."""
    for d in range(state.size):
        state[d] = np.float64(high[d]) + np.float64(low[d])


_NONE = np.zeros(0, np.bool_)


def flat(*tensors: Tensor | None) -> list[np.ndarray]:
    """One-dimensional NumPy views of contiguous CPU tensors.

    For None, an empty array of flags, so that a kernel is compiled once for resets and none.
    """
    return [_NONE if tensor is None else _view(tensor) for tensor in tensors]


def _view(tensor: Tensor) -> np.ndarray:
    return (tensor.detach() if tensor.requires_grad else tensor).numpy().reshape(-1)
