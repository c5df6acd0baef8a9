"""The choice of tiles: made once for a kernel, and obeyed; layouts are read as they are."""

import dataclasses

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, interpret
from diptych.compiler import fuse
from diptych.compiler.pipeline import compile_graph
from diptych.errors import InternalError
from diptych.graph.node import Graph
from diptych.runtime.code import host_target

FAST = {"fma_per_cycle": 2, "loads_per_cycle": 1, "broadcast": 1.0}
SLOW = {"fma_per_cycle": 1, "loads_per_cycle": 1, "broadcast": 0.5}
MACHINES = [
    FAST,
    SLOW,
    {**FAST, "lanes": 8, "has_masks": False},
    {**SLOW, "lanes": 4, "has_masks": False, "registers": 16},
    {**FAST, "lanes": 4, "has_masks": False, "registers": 32, "loads_per_cycle": 2},
]

# Name, sizes of the arrays, and a function of them: a graph with sides in panels.
GRAPHS = {
    "a side is a literal": ([(128, 784), (100, 784)], lambda x, w: gradient(F.linear(x, w), x)),
    "both sides are literals": ([(64, 99)], lambda x: ones(64, 300) @ ones(300, 99) + x),
    "two gradients are added": (
        [(16, 256), (256, 256), (256, 256), (16, 256), (16, 256)],
        lambda x, u, v, a, b: gradient(F.linear(x, u) * a + F.linear(x, v) * b, x),
    ),
    "a weight has two uses": (
        [(100, 784), (128, 784), (128, 784), (128, 100), (128, 100)],
        lambda w, x, y, a, b: gradient(F.linear(x, w) * a + F.linear(y, w) * b, w),
    ),
    "two products are added": (
        [(128, 256), (256, 256), (128, 256), (256, 256)],
        lambda a, b, c, d: a @ b + c @ d,
    ),
    "three products in one expression": (
        [(128, 256), (256, 256), (256, 256), (256, 256)],
        lambda x, a, b, c: dp.sigmoid(x @ a) * dp.tanh(x @ b) + x @ c,
    ),
    "a product beside a sum": (
        [(128, 256), (256, 300), (128, 300, 40)],
        lambda x, w, y: x @ w + dp.sum(y, 2),
    ),
    "a function transposed": ([(256, 128), (256, 784)], lambda x, w: F.relu(x).T @ w),
    "a padded side": ([(250, 128), (256, 784)], lambda x, w: dp.pad(x, [(2, 4), (0, 0)]).T @ w),
    "a sum behind an axis of one": (
        [(128, 256), (256, 784)],
        lambda x, w: dp.matmul((x + x[0])[None], w[None]),
    ),
    "a function spread": (
        [(1, 256), (256, 784)],
        lambda x, w: dp.broadcast_to(dp.tanh(x), (128, 256)) @ w,
    ),
    "columns in reverse": ([(128, 256), (256, 784)], lambda x, w: (x @ w + 1.0)[:, ::-1]),
    "rows in reverse": ([(128, 256), (256, 784)], lambda x, w: dp.tanh(x @ w)[::-1]),
    "a transposed result": ([(128, 256), (256, 784)], lambda x, w: dp.tanh(x @ w).T[::-1]),
    "axes of one between": (
        [(128, 256), (256, 784)],
        lambda x, w: dp.tanh(x @ w).reshape(128, 1, 784).transpose(2, 1, 0),
    ),
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("same_threads")


def ones(*shape):
    return dp.broadcast_to(dp.tensor(1.0), shape)


def gradient(y, x):
    (found,) = dp.partials(dp.sum(y), [x])
    return found


def made(name):
    """The graph, and what it is given."""
    shapes, function = GRAPHS[name]
    with dp.Program() as program:
        places = [dp.data(f"x{n}", list(shape)) for n, shape in enumerate(shapes)]
        out = function(*places)
    rng = np.random.default_rng(1)
    given = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return Graph(tuple(f.node for f in program.feeds.values()), (out.node,)), given


def machine(facts):
    target = host_target("native")
    if facts.get("lanes", 16) > target.lanes:
        pytest.skip("vectors are shorter here")
    return dataclasses.replace(target, **facts)


def is_reference(graph, given):
    (expected,) = interpret.run(graph, given)
    for threads in (1, 2):
        dp.set_threads(threads)
        (found,) = engine.compile(graph, "cpu").run(given)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("facts", MACHINES, ids=["fast", "slow", "avx2", "sse", "neon"])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_gives_the_bits_of_the_reference(monkeypatch, facts, name):
    target = machine(facts)
    monkeypatch.setattr(engine, "host_target", lambda _: target)
    is_reference(*made(name))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_contraction_is_the_only_fold_of_its_kernel(name):
    graph, _ = made(name)
    for kernel in compile_graph(graph, {}, {}, machine(FAST)).kernels:
        folds = [e for e in fuse.k.walk([kernel.value]) if e.op == "fold"]
        products = [fold for fold in folds if fold.attr[0] == "contract"]
        literals = name == "both sides are literals"
        assert (kernel.choice is not None) == (bool(products) and not literals)
        assert len(folds) == 1 or not products


@pytest.mark.parametrize("name", ["two products are added", "a weight has two uses"])
def test_plain_loops_read_panels_by_address(monkeypatch, name):
    monkeypatch.setattr(engine, "host_target", lambda _: machine(FAST))
    monkeypatch.setattr(fuse, "choose", lambda *_: None)
    graph, given = made(name)
    kernels = compile_graph(graph, {}, {}, machine(FAST)).kernels
    assert any(load.attr.panels for kernel in kernels for load in kernel.loads)
    is_reference(graph, given)


def test_panels_of_another_width_are_refused(monkeypatch):
    def other(*given):
        choice = choose(*given)
        return choice and dataclasses.replace(choice, panel=choice.panel + 16)

    choose = fuse.choose
    monkeypatch.setattr(fuse, "choose", other)
    graph, _ = made("two products are added")
    with pytest.raises(InternalError, match="are not those of"):
        compile_graph(graph, {}, {}, machine(FAST))


def test_a_temporary_with_padded_lines_has_room_for_them():
    """A weight whose lines are padded gets a new value that other kernels must not see yet: the
    value waits in a temporary that lies as the weight does."""
    with dp.Program() as program:
        x, w, other = dp.data("x", [257]), dp.data("w", [257, 2]), dp.data("other", [2])
        new = w - dp.contract(x, other, "m,n->mn")
        late = x - dp.matmul(w, new[0])
    inputs = tuple(f.node for f in program.feeds.values())
    graph = Graph(inputs, (new.node, late.node))
    made = compile_graph(graph, {1: (1, 272)}, {0: 1}, machine(FAST))
    ends = [
        (buffer.offset + buffer.reach, buffer)
        for kernel in made.kernels
        for buffer in kernel.buffers
        if buffer.kind == "temporary" and buffer.base is None
    ]
    assert any(buffer.reach > buffer.bytes for _, buffer in ends)
    assert max(end for end, _ in ends) <= made.arena_bytes
