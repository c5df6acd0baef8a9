"""The compiler as a list of steps: a value in, a value out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych import config
from diptych.compiler.driver import Module
from diptych.compiler.fuse import Check, fuse
from diptych.compiler.kernels import Kernel
from diptych.compiler.memory import Life, place, plan_memory
from diptych.compiler.schedule import schedule
from diptych.compiler.simplify import simplify
from diptych.compiler.sizes import NO_HINTS, SizeTable, typical_sizes
from diptych.compiler.split import split_long
from diptych.compiler.target import Target
from diptych.compiler.verify import verify, verify_memory
from diptych.dtypes import Shape, symbols
from diptych.graph.node import Graph


@dataclass(frozen=True)
class Compiled:
    """A module and what is needed to call it.

    The entry takes a table of pointers (inputs, outputs, constants, the check places, the pool of
    threads or null, the words) and the arena; it returns 0, or n + 1 where check n failed. The
    words and, where there are symbols, `arena_bytes` are known once these have values.
    """

    simple: Graph  # the graph in primitives
    module: Module
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

    @property
    def llvm(self) -> str:
        """The text. Making it is most of what compiling costs before LLVM, so it is made when it is
        asked for: nobody does where object code is kept under the description."""
        return self.module.text

    @property
    def description(self) -> str:
        """Equal ones have equal text, from the same compiler."""
        return self.module.description

    def words(self, sizes: Mapping[str, int]) -> tuple[list[int], int]:
        """What the last slot of the table points to for these sizes, and the arena's bytes."""
        if not self.symbols:
            return self.module.words({}, ()), self.arena_bytes
        offsets, arena = place(self.temporaries, sizes)
        return self.module.words(sizes, offsets), arena


def compile_graph(
    graph: Graph,
    strides: Mapping[int, Shape],
    donated: dict[int, int],
    target: Target,
    hints: Mapping[str, int] = NO_HINTS,
) -> Compiled:
    """simplify -> fuse (-> verify) -> schedule -> plan memory (-> verify_memory) -> module."""
    simple = split_long(simplify(graph))
    fusion = fuse(simple, strides, donated, target, hints)
    if config.verify():
        verify(fusion)
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
    names = {s for shape in {node.type.shape for node in simple.nodes} for s in symbols(shape)}
    table = SizeTable(tuple(sorted(names)), hints)
    module = Module(kernels, target, check_slot + 1, table)
    groups = [group.kernels for group in module.groups]
    temporaries, arena = plan_memory(groups, bool(names))
    if config.verify():
        verify_memory(groups, place(temporaries, typical_sizes(names, hints))[0], hints)
    return Compiled(
        simple,
        module,
        arena,
        table,
        temporaries,
        tuple(np.ascontiguousarray(n.op.array(n.type)) for n in fusion.constants),  # type: ignore[attr-defined]
        tuple(fusion.checks),
        tuple([kernel for kernels in groups for kernel in kernels]),
        tuple(donated),
    )
