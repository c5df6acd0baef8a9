"""Graphs drawn by hypothesis: native against the reference, eager, static and text, bit for bit."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diptych as dp
import diptych.nn.functional as F
from diptych import engine
from diptych.compiler import fuse
from diptych.dtypes import promote
from diptych.errors import DtypeError
from diptych.graph.node import Graph, input_node
from diptych.graph.record import GRAPH, recording
from diptych.graph.text import parse_graph, print_graph
from diptych.ops import elementwise as E
from diptych.ops import functions as fn
from diptych.ops.base import make_operator
from diptych.ops.indexing import take
from diptych.runtime.code import host_target

SIZES = st.sampled_from([1, 2, 3, 7, 16, 17, 33])
RELAXED = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def special(rng, shape, dtype=np.float32):
    """Numbers of every size, zeros of both signs, infinities, NaN, subnormals."""
    x = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(dtype)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-42, 1.0, 3e38], dtype)
    pick = rng.random(shape) < 0.15
    return np.where(pick, rng.choice(odd, shape), x).astype(dtype)


ONE = [E.negative, fn.abs, fn.exp, fn.log, fn.tanh, fn.sigmoid, fn.sqrt, fn.floor, F.relu, fn.sign,
       fn.expm1, fn.log1p, fn.rsqrt, F.softplus, F.silu, F.elu]  # fmt: skip
TWO = [E.add, E.subtract, E.multiply, E.divide, E.minimum, E.maximum]


class Builder:
    """Grows a pool of (rows, columns) values by calls that a list of numbers chooses."""

    def __init__(self, numbers, pool, gates=False):
        """`gates`: two products in one expression are among the steps to choose from."""
        self.numbers, self.pool = iter(numbers), list(pool)
        self.products = [self.product, self.gate, self.gate] if gates else [self.product]

    def choose(self, options):
        return options[next(self.numbers, 0) % len(options)]

    def like(self, x):
        return self.choose([p for p in self.pool if p.type.shape == x.type.shape])

    def step(self):
        x = self.choose(self.pool)
        made = self.choose([
            self.function, self.function, self.pair, self.pair, self.fold,
            self.cut, self.soft, dp.transpose, *self.products,
        ])(x)  # fmt: skip
        if made.type.size <= 20000:
            self.pool.append(made)

    def function(self, x):
        return self.choose(ONE)(x)

    def pair(self, x):
        return self.choose(TWO)(x, self.like(x))

    def fold(self, x):
        made = self.choose([dp.sum, dp.max, dp.min, dp.mean])(
            x, self.choose([0, 1, (0, 1)]), keepdims=True
        )
        return E.add(made, x) if self.choose([True, False]) else made

    def product(self, x):
        return dp.matmul(x, dp.transpose(self.like(x)))

    def gate(self, x):
        made = self.choose(TWO)(self.product(x), self.choose(ONE)(self.product(x)))
        return (
            take(made, (slice(None), slice(None, None, -1))) if self.choose([True, False]) else made
        )

    def cut(self, x):
        at = self.choose(list(range(x.type.shape[1])))
        rows = slice(None)
        parts = [(rows, slice(at, None)), (rows, slice(None, at)), (slice(None, None, -1),)]
        return dp.concat([take(x, p) for p in parts], 1)

    def soft(self, x):
        return F.softmax(x, axis=self.choose([0, 1]))


NUMBERS = st.lists(st.integers(0, 2**16), min_size=1, max_size=40)
STEPS = st.integers(1, 9)


def drawn_graph(numbers, steps, values, gates=False):
    places = [input_node(dp.tensor(v).type, f"x{n}") for n, v in enumerate(values)]
    with recording(GRAPH):
        builder = Builder(numbers, places, gates)
        for _ in range(steps):
            builder.step()
    return Graph(tuple(places), tuple(builder.pool[-2:]))


def bits(arrays):
    """Raw bytes, every NaN being the same."""
    return [np.where(np.isnan(a), np.float32(np.nan), a).tobytes() for a in arrays]


@RELAXED
@given(NUMBERS, STEPS, SIZES, SIZES, st.integers(0, 2**32 - 1))
def test_native_is_the_reference(numbers, steps, rows, columns, seed):
    rng = np.random.default_rng(seed)
    values = [special(rng, (rows, columns)) for _ in range(2)]
    graph = drawn_graph(numbers, steps, values)
    native = bits(engine.run_once(graph, values, "cpu"))
    assert native == bits(engine.run_once(graph, values, "reference"))
    text = print_graph(graph)
    again = parse_graph(text, make_operator)
    assert print_graph(again) == text
    assert bits(engine.run_once(again, values, "cpu")) == native


@pytest.fixture
def large_layouts(monkeypatch):
    """Sides of products are laid out as those of 256 KiB and more, on vectors of four lanes."""
    for name in ("NEAR", "FAR", "MANY_ROWS", "APART"):
        monkeypatch.setattr(fuse, name, 1)
    facts = {"lanes": 4, "has_masks": False, "registers": 16}
    short = dataclasses.replace(host_target("native"), **facts)
    monkeypatch.setattr(engine, "host_target", lambda _: short)


@settings(RELAXED, max_examples=100)
@given(st.lists(st.integers(0, 2**16), min_size=8, max_size=40), st.integers(3, 7),
       st.sampled_from([7, 17, 33, 40]), st.sampled_from([7, 17, 33, 70]))  # fmt: skip
def test_no_layout_of_a_product_changes_a_bit(large_layouts, numbers, steps, rows, columns):
    rng = np.random.default_rng(numbers[0])
    values = [special(rng, (rows, columns)) for _ in range(2)]
    graph = drawn_graph(numbers, steps, values, gates=True)
    native = bits(engine.run_once(graph, values, "cpu"))
    assert native == bits(engine.run_once(graph, values, "reference"))


@settings(RELAXED, max_examples=25)
@given(NUMBERS, STEPS, SIZES, SIZES, st.integers(0, 2**32 - 1))
def test_both_panels_and_eager_agree_with_gradients(numbers, steps, rows, columns, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((rows, columns)).astype(np.float32) for _ in range(2)]

    def run(mode):
        weights = [dp.Parameter(a) for a in arrays]

        def both():
            builder = Builder(numbers, weights)
            for _ in range(steps):
                builder.step()
            loss = dp.mean(fn.tanh(builder.pool[-1]))
            loss.backward()
            return loss

        dp.set_eager(mode == "eager")
        dp.set_threads(2 if mode == "static" else 1)
        try:
            loss = dp.compile(both)() if mode == "static" else both()
            return bits([loss.numpy(), *[w.grad.numpy() for w in weights if w.grad is not None]])
        finally:
            dp.set_eager(False)

    assert run("dynamic") == run("static") == run("eager")


DTYPES = ["f32", "f64", "i32", "i64", "u8", "bool"]


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_promotion_is_that_of_the_array_api_standard(a, b):
    """https://data-apis.org/array-api/latest/API_specification/type_promotion.html"""
    x, y = dp.tensor([1, 0], dtype=a), dp.tensor([1, 1], dtype=b)
    kinds = {k: "f" if k[0] == "f" else "b" if k == "bool" else "i" for k in DTYPES}
    if kinds[a] != kinds[b]:
        with pytest.raises(DtypeError):
            E.maximum(x, y)
        return
    order = ["bool", "u8", "i32", "i64", "f32", "f64"]
    wider = max(a, b, key=order.index)
    assert promote(x.dtype, y.dtype).name == wider
    if a != "bool":
        assert (x + y).dtype.name == wider


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "i64", "u8"])
def test_python_scalars_are_weak(dtype):
    x = dp.tensor([1, 2], dtype=dtype)
    assert (x * 2).dtype.name == dtype and (3 - x).dtype.name == dtype
    if dtype[0] == "f":
        assert (x * 0.1).dtype.name == dtype
    else:
        with pytest.raises(DtypeError, match="plain float"):
            x * 0.1


INDEX = st.one_of(
    st.integers(-4, 4), st.just(None), st.just(Ellipsis),
    st.builds(slice, *[st.one_of(st.none(), st.integers(-6, 6))] * 2,
              st.one_of(st.none(), st.sampled_from([-3, -2, -1, 1, 2, 3]))),
)  # fmt: skip


@settings(RELAXED, max_examples=150)
@given(st.lists(INDEX, max_size=4), st.lists(st.integers(0, 5), min_size=0, max_size=3))
def test_basic_indexing_is_that_of_numpy(key, shape):
    x = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    try:
        expected = x[tuple(key)]
    except IndexError:
        with pytest.raises(dp.DiptychError):
            dp.tensor(x)[tuple(key)]
        return
    found = dp.tensor(x, requires_grad=True)
    got = found[tuple(key)]
    assert got.shape == expected.shape and got.numpy().tobytes() == expected.tobytes()
    got.sum().backward()
    count = np.zeros(shape, np.float32)
    count[tuple(key)] += 1
    assert found.grad.numpy().tobytes() == count.tobytes()


@settings(RELAXED, max_examples=60)
@given(st.lists(SIZES, min_size=1, max_size=3), st.integers(0, 2), st.data())
def test_an_index_tensor_on_one_axis_is_that_of_numpy(shape, axis, data):
    axis = min(axis, len(shape) - 1)
    x = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    positions = np.array(
        data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=5))
    )
    key = (slice(None),) * axis
    assert dp.tensor(x)[(*key, dp.tensor(positions))].tolist() == x[(*key, positions)].tolist()


@settings(RELAXED, max_examples=60)
@given(*[st.lists(st.sampled_from([0, 1, 2, 5]), max_size=3)] * 2)
def test_broadcasting_is_that_of_numpy(a, b):
    x, y = np.ones(a, np.float32), np.ones(b, np.float32) * 2
    try:
        expected = x + y
    except ValueError:
        with pytest.raises(dp.DiptychError):
            dp.tensor(x) + dp.tensor(y)
        return
    left, right = dp.tensor(x, requires_grad=True), dp.tensor(y, requires_grad=True)
    got = left + right
    assert got.shape == expected.shape and got.tolist() == expected.tolist()
    got.sum().backward()
    assert left.grad.shape == x.shape and right.grad.shape == y.shape
