"""Sums and products whose rounding errors are kept: a value as an unevaluated sum high + low.

Dekker, "A floating-point technique for extending the available precision", 1971; Knuth, TAOCP 2,
4.2.2. No fused multiply-add is used, for not every target has one. High and low are f64; the
relative error of a product or a sum of two such values is a few times 2^-104.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.dtypes import f64
from diptych.kernel import expr as k
from diptych.kernel.expr import Expr

Double = tuple[Expr, Expr]
SPLIT = 134217729.0  # 2^27 + 1


def number(value: float) -> Expr:
    return k.const(value, f64)


def two_sum(a: Expr, b: Expr) -> Double:
    """a + b exactly."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def quick_two_sum(a: Expr, b: Expr) -> Double:
    """a + b exactly, where |a| >= |b| or a = 0."""
    s = a + b
    return s, b - (s - a)


def split(a: Expr) -> Double:
    c = a * SPLIT
    high = c - (c - a)
    return high, a - high


def two_product(a: Expr, b: Expr) -> Double:
    """a * b exactly, barring overflow and underflow."""
    p = a * b
    ah, al = split(a)
    bh, bl = split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def add(a: Double, b: Double) -> Double:
    s, e = two_sum(a[0], b[0])
    t, f = two_sum(a[1], b[1])
    s, e = quick_two_sum(s, e + t)
    return quick_two_sum(s, e + f)


def add_number(a: Double, b: Expr) -> Double:
    s, e = two_sum(a[0], b)
    return quick_two_sum(s, e + a[1])


def multiply(a: Double, b: Double) -> Double:
    p, e = two_product(a[0], b[0])
    return quick_two_sum(p, e + (a[0] * b[1] + a[1] * b[0]))


def multiply_number(a: Double, b: Expr) -> Double:
    p, e = two_product(a[0], b)
    return quick_two_sum(p, e + a[1] * b)


def divide(a: Double, b: Double) -> Double:
    """Three quotients, each of the remainder before it."""
    q0 = a[0] / b[0]
    rest = add(a, _negative(multiply_number(b, q0)))
    q1 = rest[0] / b[0]
    rest = add(rest, _negative(multiply_number(b, q1)))
    q2 = rest[0] / b[0]
    s, e = quick_two_sum(q0, q1)
    return quick_two_sum(s, e + q2)


def _negative(a: Double) -> Double:
    return -a[0], -a[1]


def constant(numerator: int, denominator: int = 1) -> Double:
    """numerator / denominator to 106 bits."""
    high = numerator / denominator
    top, bottom = high.as_integer_ratio()
    low = (numerator * bottom - denominator * top) / (denominator * bottom)
    return number(high), number(low)


def horner(x: Double, coefficients: Sequence[Double]) -> Double:
    total = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = add(multiply(total, x), c)
    return total


def rounded_to_odd(high: Expr, low: Expr) -> Expr:
    """high + low with the last bit set where it is not a double: rounding it once more, to fewer
    than 52 bits, gives what rounding high + low would (Boldo and Melquiond, 2008). Needs high to
    be high + low rounded to nearest."""
    raw = k.bits(high)
    toward_zero = (raw ^ k.bits(low)) < 0
    moved = k.select(toward_zero, raw - 1, raw + 1)
    inexact = low.differs(0.0) & low.equals(low) & (raw & 1).equals(0)
    return k.bits(k.select(inexact, moved, raw))
