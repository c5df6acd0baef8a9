"""sin and cos with exact reduction of arguments of every size (Payne and Hanek, 1983).

x = m 2^e with an integer m. x * 2/pi modulo 4 needs only the bits of 2/pi around position e: they
are picked from a list of 32-bit words by shifting it by the bits of the position, and multiplied
with m in integers, exactly.
"""

from __future__ import annotations

from diptych.dtypes import DType, f32, f64, i64
from diptych.kernel import expr as k
from diptych.kernel.double import number, quick_two_sum, two_product, two_sum
from diptych.kernel.expr import Expr
from diptych.kernel.math import _horner, _single

# The first 1216 bits of 2/pi after the binary point, made with mpmath:
# int(floor(2 / pi * 2**1216)).
TWO_OVER_PI = int(
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e0"
    "06492eea09d1921cfe1deb1cb129a73ee88235f52ebb4484e99c7026b45f7e413991d639835339f4"
    "9c845f8bbdf9283b1ff897ffde05980fef2f118b5a0a6d1f6d367ecf27cb09b74f463f669e5fea2d"
    "7527bac7ebe5f17b3d0739f78a5292ea6bfb5fb11f8d5d0856033046fc7b6bab",
    16,
)
BITS = 1216
MASK = 0xFFFFFFFF
HALF_PI = float.fromhex("0x1.921fb54442d18p+0")
HALF_PI_LOW = float.fromhex("0x1.1a62633145c07p-54")


def _words(dtype: DType) -> tuple[list[int], int]:
    """Words of 2/pi, before them zeros for arguments below one; and the number of zeros."""
    zeros = 2 if dtype == f32 else 3
    count = 8 if dtype == f32 else BITS // 32
    words = [(TWO_OVER_PI >> (BITS - 32 * (n + 1))) & MASK for n in range(count)]
    return [0] * zeros + words, zeros


def _window(words: list[int], at: Expr, size: int) -> list[Expr]:
    """`size` words from position `at` on: the list shifted by one bit of `at` after another."""
    bits = (len(words) - 1).bit_length()
    current = [k.const(w, i64) for w in words]
    zero = k.const(0, i64)
    for bit in reversed(range(bits)):
        step = 1 << bit
        need = size + step - 1
        chosen = (at & step).differs(0)
        padded = current + [zero] * (need + step)
        current = [k.select(chosen, padded[n + step], padded[n]) for n in range(need)]
    return current[:size]


def _fraction(magnitude: Expr, dtype: DType) -> tuple[Expr, list[Expr]]:
    """The low bits of the integer part of |x| * 2/pi, and its fraction as 32-bit digits."""
    words, zeros = _words(dtype)
    raw = k.bits(magnitude)
    # f32 arguments are held in f64: their last 29 bits are zero, and m has 24 bits
    shift = 29 if dtype == f32 else 0
    m = k.lshr((raw & 0xFFFFFFFFFFFFF) | (1 << 52), shift)
    e = k.lshr(raw, 52) - (1075 - shift) + 32 * zeros
    start, b = k.lshr(e, 5), e & 31
    digits = 5 if dtype == f32 else 8
    window = _window([0, *words], start, digits + 1)  # from one word before the position
    v = [((window[n] << b) | k.lshr(window[n + 1], 32 - b)) & MASK for n in range(digits)]
    low, high = m & MASK, k.lshr(m, 32)
    carry, result = k.const(0, i64), []
    for n in reversed(range(digits - 2)):
        total = _low(low, v[n]) + _high(low, v[n + 1]) + carry
        if dtype != f32:
            total = total + _low(high, v[n + 1]) + _high(high, v[n + 2])
        result.append(total & MASK)
        carry = k.lshr(total, 32)
    result.reverse()
    return result[0] & 3, result[1:]


def _low(a: Expr, b: Expr) -> Expr:
    return (a * b) & MASK


def _high(a: Expr, b: Expr) -> Expr:
    return k.lshr(a * b, 32)


def _reduced(x: Expr, dtype: DType) -> tuple[Expr, Expr, Expr]:
    """|x| = q pi/2 + r, |r| <= pi/4: q modulo 4, and r as high + low."""
    magnitude = k.absolute(x)
    small = magnitude <= 0.7853981633974483
    bounded = k.select(small, number(1.0), k.minimum(magnitude, 1.7e308))
    quotient, digits = _fraction(bounded, dtype)
    top = (digits[0] << 32) | digits[1]  # as a signed number: the fraction less one from 1/2 on
    quotient = quotient + k.lshr(top, 63)
    parts = [k.cast(top >> 32, f64) * 2.0**-32]
    parts += [k.cast(d, f64) * 2.0 ** (-32 * (n + 2)) for n, d in enumerate(digits[1:])]
    f, rest = two_sum(parts[0], parts[1])
    for part in parts[2:]:
        f, error = two_sum(f, part)
        rest = rest + error
    f, rest = quick_two_sum(f, rest)
    p, error = two_product(f, number(HALF_PI))
    high, low = quick_two_sum(p, error + (f * HALF_PI_LOW + rest * HALF_PI))
    zero = k.const(0, i64)
    return (
        k.select(small, zero, quotient),
        k.select(small, magnitude, high),
        k.select(small, number(0.0), low),
    )


# Taylor coefficients: r^2k / (2k+1)! and / (2k)! fall below 2^-60 for r = pi/4
_SIN = [(-1.0) ** n / f for n, f in enumerate([6.0, 120.0, 5040.0, 362880.0, 39916800.0,
        6227020800.0, 1307674368000.0, 355687428096000.0], 1)]  # fmt: skip
_COS = [(-1.0) ** n / f for n, f in enumerate([24.0, 720.0, 40320.0, 3628800.0, 479001600.0,
        87178291200.0, 20922789888000.0, 6402373705728000.0], 2)]  # fmt: skip


def _sin_part(r: Expr, low: Expr) -> Expr:
    z = r * r
    return r + (low * (1.0 - 0.5 * z) + r * z * _horner(z, _SIN))


def _cos_part(r: Expr, low: Expr) -> Expr:
    """1 - r^2/2 + ...: the rounding of 1 - r^2/2 is added back."""
    z, error = two_product(r, r)
    half = 0.5 * z
    w = 1.0 - half
    rest = ((1.0 - w) - half) - 0.5 * error
    return w + (rest + (z * z * _horner(z, _COS) - r * low))


def _turned(x: Expr, dtype: DType, quarter: int) -> Expr:
    """sin(|x| + quarter * pi/2)."""
    q, r, low = _reduced(x, dtype)
    q = q + quarter
    value = k.select((q & 1).equals(0), _sin_part(r, low), _cos_part(r, low))
    value = k.select((q & 2).equals(0), value, -value)
    return k.select(k.absolute(x) < float("inf"), value, number(float("nan")))


def sin(x: Expr) -> Expr:
    """Sine of an angle in radians."""
    wide = k.cast(x, f64) if x.dtype == f32 else x
    value = _turned(wide, x.dtype, 0)
    value = k.select(wide < 0.0, -value, value)
    value = k.select(k.absolute(wide) < 1e-300, wide, value)
    return _single("sin", x, value) if x.dtype == f32 else value


def cos(x: Expr) -> Expr:
    """Cosine of an angle in radians."""
    wide = k.cast(x, f64) if x.dtype == f32 else x
    value = _turned(wide, x.dtype, 1)
    return _single("cos", x, value) if x.dtype == f32 else value
