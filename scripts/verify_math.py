"""Show that the elementary functions are what docs/numerics.md says.

In f32 over all 2^32 inputs: native results against the exact value, rounded. An f64 estimate of
another origin (numpy's; for erf the f64 program, which has polynomials of its own) decides where
both ends of its error interval round to the same f32; MPFR decides the others. The error bound of
the estimate is itself held against MPFR at sampled inputs. In f64, and for pow, samples against
MPFR.

    python scripts/verify_math.py [NAME...] [--blocks N] [--samples N]
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import gmpy2
import numpy as np

from diptych import engine
from diptych.dtypes import TensorType, as_dtype
from diptych.graph.node import Graph, Node, input_node
from diptych.ops.base import make_operator

BLOCK = 1 << 20
BOUND = 2.0**-48  # of the estimate, relative
PRECISE = gmpy2.context(precision=160, emax=1 << 40, emin=-(1 << 40))
TO_F32 = gmpy2.context(precision=24, emax=128, emin=-148, subnormalize=True)


def sigmoid(x):
    return 1 / (1 + gmpy2.exp(-x))


TRUTH = {
    "exp": gmpy2.exp, "expm1": gmpy2.expm1, "log": gmpy2.log, "log1p": gmpy2.log1p,
    "tanh": gmpy2.tanh, "sigmoid": sigmoid, "erf": gmpy2.erf, "rsqrt": gmpy2.rec_sqrt,
    "sin": gmpy2.sin, "cos": gmpy2.cos,
}  # fmt: skip
NAMES = [*TRUTH, "sqrt"]
TRUTH["sqrt"] = gmpy2.sqrt


def native(name, dtype, size, inputs=1):
    """The operator as compiled for the cpu."""
    places = tuple(input_node(TensorType((size,), as_dtype(dtype))) for _ in range(inputs))
    op = make_operator(name, {})
    node = Node(op, places, op.infer(*[p.type for p in places]))
    executable = engine.compile(Graph(places, (node,)), "cpu")
    return lambda *arrays: executable.run([np.ascontiguousarray(a) for a in arrays])[0]


def estimates():
    """Functions in f64 that this project did not write."""
    found = {
        "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "rsqrt": lambda x: 1 / np.sqrt(x),
        "sin": np.sin, "cos": np.cos, "sqrt": np.sqrt,
    }  # fmt: skip
    found["erf"] = native("erf", "f64", BLOCK)
    return found


def nearest_f32(name, x):
    """The exact value rounded to f32 once, through MPFR."""
    if name == "rsqrt" and x == 0:
        return np.float32(np.copysign(np.inf, x))
    with gmpy2.context(PRECISE):
        exact = TRUTH[name](gmpy2.mpfr(float(x)))
    with gmpy2.context(TO_F32):
        rounded = gmpy2.mpfr(exact)  # 160 bits hold every case but exact ones: no double rounding
        return np.float32(float(gmpy2.check_range(rounded)))


def check_blocks(name, blocks):
    """(inputs that MPFR decided, mismatches as (input bits, result bits, right bits))."""
    run, estimate = native(name, "f32", BLOCK), estimates()[name]
    asked, wrong = 0, []
    for block in blocks:
        raw = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.uint32)
        x = raw.view(np.float32)
        got = run(x)
        with np.errstate(all="ignore"):
            guess = estimate(x.astype(np.float64))
            ends = [(guess * (1 + s * BOUND)).astype(np.float32) for s in (-1, 1)]
        same = (ends[0].view(np.uint32) == ends[1].view(np.uint32)) | np.isnan(guess)
        fine = (got.view(np.uint32) == ends[0].view(np.uint32)) | (np.isnan(guess) & np.isnan(got))
        unsure = np.flatnonzero(~(same & fine))
        asked += len(unsure)
        for n in unsure:
            right = nearest_f32(name, x[n])
            if right.view(np.uint32) != got[n].view(np.uint32) and not (
                np.isnan(right) and np.isnan(got[n])
            ):
                wrong.append((int(raw[n]), int(got[n].view(np.uint32)), int(right.view(np.uint32))))
    return asked, wrong


def sample(name, rng, count, dtype):
    """Inputs of every exponent, and more of them where the function bends."""
    limit = 126 if dtype == np.float32 else 1022
    x = rng.uniform(1, 2, count) * 2.0 ** rng.integers(-limit, limit, count)
    x = np.where(rng.random(count) < 0.6, rng.uniform(-30, 30, count), x)
    if name in ("exp", "expm1"):
        x = np.where(rng.random(count) < 0.3, rng.uniform(-745, 710, count), x)
    x = x * rng.choice([-1.0, 1.0], count)
    if name in ("log", "rsqrt", "sqrt"):
        x = np.abs(x)
        near = 1 + rng.uniform(-1, 1, count) * 2.0 ** rng.integers(-50, -1, count)
        x = np.where(rng.random(count) < 0.2, near, x)
    if name == "log1p":
        x = np.where(x <= -1, -x, x)
    return x.astype(dtype)


def ulps(got, exact):
    """Distance in units of the last place of an f64."""
    if gmpy2.is_nan(exact) or np.isnan(got):
        return 0.0 if gmpy2.is_nan(exact) and np.isnan(got) else 99.0
    if not gmpy2.is_finite(exact) or not np.isfinite(got):
        huge = gmpy2.is_finite(exact) and abs(exact) > 1.797693134862315708e308
        return 0.0 if huge or got == float(exact) else 99.0
    if exact == 0 or got == 0:
        return float(abs(gmpy2.mpfr(float(got)) - exact) / gmpy2.mpfr(2) ** -1074)
    step = gmpy2.mpfr(2) ** max(gmpy2.get_exp(exact) - 53, -1074)
    return float(abs(gmpy2.mpfr(float(got)) - exact) / step)


def worst_f64(name, count):
    """The largest error of the f64 program, and of the estimate (relative)."""
    rng = np.random.default_rng(1)
    x = sample(name, rng, BLOCK, np.float64)
    got = native(name, "f64", BLOCK)(x)
    single = sample(name, rng, BLOCK, np.float32).astype(np.float64)
    with np.errstate(all="ignore"):
        guess = estimates()[name](single)
    worst, relative = 0.0, 0.0
    with gmpy2.context(PRECISE):
        for n in range(count):
            worst = max(worst, ulps(got[n], TRUTH[name](gmpy2.mpfr(float(x[n])))))
            exact = TRUTH[name](gmpy2.mpfr(float(single[n])))
            if gmpy2.is_finite(exact) and exact and 1e-300 < abs(guess[n]) < 1e300:
                error = abs(gmpy2.mpfr(float(guess[n])) / exact - 1)
                relative = max(relative, float(error))
    return worst, relative


def pow_samples(count):
    """(x, y) of every kind: random, near one, exact powers and ties, special values."""
    rng = np.random.default_rng(2)
    n = count // 4
    a = [rng.uniform(0.5, 2, n) * 2.0 ** rng.integers(-30, 30, n), rng.uniform(-8, 8, n)]
    b = [1 + rng.uniform(-1, 1, n) * 2.0 ** rng.integers(-20, -1, n), rng.uniform(-1e6, 1e6, n)]
    roots = rng.integers(1, 4096, n) * 2.0 ** rng.integers(-40, 40, n)
    power = rng.choice([0.5, 0.25, 0.125, 1.5, 2, 3, 2.5, 4, 5, 7, 11, 15, -2, 0.75], n)
    base = np.where(
        power % 1 == 0, rng.integers(1, 8193, n) * 2.0 ** rng.integers(-20, 20, n), roots**2
    )
    base = np.where((power * 4) % 2 == 1, roots**4, base)
    odd = np.array([0.0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, np.inf, -np.inf, np.nan, 1e-45,
                    -1e-45, 3.4e38, 2**24 + 1, 2**31, -(2.0**25)])  # fmt: skip
    x = np.concatenate([a[0], b[0], base, rng.choice(odd, n)])
    y = np.concatenate([a[1], b[1], power, rng.choice(odd, n)])
    return x, y


def pow_truth(x, y):
    """C's Annex F: MPFR follows it."""
    with gmpy2.context(PRECISE, precision=400):
        return gmpy2.mpfr(float(x)) ** gmpy2.mpfr(float(y))


def check_pow(count):
    """Mismatches in f32, and the largest error in f64."""
    x, y = pow_samples(count)
    with np.errstate(over="ignore"):
        xs, ys = x.astype(np.float32), y.astype(np.float32)
    got = native("pow", "f32", len(xs), 2)(xs, ys)
    wide = native("pow", "f64", len(x), 2)(x, y)
    wrong, worst = [], 0.0
    for n in range(len(xs)):
        exact = pow_truth(xs[n], ys[n])
        with gmpy2.context(TO_F32):
            right = np.float32(float(gmpy2.check_range(gmpy2.mpfr(exact))))
        if right.tobytes() != got[n].tobytes() and not (np.isnan(right) and np.isnan(got[n])):
            wrong.append((xs[n], ys[n], got[n], right))
        with gmpy2.context(PRECISE):
            worst = max(worst, ulps(wide[n], pow_truth(x[n], y[n])))
    return wrong, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*NAMES, "pow"])
    parser.add_argument("--blocks", type=int, default=(1 << 32) // BLOCK)
    parser.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    failed = False
    print(f"{'function':9} {'inputs':>11} {'by MPFR':>8} {'wrong':>6} {'f64 ulp':>8} "
          f"{'estimate':>9} {'seconds':>8}")  # fmt: skip
    with ProcessPoolExecutor(2) as workers:
        for name in options.names:
            start = time.perf_counter()
            if name == "pow":
                wrong, worst = check_pow(options.samples)
                asked, inputs, relative = len(pow_samples(options.samples)[0]), options.samples, 0.0
            else:
                every = np.linspace(0, (1 << 32) // BLOCK - 1, options.blocks).astype(int)
                parts = [workers.submit(check_blocks, name, every[n::2]) for n in range(2)]
                worst, relative = worst_f64(name, min(options.samples, 20_000))
                done = [p.result() for p in parts]
                asked, wrong = sum(d[0] for d in done), sorted(done[0][1] + done[1][1])
                inputs = len(every) * BLOCK
            failed |= bool(wrong) or worst > 1 or relative > BOUND / 2
            seconds = time.perf_counter() - start
            print(f"{name:9} {inputs:11} {asked:8} {len(wrong):6} {worst:8.3f} {relative:9.2g} "
                  f"{seconds:8.0f}", flush=True)  # fmt: skip
            for row in wrong[:20]:
                print("   ", *(hex(v) if isinstance(v, int) else repr(v) for v in row), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
