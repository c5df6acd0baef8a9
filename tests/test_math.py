"""Elementary functions against MPFR: a thinned form of scripts/verify_math.py."""

import sys
from fractions import Fraction
from pathlib import Path

import gmpy2
import numpy as np
import pytest

import diptych as dp
from diptych.dtypes import as_dtype
from diptych.kernel import expr as k
from diptych.kernel import scalar
from diptych.ops.base import make_operator

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import verify_math as verify

F32_BITS = np.arange(0, 1 << 32, 65537 * 24, dtype=np.uint64).astype(np.uint32)
INF, NAN = np.inf, np.nan


def native(name, *arrays):
    x = [dp.tensor(a) for a in arrays]
    return {"pow": dp.pow}.get(name, getattr(dp, name))(*x).numpy()


def in_numpy(name, *arrays):
    places = [k.var(n, as_dtype(a.dtype)) for n, a in zip("ab", arrays, strict=False)]
    expression = make_operator(name, {}).scalar(*places)
    with np.errstate(all="ignore"):
        return k.evaluate(expression, dict(zip("ab", arrays, strict=False)))


def same(a, b):
    a, b = (np.where(np.isnan(v), np.float64(NAN).astype(v.dtype), v) for v in (a, b))
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", verify.NAMES)
def test_f32_is_correctly_rounded(name):
    x = F32_BITS.view(np.float32)
    got = native(name, x)
    expected = np.array([verify.nearest_f32(name, v) for v in x], np.float32)
    assert same(got, expected)


@pytest.mark.parametrize("name", verify.NAMES)
def test_numpy_and_native_code_agree(name):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32)
    wide = np.concatenate([
        rng.integers(0, 1 << 63, 3000, dtype=np.uint64).view(np.float64),
        rng.uniform(-40, 40, 3000), [0.0, -0.0, INF, -INF, NAN, 5e-324],
    ])  # fmt: skip
    for x in (raw, wide, -wide):
        assert same(native(name, x), in_numpy(name, x))


@pytest.mark.parametrize("name", verify.NAMES)
def test_f64_is_within_one_ulp(name):
    worst, _ = verify.worst_f64(name, 1500)
    assert worst <= 1.0


def test_ties_that_the_next_term_decides():
    """1/2 + x/4 lies exactly between two f32 for these x; -x^3/48 decides."""
    x = np.arange(1, 4096, 2, dtype=np.float32) * np.float32(2.0**-23)
    for v in (x, -x, x / 2, -x / 2):
        expected = np.array([verify.nearest_f32("sigmoid", t) for t in v], np.float32)
        assert same(native("sigmoid", v), expected)
    assert native("sigmoid", np.float32([3 * 2.0**-23]))[0] == np.float32(0.5000000596046448)


@pytest.mark.parametrize("name", verify.NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(name, dtype):
    at = {
        "exp": [1, 1, INF, 0], "expm1": [0.0, -0.0, INF, -1], "log": [-INF, -INF, INF, NAN],
        "log1p": [0.0, -0.0, INF, NAN], "tanh": [0.0, -0.0, 1, -1], "sigmoid": [0.5, 0.5, 1, 0],
        "erf": [0.0, -0.0, 1, -1], "rsqrt": [INF, -INF, 0, NAN], "sqrt": [0.0, -0.0, INF, NAN],
        "sin": [0.0, -0.0, NAN, NAN], "cos": [1, 1, NAN, NAN],
    }  # fmt: skip
    got = native(name, np.array([0.0, -0.0, INF, -INF, NAN], dtype))
    assert same(got, np.array([*at[name], NAN], dtype))


def test_pow():
    wrong, worst = verify.check_pow(8000)
    assert wrong == [] and worst <= 1.0
    x, y = verify.pow_samples(2000)
    for dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            a, b = x.astype(dtype), y.astype(dtype)
        assert same(native("pow", a, b), in_numpy("pow", a, b))


def test_pow_has_the_special_values_of_annex_f():
    rows = [
        (NAN, 0, 1), (1, NAN, 1), (1, INF, 1), (-1, INF, 1), (-1, -INF, 1), (-8, 1 / 3, NAN),
        (0.0, -1, INF), (-0.0, -1, -INF), (-0.0, -2, INF), (-0.0, 3, -0.0), (-0.0, 2, 0.0),
        (0.5, -INF, INF), (0.5, INF, 0), (2, -INF, 0), (2, INF, INF), (-INF, 3, -INF),
        (-INF, 2, INF), (-INF, -3, -0.0), (-INF, -2, 0), (INF, -1, 0), (INF, 0.5, INF),
        (NAN, 1, NAN), (2, NAN, NAN), (-2, 3, -8), (-2, 2, 4), (-INF, 0.5, INF), (-0.0, 0.5, 0.0),
    ]  # fmt: skip
    for dtype in (np.float32, np.float64):
        x, y, expected = (np.array(c, dtype) for c in zip(*rows, strict=True))
        assert same(native("pow", x, y), expected)


def test_an_exponent_of_two_is_a_product():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert same((dp.tensor(x) ** 2).numpy(), x * x)


def pairs(dtype, n):
    """Operands of every size, near ones, whole ones, and special values with each other."""
    rng = np.random.default_rng(0)
    info, whole = np.finfo(dtype), {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    raw = rng.integers(0, np.iinfo(whole).max, (2, n), whole, endpoint=True).view(dtype)
    near = rng.standard_normal((2, n)).astype(dtype) * np.array([[100], [1]], dtype)
    least = rng.integers(1, 10**6, n).astype(dtype) * info.smallest_subnormal
    special = [0.0, 1, 5, 0.1, 3, 1e9, INF, NAN, info.max, info.tiny, info.smallest_subnormal]
    special = np.array([s * v for v in special for s in (1, -1)], dtype)
    return (
        np.concatenate([raw[0], near[0], np.round(near[0]), raw[0], np.repeat(special, 22)]),
        np.concatenate([raw[1], near[1], np.round(near[1] * 9), least, np.tile(special, 22)]),
    )


@pytest.mark.parametrize("name", ["floor_divide", "remainder"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_division_with_a_remainder_is_numpys(name, dtype):
    x, y = pairs(dtype, 20_000)
    operator = make_operator(name, {})
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(x, y)
        assert same(operator.reference(x, y), expected)
    for result in (
        in_numpy(name, x, y),
        (dp.tensor(x) % y if name == "remainder" else dp.tensor(x) // y).numpy(),
    ):
        assert same(result, expected)


def test_division_with_a_remainder_is_exact():
    one = dp.tensor(np.float64([1.0, 1e9, 5.0, -5.0, 5.0, -5.0, 1e300]))
    y = np.float64([0.1, 3.0, INF, INF, -INF, -INF, 1e-300])
    rests = [1 - 9 * Fraction(0.1), 1, 5, INF, -INF, -5, Fraction(1e300) % Fraction(1e-300)]
    assert (one % y).tolist() == [float(r) for r in rests]
    assert (one // y).tolist() == [9, 333333333, 0, -1, -1, 0, INF]
    x = dp.tensor([1.0, -1.0, 0.0])
    assert same((x // 0.0).numpy(), np.float32([INF, -INF, NAN]))
    assert same((x % 0.0).numpy(), np.float32([NAN] * 3))
    i = dp.tensor(np.array([7, -7, 0]))
    assert (i % 0).tolist() == [0, 0, 0]


def test_the_gradient_of_a_remainder():
    x = dp.tensor(np.float64([7.5, -7.5, 1.0, -5.0]), requires_grad=True)
    y = dp.tensor(np.float64([2.0, 2.0, 0.1, INF]), requires_grad=True)
    (x % y).sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1] and y.grad.tolist() == [-3, 4, -9, 1]


def test_a_multiply_add_of_f32_is_rounded_once():
    """Sums in the middle of two f32 numbers, just beside it, and below the normal numbers."""
    rng, n = np.random.default_rng(0), 1000
    unit = 1 + rng.integers(-2, 3, (2, n)) * 2.0**-23
    whole, scale = rng.integers(1, 1 << 12, (3, n)), 2.0 ** rng.integers(-20, 20, (3, n))
    small = rng.standard_normal((3, n)) * 2.0 ** rng.integers(-75, -60, (3, n))
    triples = [
        (unit[0] * 2.0**-12, unit[1] * 2.0**-12, rng.uniform(1, 2, n)),
        whole * scale,
        (small[0], small[1], small[2] * 2.0**-70),
        np.array([[INF, -0.0, 3e38, NAN], [0.0, 0.0, 3e38, 1.0], [1.0, -0.0, -INF, 1.0]]),
    ]
    once = gmpy2.context(precision=24, emin=-148, emax=128, subnormalize=True)
    for triple in triples:
        a, b, c = (np.asarray(v, np.float32) for v in triple)
        with np.errstate(all="ignore"):
            found = scalar.fma(a, b, c)
        with gmpy2.context(once):
            exact = [gmpy2.fma(*(gmpy2.mpfr(float(v)) for v in t)) for t in zip(a, b, c)]
        assert found.dtype == np.float32
        assert same(found, np.array([float(v) for v in exact], np.float32))
