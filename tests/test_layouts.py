"""Sides of a product that are laid out anew before tiles read them, held to the reference."""

import dataclasses

import numpy as np
import pytest

import diptych as dp
from diptych import engine, interpret
from diptych.compiler.pipeline import compile_graph
from diptych.graph.node import Graph
from diptych.runtime.code import host_target

# Multiplies and adds faster than it loads, or does not: what counts for layouts, on any host.
FAST = {"fma_per_cycle": 2, "loads_per_cycle": 1, "broadcast": 1.0}
SLOW = {"fma_per_cycle": 1, "loads_per_cycle": 1, "broadcast": 0.5}
PRODUCTS = [
    ("mk,kn->mn", (127, 131), (131, 137)),  # vectors across lines
    ("mk,kn->mn", (70, 300), (300, 600)),
    ("mk,nk->mn", (97, 103), (101, 103)),  # turned, and across lines
    ("km,nk->mn", (139, 137), (149, 139)),
    ("km,kn->mn", (131, 127), (131, 137)),  # an outer product
    ("km,kn->mn", (128, 260), (128, 784)),  # its terms far apart, its vectors in panels
    ("km,kn->mn", (64, 256), (64, 64)),
    ("km,kn->mn", (63, 300), (63, 70)),
    ("bmk,bkn->bmn", (3, 67, 61), (3, 61, 71)),
    ("bkm,bkn->bmn", (2, 65, 129), (2, 65, 257)),
    ("mk,knj->jm", (70, 40), (40, 9, 97)),  # a side lacks a term
    ("mk,nkj->jm", (130, 64), (3, 64, 200)),
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("same_threads")


def machine(facts):
    return dataclasses.replace(host_target("native"), **facts)


def product(terms, *shapes):
    with dp.Program() as program:
        sides = [dp.data(name, list(shape)) for name, shape in zip("ab", shapes, strict=True)]
        out = dp.contract(*sides, terms)
    return Graph(tuple(f.node for f in program.feeds.values()), (out.node,))


@pytest.mark.parametrize("facts", [FAST, SLOW], ids=["fast", "slow"])
@pytest.mark.parametrize(("terms", "left", "right"), PRODUCTS)
def test_no_layout_changes_a_bit(monkeypatch, facts, terms, left, right):
    graph = product(terms, left, right)
    rng = np.random.default_rng(1)
    given = [rng.standard_normal(shape).astype(np.float32) for shape in (left, right)]
    monkeypatch.setattr(engine, "host_target", lambda _: machine(facts))
    executable = engine.compile(graph, "cpu")
    (expected,) = interpret.run(graph, given)
    for threads in (1, 2):
        dp.set_threads(threads)
        (found,) = executable.run(given)
        assert found.tobytes() == expected.tobytes()


EPILOGUES = [
    (lambda p: dp.exp(p).T, "km,kn->nm", (17, 17), (17, 260)),
    (lambda p: dp.exp(p).T, "mk,kn->nm", (17, 7), (7, 260)),
    (lambda p: dp.exp(p).T, "km,nk->mn", (2, 129), (70, 2)),
    (lambda p: dp.exp(p * 0.1).T, "km,kn->mn", (64, 129), (64, 7)),
    (lambda p: dp.exp(p * 0.1).T, "km,kn->mn", (60, 128), (60, 1000)),
    (lambda p: p.T * 2.0, "km,kn->nm", (65, 129), (65, 257)),
]


@pytest.mark.parametrize("lanes", [16, 8, 4])
@pytest.mark.parametrize(("after", "terms", "left", "right"), EPILOGUES)
def test_a_result_that_lies_the_other_way(monkeypatch, lanes, after, terms, left, right):
    target = machine(FAST)
    if lanes > target.lanes:
        pytest.skip("vectors are shorter here")
    with dp.Program() as program:
        sides = [dp.data(name, list(shape)) for name, shape in zip("ab", (left, right))]
        out = after(dp.contract(*sides, terms))
    graph = Graph(tuple(f.node for f in program.feeds.values()), (out.node,))
    rng = np.random.default_rng(1)
    given = [rng.standard_normal(shape).astype(np.float32) for shape in (left, right)]
    masks = lanes == target.lanes and target.has_masks
    shorter = dataclasses.replace(target, lanes=lanes, has_masks=masks)
    monkeypatch.setattr(engine, "host_target", lambda _: shorter)
    (found,) = engine.compile(graph, "cpu").run(given)
    (expected,) = interpret.run(graph, given)
    assert found.tobytes() == expected.tobytes()


def copies(facts, terms, *shapes):
    """The shapes that are written before the product."""
    *before, _ = compile_graph(product(terms, *shapes), {}, {}, machine(facts)).kernels
    return [kernel.shape for kernel in before]


def test_panels_where_vectors_lie_across_lines():
    if host_target("native").lanes != 16:
        pytest.skip("vectors are shorter than lines")
    (panels,) = copies(FAST, "mk,kn->mn", (127, 131), (131, 40))
    assert panels == (1, 131, 40)
    assert copies(FAST, "mk,kn->mn", (127, 131), (131, 48)) == []
    assert copies(FAST, "mk,kn->mn", (63, 131), (131, 40)) == []
    assert copies(SLOW, "mk,kn->mn", (127, 131), (131, 40)) == []


def test_terms_that_lie_far_apart_are_turned():
    assert (64, 256) in copies(SLOW, "km,kn->mn", (64, 256), (64, 64))
    assert copies(SLOW, "km,kn->mn", (64, 255), (64, 64)) == []
    assert copies(SLOW, "km,kn->mn", (63, 256), (63, 64)) == []


def test_memory_of_a_result_is_used_again_when_nobody_has_it():
    @dp.compile
    def double(x):
        return x * 2.0

    x = np.ones((64, 64), np.float32)
    kept = [double(x).numpy() for _ in range(6)]
    assert len({a.__array_interface__["data"][0] for a in kept}) == 6
    views = [double(x * n).numpy()[3:5, ::2] for n in range(6)]
    for n, view in enumerate(views):
        assert (view == 2.0 * n).all()
    places = {double(x).numpy().__array_interface__["data"][0] for _ in range(20)}
    assert len(places) <= 3
    assert all(place % 64 == 0 for place in places)
