"""numpy's functions of tensors: recorded, or an error; in both panels."""

import numpy as np
import pytest

import diptych as dp
from diptych.errors import GraphError, ObservedWhileRecording
from diptych.ops.numpy_names import RECORDED

X = np.array([[0.5, -1.5, 2.5], [3.0, 0.25, -0.75]], np.float32)
Y = np.array([[1.0, 2.0, -0.5]], np.float32)
POSITIVE = np.abs(X)
FLAGS = X > 0
INTS = np.array([[7, -5, 3], [0, 2, -1]])

# Of every function in the table: calls with numpy arrays, whose results tensors give as well.
ONE = (np.absolute, np.sign, np.floor, np.ceil, np.rint, np.round, np.around, np.negative,
       np.positive, np.reciprocal, np.square, np.isnan, np.isinf, np.isfinite, np.ravel,
       np.transpose, np.squeeze, np.shape, np.ndim)  # fmt: skip
NEAR = (np.exp, np.expm1, np.tanh, np.sin, np.cos)  # numpy's are not correctly rounded
OF_POSITIVE = (np.log, np.log1p, np.sqrt)
TWO = (np.add, np.subtract, np.multiply, np.divide, np.floor_divide, np.remainder, np.divmod,
       np.maximum, np.minimum, np.less, np.less_equal, np.greater, np.greater_equal, np.equal,
       np.not_equal, np.logical_and, np.logical_or, np.logical_xor)  # fmt: skip
REDUCED = (np.sum, np.prod, np.mean, np.max, np.amax, np.min, np.amin, np.argmax, np.argmin,
           np.any, np.all)  # fmt: skip
BITS = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
OTHERS = {
    np.power: lambda f, x, y: f(np.abs(x), y),
    np.matmul: lambda f, x, y: f(x, np.transpose(y)),
    np.dot: lambda f, x, y: (f(x, np.ravel(y)), f(np.sum(x), y)),
    np.clip: lambda f, x, y: (f(x, -1, 1), f(x, max=2.0), f(x, y, None)),
    np.where: lambda f, x, y: f(np.greater(x, 0), x, y),
    np.swapaxes: lambda f, x, y: f(x, 0, -1),
    np.reshape: lambda f, x, y: (f(x, (3, 2)), f(x, -1)),
    np.expand_dims: lambda f, x, y: f(x, axis=1),
    np.broadcast_to: lambda f, x, y: f(y, (4, 3)),
    np.concatenate: lambda f, x, y: (f((x, y)), f([x, x], axis=1)),
    np.stack: lambda f, x, y: f([x, x], axis=-1),
    np.take: lambda f, x, y: (f(x, np.array([0, 2]), axis=1), f(x, np.array([5, 0]))),
    np.logical_not: lambda f, x, y: f(x),
    np.invert: lambda f, x, y: f(np.greater(x, y)),
}


def calls():
    """(name, call of x and y, x, y, tolerance)"""
    for f in ONE:
        yield f, lambda x, y, f=f: f(x), X, Y, 0
    for f in NEAR:
        yield f, lambda x, y, f=f: f(x), X, Y, 1e-6
    for f in OF_POSITIVE:
        yield f, lambda x, y, f=f: f(x), POSITIVE, Y, 1e-6
    for f in TWO:
        yield f, lambda x, y, f=f: f(x, y), X, Y, 0
    for f in BITS:
        yield f, lambda x, y, f=f: f(x, y), INTS, INTS[::-1].copy(), 0
    for f in REDUCED:
        yield f, lambda x, y, f=f: (f(x), f(x, axis=1), f(x, 0, keepdims=True)), X, Y, 1e-6
    for f, call in OTHERS.items():
        yield f, lambda x, y, f=f, call=call: call(f, x, y), X, Y, 1e-6


CALLS = list(calls())


def test_every_name_in_the_table_has_a_call():
    assert {f for f, *_ in CALLS} == set(RECORDED)


def listed(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("panel", ["dynamic", "compiled"])
@pytest.mark.parametrize(
    "function, call, x, y, tolerance", CALLS, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_function_of_tensors_gives_what_it_gives_of_arrays(
    panel, function, call, x, y, tolerance
):
    expected = listed(call(x, y))
    if function in (np.shape, np.ndim):
        assert listed(call(dp.tensor(x), y)) == expected
        return
    if panel == "dynamic":
        found = listed(call(dp.tensor(x, requires_grad=x.dtype.kind == "f"), dp.tensor(y)))
    else:
        found = listed(dp.compile(call)(x, y))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, dp.Tensor)
        assert a.shape == np.shape(b) and a.numpy().dtype == np.asarray(b).dtype
        np.testing.assert_allclose(a.numpy(), b, rtol=tolerance, atol=0)


def test_a_gradient_goes_through_numpys_functions():
    w = dp.tensor([1.0, 2.0], requires_grad=True)
    (np.sqrt(w * w) * w).sum().backward()
    assert w.grad.tolist() == [2, 4]
    x = dp.tensor(2.0)
    assert dp.grad(lambda q: np.exp(q) * q)(x).item() == dp.grad(lambda q: dp.exp(q) * q)(x).item()
    assert dp.grad(lambda q: np.mean(np.stack([q * q, q])))(x).item() == 2.5
    step = dp.compile(lambda v: dp.grad(lambda q: np.sum(np.multiply(q, X)))(v))
    assert step(np.zeros_like(X)).numpy().tolist() == X.tolist()


def test_operators_between_arrays_and_tensors_are_recorded():
    w = dp.tensor(X, requires_grad=True)
    for out in (X * w, X + w, X - w, X / w, Y @ w.T, X.__eq__(w), X // w, X % w, X**w):
        assert isinstance(out, dp.Tensor) and out.dtype in (dp.f32, dp.bool_)
    ((Y * w) - np.float32(3) * w).sum().backward()
    assert w.grad.numpy().tolist() == np.broadcast_to(Y - 3, X.shape).tolist()


LOST = {
    "a function that diptych does not have": np.arctan,
    "one of more than one step": np.add.reduce,
    "an option that diptych does not have": lambda w: np.sum(w, dtype=np.float64),
    "a result that is written elsewhere": lambda w: np.exp(w, out=np.empty((2, 3), np.float32)),
    "an array that is changed in place": lambda w: X.copy().__iadd__(w),
    "a function of a list": lambda w: np.column_stack([w, X]),
    "linear algebra": np.linalg.norm,
    "a comparison of all": lambda w: np.allclose(w, X),
}


@pytest.mark.parametrize("call", LOST.values(), ids=list(LOST))
def test_a_function_that_would_lose_a_gradient_is_an_error(call):
    w = dp.tensor(X, requires_grad=True)
    with pytest.raises(GraphError, match="numpy function") as caught:
        call(w)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "numpy." in lines[1] and "test_numpy_functions.py" in lines[1]
    call(w.detach())  # numpy's own, on the value
    with pytest.raises((GraphError, ObservedWhileRecording)):
        dp.compile(call)(X)


def test_a_tensor_is_nowhere_to_write_to():
    with pytest.raises(GraphError, match="does not change"):
        np.exp(X, out=dp.tensor(X))


LISTS = {
    "a tensor of a list": lambda w: dp.tensor([w[0], w[1]]) * w,
    "nested": lambda w: dp.tensor([[1.0, w[0]], (2.0, w[1])]) * w,
    "an operand": lambda w: w * [w[0], w[1]],
}


@pytest.mark.parametrize("call", LISTS.values(), ids=list(LISTS))
def test_a_list_of_values_with_gradients_is_an_error(call):
    w = dp.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(GraphError, match="no gradient") as caught:
        call(w)
    assert "dp.stack" in str(caught.value) and "test_numpy_functions.py" in str(caught.value)
    assert call(w.detach()).numpy().tolist() in ([1, 4], [[1, 2], [2, 4]])
    (dp.stack([w[0], w[1]]) * w).sum().backward()
    assert w.grad.numpy().tolist() == [2, 4]
