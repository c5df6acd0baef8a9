"""Graphs as text: it parses back to the same graph, and a broken text is an error."""

import numpy as np
import pytest
from cases import CASES

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim
from diptych.errors import DiptychError, GraphError
from diptych.graph.node import Graph
from diptych.graph.text import parse_graph, print_graph
from diptych.ops.base import make_operator


def captured(call, *arrays):
    """The graph of a captured call, with its inputs."""
    compiled = dp.compile(call)
    compiled(*arrays)
    return compiled_graph(compiled)


def compiled_graph(compiled):
    ((capture,),) = compiled.captures.values()
    return capture.graph()


@pytest.mark.parametrize("case", [c for c in CASES if c.shapes], ids=lambda c: c.name)
def test_every_operator_as_text(case):
    arrays = case.inputs()
    graph = captured(case.call, *arrays)
    text = print_graph(graph)
    again = parse_graph(text, make_operator)
    assert print_graph(again) == text
    assert "# cases.py:" in text or "# test_text.py:" in text
    if not any("state" in i.label or i.type.shape == (2,) for i in graph.inputs):
        for ours, theirs in zip(
            engine.run_once(graph, arrays, "cpu"),
            engine.run_once(again, arrays, "cpu"),
            strict=True,
        ):
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("case", [c for c in CASES if c.smooth and c.shapes], ids=lambda c: c.name)
def test_every_gradient_as_text(case):
    def slopes(*tensors):
        floats = [t for t in tensors if t.dtype.is_float]
        value = case.call(*tensors)
        return dp.partials((value * value).sum(), floats)

    arrays = [dp.tensor(a, requires_grad=a.dtype.kind == "f") for a in case.inputs()]
    compiled = dp.compile(slopes)
    expected = [s.numpy().tobytes() for s in compiled(*arrays)]
    graph = compiled_graph(compiled)
    again = parse_graph(print_graph(graph), make_operator)
    assert print_graph(again) == print_graph(graph)
    if len(graph.inputs) == len(arrays):
        values = [a.numpy() for a in arrays]
        assert [r.tobytes() for r in engine.run_once(again, values, "cpu")] == expected


def test_a_training_step_as_text_keeps_the_lines_of_its_gradients():
    dp.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = optim.Adam(model.parameters(), lr=0.1)

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    graph = captured(step, np.ones((4, 6), np.float32), np.array([0, 1, 2, 0]))
    text = print_graph(graph)
    assert print_graph(parse_graph(text, make_operator)) == text
    nodes = text.splitlines()[1:-1]
    assert all("  # test_text.py:" in line for line in nodes)
    assert len(nodes) > 30


def test_symbolic_sizes_as_text():
    with dp.Program() as program:
        x = dp.placeholder("x", [None, 4])
        y = dp.concat([x, x], 0).reshape(-1, 2).sum(1)
    graph = Graph((x.node,), (y.node,))
    text = print_graph(graph)
    assert "f32[4*N]" in text
    assert print_graph(parse_graph(text, make_operator)) == text
    assert program.feeds["x"].node is x.node


GOOD = """diptych graph 1
%0 = input "x" f32[2,3]
%1 = sum(%0; axes=(1)) f32[2]
return %1
"""


def test_the_good_text_is_good():
    assert print_graph(parse_graph(GOOD, make_operator)) == GOOD


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("graph 1", "graph 9"), ("sum(", "sin_of("), ("axes=(1)", "axes=(2)"),
        ("axes=(1)", "axes=1"), ("axes=(1)", "axis=(1)"), ("f32[2]\n", "f32[3]\n"),
        ("f32[2,3]", "f16[2,3]"), ("f32[2,3]", "f32[-2,-3]"), ("(%0", "(%7"),
        ("%1 = sum(%0; axes=(1))", "%1 = slice(%0; starts=(0, 9) sizes=(2, 2) steps=(1, 1))"),
        ("%1 = sum(%0; axes=(1)) f32[2]", "%1 = constant f32[2] 00"),
        ("%1 = sum(%0; axes=(1)) f32[2]", '%1 = "; import os'), ("return", "give"),
        ("%1 = sum(%0; axes=(1))", "%1 = add(%0)"), ("sum(%0; axes=(1))", "matmul(%0, 3)"),
        ("%1 =", "%0 ="),
    ],
)  # fmt: skip
def test_a_broken_text_is_an_error(old, new):
    assert old in GOOD
    with pytest.raises(DiptychError):
        parse_graph(GOOD.replace(old, new), make_operator)


def test_random_damage_never_raises_anything_else():
    rng = np.random.default_rng(0)
    for _ in range(400):
        text = list(GOOD)
        for _ in range(rng.integers(1, 4)):
            text[rng.integers(len(text))] = chr(rng.integers(32, 127))
        try:
            parse_graph("".join(text), make_operator)
        except DiptychError:
            continue


def test_an_empty_text():
    with pytest.raises(GraphError, match="begins with its version"):
        parse_graph("", make_operator)
