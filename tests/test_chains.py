"""Kernels that run slab by slab compute what they compute one after the other, to the last bit."""

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, interpret, nn, optim
from diptych.compiler import chains
from diptych.dtypes import TensorType, f32
from diptych.errors import ValueRangeError
from diptych.graph.node import Graph, input_node
from diptych.graph.record import GRAPH, recording
from diptych.ops.contract import matmul
from diptych.ops.elementwise import add, cast, divide, fma, multiply, subtract
from diptych.ops.functions import exp, sqrt
from diptych.ops.indexing import gather, take
from diptych.ops.reduce import reduce_sum
from diptych.ops.shape import broadcast_to, concat, transpose

pytestmark = pytest.mark.usefixtures("same_threads")


def compiled(build, shapes, donated=None, strides=None):
    """An executable of a graph over f32 inputs of these shapes."""
    inputs = [input_node(TensorType(s, f32)) for s in shapes]
    with recording(GRAPH):
        outputs = build(*inputs)
    graph = Graph(tuple(inputs), tuple(outputs))
    return graph, engine.compile(graph, "cpu", strides, donated or {})


def chain_lengths(executable):
    return sorted(len(g.kernels) for g in executable.compiled.module.groups if len(g.kernels) > 1)


def check(graph, executable, threads=(1, 2, 3)):
    """The bits of the reference, on any number of threads, with what is donated written over."""
    rng = np.random.default_rng(0)
    values = [
        np.array(rng.random(n.type.shape, np.float32) + 0.5, np.float32) for n in graph.inputs
    ]
    expected = interpret.run(graph, values)
    for count in threads:
        dp.set_threads(count)
        given = [v.copy() for v in values]
        found = executable.run(given)
        for output, (a, b) in enumerate(zip(expected, found, strict=True)):
            assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes(), output
        for output, place in executable.donated.items():
            assert found[output] is given[place]


def adam(g, p, m, v, a, b):
    """Three results of one gradient, the moments and the weight, and one of all of them."""
    m = fma(a, m, multiply(g, b))
    v = fma(b, v, multiply(multiply(g, g), a))
    return [fma(a, divide(m, add(sqrt(v), b)), p), m, v]


SHAPES = [(100, 784), (101, 353), (7, 4099), (4099, 7), (3, 11, 1021), (65537,), (1, 20000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_an_optimizer_is_a_chain(shape):
    shapes = [shape, shape, shape, shape, (), ()]
    graph, made = compiled(adam, shapes, {0: 1, 1: 2, 2: 3})
    assert chain_lengths(made) == [3]
    check(graph, made)


@pytest.mark.parametrize("rows", [16, 33])
@pytest.mark.parametrize(("out", "ins"), [(100, 784), (13, 1009), (257, 129)])
def test_a_gradient_of_few_rows_is_in_the_chain(rows, out, ins):
    def build(x, y, p, m, v, a, b):
        g = matmul(transposed(y), x)
        return adam(g, p, m, v, a, b)

    shape = (out, ins)
    given = [(rows, ins), (rows, out), shape, shape, shape, (), ()]
    graph, made = compiled(build, given, {0: 2, 1: 3, 2: 4})
    assert chain_lengths(made) == [4]
    check(graph, made)


def transposed(node):
    return transpose(node, (1, 0))


@pytest.mark.parametrize(
    "other",
    [
        lambda first, q: add(multiply(transposed(first), q), 1.0),
        lambda first, q: matmul(q, first),
        lambda first, q: fma(transposed(first), first, q),
    ],
)
def test_what_reads_other_rows_is_not_in_the_chain(other):
    shape = (300, 300)

    def build(p, q):
        first = exp(p)
        return [first, other(first, q)]

    graph, made = compiled(build, [shape, shape])
    assert chain_lengths(made) == []
    check(graph, made)


def test_what_reads_its_own_rows_of_a_product_is_in_the_chain():
    graph, made = compiled(lambda p, q: [first := exp(p), matmul(first, q)], [(300, 40), (40, 300)])
    assert chain_lengths(made) in ([], [2])
    check(graph, made)


def test_an_old_value_that_is_read_across_rows_is_read_before():
    shape = (300, 300)

    def build(p, x):
        new = subtract(p, exp(x))
        return [new, matmul(p, new), multiply(new, 2.0)]

    graph, made = compiled(build, [shape, shape], {0: 0})
    check(graph, made)


@pytest.mark.parametrize("n", [5, 20, 300])
@pytest.mark.parametrize(
    "new",
    [
        lambda p: add(p, transposed(p)),
        lambda p: fma(transposed(p), p, p),
        lambda p: subtract(p, reduce_sum(p, 0)),
        lambda p: subtract(p, broadcast_to(reduce_sum(p, 1, keepdims=True), p.type.shape)),
        lambda p: add(p, matmul(p, p)),
        lambda p: concat([take(p, slice(1, None)), take(p, slice(1))], 0),
        lambda p: add(p, take(p, 0)),
    ],
)
def test_a_new_value_that_reads_the_old_one_elsewhere_is_not_written_over_it(n, new):
    graph, made = compiled(lambda p: [new(p)], [(n, n)], {0: 0})
    check(graph, made)


def test_temporaries_of_a_chain_have_bytes_of_their_own():
    """One that ends in a chain and one that begins there are both in use for all of it."""

    def build(p, q):
        one = exp(multiply(p, q))
        two = exp(subtract(one, multiply(one, one)))
        three = exp(cast(add(two, multiply(two, two)), "f64"))  # its rows are twice as long
        return [multiply(transposed(three), 2.0), reduce_sum(multiply(three, three), 0)]

    graph, made = compiled(build, [(1000, 600), (1000, 600)])
    assert chain_lengths(made) == [4]
    assert made.arena_bytes > 1 << 21
    check(graph, made)


def test_kernels_between_are_moved_where_that_means_the_same():
    """The rate of a step is computed late, from what the chain does not touch."""
    shape = (100, 784)

    def build(p, m, g, power, scale):
        m = fma(scale, m, g)
        power = multiply(power, scale)
        return [fma(divide(scale, subtract(1.0, power)), m, p), m, power]

    graph, made = compiled(build, [shape, shape, shape, (), ()], {0: 0, 1: 1, 2: 3})
    assert chain_lengths(made) == [2]
    check(graph, made)


@pytest.mark.parametrize("read", ["gradient", "moment", "weight"])
def test_a_position_is_checked_before_anything_that_lasts_is_written(read):
    """Also where it is computed from the gradient of a chain, or from a new value."""
    shape = (100, 784)

    def build(x, y, p, m, v, a, b, table, places):
        g = matmul(transposed(y), x)
        new = adam(g, p, m, v, a, b)
        source = {"gradient": g, "moment": new[1], "weight": new[0]}[read]
        at = cast(add(multiply(reduce_sum(source, 0), 0.0), places), "i64")
        return [*new, gather(table, at)]

    given = [(16, 784), (16, 100), shape, shape, shape, (), (), (10,), (784,)]
    graph, made = compiled(build, given, {0: 2, 1: 3, 2: 4})
    rng = np.random.default_rng(0)
    values = [np.array(rng.random(s) + 0.5, np.float32) for s in given]
    found = made.run([v.copy() for v in values])
    for a, b in zip(found, interpret.run(graph, values), strict=True):
        assert a.tobytes() == b.tobytes()
    values[-1][700] = 10
    kept = [v.copy() for v in values]
    with pytest.raises(ValueRangeError, match="position 10 "):
        made.run(values)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(values, kept, strict=True))


@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v3", "native"])
def test_every_target_and_the_reference_agree_on_training(cpu, monkeypatch):
    if cpu != "native" and not engine.host_target("native").triple.startswith("x86_64"):
        pytest.skip("x86 only")
    monkeypatch.setenv("DIPTYCH_CPU", cpu)

    def train():
        dp.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 130), nn.ReLU(), nn.Linear(130, 10))
        optimizer = optim.Adam(model.parameters(), lr=0.01)

        @dp.compile
        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        rng = np.random.default_rng(1)
        for _ in range(3):
            step(rng.random((16, 300), np.float32), rng.integers(0, 10, 16))
        return b"".join(v.tobytes() for v in model.state_dict().values())

    found = train()
    dp.use_device("reference")
    try:
        assert train() == found
    finally:
        dp.use_device("cpu")


def test_slabs_hold_whole_tiles_and_divide_among_threads():
    shape = (1000, 784)
    _, made = compiled(adam, [shape] * 4 + [(), ()], {0: 1, 1: 2, 2: 3})
    (group,) = [g for g in made.compiled.module.groups if len(g.kernels) > 1]
    assert all(group.slab % rows.step == 0 for rows in group.rows)
    assert -(-group.rows[0].extent // group.slab) >= chains.FEWEST


def test_small_kernels_stay_alone():
    _, made = compiled(adam, [(10, 10)] * 4 + [(), ()], {0: 1, 1: 2, 2: 3})
    assert chain_lengths(made) == []
