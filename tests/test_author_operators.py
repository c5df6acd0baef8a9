"""Operators of other authors. Without the future import of annotations, as most files are."""

from typing import ClassVar

import numpy as np
import pytest

import diptych as dp
from diptych.errors import GraphError, ObservedWhileRecording
from diptych.graph.node import Operator
from diptych.ops.base import ALL, primitive, record

X = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.5]], np.float32)
Y = np.array([4.0, 5.0, -6.0], np.float32)


@pytest.fixture(autouse=True)
def names():
    before = dict(ALL)
    yield
    ALL.clear()
    ALL.update(before)


def both(function, *arrays):
    """The value and gradients, dynamic and compiled, which are the same."""

    def run(*tensors):
        out = function(*tensors)
        return out, *dp.partials(out.sum(), tensors)

    leaves = [dp.tensor(a, requires_grad=True) for a in arrays]
    dynamic, compiled = ([v.numpy() for v in f(*leaves)] for f in (run, dp.compile(run)))
    assert [a.tobytes() for a in dynamic] == [a.tobytes() for a in compiled]
    return dynamic


def test_a_body_is_written_with_pythons_operators():
    @dp.operator
    def difference(x, y):
        return x - y

    out, dx, dy = both(difference, X, Y)
    assert out.tolist() == (X - Y).tolist()
    assert dx.tolist() == np.ones_like(X).tolist() and dy.tolist() == [-2, -2, -2]
    assert difference(dp.tensor(X), Y).node.op.name == "difference"


def test_a_body_may_use_everything_that_a_tensor_has():
    def plain(x, y, *, power=2):
        top = (x.T.sum(axis=0, keepdims=True).reshape(-1, 1) ** power) * 0.5
        kept = dp.where((x == 0) | ~(y > 1), -x, np.abs(x) % 2.0)
        return np.exp(kept[:, ::2] @ y[:2].reshape(2, 1)) / (1 + top.clip(0, 4)) + len(x) - x.ndim

    made = dp.operator(plain)
    for a, b in zip(both(made, X, Y), both(plain, X, Y), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_rule_is_written_with_pythons_operators():
    @dp.operator
    def doubled(x, y, *, factor=2.0):
        return x * factor + 0 * y

    @doubled.with_gradient
    def rule(g, node, factor):
        x, _ = node.inputs
        assert node.shape == x.shape == g.shape
        return [g * x * factor, None]

    out, dx, dy = both(lambda x, y: doubled(x, y, factor=3.0), X, Y)
    assert out.tolist() == (X * 3).tolist()
    assert dx.tolist() == (X * 3).tolist() and dy.tolist() == [0, 0, 0]


def test_a_body_has_no_values():
    @dp.operator
    def branching(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(ObservedWhileRecording, match="recorded once") as caught:
        branching(dp.tensor(X))
    text = str(caught.value)
    line = branching.function.__code__.co_firstlineno + 2
    assert len(text.splitlines()) == 3 and f"(test_author_operators.py:{line})" in text


def test_a_body_reads_its_own_inputs():
    weight = dp.Parameter(Y)

    @dp.operator
    def scaled(x):
        return x * weight

    with pytest.raises(GraphError, match="its own inputs") as caught:
        scaled(dp.tensor(X))
    assert len(str(caught.value).splitlines()) == 3

    @dp.operator
    def scaled(x):
        return x * Y

    assert scaled(dp.tensor(X)).numpy().tolist() == (X * Y).tolist()


def test_primitives_in_a_file_without_the_future_import():
    class Part(Operator):
        def infer(self, *inputs):
            return inputs[0]

        def reference(self, *inputs):
            return inputs[0] * inputs[0].dtype.type(self.factor)

        def grad(self, g, node):
            return [record(self, g)]

        def lower(self, out, *inputs):
            return lambda *i: inputs[0].at(*i) * self.factor

    @primitive
    class Half(Part):
        name: ClassVar[str] = "half"
        factor: ClassVar = 0.5

    @primitive
    class Times(Part):
        factor: float
        name: ClassVar[str] = "times"

    for made in (Half(), Times(0.5)):
        out, slope = both(lambda x, made=made: record(made, x), X)
        assert out.tolist() == (X / 2).tolist() and slope.tolist() == np.full(X.shape, 0.5).tolist()
    assert Times(2.0) == Times(2.0) != Times(3.0) and Half().attributes() == {}
