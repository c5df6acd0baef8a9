"""Symbolic sizes: one executable for all of them, with the bits of the special ones."""

import inspect

import numpy as np
import pytest
from cases import CASES, Case
from test_operators import same_bits

import diptych as dp
import diptych.nn.functional as F
from diptych import data, engine, nn, optim
from diptych.compiler.blocks import LEVEL, helpers
from diptych.dtypes import f32
from diptych.dynamic import set_eager
from diptych.errors import DiptychError, InternalError, ShapeError, ValueRangeError
from diptych.graph.node import Graph
from diptych.graph.rewrite import specialise
from diptych.runtime.code import Code, host_target
from diptych.runtime.memory import element_strides
from diptych.trail import Point

SIZES = (2, 3, 7, 16, 17)


def variants():
    """Cases with one of their sizes, wherever it occurs, as a symbol."""
    sizes = {c.name: sorted({d for s in c.shapes for d in s if d > 1}) for c in CASES}
    return [(case, size) for case in CASES for size in sizes[case.name]]


def recorded(case, size):
    """The case and its gradients as a graph with a symbol for `size`; None where the call or a
    rule needs the number."""
    first = case.inputs()
    with dp.Program() as program:
        places = []
        for n, (shape, a) in enumerate(zip(case.shapes, first, strict=True)):
            dims = ["S" if d == size else d for d in shape]
            places.append(dp.data(f"x{n}", dims, a.dtype))
        try:
            out = case.call(*places)
            results = [out]
            floats = [p for p in places if p.dtype.is_float]
            if out.dtype.is_float and out.requires_grad and floats:
                results += dp.partials((out * out).sum(), floats)
        except (DiptychError, TypeError):
            return None
    inputs = [f.node for f in program.feeds.values()] + [n for n, _ in program.live]
    return Graph(tuple(inputs), tuple(r.node for r in results)), [r() for _, r in program.live]


def drawn(case, size, value):
    shapes = [tuple(value if d == size else d for d in shape) for shape in case.shapes]
    arrays = Case(case.name, case.call, shapes, case.draw).inputs(value)
    return [a % min(value, size) if a.dtype == np.int64 else a for a in arrays]


NEEDS_NUMBER = {  # cases whose call writes this size as a number
    ("reshape", 3), ("reshape", 37), ("broadcast", 3), ("broadcast", 37),
    ("slice", 3), ("slice", 37), ("slice_back", 37),
}  # fmt: skip


def check(case, size, values, special=()):
    """One compile for all values, and the bits of the reference; of the special executable too."""
    made = recorded(case, size)
    if (case.name, size) in NEEDS_NUMBER:
        assert made is None
        return
    graph, live = made
    family = engine.Family(graph)
    before = engine.STATISTICS.compiles
    found = {}
    for value in values:
        arrays = [*drawn(case, size, value), *live]
        strides = [element_strides(a) for a in arrays]
        try:
            found[value] = family.find("cpu", strides, {}, {"S": value}).run(arrays)
        except ShapeError as problem:
            assert "axis" in str(problem)
    assert engine.STATISTICS.compiles == before + 1
    for value, results in found.items():
        arrays = [*drawn(case, size, value), *live]
        for device in ("cpu", "reference") if value in special else ("reference",):
            slow = engine.run_once(specialise(graph, {"S": value}), arrays, device)
            for a, b in zip(results, slow, strict=True):
                same_bits(a, b)


@pytest.mark.parametrize(("case", "size"), variants(), ids=lambda v: getattr(v, "name", str(v)))
def test_one_executable_has_the_bits_of_the_special_ones(case, size):
    check(case, size, (2, 3, 7, 16, 17), special=(7,))


LONG = {
    "add": 4, "softmax": 3, "sum": 37, "sum_leading": 3, "sum_middle": 5, "mean": 3, "matmul": 13,
    "matmul_transposed": 7, "linear": 5, "cross_entropy": 8, "mse_loss": 5, "argmax": 37,
    "scatter_add": 11, "dropout": 9, "concat": 5, "slice_back": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_long_axes_are_summed_in_blocks_whose_number_is_known_at_run_time(name):
    case = next(c for c in CASES if c.name == name)
    check(case, LONG[name], (5, 1023, 1024, 1025, 2049), special=(2049,))


# ---- the static panel ------------------------------------------------------------------------


def network():
    """A model and a step of training; the same numbers every time."""
    dp.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(x, y):
        loss = F.cross_entropy(model(F.dropout(x.reshape(x.shape[0], 20), 0.1)), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return model, step


def batches(*sizes):
    rng = np.random.default_rng(3)
    return [
        (rng.standard_normal((n, 4, 5)).astype(np.float32), rng.integers(0, 10, n)) for n in sizes
    ]


def weights(model):
    return b"".join(p.numpy().tobytes() for p in model.parameters())


def compiles(call, *args):
    before = engine.STATISTICS.compiles
    return call(*args), engine.STATISTICS.compiles - before


def test_a_program_compiles_once_for_all_batches_and_anew_for_0_and_1():
    with dp.Program() as program:
        x = dp.data("x", [None, 7])
        w = dp.Parameter(np.arange(21, dtype=np.float32).reshape(3, 7))
        out, mean = F.linear(x, w), F.linear(x, w).mean()
    program.startup.run()
    made = []
    for n in (16, 10, 2, 33, 1, 0, 5):
        given = np.random.default_rng(n).standard_normal((n, 7)).astype(np.float32)
        found, count = compiles(program.run, {"x": given}, [out, mean] if n else [out])
        made.append(count)
        expected = dp.Executor("reference").run(program, {"x": given}, [out, mean] if n else [out])
        for a, b in zip(found, expected, strict=True):
            same_bits(np.asarray(a), np.asarray(b))
    assert made == [1, 0, 0, 0, 1, 1, 0]


def test_an_index_outside_of_a_size_that_is_known_at_run_time_is_an_error():
    with dp.Program() as program:
        x = dp.data("x", [None, 3])
        row = x[4]
    assert program.run({"x": np.ones((6, 3), np.float32)}, [row])[0].tolist() == [1, 1, 1]
    with pytest.raises(ShapeError, match=r"inside the axis[\s\S]*test_symbolic.py"):
        program.run({"x": np.ones((4, 3), np.float32)}, [row])


def test_a_loaded_program_compiles_once_for_all_batches(tmp_path):
    with dp.Program() as program:
        x = dp.data("x", [None, 7])
        out = F.softmax(F.linear(x, dp.Parameter(np.ones((3, 7), np.float32))))
    program.startup.run()
    dp.save(program, tmp_path / "p.safetensors", ["x"], [out])
    loaded = dp.load(tmp_path / "p.safetensors")
    counts = [compiles(loaded.run, {"x": np.ones((n, 7), np.float32)})[1] for n in (8, 3, 64, 1025)]
    assert counts == [1, 0, 0, 0]


def test_a_capture_holds_for_all_sizes_once_one_was_seen_to_change():
    model, step = network()
    fast = dp.compile(step)
    dp.manual_seed(5)
    found = [compiles(fast, *b) for b in batches(16, 16, 10, 7, 16, 33, 10, 1, 2)]
    assert [count for _, count in found] == [1, 0, 1, 0, 0, 0, 0, 1, 0]
    other, slow = network()
    dp.manual_seed(5)
    for (loss, _), (x, y) in zip(found, batches(16, 16, 10, 7, 16, 33, 10, 1, 2), strict=True):
        same_bits(loss.numpy(), slow(dp.tensor(x), dp.tensor(y)).numpy())
    assert weights(model) == weights(other)


def needs_number(read):
    """How often a function that reads a size in this way is compiled for sizes 4, 3, 2, 6."""
    fast = dp.compile(lambda x: x * 2 + read(x))
    counts = []
    for n in (4, 3, 2, 6):
        x = np.arange(n, dtype=np.float32)
        value, count = compiles(fast, x)
        same_bits(value.numpy(), (dp.tensor(x) * 2 + read(dp.tensor(x))).numpy())
        counts.append(count)
    return counts


READS = {
    "a comparison": lambda x: 1.0 if x.shape[0] > 3 else 2.0,
    "equality": lambda x: 1.0 if x.shape == (3,) else 2.0,
    "a range": lambda x: sum(float(n) for n in range(x.shape[0])),
    "a float": lambda x: 0.5 * x.shape[0],
    "a division": lambda x: 1 / x.shape[0],
    "its length": lambda x: float(len(x)),
    "an array": lambda x: np.ones(x.shape, np.float32),
    "its text": lambda x: float(f"{x.shape[0]}"),
    "a key": lambda x: {3: 1.0}.get(x.shape[0], 2.0),
    "a remainder": lambda x: float(x.shape[0] % 4),
    "half of it": lambda x: float(x.shape[0] // 2),
    "a slice": lambda x: x[: x.shape[0] - 1].sum(),
}


@pytest.mark.parametrize("name", READS)
def test_a_function_that_needs_the_number_is_captured_for_each_size(name):
    assert needs_number(READS[name]) == [1, 1, 1, 1]


def test_a_bug_of_ours_is_not_taken_for_a_need_of_the_number(monkeypatch):
    """Where a capture or an executable for all sizes fails by our fault, it says so."""

    def broken(x):
        if not isinstance(x.shape[0], int):
            raise InternalError("broken for symbols")
        return x * 2

    call = dp.compile(broken)
    call(np.ones(4, np.float32))
    with pytest.raises(InternalError, match="broken for symbols"):
        call(np.ones(5, np.float32))
    loader = data.DataLoader(data.arrays(np.ones((7, 3), np.float32), np.ones(7)), 4)
    with pytest.raises(InternalError, match="broken for symbols"):
        dp.scan(dp.compile(lambda x, y: broken(x).sum() * y.sum()), loader)


KEEPS = {
    "arithmetic": lambda x: x.reshape(1, x.shape[0] * 2 // 2).sum(),
    "a divisor": lambda x: x.sum() / x.shape[0],
    "comparisons with 0 and 1": lambda x: 1.0 if x.shape[0] > 1 and x.shape[0] != 0 else 2.0,
    "its own shape": lambda x: 1.0 if x.shape == (x * 2).shape else 2.0,
    "random numbers": lambda x: dp.uniform(x.shape) * 0.0,
    "positions": lambda x: dp.arange(x.shape[0]).astype("f32"),
}


@pytest.mark.parametrize("name", KEEPS)
def test_a_function_that_does_not_need_the_number_is_compiled_twice(name):
    assert needs_number(KEEPS[name]) == [1, 1, 0, 0]


def test_sizes_that_change_apart_have_symbols_of_their_own():
    def call(a, b):
        a, b = (x.reshape(x.shape[0], x.shape[2]) for x in (a, b))
        return (dp.matmul(a, b.T) + a.shape[0]).sum(1)

    fast = dp.compile(call)
    counts = []
    for m, k, n in ((2, 3, 4), (5, 3, 6), (7, 3, 9), (7, 4, 9), (4, 4, 5), (6, 4, 2)):
        a, b = np.ones((m, 1, k), np.float32), np.ones((n, 1, k), np.float32)
        value, count = compiles(fast, a, b)
        same_bits(value.numpy(), np.full(m, n * (k + m), np.float32))
        counts.append(count)
    assert counts == [1, 1, 0, 1, 1, 0]  # k is innermost: a number in every executable


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_an_epoch_with_a_ragged_end_compiles_once(device):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (41, 4, 5)).astype(np.uint8), rng.integers(0, 10, 41)

    def loader():
        return data.DataLoader(data.arrays(images, labels), 16, shuffle=True, seed=1)

    dp.use_device(device)
    try:
        model, step = network()
        dp.manual_seed(5)
        fast, epochs = dp.compile(step), loader()
        counts, losses = [], []
        for _ in range(2):
            (epoch,), count = compiles(dp.scan, fast, epochs)
            counts.append(count)
            losses.append(epoch)
        assert counts == ([1, 0] if device == "cpu" else [0, 0])
        other, slow = network()
        dp.manual_seed(5)
        again = loader()
        for epoch in losses:
            expected = [slow(dp.tensor(x), dp.tensor(y)).item() for x, y in again]
            assert epoch.tolist() == expected
        assert weights(model) == weights(other)
    finally:
        dp.use_device("cpu")


# ---- the dynamic panel -----------------------------------------------------------------------


def fresh_panel():
    """What the panel compiled is forgotten, so that compiles can be counted."""
    dp.PANEL.runner.cache.clear()
    dp.PANEL.runner.families.groups.clear()
    dp.PANEL.trail.root = dp.PANEL.piece.point = Point()


def train(sizes):
    """Weights and losses of a loop in the dynamic panel, and the compiles of each step."""
    fresh_panel()
    model, step = network()
    losses, counts = [], []
    dp.manual_seed(5)
    for x, y in batches(*sizes):
        loss, count = compiles(lambda x, y: step(dp.tensor(x), dp.tensor(y)).item(), x, y)
        losses.append(loss)
        counts.append(count)
    return weights(model), losses, counts


def test_a_loop_compiles_nothing_after_a_second_size_was_seen():
    sizes = (16, 16, 10, 7, 16, 33, 10, 1, 2, 1025)
    *found, counts = train(sizes)
    assert counts == [1, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    dp.use_device("reference")
    try:
        *expected, _ = train(sizes)
    finally:
        dp.use_device("cpu")
    assert found == expected


def test_eager_calls_are_general_too():
    fresh_panel()
    set_eager(True)
    try:
        counts = []
        for n in (5, 3, 8, 2, 1, 9):
            x = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
            (value,), count = compiles(lambda x: [dp.exp(dp.tensor(x)) * 2], x)
            same_bits(value.numpy(), engine_exp(x) * np.float32(2))
            counts.append(count)
        assert counts == [2, 2, 0, 0, 2, 0]
    finally:
        set_eager(False)


def engine_exp(x):
    with dp.Program() as program:
        out = dp.exp(dp.data("x", list(x.shape)))
    return dp.Executor("reference").run(program, {"x": x}, [out])[0]


def of_first_rows(rows):
    """Compiles of the sum of so many first rows of matrices of so many rows."""
    fresh_panel()
    counts = []
    for n, first in rows.items():
        x = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
        found, count = compiles(lambda x, first=first: dp.tensor(x)[:first].sum(0).numpy(), x)
        same_bits(found, x[:first].sum(0))
        counts.append(count)
    return counts


def test_a_number_that_cannot_be_derived_keeps_the_size_special():
    assert of_first_rows({16: 8, 12: 6, 10: 5}) == [1, 1, 1]


def test_a_size_that_follows_from_another_and_is_0_has_code_of_its_own():
    """A sum of nothing is +0, where a chain begins with -0."""

    def total(n):
        return dp.tensor(np.full(n, 1.5, np.float32))[2:].sum().numpy()

    for n in (10, 12, 2, 3):
        assert total(n).tobytes() == np.float32(1.5 * (n - 2)).tobytes()


def test_an_error_of_ours_is_not_taken_for_a_size_that_is_special(monkeypatch):
    def broken(*_):
        raise InternalError("a rule is wrong")

    fresh_panel()
    dp.exp(dp.tensor(np.ones(4, np.float32))).numpy()
    monkeypatch.setattr("diptych.families.Rewriter._node", broken)
    with pytest.raises(InternalError, match="a rule is wrong"):
        dp.exp(dp.tensor(np.ones(5, np.float32))).numpy()


def test_a_number_that_was_derived_wrongly_is_seen():
    """3 of 4 and 2 of 3 look like all but one, which 5 of 6 is and 5 of 8 is not."""
    assert of_first_rows({4: 3, 3: 2, 6: 5, 8: 5}) == [1, 1, 0, 1]


def test_an_error_in_a_general_executable_names_the_line_of_its_own_run():
    fresh_panel()
    for n in (4, 3):
        F.nll_loss(dp.tensor(np.zeros((n, 5), np.float32)), dp.tensor(np.arange(n)) * 1).item()
    labels = dp.tensor(np.array([1, 9, 2, 3, 4, 0])) * 1
    line = inspect.currentframe().f_lineno + 1
    loss = F.nll_loss(dp.tensor(np.zeros((6, 5), np.float32)), labels)
    with pytest.raises(ValueRangeError, match=rf"label 9 +\(test_symbolic.py:{line}\)"):
        loss.item()


def test_a_few_sizes_keep_their_memory():
    graph, _ = recorded(next(c for c in CASES if c.name == "exp"), 37)
    executable = engine.compile(graph, "cpu")
    for size in range(2, 2 * engine.KEPT):
        rows = np.zeros((3, size), np.float32)
        executable.at({"S": size}).run([rows, *[rows] * (len(graph.inputs) - 1)])
    kept = [sizes for sizes, made in executable.bound.items() if made.frames]
    assert kept == [(size,) for size in range(engine.KEPT, 2 * engine.KEPT)]


@pytest.mark.parametrize("rows", [2, 1017, 1018, 1019, 2041])
def test_more_than_a_million_terms_are_summed_in_blocks_of_blocks(rows):
    """Sums of rows * 1030 terms, on both sides of 2^20 and 2^21."""
    with dp.Program():
        x = dp.data("x", ["S", 1])
        wide = dp.broadcast_to(x, (x.shape[0], 1030))
        moving = wide + dp.arange(1030).astype("f32")
        outputs = [moving.sum(), dp.contract(wide, moving, "ab,ab->")]
    graph = Graph((x.node,), tuple(o.node for o in outputs))
    values = np.random.default_rng(rows).standard_normal((rows, 1)).astype(np.float32)
    general = engine.compile(graph, "cpu").at({"S": rows}).run([values])
    special = engine.run_once(specialise(graph, {"S": rows}), [values], "cpu")
    for a, b in zip(general, special, strict=True):
        same_bits(a, b)


CARRIES = """
define i64 @drive(ptr %count.at, ptr %sums) {
entry:
  %count = load i64, ptr %count.at
  br label %head
head:
  %b = phi i64 [ 0, %entry ], [ %b1, %head ]
  %b1 = add i64 %b, 1
  %number = uitofp i64 %b1 to float
  %one = insertelement <16 x float> poison, float %number, i32 0
  %all = shufflevector <16 x float> %one, <16 x float> poison, <16 x i32> zeroinitializer
  %parts = fdiv <16 x float> splat (float 1.0), %all
  store <16 x float> %parts, ptr %sums, align 4
  call void @diptych_carry_f32(ptr %sums, i64 16, i64 %b)
  %more = icmp ult i64 %b1, %count
  br i1 %more, label %head, label %end
end:
  call void @diptych_combine_f32(ptr %sums, i64 16, i64 %b)
  ret i64 0
}
"""


def in_blocks(terms):
    """Rule 4: left to right, a thousand and twenty-four at a time."""
    while len(terms) > 1:
        blocks = range(0, len(terms), 1024)
        terms = np.array([np.add.accumulate(terms[n : n + 1024])[-1] for n in blocks])
    return terms[0]


@pytest.mark.parametrize("count", [1, 1024, 1025, 1 << 20, (1 << 20) + 1, (1 << 21) + 1025])
def test_more_than_a_milliard_terms_carry_as_those_of_the_contract(count):
    target = host_target("native")
    text = f'target triple = "{target.triple}"\n{helpers(f32)}{CARRIES}'
    code = Code(text, target, ["drive"])
    given, sums = np.array([count]), np.full(4 * LEVEL, 255, np.uint8)  # NaN
    code.functions["drive"](given.ctypes.data, sums.ctypes.data)
    parts = np.float32(1) / np.arange(1, count + 1).astype(np.float32)
    assert sums.view(np.float32)[:16].tolist() == [in_blocks(parts)] * 16


def test_sizes_are_forgotten_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(engine, "MOST_SIZES", 4)
    with dp.Program() as program:
        x = dp.data("x", [None])
        out = x * 2.0
    executable = engine.compile(Graph((x.node,), (out.node,)), "cpu")
    for n in [*range(2, 12), 2, 11]:
        (found,) = executable.at({"N": n}).run([np.ones(n, np.float32)])
        assert found.tolist() == [2.0] * n and len(executable.bound) <= 4
    assert program.run({"x": np.ones(3, np.float32)}, [out])[0].tolist() == [2.0] * 3
