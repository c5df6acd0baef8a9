"""Elementary functions, each a straight program in f64 of + - * / sqrt and bit operations.

In f32 a function is computed in f64 with an error near 2^-52 and rounded once more; that result
is the f32 nearest to the exact value but for the few inputs whose exact value lies that close to
a rounding boundary. These stand in `EXCEPTIONS`, and scripts/verify_math.py shows over all 2^32
inputs that there are no others. In f64 the same programs carry the low halves of their sums
(`double.py`), which keeps them within 1 ulp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from diptych.dtypes import f32, f64, i32, i64
from diptych.kernel import double
from diptych.kernel import expr as k
from diptych.kernel.double import Double, number, quick_two_sum, two_sum
from diptych.kernel.erf_table import BELOW_HALF, BELOW_ONE, NARROW, WIDE
from diptych.kernel.expr import Expr

# ln 2 = LN2_HIGH + LN2_LOW, the first with 20 zero bits at its end: n * LN2_HIGH is exact.
LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
LOG2_E = 1.4426950408889634
MAGIC = 6755399441055744.0  # 1.5 * 2^52: adding it leaves the nearest integer in the low bits

# Inputs, by their bits, whose f64 value rounds to the wrong f32: result by its bits.
EXCEPTIONS: dict[str, dict[int, int]] = {
    "log": {
        0x3C413D3A: 0xC08E158F,
        0x41178FEB: 0x400FE5E7,
        0x4C5D65A5: 0x418F034B,
        0x65D890D3: 0x4254D1F9,
        0x6F31A8EC: 0x42845A89,
    },
    "log1p": {
        0x35400003: 0x353FFFFF,
        0x3710001B: 0x370FFFF3,
        0x3EFD81AD: 0x3ECDEEE1,
        0x41078FEB: 0x400FE5E7,
        0x65D890D3: 0x4254D1F9,
        0x6F31A8EC: 0x42845A89,
        0xB53FFFFD: 0xB5400001,
        0xB70FFFE5: 0xB710000D,
        0xBB0EC8C4: 0xBB0EF0A5,
    },
    "sigmoid": {
        0xBA928601: 0x3EFFDB5F,
    },
    "sin": {
        0x46199998: 0xBEB1FA5D,
        0xC6199998: 0x3EB1FA5D,
    },
    "cos": {
        0x5F18B878: 0x3F7F14BB,
        0x6115CB11: 0x3F78142F,
        0xDF18B878: 0x3F7F14BB,
        0xE115CB11: 0x3F78142F,
    },
}


def _single(name: str, x: Expr, value: Expr) -> Expr:
    """An f64 value rounded to f32, but for the inputs where that is wrong."""
    result = k.cast(value, f32)
    raw = Expr("bits", (x,), i32)
    for given, right in EXCEPTIONS.get(name, {}).items():
        wanted = k.const(_signed(given), i32)
        instead = Expr("bits", (k.const(_signed(right), i32),), f32)
        result = k.select(raw.equals(wanted), instead, result)
    return result


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >= 1 << 31 else bits


def _horner(x: Expr, coefficients: Sequence[float | Expr]) -> Expr:
    last = coefficients[-1]
    total = last if isinstance(last, Expr) else number(last)
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _where_special(x: Expr, value: Expr, **results: float) -> Expr:
    """The value, but `infinity`, `zero` and so on where x is that, and NaN where x is NaN."""
    for name, result in results.items():
        at = {"infinity": float("inf"), "minus_infinity": float("-inf"), "zero": 0.0}[name]
        value = k.select(x.equals(at), number(result), value)
    return k.select(x.differs(x), x, value)


# ---- exponentials --------------------------------------------------------------------------

_EXP_TAIL = [1.0 / math.factorial(n) for n in range(2, 15)]  # |r| <= 0.35: r^15/15! < 2^-62


def _nearest(x: Expr) -> tuple[Expr, Expr]:
    """x rounded to an integer, as f64 and in the low bits of an i64."""
    shifted = x + MAGIC
    return shifted - MAGIC, k.bits(shifted)


def _scale(low_bits: Expr) -> Expr:
    """2^n for n from -1022 to 1023 in the low bits of an i64."""
    return k.bits((low_bits + 1023) << 52)


def _reduced(x: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """n (f64 and bits) and x - n ln2 as high + low, |high| <= 0.35."""
    n, raw = _nearest(x * LOG2_E)
    r = x - n * LN2_HIGH
    c = n * LN2_LOW
    high = r - c
    return n, raw, high, (r - high) - c


def _exp_parts(x: Expr) -> tuple[Expr, Expr, Expr]:
    """n (f64 and bits) and p with e^x = 2^n (1 + p); the error is below 2^-53 of 1 + p."""
    n, raw, r, low = _reduced(x)
    return n, raw, r + (low + r * r * _horner(r, _EXP_TAIL))


def _exp_double(x: Expr) -> tuple[Expr, Double]:
    """Bits of n, and p as a double, with e^x = 2^n (1 + p); |low| keeps about 2^-60 of p."""
    _, raw, r, low = _reduced(x)
    square, error = double.two_product(r, r)
    half = 0.5 * square
    tail = r * square * _horner(r, _EXP_TAIL[1:])
    high, rest = quick_two_sum(r, half)
    return raw, quick_two_sum(high, rest + (low + low * r + 0.5 * error + tail))


def _halves(raw: Expr) -> tuple[Expr, Expr]:
    """2^n as a product of two, for n below -1022 or above 1023."""
    n = (raw << 32) >> 32
    first = n >> 1
    return _scale(first), _scale(n - first)


def exp(x: Expr) -> Expr:
    """e^x."""
    if x.dtype == f32:
        wide = k.minimum(k.maximum(k.cast(x, f64), -105.0), 90.0)
        _, raw, p = _exp_parts(wide)
        return _single("exp", x, (p + 1.0) * _scale(raw))
    raw, p2 = _exp_double(k.minimum(k.maximum(x, -746.0), 710.0))
    a, b = _halves(raw)
    s, e = quick_two_sum(number(1.0), p2[0])
    return (s + (e + p2[1])) * a * b


def expm1(x: Expr) -> Expr:
    """e^x - 1."""
    if x.dtype == f32:
        wide = k.cast(x, f64)
        _, raw, p = _exp_parts(k.minimum(k.maximum(wide, -60.0), 90.0))
        scale = _scale(raw)
        value = p * scale + (scale - 1.0)
        return _single("expm1", x, k.select(wide.equals(0.0), wide, value))
    high, low = _expm1_double(k.minimum(k.maximum(x, -60.0), 700.0))
    value = k.select(x > 60.0, exp(x), high + low)
    return k.select(k.absolute(x) < 1e-300, x, value)


def _expm1_double(x: Expr) -> Double:
    """e^x - 1 for x from -60 to 700."""
    raw, p = _exp_double(x)
    scale = _scale(raw)
    s, e = two_sum(number(1.0) * scale, p[0] * scale)
    t, f = two_sum(s, number(-1.0))
    return quick_two_sum(t, f + e + p[1] * scale)


def tanh(x: Expr) -> Expr:
    """(e^2x - 1) / (e^2x + 1)."""
    if x.dtype == f32:
        wide = k.cast(x, f64)
        _, raw, p = _exp_parts(k.minimum(k.absolute(wide) * 2.0, 40.0))
        scale = _scale(raw)
        e = p * scale + (scale - 1.0)
        value = e / (e + 2.0)
        return _single("tanh", x, _with_sign_of(wide, value))
    e2 = _expm1_double(k.minimum(k.absolute(x) * 2.0, 80.0))
    high, _ = double.divide(e2, double.add_number(e2, number(2.0)))
    return k.select(k.absolute(x) < 1e-20, x, _with_sign_of(x, high))


def _with_sign_of(x: Expr, value: Expr) -> Expr:
    """A value that is not negative with the sign of x; x itself where it is zero or NaN."""
    signed = k.select(x < 0.0, -value, value)
    return k.select(k.absolute(x) > 0.0, signed, x)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    if x.dtype == f32:
        wide = k.cast(x, f64)
        _, raw, p = _exp_parts(k.minimum(k.maximum(-wide, -90.0), 105.0))
        value = 1.0 / ((p + 1.0) * _scale(raw) + 1.0)
        # 1/2 + x/4 - x^3/48: where x is small, 1/2 + x/4 may be a tie that the next term decides;
        # any number of its sign that is small beside the last place of x does.
        tiny = 0.5 + (wide * 0.25) * (1.0 - 2.0**-26)
        return _single("sigmoid", x, k.select(k.absolute(wide) < 2.0**-11, tiny, value))
    raw, p2 = _exp_double(k.maximum(-k.absolute(x), -745.5))
    a, b = _halves(raw)
    s, rest = quick_two_sum(number(1.0), p2[0])
    e = (s * a * b, (rest + p2[1]) * a * b)
    below = x < 0.0
    top = (k.select(below, e[0], number(1.0)), k.select(below, e[1], number(0.0)))
    high, _ = double.divide(top, double.add_number(e, number(1.0)))
    return _where_special(x, k.select(e[0] < 1e-290, top[0], high))


# ---- logarithms ----------------------------------------------------------------------------


def _log(x: Expr, correction: Expr | None = None) -> Expr:
    """log(x + correction) for positive x: x = 2^n m with m from sqrt(1/2) to sqrt(2), s = f/(2+f)
    with f = m - 1, and log(m) = f - f^2/2 + s (f^2/2 + 2 s^2/3 + 2 s^4/5 + ...)."""
    tiny = x < 2.2250738585072014e-308
    raw = k.bits(k.select(tiny, x * 2.0**54, x))
    e = (raw - k.const(0x3FE6A09E667F3BCD, i64)) >> 52
    f = k.bits(raw - (e << 52)) - 1.0
    n = k.cast(e, f64) - k.select(tiny, number(54.0), number(0.0))
    s = f / (f + 2.0)
    z = s * s
    series = z * _horner(z, [2.0 / odd for odd in range(3, 25, 2)])
    half = 0.5 * f * f
    low = n * LN2_LOW if correction is None else n * LN2_LOW + correction / x
    return n * LN2_HIGH - ((half - (s * (half + series) + low)) - f)


def _log_special(x: Expr, value: Expr) -> Expr:
    value = k.select(x < 0.0, number(float("nan")), value)
    return _where_special(x, value, zero=float("-inf"), infinity=float("inf"))


def log(x: Expr) -> Expr:
    """Natural logarithm."""
    if x.dtype == f32:
        wide = k.cast(x, f64)
        return _single("log", x, _log_special(wide, _log(wide)))
    return _log_special(x, _log(x))


def log1p(x: Expr) -> Expr:
    """log(1 + x)."""
    wide = k.cast(x, f64) if x.dtype == f32 else x
    u, error = two_sum(number(1.0), wide)
    value = _log_special(u, _log(u, error))
    value = k.select(wide.equals(float("inf")), wide, value)
    value = k.select(k.absolute(wide) < 1e-300, wide, value)
    return _single("log1p", x, value) if x.dtype == f32 else value


def rsqrt(x: Expr) -> Expr:
    """1 / sqrt(x)."""
    if x.dtype == f32:
        return _single("rsqrt", x, 1.0 / k.sqrt(k.cast(x, f64)))
    # one Newton step from the rounded value, its residual 1 - x g^2 computed almost exactly
    tiny, huge = x < 1e-290, x > 1e290
    scaled = k.select(tiny, x * 2.0**108, k.select(huge, x * 2.0**-108, x))
    guess = 1.0 / k.sqrt(scaled)
    p, e = double.two_product(guess, guess)
    q, f = double.two_product(scaled, p)
    better = guess + 0.5 * guess * ((1.0 - q) - f - scaled * e)
    better = k.select((scaled > 0.0) & (x < float("inf")), better, guess)
    better = k.select(tiny, better * 2.0**54, k.select(huge, better * 2.0**-54, better))
    return _where_special(x, better, infinity=0.0)


# ---- the error function --------------------------------------------------------------------


def erf(x: Expr) -> Expr:
    """2 / sqrt(pi) times the integral of e^-t^2 from 0 to x."""
    if x.dtype == f32:
        wide = k.cast(x, f64)
        a = k.minimum(k.absolute(wide), 3.9999)
        small = a + a * _horner(a * a, BELOW_ONE[0])
        value = k.select(a < 1.0, small, _pieces(a, WIDE, 1.0, 1.0))
        return _single("erf", x, _with_sign_of(wide, value))
    a = k.minimum(k.absolute(x), 5.9999)
    small = a + a * _horner(a * a, BELOW_HALF[0])
    value = k.select(a < 0.5, small, _pieces(a, NARROW, 0.5, 0.25))
    return _with_sign_of(x, value)


def _pieces(a: Expr, table: list[list[float]], start: float, width: float) -> Expr:
    """high + (low + h P(h)) with the piece of the table that a lies in."""
    centres = [start + width * (n + 0.5) for n in range(len(table))]
    columns: list[list[float]] = [centres, *[list(c) for c in zip(*table, strict=True)]]
    flags = [a < start + width * n for n in range(1, len(table))]
    centre, high, low, *slope = [_chosen(column, flags) for column in columns]
    h = a - centre
    return high + (low + h * _horner(h, slope))


def _chosen(values: list[float], flags: list[Expr]) -> Expr:
    """The first value whose flag holds, else the last: a tree of selects."""
    if len(values) == 1:
        return number(values[0])
    half = len(values) // 2
    left = _chosen(values[:half], flags[: half - 1])
    right = _chosen(values[half:], flags[half:])
    return k.select(flags[half - 1], left, right)
