"""What the Numba kernels share: compile options and an exponential that vectorises. Only ``cpu.py`` files import this.

libm's exp is called one element at a time (4 ns and more). Here exp and expm1 are a range reduction by log 2, a
polynomial of degree 6 and an exponent put together from bits, which LLVM vectorises: below 1 ns. Relative error of
expm1 at most 2e-7 in float32. float64 goes through libm: it is there for checks, not for speed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import intrinsic, overload, register_jitable
from torch import Tensor

# only fused multiply-add is allowed: the flags that forbid NaN or infinity would break the selection at resets
jit: Callable[..., Callable[..., Any]] = functools.partial(
    numba.njit, nogil=True, cache=True, error_model="numpy", fastmath={"contract"}
)

_F = np.float32
_LOG2_E = _F(1.4426950408889634)
_LN2_HIGH = _F(0.693359375)
_LN2_LOW = _F(-2.12194440e-4)
# adding 1.5 x 2^23 rounds a float32 to an integer and leaves it in the low bits
_ROUND = _F(12582912.0)
_LOWEST, _HIGHEST = _F(-87.0), _F(88.0)
# minimax for (expm1(r) - r) / r^2 on |r| <= log(2) / 2, weighted for the relative error of expm1, which is 1.3e-8
_P0, _P1, _P2 = _F(0.5000000061931148), _F(0.16666542690553598), _F(0.0416662820518525)
_P3, _P4 = _F(0.00836658409547955), _F(0.0013946448047245847)
_ONE = _F(1.0)


def _power_of_two_intrinsic(typingctx: Any, rounded: Any) -> Any:
    """2^n from n + 1.5 x 2^23 in float32: its low bits, moved into the exponent."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = numba.types.int32
        bits = builder.bitcast(arguments[0], context.get_value_type(integer))
        exponent = builder.add(bits, context.get_constant(integer, 127))
        shifted = builder.shl(exponent, context.get_constant(integer, 23))
        return builder.bitcast(shifted, context.get_value_type(numba.types.float32))

    return numba.types.float32(numba.types.float32), codegen


_power_of_two: Any = intrinsic(_power_of_two_intrinsic)


@register_jitable
def _reduced(x):  # type: ignore[no-untyped-def]
    # written so that NaN fails both comparisons and stays NaN
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    rounded = x * _LOG2_E + _ROUND
    n = rounded - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    scale = _power_of_two(rounded)
    return scale, r + r * r * (_P0 + r * (_P1 + r * (_P2 + r * (_P3 + r * _P4))))


@register_jitable
def _expm1_float32(x):  # type: ignore[no-untyped-def]
    scale, rest = _reduced(x)
    return scale * rest + (scale - _ONE)


@register_jitable
def _sigmoid_float32(x):  # type: ignore[no-untyped-def]
    scale, rest = _reduced(-x)
    return _ONE / (_ONE + (scale * rest + scale))


def expm1(x: float) -> float:
    """exp(x) - 1 without cancellation; float32 clamps x to [-87, 88]."""
    return math.expm1(x)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), in [0, 1]."""
    return 1.0 / (1.0 + math.exp(-x))


@overload(expm1)
def _expm1(x):  # type: ignore[no-untyped-def]
    if x is numba.types.float32:
        return lambda x: _expm1_float32(x)
    return lambda x: math.expm1(x)


@overload(sigmoid)
def _sigmoid(x):  # type: ignore[no-untyped-def]
    if x is numba.types.float32:
        return lambda x: _sigmoid_float32(x)
    return lambda x: 1.0 / (1.0 + math.exp(-x))


_NONE = torch.zeros(0, dtype=torch.bool)


def no_tensor(reset: Tensor | None) -> Tensor:
    """reset, or an empty tensor for None, so that a kernel is compiled once for both."""
    return _NONE if reset is None else reset


def flat(*tensors: Tensor) -> list[np.ndarray]:
    """One-dimensional NumPy views of contiguous CPU tensors."""
    return [tensor.detach().contiguous().view(-1).numpy() for tensor in tensors]
