"""Products that read rows of a table where they lie, held to the reference."""

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import data, engine, interpret, nn, optim
from diptych.compiler import ahead, contraction
from diptych.compiler.memory import Life, place
from diptych.compiler.pipeline import compile_graph
from diptych.errors import DeviceError
from diptych.graph.node import Graph
from diptych.kernel import expr as k
from diptych.runtime.code import host_target

LEVELS = ["native", "x86-64", "x86-64-v3", "x86-64-v4"]
# (rows of the table, of the batch, width, columns of the result)
SHAPES = [
    (5, 1, 3, 2), (7, 2, 17, 5), (40, 13, 31, 17), (61, 16, 64, 16), (97, 33, 130, 61),
    (64, 64, 100, 7), (3000, 67, 127, 101), (2003, 128, 211, 100), (1500, 100, 1100, 37),
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("same_threads")


def products(rows, batch, width, columns, dtype="f32", symbolic=False):
    """Both products of a layer with rows of a table: forward, and a weight's gradient and update;
    a third, where the rows are the side that is turned round."""
    batch = None if symbolic else batch
    with dp.Program() as program:
        table = dp.data("table", [rows, width], dtype)
        order = dp.data("order", [batch], "i64")
        weight = dp.data("weight", [columns, width], dtype)
        bias, grad = dp.data("bias", [columns], dtype), dp.data("grad", [batch, columns], dtype)
        picked = dp.gather(table, order)
        forward = F.relu(dp.matmul(picked, weight.T) + bias)
        update = weight - 0.5 * dp.matmul(grad.T, picked)
        outs = (forward, update, dp.matmul(weight, picked.T))
    return Graph(tuple(f.node for f in program.feeds.values()), tuple(o.node for o in outs))


def values(rows, batch, width, columns, dtype="f32"):
    rng = np.random.default_rng(rows)
    shapes = [(rows, width), (columns, width), (columns,), (batch, columns)]
    table, *rest = (
        rng.standard_normal(s).astype({"f32": "f4", "f64": "f8"}[dtype]) for s in shapes
    )
    return [table, rng.integers(0, rows, batch), *rest]


def same(graph, executable, given):
    expected = interpret.run(graph, given)
    for threads in (1, 2):
        dp.set_threads(threads)
        for found, wanted in zip(executable.run([*given]), expected, strict=True):
            assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_give_the_bits_of_the_reference(monkeypatch, level, shape):
    monkeypatch.setenv("DIPTYCH_CPU", level)
    monkeypatch.setattr(contraction, "FAR_RESULT", 1 << 16)
    try:
        host_target(level)
    except DeviceError:
        pytest.skip("the host has less")
    graph = products(*shape)
    same(graph, engine.compile(graph, "cpu"), values(*shape))


@pytest.mark.parametrize("level", ["native", "x86-64-v3"])
def test_any_number_of_rows(monkeypatch, level):
    monkeypatch.setenv("DIPTYCH_CPU", level)
    graph = products(61, 0, 83, 37, symbolic=True)
    executable = engine.compile(graph, "cpu", likely={"B": 16})
    (name,) = executable.compiled.symbols
    for batch in (2, 3, 15, 16, 17, 31, 64, 129):
        given = values(61, batch, 83, 37)
        same(engine.specialise(graph, {name: batch}), executable.at({name: batch}), given)


def test_doubles():
    graph = products(200, 19, 45, 23, "f64")
    same(graph, engine.compile(graph, "cpu"), values(200, 19, 45, 23, "f64"))


def test_the_rows_are_not_copied():
    whole = products(200, 60, 784, 50)
    graph = Graph(whole.inputs, whole.outputs[:2])
    made = compile_graph(graph, {}, {}, host_target("native"))
    sizes = [kernel.out.type.size for kernel in made.kernels if kernel.value.op == "load"]
    assert 60 * 784 not in sizes
    for kernel in made.kernels:
        loads = [e for e in k.walk([kernel.value]) if e.op == "load" and e.attr.kind == "input"]
        if any(e.op == "fold" for e in k.walk([kernel.value])):
            assert any(e.attr.slot == 0 for e in loads)


def test_rows_that_something_else_wants_are_copied():
    with dp.Program() as program:
        table, order = dp.data("table", [50, 24]), dp.data("order", [9], "i64")
        weight = dp.data("weight", [24, 8])
        picked = dp.gather(table, order)
        outs = [dp.matmul(picked, weight), dp.matmul(picked * 2.0, weight), dp.exp(picked)]
    graph = Graph(tuple(f.node for f in program.feeds.values()), tuple(o.node for o in outs))
    rng = np.random.default_rng(0)
    given = [rng.standard_normal((50, 24), np.float32), rng.integers(0, 50, 9)]
    same(graph, engine.compile(graph, "cpu"), [*given, rng.standard_normal((24, 8), np.float32)])


def test_a_bad_row_is_an_error_before_anything_is_written():
    graph = products(40, 13, 31, 17)
    given = values(40, 13, 31, 17)
    given[1][5] = 40
    with pytest.raises(dp.DiptychError, match="40"):
        engine.compile(graph, "cpu").run([*given])


@pytest.mark.parametrize("level", ["native", "x86-64"])
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
@pytest.mark.parametrize("batch", [1, 16, 100, 399])
def test_an_epoch_in_one_call_has_the_bits_of_its_steps(monkeypatch, batch, kind, level):
    monkeypatch.setenv("DIPTYCH_CPU", level)
    monkeypatch.setattr(ahead, "FAR_TABLE", 0)
    rng = np.random.default_rng(0)
    images = (100 * rng.random((400, 300), np.float32)).astype(kind)
    labels = rng.integers(0, 10, 400)

    def trained(how):
        dp.manual_seed(1)
        model = nn.Sequential(nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        optimizer = optim.SGD(model.parameters(), lr=0.01)

        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        rows = data.arrays(images, labels, scale=60.0, shift=-1.0)
        loader = data.DataLoader(rows, batch, shuffle=True, seed=3)
        losses = how(step, loader)
        return [losses, *[v.tobytes() for v in model.state_dict().values()]]

    def scanned(step, loader):
        return dp.scan(dp.compile(step), loader)[0].tolist()

    def stepped(step, loader):
        return [step(dp.tensor(x), dp.tensor(y)).item() for x, y in loader]

    dp.set_threads(1)
    expected = trained(stepped)
    assert trained(scanned) == expected
    dp.set_threads(2)
    assert trained(scanned) == expected


def test_the_next_batch_is_asked_for(monkeypatch):
    monkeypatch.setattr(ahead, "FAR_TABLE", 0)
    with dp.Program() as program:
        table, order = dp.data("table", [500, 64]), dp.data("order", [300], "i64")
        start = dp.data("start", [], "i64")
        window = dp.gather(order, dp.arange(16) + start)
        out = dp.gather(table, window) * 2.0
    graph = Graph(tuple(f.node for f in program.feeds.values()), (out.node,))
    executable = engine.compile(graph, "cpu")
    assert "prefetch" in executable.compiled.llvm
    rng = np.random.default_rng(0)
    table, order = rng.standard_normal((500, 64), np.float32), rng.integers(0, 500, 300)
    for first in (0, 1, 268, 284):
        (found,) = executable.run([table, order, np.array(first)])
        assert found.tobytes() == (table[order[first : first + 16]] * np.float32(2.0)).tobytes()


def test_small_arenas_share_bytes_between_buffers_of_one_size_only():
    lives = (Life(640, 0, 1), Life(320, 2, 3), Life(640, 4, 5))
    offsets, total = place(lives, {})
    assert offsets[0] == offsets[2] and total == 960
    large = tuple(Life(life.bytes << 12, life.first, life.last) for life in lives)
    offsets, total = place(large, {})
    assert offsets == [0, 0, 0] and total == 640 << 12
