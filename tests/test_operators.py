"""Every operator: native against the reference bit for bit, gradients too, in both panels."""

from typing import ClassVar

import numpy as np
import pytest
from cases import CASES, Case

import diptych as dp
import diptych.nn.functional as F
from diptych.compiler.simplify import simplify
from diptych.errors import DtypeError, GradientError, InternalError, ShapeError, ValueRangeError
from diptych.graph.node import Graph, Input, Operator, walk
from diptych.ops.base import ALL, primitive

MADE_BY_RULES = {"size", "extent"}


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
    dp.manual_seed(7)
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
    found = []
    for call in (dp.compile(case.call), lambda *a: case.call(*map(dp.tensor, a))):
        dp.manual_seed(7)
        found.append(call(*arrays).numpy())
    same_bits(*found)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_an_operator_and_its_inputs_say_the_type_of_its_result(case):
    """So that the compiler need not compare types where it compares operators."""
    with dp.Program():
        places = [dp.data(f"x{n}", a.shape, a.dtype.name) for n, a in enumerate(case.inputs())]
        out = case.call(*places).node
    inputs = [node for node in walk([out]) if isinstance(node.op, Input)]
    for node in simplify(Graph(tuple(inputs), (out,))).nodes:
        if node.inputs:
            assert node.op.infer(*[i.type for i in node.inputs]) == node.type, node


def test_a_primitive_has_all_rules():
    class Half(Operator):
        name: ClassVar[str] = "half"

        def infer(self, *inputs):
            return inputs[0]

    with pytest.raises(InternalError, match="half has no rule for grad, lower, reference"):
        primitive(Half)


def test_f64_products_beyond_the_plain_range_in_a_sum_to_a_scalar():
    a, b = np.array([1e-310, 3.0, 2.0]), np.array([2.0, 1e-300, 0.5])
    found = []
    for device in ("cpu", "reference"):
        dp.use_device(device)
        try:
            found.append(dp.contract(dp.tensor(a), dp.tensor(b), "k,k->").numpy())
        finally:
            dp.use_device("cpu")
    same_bits(*found)


def test_numbers_on_the_left():
    i, flags = np.array([1, 2, 3]), np.array([True, False])
    t = dp.tensor(i)
    assert (7 // t).tolist() == (7 // i).tolist() and (7 % t).tolist() == (7 % i).tolist()
    assert (6 & t).tolist() == (6 & i).tolist() and (4 ^ t).tolist() == (4 ^ i).tolist()
    assert (True | dp.tensor(flags)).tolist() == [True, True]
    assert (i + t).tolist() == (i + i).tolist() and isinstance(i + t, dp.Tensor)


EMPTIED = [c for c in CASES if c.name in {
    "add", "sum_all", "matmul", "matmul_batched", "matmul_long", "linear", "gather", "scatter_add",
    "concat", "reshape", "softmax", "cross_entropy", "gelu", "contract_sums_a_side",
}]  # fmt: skip


@pytest.mark.parametrize("case", EMPTIED, ids=lambda c: c.name)
def test_empty_tensors(case):
    """Each size of a case set to 0: the same values, or the same error, as the reference."""
    for size in {d for shape in case.shapes for d in shape}:
        shapes = [tuple(0 if d == size else d for d in s) for s in case.shapes]
        emptied = Case(case.name, case.call, shapes, case.draw)
        try:
            arrays = emptied.inputs()
        except ValueError:  # numpy draws no number below 0
            continue
        found = []
        for device in ("cpu", "reference"):
            try:
                found.append(run(emptied, device, arrays))
            except (ShapeError, ValueRangeError) as problem:
                found.append(type(problem))
        if isinstance(found[0], list):
            for native, slow in zip(*found, strict=True):
                same_bits(native, slow)
        else:
            assert found[0] == found[1]


def test_every_operator_has_a_case():
    covered = {name for case in CASES for name in [case.name, *case.covers]}
    ours = {n for n, made in ALL.items() if made.__module__.startswith("diptych.ops.")}
    assert ours - covered <= MADE_BY_RULES


SMOOTH = [c for c in CASES if c.smooth]


@pytest.mark.parametrize("case", SMOOTH, ids=lambda c: c.name)
def test_gradients_agree_with_finite_differences_to_second_order(case):
    dp.gradcheck(case.call, case.inputs(2))


def test_the_checker_catches_a_wrong_rule(monkeypatch):
    """A rule that is right in value and wrong in slope: tanh' = 1 - y^2 without its chain."""
    from diptych.ops.elementwise import multiply, subtract
    from diptych.ops.functions import Tanh

    def wrong(self, g, node):
        return [subtract(1.0, multiply(node, node))]

    monkeypatch.setattr(Tanh, "grad", wrong)
    case = next(c for c in CASES if c.name == "tanh")
    forget_gradients()  # what was differentiated by the right rule
    with pytest.raises(GradientError, match="gradient of tanh"):
        dp.gradcheck(case.call, case.inputs(2))
    forget_gradients()


def forget_gradients():
    dp.PANEL.recurring.known.clear()
    dp.PANEL.trail.root.clear()


@pytest.mark.parametrize("panel", ["dynamic", "compiled"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minus_zero_lies_below_plus_zero(panel, dtype):
    zeros = np.array([-0.0, 0.0, -0.0, 0.0] * 9, dtype)
    wrap = dp.compile if panel == "compiled" else lambda f: lambda *a: f(*map(dp.tensor, a))

    def places(x):
        return dp.argmax(x), dp.argmin(x), dp.argmax(-x), dp.max(x), dp.min(x)

    found = [float(v) for v in wrap(places)(zeros)]
    assert found == [1, 0, 0, 0, 0] and not np.signbit(found[3]) and np.signbit(found[4])

    def slopes(a, b):
        up, down = dp.maximum(a, b).sum(), dp.minimum(a, b).sum()
        return dp.partials(up, [a, b]) + dp.partials(down, [a, b])

    a = dp.tensor(zeros[:4], requires_grad=True)
    b = dp.tensor(np.array([0.0, -0.0, -0.0, 0.0], dtype), requires_grad=True)
    call = dp.compile(slopes) if panel == "compiled" else slopes
    found = [v.numpy().tolist() for v in call(a, b)]
    assert found == [[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0]]


def test_attributes_that_are_equal_and_not_the_same_have_bodies_of_their_own():
    x = dp.tensor([-1.0, 2.0])
    for slope, sign in [(0.0, True), (-0.0, False), (0.0, True)]:
        below = F.leaky_relu(x, negative_slope=slope).numpy()[0]
        assert below == 0 and np.signbit(below) == sign


def slopes_of(call, *arrays):
    """The result and the gradient of its sum in each array, dynamic and compiled: equal."""

    def both(*tensors):
        out = call(*tensors)
        return out, *dp.partials(out.sum(), tensors)

    leaves = [dp.tensor(a, requires_grad=True) for a in arrays]
    dynamic, compiled = ([v.numpy() for v in f(*leaves)] for f in (both, dp.compile(both)))
    for a, b in zip(dynamic, compiled, strict=True):
        same_bits(a, b)
    return [v.tolist() for v in dynamic]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_hands_the_cotangent_to_one_of_value_and_bounds(dtype):
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan], dtype)
    low, high = np.array([-1.0], dtype), np.array(1.0, dtype)
    out, dx, dlow, dhigh = slopes_of(dp.clip, x, low, high)
    assert out[:5] == [-1, -1, 0, 1, 1] and np.isnan(out[5])
    assert (dx, dlow, dhigh) == ([0, 0, 1, 0, 0, 0], [1], 1)
    assert slopes_of(dp.clip, x[:5], low)[1:] == [[0, 0, 1, 1, 1], [1]]
    assert slopes_of(lambda x, high: x.clip(high=high), x[:5], high)[1:] == [[1, 1, 1, 0, 0], 1]


def test_clip_between_bounds_that_cross_is_the_upper_one():
    x = np.array([-2.0, 0.0, 1.0, 2.0, 3.0], np.float32)
    low, high = np.full(5, 2.0, np.float32), np.full(5, 1.0, np.float32)
    assert slopes_of(dp.clip, x, low, high) == [[1] * 5, [0] * 5, [0] * 5, [1] * 5]
    equal = np.full(5, 1.0, np.float32)
    assert slopes_of(dp.clip, x, equal, high)[1:] == [[0] * 5, [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]


def test_pow_has_a_gradient_at_base_zero():
    a = np.array([0.0, -0.0, np.nan, np.inf, -2.0, 3.0], np.float32)
    assert slopes_of(lambda a: a**0.0, a) == [[1] * 6, [0] * 6]
    assert slopes_of(lambda a: a**0, a) == [[1] * 6, [0] * 6]
    _, da, _ = slopes_of(lambda a, b: a**b, a, np.zeros(6, np.float32))
    assert da == [0] * 6
    b = np.array([0.0, -0.0, 0.5, 1.0, 3.0, np.inf], np.float32)
    assert slopes_of(lambda b: 0.0**b, b) == [[1, 1, 0, 0, 0, 0], [0] * 6]
    _, da, db = slopes_of(lambda a, b: a**b, np.zeros(5, np.float32), b[:5])
    assert da == [0, 0, np.inf, 1, 0] and db == [0] * 5
    assert slopes_of(lambda b: 0.0**b, np.float32([-1.0]))[1] == [-np.inf]


def test_pow_has_a_second_gradient_at_base_zero():
    def second(power):
        return dp.grad(dp.grad(lambda a: a**power))(dp.tensor(0.0)).item()

    assert [second(p) for p in (0.0, 1.0, 2.0, 3.0)] == [0, 0, 2, 0]
    mixed = dp.grad(lambda b: dp.grad(lambda a: a**b)(dp.tensor(2.0)))
    assert mixed(dp.tensor(0.0)).item() == 0.5  # 1 / a
    assert dp.grad(dp.grad(lambda b: 0.0**b))(dp.tensor(0.5)).item() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.bool_])
@pytest.mark.parametrize("reduced", [dp.sum, dp.prod])
def test_sums_and_products_of_narrow_integers_are_i64(reduced, dtype, reference):
    x = np.array([[3, 200, 7], [100, 99, 50]]).astype(dtype)
    for device in ("reference", "cpu"):
        dp.use_device(device)
        found = reduced(dp.tensor(x), axis=0).numpy()
        expected = getattr(np, reduced.__name__.removeprefix("reduce_"))(x.astype(np.int64), axis=0)
        assert found.dtype == np.int64 and found.tolist() == expected.tolist()


def test_relu_passes_the_cotangent_at_nan():
    x = np.array([np.nan, -1.0, -0.0, 0.0, 2.0], np.float32)
    assert slopes_of(F.relu, x)[1] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("form", [F.softmax, F.log_softmax])
def test_softmax_over_an_empty_axis_is_empty(form):
    for shape, axis in [((3, 0), -1), ((0, 4), 0), ((2, 0, 5), 1)]:
        x = dp.tensor(np.ones(shape, np.float32), requires_grad=True)
        for call in (form, dp.compile(form)):
            assert call(x, axis=axis).numpy().shape == shape
        form(x, axis=axis).sum().backward()
        assert x.grad.shape == shape


LOGITS = [  # logit, target, loss, its gradients in both
    (np.inf, 1.0, 0.0, 0.0, -np.inf), (np.inf, 0.0, np.inf, 1.0, -np.inf),
    (np.inf, 0.25, np.inf, 0.75, -np.inf), (-np.inf, 0.0, 0.0, 0.0, np.inf),
    (-np.inf, 1.0, np.inf, -1.0, np.inf), (-np.inf, 0.25, np.inf, -0.25, np.inf),
    (-1e30, 0.0, 0.0, 0.0, 1e30), (1e30, 0.0, 1e30, 1.0, -1e30), (np.nan, 1.0, *[np.nan] * 3),
]  # fmt: skip


@pytest.mark.parametrize("row", LOGITS, ids=lambda row: f"{row[0]}-{row[1]}")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_has_its_limits_at_infinite_logits(row, dtype):
    arrays = [np.array([v], dtype) for v in row[:2]]
    found = slopes_of(F.binary_cross_entropy_with_logits, *arrays)
    expected = [np.array(v, dtype) for v in row[2:]]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_equal(np.ravel(a), np.ravel(b))


WEAK = [
    (np.float32(0.1), np.float64, np.float64), (np.float64(2.0), np.float32, np.float32),
    (np.float16(0.5), np.float32, np.float32), (np.int64(3), np.float32, np.float32),
    (np.int64(3), np.int32, np.int32), (np.uint8(3), np.int32, np.int32),
    (np.bool_(True), np.float32, np.float32),
]  # fmt: skip


@pytest.mark.parametrize("number, dtype, expected", WEAK, ids=str)
def test_numbers_of_numpys_are_weak(number, dtype, expected):
    """They take the dtype of the tensor beside them, as Python's do: in both panels, on both
    sides, as a constant and as an argument of a compiled function."""
    x = np.array([1, 2, 3], dtype)
    product = x * x.dtype.type(number.item())
    t = dp.tensor(x)
    found = [t * number, number * t, dp.multiply(number, t), dp.compile(lambda t: number * t)(t)]
    if number.dtype != np.float16 and number.dtype != np.bool_:
        found.append(dp.compile(lambda t, n: t * n)(t, number))
    for out in found:
        same_bits(out.numpy(), product.astype(expected))
    with pytest.raises(DtypeError):
        t * np.complex64(1j)


def test_numbers_of_numpys_alone_keep_their_dtype():
    assert dp.tensor(np.float64(0.5)).dtype == dp.exp(np.float64(0.5)).dtype == dp.f64
    assert (dp.tensor(np.array(2.0)) * dp.tensor(np.float32([1.0]))).dtype == dp.f64
    assert dp.add(np.float64(1), 2.0).dtype == dp.add(2.0, np.float64(1)).dtype == dp.f64


def test_numbers_of_numpys_that_do_not_fit_are_errors():
    with pytest.raises(DtypeError, match="outside of u8"):
        dp.tensor(np.uint8([1])) + np.int64(300)
    with pytest.raises(DtypeError, match="plain float"):
        dp.tensor(np.int64([1])) * np.float32(2)
    with pytest.raises(DtypeError, match="plain float"):
        dp.compile(lambda x, n: x * n)(np.int64([1]), np.float32(2))


def test_what_is_computed_of_numbers_of_numpys_is_weak_in_both_panels():
    def scaled(x, n):
        return x * (n * 0.1 + 1) - np.sqrt(n) * x

    x, n = np.float32([1.5, -2.0]), np.float64(0.3)
    same_bits(scaled(dp.tensor(x), n).numpy(), dp.compile(scaled)(x, n).numpy())
    mixed = dp.compile(lambda x, n: (x * n) * np.ones(2))(x, n)
    assert mixed.dtype == dp.f64


def test_a_number_and_an_array_without_axes_are_different_arguments():
    scaled = dp.compile(lambda x, n: x * n)
    x = np.float32([1.0, 2.0])
    assert scaled(x, np.float64(2)).dtype == dp.f32
    assert scaled(x, np.array(2.0)).dtype == dp.f64
    assert scaled(x, np.float64(3)).numpy().tolist() == [3, 6]
