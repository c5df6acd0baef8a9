"""What the compiler promises: what is fused, what is written in place, what is in memory."""

import os
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, interpret, nn, optim
from diptych.compiler import driver, memory
from diptych.compiler.pipeline import compile_graph
from diptych.compiler.simplify import simplify
from diptych.compiler.split import split_long
from diptych.graph.node import Graph, Input
from diptych.kernel import expr as k
from diptych.runtime import code
from diptych.runtime.code import host_target
from diptych.runtime.memory import element_strides


def recorded(call, *shapes):
    """A graph of placeholders of these shapes."""
    with dp.Program() as program:
        places = [dp.data(f"x{n}", shape) for n, shape in enumerate(shapes)]
        out = call(*places)
    return Graph(tuple(f.node for f in program.feeds.values()), (out.node,))


def compiled(graph, donated=None):
    return compile_graph(graph, {}, donated or {}, host_target("x86-64-v3"))


def folds(kernel):
    return [e.attr[0] for e in k.walk([kernel.value]) if e.op == "fold"]


def test_an_elementwise_chain_is_one_kernel_without_temporaries():
    made = compiled(recorded(lambda x, y: dp.tanh(dp.exp(x * y + 1)) / (y - x), [8, 9], [9]))
    assert len(made.kernels) == 1 and made.arena_bytes == 0


def test_a_reduction_takes_what_it_reduces_inside():
    made = compiled(recorded(lambda x: ((x - 1) * 2).astype("f64").sum(1), [8, 9]))
    assert len(made.kernels) == 1 and folds(made.kernels[0]) == ["sum"]


def test_a_contraction_has_prologue_and_epilogue():
    def call(pixels, w, b):
        return F.relu(dp.matmul(pixels / 255, w) + b)

    made = compiled(recorded(call, [16, 64], [64, 32], [32]))
    last = made.kernels[-1]
    assert folds(last) == ["contract"] and last.value.op == "maximum"
    assert len(made.kernels) <= 2  # the division may be computed once, ahead


def article_step(widths=(784, 100, 100, 10)):
    with dp.Program() as program:
        x, y = dp.data("x", [16, widths[0]]), dp.data("y", [16], "i64")
        layers = []
        for ins, outs in pairwise(widths):
            layers += [nn.Linear(ins, outs), nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        loss = F.cross_entropy(model(x), y)
        optim.SGD(program.parameters(), lr=0.1).minimize(loss)
    inputs = [f.node for f in program.feeds.values()]
    inputs += [n for _, n in program.state.values()]
    updates = program.updates()
    first = {id(n): len(program.feeds) + i for i, (_, n) in enumerate(program.state.values())}
    inputs += [n for n, _ in program.live]
    graph = Graph(tuple(inputs), (loss.node, *[new for *_, new in updates]))
    return graph, {1 + i: first[id(old)] for i, (_, old, _) in enumerate(updates)}


def test_an_sgd_update_is_the_epilogue_of_its_weight_gradient_and_in_place():
    graph, donated = article_step()
    made = compile_graph(graph, {}, donated, host_target("x86-64-v3"))
    assert sorted(made.in_place) == [1, 2, 3, 4, 5, 6]
    updates = [kernel for kernel in made.kernels if kernel.value.op == "fma"]
    assert len(updates) == 6
    for kernel in updates:
        assert folds(kernel) in (["contract"], ["sum"])
    for kernel in made.kernels:  # the gradient has no memory: what has its size is a packed copy
        if kernel.out.kind == "temporary" and kernel.shape in ((100, 784), (100, 100)):
            assert isinstance(kernel.node.op, Input)


def test_layers_alike_are_lowered_once_and_compile_to_the_same_functions():
    two, many = (
        compile_graph(*stepped, host_target("x86-64-v3"))
        for graph, donated in (article_step((24,) * 4), article_step((24,) * 12))
        for stepped in [(graph, {}, donated)]
    )
    assert many.module.functions == two.module.functions
    forms = {id(kernel.form) for kernel in many.kernels}
    assert len(forms) == len({id(kernel.form) for kernel in two.kernels}) < len(many.kernels) / 3
    for kernel in many.kernels:  # each reads its own buffers
        loads = [e.attr for e in k.walk([kernel.value]) if e.op == "load"]
        assert list(dict.fromkeys(loads)) == kernel.reads


def test_equal_operators_of_a_simplified_graph_are_one_object():
    def call(x, y):
        product = dp.exp(x @ y)  # of 4096 terms: the sum of products of blocks
        return dp.sum(product, axis=0) + dp.sum(dp.exp(y), axis=0)

    graph = recorded(call, (64, 4096), (4096, 64))
    nodes = split_long(simplify(graph)).nodes
    computed = [n.op for n in nodes if n.inputs]
    assert len(computed) > len({id(op) for op in computed})
    assert len({id(op) for op in computed}) == len({(type(op), op) for op in computed})


def test_a_size_that_is_a_numpy_number_is_gone_with_its_call():
    """Strides of one compile were once those of another whose sizes were equal."""
    column = dp.tensor(np.ones((500, 1), np.float32))
    assert (dp.arange(np.int64(400), dtype="f32") * column).numpy().shape == (500, 400)
    assert dp.exp(column * np.ones((1, 400), np.float32)).numpy().shape == (500, 400)


def test_a_module_in_parts_gives_the_bits_of_one(monkeypatch):
    graph, donated = article_step((24, 40, 33, 10))
    rng = np.random.default_rng(3)
    values = [
        rng.integers(0, 10, 16) if i.dtype.name == "i64" else
        np.asarray(rng.standard_normal(i.shape), np.float32) for i in graph.inputs
    ]  # fmt: skip
    monkeypatch.setenv("DIPTYCH_CACHE", "")
    results = []
    for size, threads in ((1 << 30, 1), (20, 1), (20, 3)):
        monkeypatch.setattr(driver, "PART", size)
        monkeypatch.setattr(engine, "threads", lambda count=threads: count)
        made = engine.Executable(graph, {}, donated)
        assert (len(made.compiled.module.parts(99)) > 3) == (size < 1 << 30)
        results.append([r.tobytes() for r in made.run([v.copy() for v in values])])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("plan", [memory._alike, memory._by_time, memory._by_size])
def test_what_lives_together_shares_no_byte(plan):
    rng = np.random.default_rng(0)
    for _ in range(200):
        firsts = rng.integers(0, 30, int(rng.integers(1, 40)))
        lives = tuple(memory.Life(0, int(f), int(f + rng.integers(0, 12))) for f in firsts)
        needs = [int(n) for n in rng.integers(1, 9, len(lives))]
        offsets, total, *_ = plan(lives, needs)
        for now in range(42):
            taken = [
                byte for life, at, need in zip(lives, offsets, needs, strict=True)
                if life.first <= now <= life.last for byte in range(at, at + need)
            ]  # fmt: skip
            assert len(taken) == len(set(taken)) and max(taken, default=0) < total


def test_what_is_computed_twice_is_computed_once_and_what_is_unused_not_at_all():
    def call(x):
        unused = dp.tanh(x)
        assert unused.shape == (5,)
        return dp.exp(x) + dp.exp(x)

    made = compiled(recorded(call, [5]))
    assert [kernel.node.op.name for kernel in made.kernels] == ["exp", "add"]


def test_constants_of_the_same_bytes_and_other_types_are_two():
    with dp.Program() as program:
        x, y = dp.data("x", [3]), dp.data("y", [3], "i32")
        one = dp.tensor(np.float32(1.0))
        number = dp.tensor(np.float32(1.0).view(np.int32))
        out = (x + one).astype("f64") + (y + number).astype("f64")
    graph = Graph(tuple(f.node for f in program.feeds.values()), (out.node,))
    given = [np.arange(3, dtype=np.float32), np.arange(3, dtype=np.int32)]
    (found,) = engine.run_once(graph, given, "cpu")
    assert found.tolist() == [2.0 * n + 1.0 + 0x3F800000 for n in range(3)]


def test_no_flag_and_no_function_that_llvm_could_fold():
    graph, donated = article_step()
    text = compile_graph(graph, {}, donated, host_target("x86-64-v3")).llvm
    for word in (
        "fast",
        "reassoc",
        "contract ",
        "arcp",
        "nnan",
        "@llvm.exp",
        "@llvm.log",
        "reduce",
    ):
        assert word not in text, word
    calls = {w.split("(")[0] for w in text.split() if w.startswith("@llvm.")}
    allowed = (
        "fma", "maximum", "minimum", "sqrt", "fabs", "floor", "ceil", "rint",  # exact floats
        "smax", "smin", "masked", "prefetch", "x86.sse",  # integers, moves, modes
        "readcyclecounter",
    )  # fmt: skip
    assert all(c.removeprefix("@llvm.").startswith(allowed) for c in calls), calls


def test_the_arena_is_shared_by_values_that_do_not_live_together():
    def call(x, w):
        for _ in range(8):
            x = dp.matmul(x, w)
        return x

    made = compiled(recorded(call, [64, 64], [64, 64]))
    assert 0 < made.arena_bytes <= 3 * 64 * 64 * 4


def test_long_products_are_written_as_their_blocks():
    """Four blocks and more are products of their own and a sum; the bits are the reference's."""
    rng = np.random.default_rng(5)
    for terms, kernels in ((3 * 1024, 1), (4 * 1024, 2), (9 * 1024, 2), (8 * 1024 + 1, 1)):
        a = rng.standard_normal((terms, 9)).astype(np.float32)
        b = rng.standard_normal((terms, 21)).astype(np.float32)
        graph = recorded(lambda x, y: dp.contract(x, y, "kn,km->nm") + 1.0, a.shape, b.shape)
        assert len(compiled(graph).kernels) == kernels
        (native,) = engine.run_once(graph, [a, b], "cpu")
        (slow,) = engine.run_once(graph, [a, b], "reference")
        assert native.tobytes() == slow.tobytes()


@pytest.mark.parametrize("level", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("rows", [1, 2, 127, 2051])
@pytest.mark.parametrize("columns", [1, 5, 16, 33, 64, 100, 131])
def test_folds_side_by_side(monkeypatch, level, rows, columns):
    monkeypatch.setenv("DIPTYCH_CPU", level)
    x = np.random.default_rng(columns).standard_normal((rows, columns)).astype(np.float32)

    def call(x):
        most, least = dp.max(x, axis=0), dp.min(x * 2.0, axis=0)
        return dp.stack([x.sum(0) + 1.0, most, least, dp.prod(x, axis=0)])

    graph = recorded(call, x.shape)
    (slow,) = engine.run_once(graph, [x], "reference")
    assert engine.run_once(graph, [x], "cpu")[0].tobytes() == slow.tobytes()
    if rows > 1 and columns > 1:
        executable = engine.compile(recorded(call, [None, None]), "cpu")
        assert executable.at({"N": rows, "N1": columns}).run([x])[0].tobytes() == slow.tobytes()


@pytest.mark.parametrize("shape", [(30, 7), (128, 65), (2, 9)])
def test_a_reshape_of_what_lies_with_another_axis_innermost(shape):
    rows, columns = shape

    def call(x, y):
        product = dp.matmul(x, y)  # a temporary that may lie as its vectors do
        return x.reshape(columns, rows).sum(0) + product.reshape(-1)[:rows] * 2

    graph = recorded(call, [*shape], [columns, rows])
    rng = np.random.default_rng(0)
    given = [np.asfortranarray(rng.random(n.type.shape, np.float32)) for n in graph.inputs]
    strides = {n: element_strides(v) for n, v in enumerate(given)}
    (found,) = engine.compile(graph, "cpu", strides).run(given)
    assert found.tobytes() == interpret.run(graph, given)[0].tobytes()


def test_a_broken_cache_file_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    graph = recorded(lambda x: x * 3 - 1, [7])
    expected = engine.run_once(graph, [np.arange(7, dtype=np.float32)], "cpu")[0]
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert files
    for damage in (b"", b"\x7fELF broken", None):
        for file in files:
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2] if damage is None else damage)
        again = engine.run_once(graph, [np.arange(7, dtype=np.float32)], "cpu")[0]
        assert again.tobytes() == expected.tobytes()


PROCESS = """
import sys, numpy as np, diptych as dp
x = dp.tensor(np.arange(12, dtype=np.float32).reshape(3, 4))
print(*[(dp.exp(x * n) @ x.T).numpy().tobytes().hex() for n in range(6)])
"""


def test_processes_that_share_an_empty_cache_agree_also_when_one_is_killed(tmp_path):
    env = {**os.environ, "DIPTYCH_CACHE": str(tmp_path)}

    def begin():
        command = [sys.executable, "-c", PROCESS]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)

    killed, *others = [begin() for _ in range(3)]
    deadline = time.monotonic() + 60
    while not any(tmp_path.rglob("*.o")) and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    outputs = {p.communicate(timeout=100)[0] for p in others}
    assert len(outputs) == 1 and all(p.returncode == 0 for p in others)
    assert begin().communicate(timeout=100)[0] in outputs


def test_a_longer_chain_of_the_same_kernels_is_other_code(tmp_path, monkeypatch):
    """It has more buffers, for which its entry has room."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))

    def repeated(layers):
        def call(x):
            for _ in range(layers):
                x = dp.exp(x) * 0.1
                x = x * x + x
            return x

        return recorded(call, (100, 100))

    made = [engine.Executable(repeated(layers), {0: (100, 1)}, {}) for layers in (3, 9)]
    assert made[0].compiled.module.forms == made[1].compiled.module.forms
    assert [m.code.compiled for m in made] == [True, True]
    x = np.random.default_rng(0).random((100, 100), np.float32)
    assert made[1].run([x])[0].tobytes() == interpret.run(repeated(9), [x])[0].tobytes()


def test_object_code_is_found_by_what_a_graph_is(tmp_path, monkeypatch):
    """Without the text being made; another graph, layout, operator of an author or compiler finds
    none."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))

    def run(call, turned=False, more=()):
        graph = recorded(call, (3, 5), *more)
        made = engine.Executable(graph, {0: (1, 3) if turned else (5, 1)}, {})
        return made, "functions" in vars(made.compiled.module)

    assert run(dp.exp)[1] and not run(dp.exp)[1]
    assert not run(dp.exp)[0].code.compiled
    assert run(dp.exp, turned=True)[1] and run(dp.tanh)[1]

    @dp.operator
    def shifted(x):
        return dp.add(dp.exp(x), 1.0)

    assert run(shifted)[1]

    @dp.operator  # the same name, from the same place
    def shifted(x):
        return dp.add(dp.exp(x), 2.0)

    assert run(shifted)[1]
    assert run(lambda x, y: dp.exp(x), more=[(4,)])[1]  # the pool is in another slot
    monkeypatch.setattr(code, "_compiler", lambda: "another")
    assert run(dp.exp)[1]
