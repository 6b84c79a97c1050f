"""Floating point as PTX defines it, where numpy's differs: fused rounding, bf16, .ftz, NaN rules, conversions.

Everything is computed in float64 and rounded once. A float64 result that is itself rounded is first set to odd (its
last bit is 1 unless it is exact), after which rounding to 24 bits or fewer gives what one rounding of the exact value
gives (Boldo and Melquiond 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_CANONICAL_NAN = np.uint32(0x7FFFFFFF)
_SIGN = np.uint32(0x80000000)
_LEAST_NORMAL = 2.0**-126


def flush(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """.ftz: a denormal becomes zero of its sign."""
    return np.where(np.abs(x) < np.float32(_LEAST_NORMAL), np.copysign(np.float32(0), x), x)


def canonical(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every NaN as the one that PTX's fp32 arithmetic gives, 0x7fffffff."""
    nan = np.isnan(x)
    if nan.any():
        x = np.where(nan, _CANONICAL_NAN.view(np.float32), x)
    return x


def with_ftz(function: Callable[..., NDArray[np.float32]]) -> Callable[..., NDArray[np.float32]]:
    """``function`` with denormal arguments and results flushed."""
    return lambda *values: flush(function(*(flush(value) for value in values)))


def _odd(total: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(error) & np.isfinite(total) & ((bits & 1) == 0)
    if not inexact.any():
        return total
    # Away from zero if the error has the sign of the total, else towards it: either neighbour is odd.
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where(inexact, np.nextafter(total, towards), total)


def _sum(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """a + b rounded to odd (Knuth's two-sum gives the error)."""
    total = a + b
    shadow = total - a
    return _odd(total, (a - (total - shadow)) + (b - shadow))


def fma(a: Array, b: Array, c: Array) -> NDArray[np.float32]:
    """a * b + c of fp32 with one rounding; the product is exact in float64, the sum is rounded to odd."""
    product = a.astype(np.float64) * b
    total = product + c
    # Only a float64 half way between two fp32, or among their denormals, can round wrongly.
    bits = total.view(np.int64)
    if (((bits & 0x1FFFFFFF) == 0x10000000) | (np.abs(total) < _LEAST_NORMAL)).any():
        product, c = np.broadcast_arrays(product, c.astype(np.float64))
        total = _sum(product, c)
    return canonical(total.astype(np.float32))


def fma_double(a: Array, b: Array, c: Array) -> NDArray[np.float64]:
    """a * b + c for narrow a, b, c, in float64 rounded to odd."""
    product, addend = np.broadcast_arrays(a.astype(np.float64) * b, c.astype(np.float64))
    return _sum(product, addend)


def maximum(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """max.f32: the other operand where one is NaN, and +0 > -0."""
    result = np.fmax(a, b)
    return canonical(np.where((a == 0) & (b == 0), (a.view(np.uint32) & b.view(np.uint32)).view(np.float32), result))


def minimum(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """min.f32: the other operand where one is NaN, and -0 < +0."""
    result = np.fmin(a, b)
    return canonical(np.where((a == 0) & (b == 0), (a.view(np.uint32) | b.view(np.uint32)).view(np.float32), result))


def approximate(function: Callable[..., NDArray[np.float64]], units: float) -> Callable[..., NDArray[np.float32]]:
    """An ``.approx`` or ``.full`` instruction: the right value off by ``units`` of the last place.

    The manual bounds the error and leaves the bits open. With ``units`` 0 the result is the rounded one; the tests run
    once with the bound on either side, so that a kernel may not rely on better.
    """

    def run(*values: NDArray[np.float32]) -> NDArray[np.float32]:
        exact = function(*(value.astype(np.float64) for value in values))
        if units:
            spacing = np.spacing(np.abs(exact.astype(np.float32))).astype(np.float64)
            # 0, 1 and infinities are exact: the manual's tables of special values and what hardware does.
            exact = np.where((exact == 0) | (exact == 1) | ~np.isfinite(spacing), exact, exact + units * spacing)
        return canonical(exact.astype(np.float32))

    return run


def from_bf16(bits: Array) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_f16(bits: Array) -> NDArray[np.float32]:
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


def to_bf16(x: Array) -> NDArray[np.uint16]:
    """Round to nearest even from float32 or float64; NaN becomes 0x7fff."""
    if x.dtype == np.float64:
        single = x.astype(np.float32)
        error = x - single
        bits = single.view(np.uint32)
        inexact = (error != 0) & np.isfinite(error) & ((bits & 1) == 0)
        towards = np.where(error > 0, np.float32(np.inf), np.float32(-np.inf))
        x = np.where(inexact, np.nextafter(single, towards), single)
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def to_f16(x: Array) -> NDArray[np.uint16]:
    """Round to nearest even from float32 or float64; NaN becomes 0x7fff."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def to_integer(x: NDArray[np.float32], dtype: np.dtype, rounding: Callable[[Array], Array]) -> Array:
    """Saturating conversion; NaN becomes 0, or the lowest (signed: 2^63 as bits) for 64-bit results."""
    limits = np.iinfo(dtype)
    whole = rounding(x.astype(np.float64))
    low, high = whole <= float(limits.min), whole >= float(limits.max)
    inside = np.where(low | high | np.isnan(whole), 0.0, whole).astype(dtype)
    nan = 0 if limits.bits < 64 else 1 << 63
    result = np.where(low, limits.min, np.where(high, limits.max, inside)).astype(dtype)
    if np.isnan(whole).any():
        result = np.where(np.isnan(whole), np.array(nan, np.uint64).astype(dtype), result)
    return result


def high_half(a: Array, b: Array) -> Array:
    """The high half of the product of two integers of at most 32 bits, or of 64 bits by Python's integers."""
    bits = a.dtype.itemsize * 8
    wide: dict[int, type] = {8: np.int16, 16: np.int32, 32: np.int64}
    if bits in wide:
        kind = np.dtype(wide[bits]) if a.dtype.kind == "i" else np.dtype(wide[bits]).str.replace("i", "u")
        return ((a.astype(kind) * b.astype(kind)) >> bits).astype(a.dtype)
    x, y = np.broadcast_arrays(a, b)
    return ((x.astype(object) * y.astype(object)) >> 64).astype(a.dtype)
