"""Every operator: native against the reference bit for bit, gradients too, in both panels."""

import numpy as np
import pytest
from cases import CASES, PENDING

import diptych as dp
from diptych.ops.base import ALL

MADE_BY_RULES = {"size"} | PENDING


@pytest.fixture
def reference():
    dp.use_device("reference")
    yield
    dp.use_device("cpu")


def same_bits(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    if a.dtype.kind == "f":
        nan = np.isnan(a)
        assert (nan == np.isnan(b)).all()
        a, b = np.where(nan, 0, a), np.where(nan, 0, b)
    assert a.tobytes() == b.tobytes()


def run(case, device, arrays):
    """Value and gradients on a device."""
    dp.use_device(device)
    try:
        tensors = [dp.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        out = case.call(*tensors)
        results = [out.numpy()]
        if out.dtype.is_float and out.requires_grad:
            weights = np.random.default_rng(1).standard_normal(out.shape)
            (out * dp.tensor(weights.astype(out.dtype.numpy))).sum().backward()
            results += [t.grad.numpy() for t in tensors if t.grad is not None]
        return results
    finally:
        dp.use_device("cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_native_has_the_bits_of_the_reference(case):
    arrays = case.inputs()
    for native, slow in zip(run(case, "cpu", arrays), run(case, "reference", arrays), strict=True):
        same_bits(native, slow)


@pytest.mark.parametrize("case", [c for c in CASES if c.shapes], ids=lambda c: c.name)
def test_static_has_the_bits_of_dynamic(case):
    arrays = case.inputs(1)
    same_bits(dp.compile(case.call)(*arrays).numpy(), case.call(*map(dp.tensor, arrays)).numpy())


def test_every_operator_has_a_case():
    covered = {name for case in CASES for name in [case.name, *case.covers]}
    assert set(ALL) - covered <= MADE_BY_RULES


def directional(case, arrays, point, direction, eps):
    moved = [a + eps * d for a, d in zip(point, direction, strict=True)]
    full = iter(moved)
    given = [dp.tensor(next(full)) if a.dtype.kind == "f" else dp.tensor(a) for a in arrays]
    out = case.call(*given)
    weights = np.random.default_rng(1).standard_normal(out.shape)
    return float((out * dp.tensor(weights)).sum())


@pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=lambda c: c.name)
def test_gradient_agrees_with_finite_differences(case):
    check_gradient(case)


def check_gradient(case, scale=1.0):
    arrays = [a.astype(np.float64) if a.dtype == np.float32 else a for a in case.inputs(2)]
    tensors = [dp.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    out = case.call(*tensors)
    weights = np.random.default_rng(1).standard_normal(out.shape)
    (out * dp.tensor(weights)).sum().backward()
    floats = [t for t in tensors if t.requires_grad]
    point = [t.numpy().astype(np.float64) for t in floats]
    rng = np.random.default_rng(3)
    direction = [rng.standard_normal(p.shape) for p in point]
    slope = sum(float((t.grad.numpy() * d).sum()) for t, d in zip(floats, direction, strict=True))
    eps = 1e-6
    up = directional(case, arrays, point, direction, eps)
    down = directional(case, arrays, point, direction, -eps)
    found = (up - down) / (2 * eps)
    assert abs(found - slope * scale) <= 2e-5 * max(1.0, abs(found)), f"gradient of {case.name}"


def test_the_checker_catches_a_wrong_gradient():
    case = next(c for c in CASES if c.name == "exp")
    with pytest.raises(AssertionError, match="gradient of exp"):
        check_gradient(case, scale=1.001)
