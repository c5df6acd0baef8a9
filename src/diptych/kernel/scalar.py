"""What each scalar operation of the kernel language means, in numpy: the executable definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych.dtypes import DType

Array = Any  # a numpy array or numpy scalar
_BELOW_F32, _MIDDLE = (1 << 29) - 1, 1 << 28  # bits of an f64 that an f32 lacks; half of their unit
_LEAST_NORMAL = 2.0**-126  # of f32


def apply(op: str, operands: Sequence[Array], dtype: DType) -> Array:
    """Apply one operation; `dtype` is the dtype of the result."""
    if op == "cast":
        return convert(operands[0], dtype)
    if op == "bits":
        return np.asarray(operands[0]).view(dtype.numpy)
    return _OPERATIONS[op](*operands)


def convert(x: Array, dtype: DType) -> Array:
    """Conversion by value: float to int truncates toward zero and saturates, NaN gives 0."""
    x = np.asarray(x)
    if dtype.is_integer and x.dtype.kind == "f":
        info = np.iinfo(dtype.numpy)
        whole = np.trunc(x.astype(np.float64))
        low = whole <= float(info.min)
        high = whole >= float(info.max)
        with np.errstate(invalid="ignore"):
            safe = np.where(low | high | np.isnan(whole), 0.0, whole)
            result = safe.astype(dtype.numpy)
        result = np.where(low, dtype.numpy.type(info.min), result)
        result = np.where(high, dtype.numpy.type(info.max), result)
        return result.astype(dtype.numpy)
    with np.errstate(over="ignore"):
        return x.astype(dtype.numpy)


def minimum(a: Array, b: Array) -> Array:
    """The lesser, NaN if either is NaN, -0 below +0."""
    if np.asarray(a).dtype.kind != "f":
        return np.where(b < a, b, a)
    pick_b = (b < a) | ((a == b) & np.signbit(b) & ~np.signbit(a)) | np.isnan(b)
    return np.where(np.isnan(a), a, np.where(pick_b, b, a))


def maximum(a: Array, b: Array) -> Array:
    """The greater, NaN if either is NaN, -0 below +0."""
    if np.asarray(a).dtype.kind != "f":
        return np.where(b > a, b, a)
    pick_b = (b > a) | ((a == b) & np.signbit(a) & ~np.signbit(b)) | np.isnan(b)
    return np.where(np.isnan(a), a, np.where(pick_b, b, a))


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """s + e = a + b exactly, s the rounded sum (Knuth)."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """p + e = a * b exactly in f64, barring overflow and underflow (Dekker, Veltkamp)."""
    p = a * b
    ah, al = _split(a)
    bh, bl = _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _split(a: Array) -> tuple[Array, Array]:
    c = 134217729.0 * a
    high = c - (c - a)
    return high, a - high


def _to_odd(s: Array, e: Array) -> Array:
    """s with its last bit set where the error e is not zero, s truncated toward s + e."""
    s = np.asarray(s, np.float64)
    raw = s.view(np.int64)
    inexact = (e != 0) & np.isfinite(s)
    even = (raw & 1) == 0
    # s is off by e: the truncation neighbour is one unit nearer to zero when e points there.
    toward_zero = np.signbit(e) != np.signbit(s)
    odd = np.where(even, np.where(toward_zero, raw - 1, raw + 1), raw)
    return np.where(inexact, odd, raw).view(np.float64)


def fma(a: Array, b: Array, c: Array) -> Array:
    """a*b + c rounded once."""
    if np.asarray(a).dtype == np.float32:
        return _fma32(a, b, c)
    return _fma64(a, b, c)


def _fma32(a: Array, b: Array, c: Array) -> Array:
    """Round the sum in f64, then to f32. The product is exact, so only the sum was rounded before:
    a second rounding errs where that sum is the middle of two f32 numbers. Round the sum to odd
    there. Do the same below the normal numbers, where the middles are elsewhere."""
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)  # exact: 48 bits
    c = np.asarray(c, np.float64)
    total = np.asarray(product + c)
    result = np.asarray(total.astype(np.float32))
    twice = ((total.view(np.int64) & _BELOW_F32) == _MIDDLE) | (np.abs(total) < _LEAST_NORMAL)
    if twice.any():
        product, c = np.broadcast_arrays(product, c)
        result[twice] = _to_odd(*two_sum(product[twice], c[twice])).astype(np.float32)
    return result


def _fma64(a: Array, b: Array, c: Array) -> Array:
    """Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008; exact where no
    intermediate leaves the exponent range, else by rationals, element by element."""
    a, b, c = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (a, b, c)))
    p, e = two_product(a, b)
    th, tl = two_sum(c, e)
    vh, vl = two_sum(p, th)
    s, r = two_sum(tl, vl)
    zero = (a == 0) | (b == 0)
    result = np.where(zero, p + c, vh + _to_odd(s, r))  # the sums above lose the sign of -0
    magnitude = np.abs(p)
    plain = (magnitude < 1e290) & (np.abs(a) < 1e290) & (np.abs(b) < 1e290) & (np.abs(c) < 1e290)
    plain = zero | (plain & (magnitude > 1e-240))
    if plain.all():
        return result
    result = np.array(result)
    for i in np.argwhere(~plain):
        at = tuple(i)
        result[at] = _fma_rational(float(a[at]), float(b[at]), float(c[at]))
    return result


def _fma_rational(a: float, b: float, c: float) -> float:
    from fractions import Fraction

    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)):
        return (
            float(np.float64(a) * np.float64(b) + np.float64(c))
            if not (np.isfinite(a) and np.isfinite(b))
            else c
        )
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return 0.0
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def _divide(a: Array, b: Array) -> Array:
    if np.asarray(a).dtype.kind == "f":
        return a / b
    return _integer_division(a, b)[0]


def _integer_division(a: Array, b: Array) -> tuple[Array, Array]:
    """Truncating quotient and remainder; x/0 = 0 with remainder x, least/-1 wraps."""
    a, b = np.broadcast_arrays(a, b)
    zero = b == 0
    minus = b == -1 if b.dtype.kind == "i" else np.zeros_like(zero)
    safe = np.where(zero | minus, np.ones_like(b), b)
    remainder = np.fmod(a, safe)
    quotient = (a - remainder) // safe
    quotient = np.where(minus, np.zeros_like(a) - a, quotient)
    quotient = np.where(zero, np.zeros_like(a), quotient)
    return quotient, np.where(zero, a, np.where(minus, np.zeros_like(a), remainder))


def _logical_shift(a: Array, count: Array) -> Array:
    a = np.asarray(a)
    unsigned = a.dtype.str.replace("i", "u")
    return (a.view(unsigned) >> np.asarray(count).astype(unsigned)).view(a.dtype)


def _not(a: Array) -> Array:
    return ~np.asarray(a)


_OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "rem": lambda a, b: _integer_division(a, b)[1],
    "neg": lambda a: -a,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "rint": np.rint,
    "fma": fma,
    "minimum": minimum,
    "maximum": maximum,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "ashr": lambda a, b: a >> b,
    "lshr": _logical_shift,
    "not": _not,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "select": lambda c, a, b: np.where(c, a, b),
}
