"""Numbers that rounding gets wrong where it can: of every size, halfway, cancelling, special."""

import numpy as np

FORMATS = {  # bits of the fraction, the least exponent, the greatest
    np.float32: (np.uint32, 23, -149, 127),
    np.float64: (np.uint64, 52, -1074, 1023),
}


def numbers(rng, n, dtype):
    """Numbers of all kinds, each about as often."""
    word, fraction, least, greatest = FORMATS[dtype]
    raw = rng.integers(0, np.iinfo(word).max, n, dtype=word, endpoint=True)
    subnormal = raw & word((1 << fraction) - 1 | 1 << (word().itemsize * 8 - 1))
    sign = rng.choice([-1.0, 1.0], n)
    near = sign * np.ldexp(rng.integers(1, 1 << fraction, n), rng.integers(-fraction - 8, 8, n))
    few = sign * np.ldexp(rng.integers(0, 9, n) * 1.0, rng.integers(least, greatest - 3, n))
    halves = sign * rng.integers(0, 1 << 12, n) / 2
    limits = np.finfo(dtype)
    special = rng.choice(
        [0.0, np.inf, np.nan, limits.smallest_subnormal, limits.tiny, limits.max, 1.0,
         1.0 + limits.eps, 1.0 - limits.epsneg, 1 / limits.eps, 0.5 / limits.eps], n
    ) * sign  # fmt: skip
    kinds = [raw.view(dtype), subnormal.view(dtype), near, few, halves, special]
    with np.errstate(over="ignore"):
        kinds = [k.astype(dtype) for k in kinds]
    return np.choose(rng.integers(0, len(kinds), n), kinds)


def triples(rng, n, dtype):
    """a, b, c whose a * b + c is drawn at random, cancels, lies halfway, or is nearly subnormal."""
    word, fraction, least, _ = FORMATS[dtype]
    signed = np.dtype(word.__name__.removeprefix("u"))
    a, b, c = (numbers(rng, n, dtype) for _ in range(3))
    kind = rng.integers(0, 4, n)
    with np.errstate(all="ignore"):
        product = (a * b).view(signed) + rng.integers(-2, 3, n).astype(signed)
        c = np.where(kind == 1, -product.view(dtype), c)
        half = np.ldexp(dtype(1), np.clip(np.frexp(c)[1] - fraction - 2, least, 100))
        eps = np.finfo(dtype).eps
        nudges = np.array([1, -1, 0.5, 1 + eps, 1 - eps / 2, 3], dtype)
        a = np.where(kind == 2, half * rng.choice(nudges, n), a)
        b = np.where(kind == 2, rng.choice(nudges, n), b)
        for exponent in (least // 2, least // 2 - 30):
            small = np.ldexp(rng.integers(1, 1 << fraction, n), exponent - fraction // 2)
            pick = (kind == 3) & (rng.random(n) < 0.5)
            a, b = np.where(pick, small.astype(dtype), a), np.where(pick, -small.astype(dtype), b)
    return a.astype(dtype), b.astype(dtype), c.astype(dtype)


def same(a, b):
    """Whether bits agree, NaN with NaN."""
    return (a.tobytes() == b.tobytes()) or bool(
        np.all((a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")) | (np.isnan(a) & np.isnan(b)))
    )
