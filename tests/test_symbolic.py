"""Symbolic sizes: one executable for all of them, with the bits of the special ones."""

import numpy as np
import pytest
from cases import CASES, Case
from test_operators import same_bits

import diptych as dp
from diptych import engine
from diptych.errors import DiptychError, ShapeError
from diptych.graph.node import Graph
from diptych.graph.rewrite import specialise

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


def check(case, size, values, special=()):
    """One compile for all values, and the bits of the reference; of the special executable too."""
    made = recorded(case, size)
    if made is None:
        pytest.skip("the call needs the size as a number")
    graph, live = made
    family = engine.Family(graph)
    before = engine.STATISTICS.compiles
    found = {}
    for value in values:
        arrays = [*drawn(case, size, value), *live]
        strides = [engine.element_strides(a) for a in arrays]
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
