"""The compiler as a list of steps: a value in, a value out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.compiler import modes
from diptych.compiler.contraction import ContractionEmitter, is_contraction
from diptych.compiler.emit_llvm import KernelEmitter
from diptych.compiler.fuse import Check, fuse
from diptych.compiler.kernels import Kernel
from diptych.compiler.memory import plan_memory
from diptych.compiler.schedule import schedule
from diptych.compiler.simplify import simplify
from diptych.compiler.target import Target
from diptych.compiler.transpose import TransposeEmitter, turned_axes
from diptych.graph.node import Graph

ENTRY = "diptych_run"


@dataclass(frozen=True)
class Compiled:
    """LLVM text and what is needed to call it.

    The entry takes a table of pointers (inputs, outputs, constants, the check places, the pool of
    threads or null) and the arena; it returns 0, or n + 1 where check n failed.
    """

    llvm: str
    arena_bytes: int
    constants: tuple[np.ndarray[Any, Any], ...]
    checks: tuple[Check, ...]
    kernels: tuple[Kernel, ...]
    in_place: tuple[int, ...]  # outputs that are written over their donated inputs


def compile_graph(
    graph: Graph, strides: dict[int, tuple[int, ...]], donated: dict[int, int], target: Target
) -> Compiled:
    """simplify -> fuse -> schedule -> plan memory -> emit."""
    simple = simplify(graph)
    fusion = fuse(simple, strides, donated, target)
    kernels = [n for n in schedule(fusion) if 0 not in n.shape]  # an empty one has nothing to do
    first = len(graph.inputs) + len(graph.outputs)
    for buffer in fusion.buffers.values():
        if buffer.kind == "constant" and buffer.base is None:
            buffer.kind, buffer.slot = "input", first + buffer.slot
    check_slot = first + len(fusion.constants)
    for kernel in kernels:
        if kernel.limit is not None:
            kernel.out.kind, kernel.out.slot, kernel.out.first = (
                "input",
                check_slot,
                2 * kernel.out.slot,
            )
    arena = plan_memory(kernels)
    return Compiled(
        emit_module(kernels, target, check_slot + 1),
        arena,
        tuple(np.ascontiguousarray(n.op.array(n.type)) for n in fusion.constants),  # type: ignore[attr-defined]
        tuple(fusion.checks),
        tuple(kernels),
        tuple(donated),
    )


def emit_module(kernels: list[Kernel], target: Target, pool_slot: int) -> str:
    """The text of a module with one entry that runs the kernels in order."""
    declare: set[str] = set()
    functions, calls = [], []
    for number, kernel in enumerate(kernels):
        emitter = _emitter(kernel)(kernel, target, declare, number)
        functions.append(emitter.emit())
        if emitter.parallel:
            calls += _shared_call(number, emitter.units)
        else:
            calls.append(
                f"  call void @k{number}(ptr %table, ptr %arena, i64 0, i64 {emitter.units})"
            )
        if kernel.limit is not None:
            n = kernel.out.first // 2
            calls += [
                f"  %s{n} = getelementptr ptr, ptr %table, i64 {kernel.out.slot}",
                f"  %b{n} = load ptr, ptr %s{n}",
                f"  %f{n} = getelementptr i64, ptr %b{n}, i64 {kernel.out.first + 1}",
                f"  %v{n} = load i64, ptr %f{n}",
                f"  %c{n} = icmp ne i64 %v{n}, 0",
                f"  br i1 %c{n}, label %bad{n}, label %good{n}",
                f"bad{n}:",
                f"  ret i64 {n + 1}",
                f"good{n}:",
            ]
    start = [
        f"  %pool.slot = getelementptr ptr, ptr %table, i64 {pool_slot}",
        "  %pool = load ptr, ptr %pool.slot",
        "  %alone = icmp eq ptr %pool, null",
    ]
    body = "\n".join([*start, *calls])
    inner = (
        f"define internal i64 @steps(ptr %table, ptr %arena) noinline {{\n{body}\n  ret i64 0\n}}\n"
    )
    lines = [
        f"define i64 @{ENTRY}(ptr %table, ptr %arena) {{",
        *modes.enter(target.triple),
        "  %code = call i64 @steps(ptr %table, ptr %arena)",
        *modes.leave(target.triple),
        "  ret i64 %code",
        "}",
    ]
    entry = inner + "\n".join(lines) + "\n"
    head = f'target triple = "{target.triple}"\n' + modes.declarations(target.triple)
    return head + "\n".join(sorted(declare)) + "\n\n" + "\n".join(functions) + "\n" + entry


def _emitter(kernel: Kernel) -> type[KernelEmitter]:
    if is_contraction(kernel):
        return ContractionEmitter
    return KernelEmitter if turned_axes(kernel) is None else TransposeEmitter


def _shared_call(number: int, units: int) -> list[str]:
    """A call that the pool divides; its first word is the function that does it."""
    n = f"k{number}"
    return [
        f"  br i1 %alone, label %{n}.one, label %{n}.many",
        f"{n}.one:",
        f"  call void @{n}(ptr %table, ptr %arena, i64 0, i64 {units})",
        f"  br label %{n}.done",
        f"{n}.many:",
        f"  %{n}.run = load ptr, ptr %pool",
        f"  call void %{n}.run(ptr %pool, ptr @{n}, ptr %table, ptr %arena, i64 {units})",
        f"  br label %{n}.done",
        f"{n}.done:",
    ]
