"""Elementary functions against MPFR: a thinned form of scripts/verify_math.py."""

import sys
from pathlib import Path

import numpy as np
import pytest

import diptych as dp
from diptych.dtypes import as_dtype
from diptych.kernel import expr as k
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
