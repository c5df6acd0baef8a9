"""Kernels that go over the same rows, one slab of rows at a time.

An optimizer's step reads a weight's gradient, its moments and the weight itself, in several kernels
over matrices that no near cache holds together. Where each kernel of a chain reads, of what the
others write, only the rows that it computes itself, the whole chain may run on some rows before
any of it runs on the next: what one kernel writes is still near when another reads it, and threads
meet once for all. The elements are those of the kernels run one after the other, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.compiler.contraction import ContractionEmitter
from diptych.compiler.emit_llvm import KernelEmitter
from diptych.compiler.kernels import Buffer, Kernel, Rows
from diptych.dtypes import Dim
from diptych.lazy import lazy

LEAST = 1 << 15  # bytes of a result below which it stays near anyway
SLAB = 1 << 17  # bytes that a slab goes through
FEWEST = 8  # slabs, so that threads have something to divide
FAR = 64  # groups of kernels that a kernel may be moved over

Root = tuple[bool, int]  # memory: a temporary, or a slot


def rows_of(emitter: KernelEmitter) -> Rows | None:
    """How the units of a kernel lie over rows, where they do."""
    kernel = emitter.kernel
    if kernel.limit is not None or any(isinstance(d, Dim) for d in kernel.shape):
        return None
    if isinstance(emitter, ContractionEmitter):
        return emitter.rows_in_order()
    axis = emitter.divided()[0]
    if type(emitter) is not KernelEmitter or axis < 0:
        return None
    ((extent, step),) = emitter.divided()[1]
    return Rows(axis, int(extent), step, 1)  # type: ignore[arg-type]


@dataclass
class Group:
    """Kernels that run together; `rows` as many as their number, or none for a kernel alone."""

    kernels: list[Kernel]
    rows: list[Rows]

    @lazy
    def reads(self) -> set[Root]:
        return {root(b) for kernel in self.kernels for b in kernel.reads}

    @lazy
    def writes(self) -> set[Root]:
        return {root(kernel.out) for kernel in self.kernels}

    @lazy
    def large(self) -> set[Root]:
        """What does not stay near."""
        buffers = [b for kernel in self.kernels for b in kernel.buffers]
        return {root(b) for b in buffers if isinstance(b.bytes, int) and b.bytes >= LEAST}

    @property
    def slab(self) -> int:
        """Rows that run together: whole tiles of every kernel."""
        extent, tile = self.rows[0].extent, math.lcm(*[r.step for r in self.rows])
        moving = {
            root(b): int(b.bytes)
            for kernel in self.kernels
            for b in kernel.buffers
            if not isinstance(b.bytes, Dim)
        }
        line = max(1, sum(moving.values()) // extent)
        fit = max(1, SLAB // (line * tile))
        return tile * max(1, min(fit, extent // (tile * FEWEST)))

    @lazy
    def checks(self) -> bool:
        """Whether it may stop the call."""
        return any(kernel.limit is not None for kernel in self.kernels)

    @property
    def lasts(self) -> bool:
        """Whether it writes over what outlives the call."""
        return not self.checks and any(kernel.out.kind == "input" for kernel in self.kernels)

    def meets(self, other: Group) -> bool:
        """Whether the order of two groups counts."""
        return (self.checks and other.lasts) or not (
            self.writes.isdisjoint(other.writes)
            and self.writes.isdisjoint(other.reads)
            and self.reads.isdisjoint(other.writes)
        )

    def takes(self, one: Group) -> bool:
        """Whether a group of one kernel can run with this one, row by row, and gains by it."""
        if not self.rows or not one.rows or self.rows[0].extent != one.rows[0].extent:
            return False
        if not self.writes.isdisjoint(one.writes):
            return False
        if self.large.isdisjoint(one.large):
            return False
        (kernel,), (rows,) = one.kernels, one.rows
        return all(
            _keeps_rows(kernel, rows, mine, own) and _keeps_rows(mine, own, kernel, rows)
            for mine, own in zip(self.kernels, self.rows, strict=True)
        )

    def add(self, one: Group) -> None:
        self.reads.update(one.reads)
        self.writes.update(one.writes)
        self.large.update(one.large)
        self.kernels += one.kernels
        self.rows += one.rows


def chained(kernels: Sequence[Kernel], emitters: Sequence[KernelEmitter]) -> list[Group]:
    """The kernels in an order that means the same, those of a chain in one group."""
    groups: list[Group] = []
    for kernel, emitter in zip(kernels, emitters, strict=True):
        size = kernel.out.bytes
        rows = None if isinstance(size, Dim) or size < LEAST else rows_of(emitter)
        one = Group([kernel], [] if rows is None else [rows])
        if rows is None or not _joined(groups, one):
            groups.append(one)
    return groups


def _joined(groups: list[Group], one: Group) -> bool:
    """Add a kernel to a group before it, where one of the two can be moved to the other."""
    free = True  # whether the kernel can be moved up to here
    for at in range(len(groups) - 1, max(-1, len(groups) - 1 - FAR), -1):
        group = groups[at]
        if group.takes(one):
            after = groups[at + 1 :]
            if not free:
                if any(group.meets(other) for other in after):
                    return False
                groups.append(groups.pop(at))
            group.add(one)
            return True
        free = free and not group.meets(one)
    return False


def root(buffer: Buffer) -> Root:
    """The memory of a buffer."""
    found = buffer.root
    return (True, id(found)) if found.kind == "temporary" else (False, found.slot)


def _keeps_rows(kernel: Kernel, rows: Rows, writer: Kernel, own: Rows) -> bool:
    """Whether a kernel reads, of what another writes, only the rows that it computes itself."""
    out = writer.out
    place, name = root(out), kernel.indices[rows.axis]
    if not any(root(b) == place for b in kernel.reads):
        return True
    return all(
        _alike(load.attr, out) and (at := load.args[own.axis]).op == "index" and at.attr == name
        for load in kernel.loads
        if root(load.attr) == place
    )


def _alike(a: Buffer, b: Buffer) -> bool:
    """Whether two buffers of one memory have their elements at the same places."""
    return a is b or (
        a.panels is b.panels is None
        and (a.type, a.strides, a.first) == (b.type, b.strides, b.first)
    )
