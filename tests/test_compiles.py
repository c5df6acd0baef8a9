"""Compiles are explained and can be forbidden; Python numbers never lead to one."""

import threading
from pathlib import Path

import numpy as np
import pytest
from networks import step_of

import diptych as dp
from diptych import engine, nn, optim
from diptych.dtypes import TensorType, f32
from diptych.errors import RecompileError
from diptych.graph.node import Graph, input_node
from diptych.graph.record import GRAPH, recording

X = np.random.default_rng(0).standard_normal((6, 11)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 6)


def line_of(marked):
    """The number of the line of this file that ends in a comment."""
    lines = Path(__file__).read_text().splitlines()
    return next(n for n, text in enumerate(lines, 1) if text.endswith(f"  # {marked}"))


def last():
    return dp.why()[-1]


def unlike(x, scale=3.0):
    y = dp.tanh(dp.tensor(x) * scale)  # unlike
    return dp.exp(-y) - dp.cos(y) * dp.sin(y) + dp.floor(y)


def test_why_names_the_line_the_time_and_what_was_new():
    before = engine.STATISTICS.compiles
    unlike(X).numpy()
    assert engine.STATISTICS.compiles == before + 1
    first = last()
    assert first.new.startswith("calls that were not made in this order before, from ")
    assert first.where.line == line_of("unlike") and first.kernels > 0 and first.seconds > 0
    unlike(X).numpy()
    assert last() is first
    unlike(X[:, :4]).numpy()
    assert last().new == "the same calls with another type: f32[6,4] instead of f32[6,11]"
    unlike(X.astype(np.float64)).numpy()
    assert "f64[6,11] instead of f32[6,4]" in last().new
    shown = repr(dp.why()).splitlines()
    assert len(shown) == len(dp.why())
    assert f"test_compiles.py:{line_of('unlike')}  " in shown[-1]
    assert f"{last().kernels} kernels in " in shown[-1]


def test_why_names_the_first_call_that_is_new():
    def chain(*functions):
        x = dp.tensor(X)
        for function in functions:
            x = function(x)  # one by one
        return x.numpy()

    chain(dp.expm1, dp.erf, dp.expm1)
    chain(dp.expm1, dp.erf, dp.log1p, dp.erf)
    line = line_of("one by one")
    assert last().new.endswith(f"before, from log1p (test_compiles.py:{line}) on")
    chain(dp.expm1, dp.erf)
    assert last().new.startswith("calls that were made in this order before")
    count = engine.STATISTICS.compiles
    with pytest.raises(RecompileError, match=r"from rsqrt \(test_compiles"), dp.no_recompile():
        chain(dp.expm1, dp.rsqrt)
    chain(dp.expm1, dp.rsqrt)
    assert "from rsqrt (" in last().new and engine.STATISTICS.compiles == count + 1


def test_why_tells_other_outputs_attributes_and_places_apart():
    def two(keep, axis=1):
        kept = [dp.tensor(X) * 3.5]
        b = dp.sin(kept[0]).sum(axis) - 0.25
        if not keep:
            kept.clear()
        return b.numpy()

    two(False)
    two(True)
    assert last().new == "the same calls, but other values are kept"
    dp.stack([dp.tensor(X) * 7.5, dp.tensor(X)], 0).numpy()
    two(False, 0)
    assert last().new.startswith("the same calls with other attributes: ")
    w = dp.Parameter(np.ones((4, 5), np.float32))
    other = dp.Parameter(np.ones((4, 5), np.float32), order="C")
    for p in (w, other):
        (dp.erf(p) * 1.5 + dp.ceil(p)).numpy()
    assert last().new == "the same calls on values that lie in memory in another way"
    for hold in (False, True):
        held = w.numpy() if hold else None
        w.assign(dp.round(w * 0.75))
        w.numpy()
    assert last().new == "the same calls, but other parameters are updated in place"
    assert held is not None


def test_graphs_with_inputs_that_nobody_reads_are_told_apart():
    places = tuple(input_node(TensorType((n,), f32)) for n in (13, 17))
    with recording(GRAPH):
        out = dp.sqrt(dp.erf(places[0]))
    for inputs in (places, places[:1], places):
        engine.compile(Graph(inputs, (out,)), "cpu")
    assert "not made in this order" in dp.why()[-3].new
    assert dp.why()[-2].new.startswith("calls that were made in this order before, on other values")
    assert last().new == "the same calls, which were compiled for another owner"


def trainer(kind):
    dp.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, 5), nn.ReLU(), nn.Dropout(0.25), nn.Linear(5, 3))
    optimizer = kind(model.parameters(), lr=0.1)
    return model, optimizer, step_of(model, optimizer)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("static", [False, True])
def test_numbers_of_python_never_recompile(kind, static):
    """Learning rates, seeds, streams, step counts and factors are inputs."""
    _, optimizer, step = trainer(kind)
    run = dp.compile(step) if static else step
    for _ in range(3):
        run(X, Y).item()
    with dp.no_recompile():
        for n in range(5):
            optimizer.lr = 0.1 / (n + 1)
            dp.manual_seed(n)
            run(X + np.float32(n), Y).item()
    for n in range(5):
        scaled = (dp.tensor(X) * (0.5 + n) - n).numpy()
        assert scaled.tobytes() == (X * np.float32(0.5 + n) - np.float32(n)).tobytes()
        if n == 0:
            compiles = engine.STATISTICS.compiles
    assert engine.STATISTICS.compiles == compiles


def test_no_recompile_names_the_line_and_what_was_new():
    def scores(x):
        return dp.sign(dp.tensor(x)) * dp.rsqrt(dp.abs(dp.tensor(x)))  # scores

    scores(X).numpy()
    with dp.no_recompile():
        scores(X).numpy()
        waiting = scores(X[:5])
        with pytest.raises(RecompileError) as caught:
            waiting.numpy()
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "no_recompile" in lines[0] and "dp.why()" in lines[2]
    assert "f32[N,11] instead of f32[6,11]" in lines[1]  # the second size is compiled for all
    assert f"(test_compiles.py:{line_of('scores')})" in lines[1]
    assert waiting.numpy().tobytes() == scores(X).numpy()[:5].tobytes()  # it waited on
    with dp.no_recompile():
        scores(X[:3]).numpy()


def test_no_recompile_leaves_a_training_step_as_it_was():
    def train(forbidden):
        model, _, step = trainer(optim.Adam)
        for _ in range(2):
            step(X, Y)
        model.parameters()[0].numpy()
        if forbidden:
            with pytest.raises(RecompileError), dp.no_recompile():
                step(X, Y.astype(np.int32))
                model.parameters()[0].numpy()
        else:
            step(X, Y.astype(np.int32))
        step(X, Y)
        return [p.numpy().tobytes() for p in model.parameters()]

    assert train(True) == train(False)


def test_no_recompile_of_a_compiled_function():
    step = dp.compile(lambda x: dp.exp(x) * 1.25)
    step(X)
    with dp.no_recompile():
        step(X)
        with pytest.raises(RecompileError, match=r"f32\[N,11\] instead of f32\[6,11\]"):
            step(X[:2])
    assert step(X[:2]).numpy().tobytes() == step(X).numpy()[:2].tobytes()


def test_no_recompile_holds_for_its_own_thread():
    seen = []
    with dp.no_recompile():
        worker = threading.Thread(
            target=lambda: seen.append(dp.tensor(X[:1]) * 2.5 - dp.log1p(dp.tensor(X[:1] ** 2)))
        )
        worker.start()
        worker.join()
        with pytest.raises(RecompileError):
            (dp.tensor(X[:4]) * 2.5 - dp.expm1(dp.tensor(X[:4]))).numpy()
    assert seen[0].shape == (1, 11)


def test_what_waits_from_before_is_no_reason_to_refuse():
    """A handle that an error left waiting does not make the next step's first call fail."""
    weights = dp.tensor(np.arange(11.0, dtype=np.float32), requires_grad=True)
    kept = []
    with pytest.raises(RecompileError), dp.no_recompile():
        kept.append(dp.sign(weights) * 2.0)
        kept[0].numpy()
    later = dp.cos(weights) + 1.0
    with dp.no_recompile():  # both are run before anything is forbidden
        assert later.numpy().shape == kept[0].numpy().shape == (11,)


def test_why_tells_another_constant():
    scaled = dp.compile(lambda x, factor: dp.sin(x) * factor - 0.125)
    scaled(X, 2.0)
    scaled(X, 2.5)
    assert last().new == "the same calls with another constant: 2.5 instead of 2.0"
    scaled(X, np.float32(2.0))
    with dp.no_recompile():
        scaled(X, np.float32(2.5))
