"""Write src/diptych/kernel/erf_table.py: polynomials for erf, fitted with mpmath at 60 digits."""

from pathlib import Path

import mpmath as mp

mp.mp.dps = 60
OUT = Path(__file__).parent.parent / "src/diptych/kernel/erf_table.py"


def near_zero(z):
    """erf(x) / x - 1 as a function of z = x^2."""
    if z == 0:
        return 2 / mp.sqrt(mp.pi) - 1
    return mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1


def fit(function, low, high, error):
    """The shortest polynomial, lowest power first, within an error."""
    for count in range(3, 40):
        powers, worst = mp.chebyfit(function, [low, high], count, error=True)
        if worst < error:
            return [float(c) for c in reversed(powers)]
    raise RuntimeError("no fit")


def centred(middle, half, error):
    """erf(middle + h) as high + (low + h * P(h)): the list high, low, P."""
    value = mp.erf(middle)
    high = float(value)
    slope = fit(lambda h: (mp.erf(middle + h) - value) / h if h else 2 / mp.sqrt(mp.pi)
                * mp.exp(-middle * middle), -half, half, error)  # fmt: skip
    return [high, float(value - high), *slope]


def rows(name, pieces):
    width = max(map(len, pieces))
    text = [f"{name}: list[list[float]] = ["]
    for piece in pieces:
        padded = piece + [0.0] * (width - len(piece))
        text += ["    [", *[f"        float.fromhex({v.hex()!r})," for v in padded], "    ],"]
    return [*text, "]"]


def main():
    tiny = mp.mpf(2) ** -58
    single = [centred(mp.mpf(n) + 0.5, mp.mpf(0.5), tiny) for n in range(1, 4)]
    double = [centred(mp.mpf(2 * n + 1) / 8, mp.mpf(1) / 8, mp.mpf(2) ** -60) for n in range(2, 24)]
    lines = [
        '"""Polynomials for erf, made by scripts/make_erf_table.py (Chebyshev fits at 60 digits).',
        "",
        "A piece around c is high, low, P: erf(c + h) = high + (low + h * P(h)).",
        '"""',
        "",
        "# erf(x) = x + x * P(x^2) for |x| < 1",
        *rows("BELOW_ONE", [fit(near_zero, 0, 1, tiny)]),
        "# pieces of width 1 around 1.5, 2.5, 3.5",
        *rows("WIDE", single),
        "# erf(x) = x + x * P(x^2) for |x| < 0.5",
        *rows("BELOW_HALF", [fit(near_zero, 0, mp.mpf(1) / 4, mp.mpf(2) ** -62)]),
        "# pieces of width 0.25 around 0.625, 0.875, ... 5.875",
        *rows("NARROW", double),
    ]
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
