"""pow: x^y = 2^(y log2 x), with the logarithm and the exponential to about 2^-95.

Where x^y is a short binary fraction it may lie exactly between two f32; those powers are computed
exactly instead: x^y with at most 53 bits needs, but for powers of two, y = n / 2^j with small n
and x a square j times over.
"""

from __future__ import annotations

import math
from fractions import Fraction

from diptych.dtypes import bool_, f32, f64, i64
from diptych.kernel import double
from diptych.kernel import expr as k
from diptych.kernel.double import Double, number
from diptych.kernel.expr import Expr
from diptych.kernel.math import MAGIC, _halves, _horner

LOG_TERMS, LOG_DOUBLE = 21, 11  # of the series in s^2 <= 0.0295, and those of them in double
EXP_TERMS, EXP_DOUBLE = 17, 9  # of e^r with |r| <= ln2 / 16
LN2 = Fraction(0xB17217F7D1CF79ABC9E3B39803F2F6AF40F343267298B62D8A, 1 << 200)
INVERSE_LN2 = 1 / LN2
SQRT_HALF = k.const(0x3FE6A09E667F3BCD, i64)
INFINITY = float("inf")


def _constant(value: Fraction) -> Double:
    return double.constant(value.numerator, value.denominator)


def _series(x: Double, terms: list[Fraction], doubles: int) -> Double:
    """A polynomial whose last terms are small enough for plain f64."""
    tail = double.multiply_number(x, _horner(x[0], [float(t) for t in terms[doubles:]]))
    result = double.add(_constant(terms[doubles - 1]), tail)
    for term in reversed(terms[: doubles - 1]):
        result = double.add(double.multiply(result, x), _constant(term))
    return result


def _log2(x: Expr) -> Double:
    """log2 of a positive finite x: n + log(m) / ln2, log(m) = 2 (s + s^3/3 + ...)."""
    tiny = x < 2.2250738585072014e-308
    raw = k.bits(k.select(tiny, x * 2.0**54, x))
    e = (raw - SQRT_HALF) >> 52
    m = k.bits(raw - (e << 52))
    n = k.cast(e, f64) - k.select(tiny, number(54.0), number(0.0))
    s = double.divide((m - 1.0, number(0.0)), double.two_sum(m, number(1.0)))
    z = double.multiply(s, s)
    terms = [2 * INVERSE_LN2 / (2 * j + 1) for j in range(LOG_TERMS)]
    return double.add_number(double.multiply(s, _series(z, terms, LOG_DOUBLE)), n)


def _exp2(t: Double) -> tuple[Expr, Double]:
    """Bits of n, and 2^t / 2^n from 0.7 to 1.42."""
    shifted = t[0] + MAGIC
    n = shifted - MAGIC
    f = double.add_number(t, -n)
    r = double.multiply(f, _constant(LN2 / 8))
    terms = [Fraction(1, math.factorial(j)) for j in range(EXP_TERMS)]
    e = _series(r, terms, EXP_DOUBLE)
    for _ in range(3):
        e = double.multiply(e, e)
    return k.bits(shifted), e


def _exact(x: Expr, y: Expr) -> tuple[Expr, Expr]:
    """x^y for positive x where it has at most 53 bits and y at most 4 after its square roots; and
    whether that is so."""
    base, n = x, y
    good = k.const(True, bool_)
    for _ in range(3):
        root = k.sqrt(base)
        broken = n.differs(k.floor(n))
        square, error = double.two_product(root, root)
        good = good & (~broken | (square.equals(base) & error.equals(0.0)))
        base = k.select(broken, root, base)
        n = k.select(broken, n * 2.0, n)
    good = good & n.equals(k.floor(n)) & (n >= 1.0) & (n <= 31.0)
    count = k.bits(k.select(good, n, number(1.0)) + MAGIC)
    power = k.select((count & 1).differs(0), base, number(1.0))
    for bit in range(1, 5):
        base, error = double.two_product(base, base)
        used = (count & (1 << bit)).differs(0)
        needed = ((count & 31) >> bit).differs(0)  # this bit or a higher one is set
        good = good & (~needed | error.equals(0.0))
        product, wrong = double.two_product(power, base)
        good = good & (~used | wrong.equals(0.0))
        power = k.select(used, product, power)
    return power, good


def _magnitude(x: Expr, y: Expr) -> Expr:
    """|x|^y in f64 for finite positive |x| and finite y; to f32 it rounds as the exact value."""
    wide_y = k.minimum(k.maximum(y, -1e300), 1e300)
    log = _log2(x)
    t = double.multiply_number(log, wide_y)
    limit = 1090.0
    outside = ~(k.absolute(t[0]) < limit)
    bounded = (k.select(outside, number(0.0), t[0]), k.select(outside, number(0.0), t[1]))
    raw, e = _exp2(bounded)
    a, b = _halves(raw)
    odd = double.rounded_to_odd(*e)
    value = odd * a * b
    exact, is_exact = _exact(x, y)
    value = k.select(is_exact & (k.absolute(t[0]) < 900.0), exact, value)
    up = (log[0] > 0.0).equals(y > 0.0)
    far = k.select(up, number(INFINITY), number(0.0))
    return k.select(outside & log[0].differs(0.0), far, value)


def pow(x: Expr, y: Expr) -> Expr:
    """x^y with the special values of C's Annex F."""
    dtype = x.dtype
    if dtype == f32:
        x, y = k.cast(x, f64), k.cast(y, f64)
    a = k.absolute(x)
    plain = (a > 0.0) & (a < INFINITY) & (k.absolute(y) < INFINITY)
    value = _magnitude(k.select(plain, a, number(1.0)), k.select(plain, y, number(1.0)))
    infinity, zero, one = number(INFINITY), number(0.0), number(1.0)
    grows = (y > 0.0).equals(a > 1.0)
    limit = k.select(a.equals(1.0), one, k.select(grows, infinity, zero))
    value = k.select(plain, value, limit)
    whole = y.equals(k.floor(y))
    half = y * 0.5
    odd = whole & half.differs(k.floor(half)) & (k.absolute(y) < 2.0**53)
    negative = k.bits(x) < 0
    value = k.select(negative & odd, -value, value)
    value = k.select((x < 0.0) & (a < INFINITY) & ~whole, number(float("nan")), value)
    value = k.select(x.differs(x) | y.differs(y), x + y, value)
    value = k.select(y.equals(0.0) | x.equals(1.0), one, value)
    return k.cast(value, f32) if dtype == f32 else value
