"""Copies that turn memory round, to LLVM text: square tiles transposed in registers.

Where a copy reads along one axis and writes along another, a tile of lanes x lanes elements is
loaded row by row, transposed by shuffles of two registers (a stage for each power of two), and
stored column by column.
"""

from __future__ import annotations

import math

from diptych.compiler.affine import offset
from diptych.compiler.emit_llvm import KernelEmitter, Point
from diptych.compiler.kernels import Kernel
from diptych.compiler.scalars import llvm_type
from diptych.compiler.target import Target
from diptych.dtypes import bool_


def turned_axes(kernel: Kernel) -> tuple[int, int] | None:
    """(the axis read along, the axis written along) where a kernel is such a copy."""
    load = kernel.value
    if load.op != "load" or kernel.limit is not None or load.dtype == bool_:
        return None
    form = offset(load.args, load.attr.strides, {})
    if form is None:
        return None
    real = [n for n, d in enumerate(kernel.shape) if d != 1]
    read = [n for n in real if form.get(kernel.indices[n], 0) == 1]
    written = [n for n in real if kernel.out.strides[n] == 1]
    if not read or not written or read[0] == written[0]:
        return None
    return (read[0], written[0]) if kernel.shape[written[0]] >= 4 else None


class TransposeEmitter(KernelEmitter):
    """Emits one copy; its units are strips of tiles along the axis that is read."""

    def __init__(self, kernel: Kernel, target: Target, declare: set[str], number: int) -> None:
        super().__init__(kernel, target, declare, number)
        axes = turned_axes(kernel)
        assert axes is not None
        self.read, self.written = axes
        self.width = min(target.lanes, 16)
        rest = (n for n, d in enumerate(kernel.shape) if d != 1 and n not in axes)
        self.outer = sorted(rest, key=lambda n: -kernel.out.strides[n])
        self.strips = -(-kernel.shape[self.read] // self.width)
        self.units = math.prod(kernel.shape[n] for n in self.outer) * self.strips

    @property
    def parallel(self) -> bool:
        return self.units > 1 and math.prod(self.kernel.shape) >= 1 << 13

    def emit(self) -> str:
        """The whole function: a loop over a range of units."""
        kernel, text = self.kernel, self.text
        at = {n: "0" for n, d in zip(kernel.indices, kernel.shape, strict=True) if d == 1}
        with text.loop("%begin", "%end", 1, []) as (unit, _, _n):
            strip = text.value(f"urem i64 {unit}, {self.strips}")
            rest = text.value(f"udiv i64 {unit}, {self.strips}")
            for n in reversed(self.outer):
                at[kernel.indices[n]] = text.value(f"urem i64 {rest}, {kernel.shape[n]}")
                rest = text.value(f"udiv i64 {rest}, {kernel.shape[n]}")
            whole, left = divmod(kernel.shape[self.read], self.width)
            flag = text.value(f"icmp slt i64 {strip}, {whole}")
            if whole:
                with text.branch(flag):
                    self._strip(at, self._product(strip, self.width), self.width)
            if left:
                with text.branch(text.value(f"xor i1 {flag}, true")):
                    self._strip(at, str(whole * self.width), left)
        text.do("ret void")
        return self._function()

    def _strip(self, at: dict[str, str], first: str, deep: int) -> None:
        """All tiles of a strip; `deep` elements are read at once."""
        name, extent = self.kernel.indices[self.written], self.kernel.shape[self.written]
        at = {**at, self.kernel.indices[self.read]: first}
        whole = extent - extent % self.width
        if whole:
            with self.text.loop("0", str(whole), self.width, []) as (index, _, _n):
                self._tile_of({**at, name: index}, deep, self.width)
        if whole < extent:
            with self.text.scope():
                self._tile_of({**at, name: str(whole)}, deep, extent - whole)

    def _tile_of(self, at: dict[str, str], deep: int, across: int) -> None:
        """`across` loads of `deep` elements, transposed, and `deep` stores of `across`."""
        if not self.target.has_masks and (deep < self.width or across < self.width):
            self._one_by_one(at, deep, across)
            return
        dtype, width = self.kernel.value.dtype, self.width
        type = llvm_type(dtype, width)
        written, read = self.kernel.indices[self.written], self.kernel.indices[self.read]
        rows = []
        self.lanes, self.vector_index = width, read
        for n in range(width):
            if n >= across:
                rows.append("zeroinitializer")
                continue
            point = Point({**at, written: self._sum(at[written], n)}, mask=self._mask(deep))
            rows.append(self._load(self.kernel.value, point)[0])
        step = 1
        while step < width:
            rows = self._stage(rows, step, type)
            step *= 2
        self.vector_index = written
        for n in range(deep):
            point = Point({**at, read: self._sum(at[read], n)}, mask=self._mask(across))
            point.memo[id(self.kernel.value)] = rows[n], width
            self._store(point)

    def _stage(self, rows: list[str], step: int, type: str) -> list[str]:
        """Exchange blocks of `step` lanes between rows that are `step` apart."""
        width, new = self.width, list(rows)
        low = [n if not n & step else width + n - step for n in range(width)]
        high = [n + step if not n & step else width + n for n in range(width)]
        for n in range(width):
            if not n & step:
                a, b = rows[n], rows[n + step]
                new[n] = self._shuffle(type, a, b, low)
                new[n + step] = self._shuffle(type, a, b, high)
        return new

    def _shuffle(self, type: str, a: str, b: str, lanes: list[int]) -> str:
        order = ", ".join(f"i32 {n}" for n in lanes)
        return self.text.value(
            f"shufflevector {type} {a}, {type} {b}, <{self.width} x i32> <{order}>"
        )

    def _mask(self, used: int) -> str | None:
        if used == self.width:
            return None
        flags = ["true"] * used + ["false"] * (self.width - used)
        return "<" + ", ".join(f"i1 {f}" for f in flags) + ">"

    def _one_by_one(self, at: dict[str, str], deep: int, across: int) -> None:
        """An end of the copy where the target has no masks."""
        written, read = self.kernel.indices[self.written], self.kernel.indices[self.read]
        self.lanes = 1
        with self.text.loop("0", str(across), 1, []) as (a, _, _n):
            column = self._total(at[written], a)
            with self.text.loop("0", str(deep), 1, []) as (b, _, _m):
                row = self._total(at[read], b)
                self._points([Point({**at, written: column, read: row})])
