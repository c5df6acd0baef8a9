"""The exact remainder of floats, and what % and // make of it, as straight programs.

With |x| = m 2^a and |y| = n 2^b, m and n integers of full length and d = a - b >= 0, the remainder
is (m 2^d mod n) 2^b. 2^d mod n is found by squaring: the first bits of d give a power of two below
n, every further bit a square, and its double where the bit is 1. Every product is reduced at once.
"""

from __future__ import annotations

from collections.abc import Callable

from diptych.dtypes import f32, f64, i64
from diptych.kernel import expr as k
from diptych.kernel.double import number
from diptych.kernel.expr import Expr

FRACTION = k.const((1 << 52) - 1, i64)
BIAS = 1023
Modulo = Callable[[Expr, Expr], Expr]  # a product of two integers, reduced


def _whole(raw: Expr, length: int) -> Expr:
    """The significand of a positive f64, given by its bits, as a float from 2^(length - 1)."""
    return k.bits((raw & FRACTION) | k.const((BIAS + length - 1) << 52, i64))


def _power_of_two(n: Expr) -> Expr:
    return k.bits((n + BIAS) << 52)


def _modular(m: Expr, n: Expr, d: Expr, squares: int, zero: Expr, product: Modulo) -> Expr:
    """m 2^d mod n; 2 to the bits of d before the last `squares` ones is below n."""
    power = _power_of_two(d >> squares)
    power = power if zero.dtype == f64 else k.cast(power, i64)
    for bit in reversed(range(squares)):
        power = product(power, power)
        doubled = power + power
        doubled = k.select(doubled >= n, doubled - n, doubled)
        power = k.select(((d >> bit) & 1).differs(0), doubled, power)
    return product(power, m)


def _narrow(x: Expr, y: Expr) -> Expr:
    """Of positive finite f32, as f64: products of two 24 bit integers are exact, and no quotient
    of them rounds up to a whole number that it does not reach."""
    a, b = k.bits(x), k.bits(y)
    n = _whole(b, 24)
    d = k.maximum((a >> 52) - (b >> 52), 0)  # to 276

    def product(s: Expr, t: Expr) -> Expr:
        p = s * t
        return p - k.floor(p / n) * n

    rest = _modular(_whole(a, 24), n, d, 4, number(0.0), product)
    return rest * _power_of_two((b >> 52) - (BIAS + 23))


def _wide(x: Expr, y: Expr) -> Expr:
    """Of positive finite f64. The quotient of a product is off by 2 and a fraction; the product
    less quotient times n is right modulo 2^64, which is enough for what lies from -2n to 3n."""
    (m, a), (n, b) = _scaled(x), _scaled(y)
    whole = k.cast(n, i64)
    d = k.maximum(a - b, 0)  # to 2097

    def product(s: Expr, t: Expr) -> Expr:
        quotient = k.cast(k.cast(s, f64) * k.cast(t, f64) / n, i64)
        r = s * t - quotient * whole
        r = k.select(r < 0, r + whole + whole, r)
        for above in (whole + whole, whole):
            r = k.select(r >= above, r - above, r)
        return r

    rest = _modular(k.cast(m, i64), whole, d, 6, k.const(0, i64), product)
    e = b - (BIAS + 52)
    half = e >> 1  # 2^e may be no f64; the product with both is exact
    return k.cast(rest, f64) * _power_of_two(half) * _power_of_two(e - half)


def _scaled(x: Expr) -> tuple[Expr, Expr]:
    """The significand of a positive f64 as a float of 53 bits, and its exponent with the bias."""
    tiny = x < 2.2250738585072014e-308
    raw = k.bits(k.select(tiny, x * 2.0**54, x))
    return _whole(raw, 53), (raw >> 52) - k.select(tiny, k.const(54, i64), 0)


def truncated(x: Expr, y: Expr) -> Expr:
    """x - trunc(x / y) * y, exactly, with the sign of x; NaN where x is infinite or y is 0."""
    dtype = x.dtype
    a, b = (k.cast(k.absolute(v), f64) for v in (x, y))
    infinity = float("inf")
    plain = (a < infinity) & (b > 0.0) & (b < infinity) & (a >= b)
    one = number(1.0)
    given = k.select(plain, a, one), k.select(plain, b, one)
    rest = (_narrow if dtype == f32 else _wide)(*given)
    rest = k.select(plain, k.cast(rest, dtype), k.absolute(x))
    rest = k.select((a < infinity) & (b > 0.0), rest, k.const(float("nan"), dtype))
    return k.select(k.bits(x) < 0, -rest, rest)


def _zero_like(sign: Expr) -> Expr:
    return k.select(k.bits(sign) < 0, k.const(-0.0, sign.dtype), 0.0)


def _wrong_way(rest: Expr, y: Expr) -> Expr:
    return rest.differs(0.0) & ((rest < 0.0) ^ (y < 0.0))


def remainder(x: Expr, y: Expr) -> Expr:
    """x % y with the sign of y, as numpy has it."""
    rest = truncated(x, y)
    moved = k.select(_wrong_way(rest, y), rest + y, rest)
    return k.select(rest.equals(0.0), _zero_like(y), moved)


def floor_divide(x: Expr, y: Expr) -> Expr:
    """x // y, as numpy has it: what is left after the remainder, divided, is nearly whole."""
    rest = truncated(x, y)
    quotient = (x - rest) / y
    quotient = k.select(_wrong_way(rest, y), quotient - 1.0, quotient)
    down = k.floor(quotient)
    down = k.select(quotient - down > 0.5, down + 1.0, down)
    plain = x / y
    result = k.select(quotient.equals(0.0), _zero_like(plain), down)
    return k.select(y.equals(0.0), plain, result)
