"""Elementary functions, each a straight program in f64 of + - * / and bit operations."""

from __future__ import annotations

import math

from diptych.dtypes import f32, f64, i64
from diptych.errors import InternalError
from diptych.kernel import expr as k
from diptych.kernel.expr import Expr

LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
LOG2_E = 1.4426950408889634


def _wide(x: Expr) -> Expr:
    return k.cast(x, f64)


def _horner(x: Expr, coefficients: list[float]) -> Expr:
    total: Expr = k.const(coefficients[-1], f64)
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _power_of_two(n: Expr) -> Expr:
    """2^n for an integral f64 n from -1022 to 1023."""
    return k.bits((k.cast(n, i64) + 1023) << 52)


def _reduced(x: Expr) -> tuple[Expr, Expr]:
    """n and expm1(r) with x = n ln2 + r, |r| <= ln2 / 2."""
    n = k.rint(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    tail = _horner(r, [1.0 / math.factorial(i) for i in range(2, 15)])
    return n, r + r * r * tail


def _exp(x: Expr) -> Expr:
    bounded = k.minimum(k.maximum(x, -746.0), 710.0)
    n, p = _reduced(bounded)
    half = k.floor(n * 0.5)
    return (p + 1.0) * _power_of_two(half) * _power_of_two(n - half)


def exp(x: Expr) -> Expr:
    """e^x."""
    return k.cast(_exp(_wide(x)), x.dtype)


def _expm1(x: Expr) -> Expr:
    bounded = k.minimum(k.maximum(x, -60.0), 710.0)
    n, p = _reduced(bounded)
    half = k.floor(n * 0.5)
    a, b = _power_of_two(half), _power_of_two(n - half)
    large = (p + 1.0) * a * b - 1.0
    scale = a * b
    return k.select(n > 60.0, large, p * scale + (scale - 1.0))


def expm1(x: Expr) -> Expr:
    """e^x - 1."""
    wide = _wide(x)
    return k.cast(k.select(wide.equals(0.0), wide, _expm1(wide)), x.dtype)


def _log(x: Expr) -> Expr:
    tiny = x < 2.2250738585072014e-308
    scaled = k.select(tiny, x * 2.0**54, x)
    raw = k.bits(scaled)
    shifted = raw - k.const(0x3FE6A09E667F3BCD, i64)
    e = shifted >> 52
    m = k.bits(raw - (e << 52))
    power = k.cast(e, f64) - k.select(tiny, k.const(54.0, f64), 0.0)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    tail = _horner(z, [2.0 / n for n in range(3, 25, 2)]) * z
    f = m - 1.0
    value = (power * LN2_LOW + s * tail) + (2.0 * s) + power * LN2_HIGH
    value = k.select(f.equals(0.0), power * LN2_HIGH + power * LN2_LOW, value)
    special = k.select(x.equals(0.0), k.const(float("-inf"), f64), value)
    special = k.select(x < 0.0, k.const(float("nan"), f64), special)
    special = k.select(x.equals(float("inf")), x, special)
    return k.select(x.differs(x), x, special)


def log(x: Expr) -> Expr:
    """Natural logarithm."""
    return k.cast(_log(_wide(x)), x.dtype)


def log1p(x: Expr) -> Expr:
    """log(1 + x)."""
    wide = _wide(x)
    u = wide + 1.0
    correction = (wide - (u - 1.0)) / u
    value = _log(u) + k.select(
        u.equals(float("inf")) | u.equals(0.0), k.const(0.0, f64), correction
    )
    small = k.absolute(wide) < 1e-4
    series = wide - wide * wide * _horner(wide, [1 / 2, -1 / 3, 1 / 4, -1 / 5, 1 / 6])
    return k.cast(k.select(wide.equals(0.0), wide, k.select(small, series, value)), x.dtype)


def tanh(x: Expr) -> Expr:
    """(e^2x - 1) / (e^2x + 1)."""
    wide = _wide(x)
    e = _expm1(k.minimum(k.absolute(wide) * 2.0, 80.0))
    value = e / (e + 2.0)
    value = k.select(wide < 0.0, -value, value)
    return k.cast(k.select(wide.equals(0.0), wide, value), x.dtype)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    return k.cast(1.0 / (_exp(-_wide(x)) + 1.0), x.dtype)


def rsqrt(x: Expr) -> Expr:
    """1 / sqrt(x)."""
    if x.dtype == f32:
        return k.cast(1.0 / k.sqrt(_wide(x)), f32)
    return 1.0 / k.sqrt(x)


def _missing(name: str) -> InternalError:
    return InternalError(f"{name} is not written yet")


def erf(x: Expr) -> Expr:
    raise _missing("erf")


def sin(x: Expr) -> Expr:
    raise _missing("sin")


def cos(x: Expr) -> Expr:
    raise _missing("cos")


def pow(x: Expr, y: Expr) -> Expr:
    raise _missing("pow")
