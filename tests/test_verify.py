"""The second reading of kernels finds what was planted in them."""

import dataclasses

import pytest
from test_choices import GRAPHS, made

import diptych as dp
from diptych.compiler import pipeline
from diptych.compiler.fuse import fuse
from diptych.compiler.kernels import Kernel
from diptych.compiler.schedule import schedule
from diptych.compiler.simplify import simplify
from diptych.compiler.target import Target
from diptych.compiler.verify import verify, verify_memory
from diptych.errors import InternalError
from diptych.graph.node import Graph
from diptych.kernel import expr as k

# An x86-64 with AVX-512, so that the same sides lie in panels on every machine.
TARGET = Target("", "x86_64-unknown-linux-gnu", "", "", 16, 32, True, True)


def fused(name):
    graph, _ = made(name)
    return fuse(simplify(graph), {}, {}, TARGET)


def graph_of(function, *shapes):
    with dp.Program() as program:
        places = [dp.data(f"x{n}", list(shape)) for n, shape in enumerate(shapes)]
        outs = function(*places)
    return Graph(tuple(f.node for f in program.feeds.values()), tuple(o.node for o in outs))


@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_as_fusion_makes_them_pass(name):
    verify(fused(name))


def panels(fusion):
    """Every buffer in panels."""
    return {load.attr for n in fusion.kernels for load in n.loads if load.attr.panels}


def test_panels_a_row_too_close_are_found():
    fusion = fused("two products are added")
    assert panels(fusion)
    for buffer in panels(fusion):
        buffer.panels = dataclasses.replace(
            buffer.panels, step=buffer.panels.step - buffer.panels.width
        )
    with pytest.raises(InternalError, match="reads other elements"):
        verify(fusion)


def test_a_panel_that_is_not_written_is_found():
    fusion = fused("two products are added")
    for kernel in list(fusion.kernels):
        if kernel.out.base is not None and kernel.out.first:
            fusion.kernels.remove(kernel)
    with pytest.raises(InternalError, match="read before it is written"):
        verify(fusion)


def test_a_copy_from_other_rows_is_found():
    fusion = fused("two products are added")
    for kernel in fusion.kernels:
        if kernel.out.base is not None:
            (load,) = kernel.loads
            kernel.value.args = (load.args[0] ^ 1, *load.args[1:])
    with pytest.raises(InternalError, match="reads other elements"):
        verify(fusion)


def test_a_load_outside_its_buffer_is_found():
    fusion = fuse(simplify(graph_of(lambda x: [x * 2.0], (5, 7))), {}, {}, TARGET)
    (kernel,) = fusion.kernels
    (load,) = kernel.loads
    load.args = (load.args[0] + k.binary("div", load.args[0], 4), load.args[1])
    with pytest.raises(InternalError, match="outside"):
        verify(fusion)


def test_operands_of_another_kernel_are_found():
    """Kernels that are lowered alike share a form, and have their buffers each in their order."""
    graph = graph_of(lambda x, y: [x - y, y - x * 1.0], (5, 7), (5, 7))
    fusion = fuse(simplify(graph), {}, {}, TARGET)
    first = fusion.kernels[0]
    changed = Kernel(first.out, first.form, first.reads[::-1], first.node, first.shape)
    fusion.kernels[0] = changed
    with pytest.raises(InternalError, match="reads other elements"):
        verify(fusion)


def test_kernels_in_a_wrong_order_are_found():
    fusion = fused("three products in one expression")
    fusion.kernels.reverse()
    with pytest.raises(InternalError, match="read before it is written"):
        verify(fusion)


def planned(name):
    made_of = made(name)[0]
    groups = []
    monkey = pytest.MonkeyPatch()
    monkey.setenv("DIPTYCH_VERIFY", "1")
    monkey.setattr(pipeline, "verify_memory", lambda *given: groups.append(given))
    pipeline.compile_graph(made_of, {}, {}, TARGET)
    monkey.undo()
    return groups[0]


def test_temporaries_that_share_bytes_are_found():
    groups, offsets, hints = planned("three products in one expression")
    verify_memory(groups, offsets, hints)
    for kernels in groups:
        for kernel in kernels:
            kernel.out.root.offset = 0
    with pytest.raises(InternalError, match="share byte 0"):
        verify_memory(groups, offsets, hints)


def test_an_old_value_that_is_read_too_late_is_found():
    graph = graph_of(lambda w, x: [w - x, w * x], (5, 7), (5, 7))
    fusion = fuse(simplify(graph), {}, {0: 0}, TARGET)
    kernels = schedule(fusion)
    assert kernels[-1].out.kind == "input"
    verify_memory([[kernel] for kernel in kernels], [], {})
    with pytest.raises(InternalError, match="slot 0 is read after"):
        verify_memory([[kernel] for kernel in kernels[::-1]], [], {})


def test_the_setting_turns_it_on(monkeypatch):
    monkeypatch.setattr("diptych.compiler.pipeline.verify", lambda _: 1 / 0)
    monkeypatch.setenv("DIPTYCH_VERIFY", "1")
    with pytest.raises(ZeroDivisionError):
        (dp.tensor([1.0]) * 3.5 + 1.25).numpy()
    monkeypatch.setenv("DIPTYCH_VERIFY", "0")
    assert (dp.tensor([1.0]) * 3.5 + 1.75).numpy() == 5.25
