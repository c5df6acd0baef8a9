"""The compiler as a list of steps: a value in, a value out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from diptych.compiler import modes
from diptych.compiler.contraction import ContractionEmitter, is_contraction
from diptych.compiler.emit_llvm import KernelEmitter
from diptych.compiler.fuse import Check, fuse
from diptych.compiler.kernels import Buffer, Kernel, structure
from diptych.compiler.memory import Life, place, plan_memory
from diptych.compiler.schedule import schedule
from diptych.compiler.simplify import simplify
from diptych.compiler.sizes import FIXED, NO_HINTS, Sizes, SizeTable
from diptych.compiler.split import split_long
from diptych.compiler.target import Target
from diptych.compiler.transpose import TransposeEmitter, turned_axes
from diptych.dtypes import Shape, symbols
from diptych.graph.node import Constant, Graph
from diptych.graph.text import print_graph

ENTRY = "diptych_run"
CHUNK = 24  # kernels a function
LONG = 64  # times the work that is worth a second thread: worth waking one for
MUCH = 1 << 20  # bytes of constants above which a graph is not described


@dataclass(frozen=True)
class Compiled:
    """LLVM text and what is needed to call it.

    The entry takes a table of pointers (inputs, outputs, constants, the check places, the pool of
    threads or null, the words of `sizes.py`) and the arena; it returns 0, or n + 1 where check n
    failed. The last slot is read only where there are symbols; `arena_bytes` and the offsets are
    then known once these have values: see `words`.
    """

    simple: Graph  # the graph in primitives
    emit: Callable[[], str]
    description: str  # equal ones have equal text, from the same compiler; or empty
    arena_bytes: int
    table: SizeTable
    temporaries: tuple[Life, ...]
    constants: tuple[np.ndarray[Any, Any], ...]
    checks: tuple[Check, ...]
    kernels: tuple[Kernel, ...]
    in_place: tuple[int, ...]  # outputs that are written over their donated inputs

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.table.symbols

    @cached_property
    def llvm(self) -> str:
        """The text. Making it is most of what compiling costs before LLVM, so it is made when it is
        asked for: nobody does where object code is kept under the description."""
        return self.emit()

    def words(self, sizes: Mapping[str, int]) -> tuple[list[int], int]:
        """What the last slot of the table points to for these sizes, and the arena's bytes."""
        if not self.symbols:
            return [], self.arena_bytes
        offsets, arena = place(self.temporaries, sizes)
        return [*[sizes[name] for name in self.symbols], *offsets], arena


def compile_graph(
    graph: Graph,
    strides: Mapping[int, Shape],
    donated: dict[int, int],
    target: Target,
    hints: Mapping[str, int] = NO_HINTS,
) -> Compiled:
    """simplify -> fuse -> schedule -> plan memory -> emit."""
    simple = split_long(simplify(graph))
    fusion = fuse(simple, strides, donated, target, hints)
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
    names = {s for node in simple.nodes for s in symbols(node.type.shape)}
    table = SizeTable(check_slot + 2, tuple(sorted(names)), hints)
    temporaries, arena = plan_memory(kernels, bool(names))
    return Compiled(
        simple,
        partial(emit_module, kernels, target, check_slot + 1, table),
        _description(simple, strides, donated, target, hints),
        arena,
        table,
        temporaries,
        tuple(np.ascontiguousarray(n.op.array(n.type)) for n in fusion.constants),  # type: ignore[attr-defined]
        tuple(fusion.checks),
        tuple(kernels),
        tuple(donated),
    )


def _description(simple: Graph, *given: Any) -> str:
    """All that the text of a module depends on: the graph of primitives, and what was given."""
    constants = [n.op.data for n in simple.nodes if isinstance(n.op, Constant)]
    if sum(map(len, constants)) > MUCH:
        return ""
    sorted_ = [sorted(g.items()) if isinstance(g, Mapping) else g for g in given]
    return f"{print_graph(simple, lines=False)}{sorted_}"


def emit_module(
    kernels: list[Kernel], target: Target, pool_slot: int, table: SizeTable = FIXED
) -> str:
    """The text of a module with one entry that runs the kernels in order; kernels that differ only
    in their buffers are one function."""
    declare: set[str] = set()
    emitters: dict[Hashable, KernelEmitter] = {}
    functions: list[str] = []
    chunks: list[str] = []
    for first in range(0, len(kernels), CHUNK):
        sizes, calls = Sizes(table), list[str]()
        for number, kernel in enumerate(kernels[first : first + CHUNK], first):
            key = structure(kernel)
            if key not in emitters:
                emitters[key] = _emitter(kernel)(kernel, target, declare, number, table)
                functions.append(emitters[key].emit())
            for n, buffer in enumerate(kernel.buffers):
                calls += _argument(f"k{number}.{n}", n, buffer, sizes)
            calls += _call(number, emitters[key], sizes)
            if kernel.limit is not None:
                calls += _checked(kernel)
        most = max(len(kernel.buffers) for kernel in kernels[first : first + CHUNK])
        chunks.append(_chunk(len(chunks), [*sizes.lines, *calls], most, pool_slot))
    head = f'target triple = "{target.triple}"\n' + modes.declarations(target.triple)
    head += "\n".join(sorted(declare)) + "\n\n"
    return head + "\n".join([*functions, *chunks, _entry(len(chunks), target.triple)])


def _chunk(number: int, lines: list[str], buffers: int, pool_slot: int) -> str:
    """Some kernels in order, as a function of their own: LLVM takes long over long ones."""
    start = [
        f"  %pool.slot = getelementptr ptr, ptr %table, i64 {pool_slot}",
        "  %pool = load ptr, ptr %pool.slot",
        "  %alone = icmp eq ptr %pool, null",
        f"  %buffers = alloca [{buffers} x ptr]",
    ]
    body = "\n".join([*start, *lines])
    head = f"define internal i64 @steps{number}(ptr %table, ptr %arena) noinline"
    return f"{head} {{\n{body}\n  ret i64 0\n}}\n"


def _entry(chunks: int, triple: str) -> str:
    """Run all chunks, in the floating-point modes of the contract, until one fails."""
    lines = []
    for n in range(chunks):
        lines += [
            f"  %code{n} = call i64 @steps{n}(ptr %table, ptr %arena)",
            f"  %bad{n} = icmp ne i64 %code{n}, 0",
            f"  br i1 %bad{n}, label %end, label %next{n}",
            f"next{n}:",
        ]
    froms = ["start", *[f"next{n}" for n in range(chunks - 1)]][:chunks]
    codes = [f"[ %code{n}, %{block} ]" for n, block in enumerate(froms)]
    last = f"next{chunks - 1}" if chunks else "start"
    return "\n".join([
        f"define i64 @{ENTRY}(ptr %table, ptr %arena) {{",
        "start:",
        *modes.enter(triple),
        *lines,
        "  br label %end",
        "end:",
        f"  %code = phi i64 {', '.join([*codes, f'[ 0, %{last} ]'])}",
        *modes.leave(triple),
        "  ret i64 %code",
        "}",
        "",
    ])  # fmt: skip


def _emitter(kernel: Kernel) -> type[KernelEmitter]:
    if is_contraction(kernel):
        return ContractionEmitter
    return KernelEmitter if turned_axes(kernel) is None else TransposeEmitter


def _argument(name: str, n: int, buffer: Buffer, sizes: Sizes) -> list[str]:
    """Put where a buffer begins among the arguments of the next kernel."""
    root, shift = buffer.root, buffer.first * buffer.dtype.bytes
    if root.kind == "temporary":
        lines, base = [], "%arena"
        at = sizes.size(root.offset + shift)
        if root.word >= 0:
            lines.append(f"  %{name}.at = add i64 {sizes.offset(root.word)}, {sizes.size(shift)}")
            at = f"%{name}.at"
    else:
        lines = [
            f"  %{name}.slot = getelementptr ptr, ptr %table, i64 {root.slot}",
            f"  %{name}.base = load ptr, ptr %{name}.slot",
        ]
        base, at = f"%{name}.base", sizes.size(shift)
    return [
        *lines,
        f"  %{name} = getelementptr i8, ptr {base}, i64 {at}",
        f"  %{name}.to = getelementptr ptr, ptr %buffers, i64 {n}",
        f"  store ptr %{name}, ptr %{name}.to",
    ]


def _checked(kernel: Kernel) -> list[str]:
    """Stop where a check found a position outside its axis."""
    n = kernel.out.first // 2
    return [
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


def _call(number: int, emitter: KernelEmitter, sizes: Sizes) -> list[str]:
    """A call of a kernel, divided over the pool where there is work enough; the pool's first word
    is the function that divides."""
    n, f, units = f"k{number}", f"k{emitter.number}", sizes.units(emitter.units)
    work, enough = emitter.work()
    if units == "1" or (isinstance(work, int) and work < enough):
        return [f"  call void @{f}(ptr %buffers, ptr %table, i64 0, i64 {units})"]
    alone, decide = "%alone", []
    if isinstance(work, int):
        long = str(work >= LONG * enough).lower()
    else:
        alone, long = f"%{n}.alone", f"%{n}.long"
        decide = [
            f"  {long} = icmp sge i64 {sizes.size(work)}, {LONG * enough}",
            f"  %{n}.little = icmp slt i64 {sizes.size(work)}, {enough}",
            f"  {alone} = or i1 %alone, %{n}.little",
        ]
    return [
        *decide,
        f"  br i1 {alone}, label %{n}.one, label %{n}.many",
        f"{n}.one:",
        f"  call void @{f}(ptr %buffers, ptr %table, i64 0, i64 {units})",
        f"  br label %{n}.done",
        f"{n}.many:",
        f"  %{n}.run = load ptr, ptr %pool",
        f"  call void %{n}.run"
        f"(ptr %pool, ptr @{f}, ptr %buffers, ptr %table, i64 {units}, i1 {long})",
        f"  br label %{n}.done",
        f"{n}.done:",
    ]
