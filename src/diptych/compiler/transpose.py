"""Copies that turn memory round, to LLVM text: square tiles transposed in registers.

Where a copy reads along one axis and writes along another, a tile of lanes x lanes elements is
loaded row by row, transposed by shuffles of two registers, and stored column by column.
"""

from __future__ import annotations

from diptych.compiler.access import Point
from diptych.compiler.affine import Affine, offset, step_along
from diptych.compiler.emit_llvm import KernelEmitter
from diptych.compiler.kernels import Kernel
from diptych.compiler.scalars import llvm_type
from diptych.compiler.sizes import SizeTable, Units, typical
from diptych.compiler.target import Target
from diptych.dtypes import Dim, Dimension, bool_, i64, product

PARALLEL_ELEMENTS = 1 << 11  # elements below which a copy stays on one thread
Count = int | str  # known when the code is written, or the name of an i64


def turned_axes(kernel: Kernel) -> tuple[int, int] | None:
    """(the axis read along, the axis written along) where a kernel is such a copy."""
    load = kernel.value
    if load.op != "load" or kernel.limit is not None or load.dtype == bool_:
        return None
    memo: dict[int, Affine | None] = {}
    real = [n for n, d in enumerate(kernel.shape) if d != 1]
    read = [n for n in real if step_along(load, kernel.indices[n], memo) == 1]
    written = [n for n in real if kernel.out.strides[n] == 1]
    if not read or not written or read[0] == written[0]:
        return None
    return (read[0], written[0]) if typical(kernel.shape[written[0]]) >= 4 else None


class TransposeEmitter(KernelEmitter):
    """Emits one copy; its units are strips of tiles along the axis that is read."""

    def __init__(
        self, kernel: Kernel, target: Target, declare: set[str], number: int, table: SizeTable
    ) -> None:
        super().__init__(kernel, target, declare, number, table)
        axes = turned_axes(kernel)
        assert axes is not None
        self.read, self.written = axes
        load = self.value
        self.by_rows = offset(load.args, load.attr.strides, self.affine_memo) is None
        self.width = min(target.lanes, 16)
        rest = (n for n, d in enumerate(kernel.shape) if d != 1 and n not in axes)
        self.outer = sorted(rest, key=lambda n: -self.sizes.typical(kernel.out.strides[n]))
        self.strips = (kernel.shape[self.read], self.width)

    def units(self) -> Units:
        return (*((self.kernel.shape[n], 1) for n in self.outer), self.strips)

    def work(self) -> tuple[Dimension, int]:
        return product(self.kernel.shape), PARALLEL_ELEMENTS

    def emit(self) -> str:
        """The whole function: a loop over a range of units."""
        kernel, text = self.kernel, self.text
        at = {n: "0" for n, d in zip(kernel.indices, kernel.shape, strict=True) if d == 1}
        if self.by_rows and not self.outer and kernel.shape[self.written] == self.width:
            name = kernel.indices[self.written]
            self.vector_index = kernel.indices[self.read]
            self._rows_before([{**at, name: str(n)} for n in range(self.width)], self.width)
        with text.loop("%begin", "%end", 1, []) as (unit, _, _n):
            strips = self.sizes.covering(*self.strips)
            strip = text.value(f"urem i64 {unit}, {strips}")
            rest = text.value(f"udiv i64 {unit}, {strips}")
            for n in reversed(self.outer):
                extent = self.size(kernel.shape[n])
                at[kernel.indices[n]] = text.value(f"urem i64 {rest}, {extent}")
                rest = text.value(f"udiv i64 {rest}, {extent}")
            flag = text.value(f"icmp slt i64 {strip}, {self.sizes.tiles(*self.strips)}")
            deep = kernel.shape[self.read]
            if isinstance(deep, Dim) or deep >= self.width:
                with text.branch(flag):
                    self._strip(at, self._product(strip, self.width), self.width)
            if isinstance(deep, Dim) or deep % self.width:
                with text.branch(text.value(f"xor i1 {flag}, true")):
                    self._strip(at, self.sizes.whole(*self.strips), self._left(deep))
        text.do("ret void")
        return self._function()

    def _left(self, extent: Dimension) -> Count:
        """What remains of an axis after its whole tiles."""
        if isinstance(extent, int):
            return extent % self.width
        return self.text.value(
            f"sub nsw i64 {self.size(extent)}, {self.sizes.whole(extent, self.width)}"
        )

    def _strip(self, at: dict[str, str], first: str, deep: Count) -> None:
        """All tiles of a strip; `deep` elements are read at once."""
        name, extent = self.kernel.indices[self.written], self.kernel.shape[self.written]
        at = {**at, self.kernel.indices[self.read]: first}
        whole = self.sizes.whole(extent, self.width)
        if extent == self.width:
            self._tile_of({**at, name: "0"}, deep, self.width)
        elif whole != "0":
            with self.text.loop("0", whole, self.width, []) as (index, _, _n):
                self._tile_of({**at, name: index}, deep, self.width)
        if isinstance(extent, Dim):
            with self.text.branch(self.text.value(f"icmp slt i64 {whole}, {self.size(extent)}")):
                self._tile_of({**at, name: whole}, deep, self._left(extent))
        elif extent % self.width:
            with self.text.scope():
                self._tile_of({**at, name: whole}, deep, extent % self.width)

    def _tile_of(self, at: dict[str, str], deep: Count, across: Count) -> None:
        """`across` loads of `deep` elements, transposed, and `deep` stores of `across`."""
        if not self.target.has_masks and (deep != self.width or across != self.width):
            self._one_by_one(at, deep, across)
            return
        dtype, width = self.value.dtype, self.width
        type = llvm_type(dtype, width)
        written, read = self.kernel.indices[self.written], self.kernel.indices[self.read]
        rows = []
        self.lanes, self.vector_index = width, read
        for n in range(width):
            if isinstance(across, int) and n >= across:
                rows.append("zeroinitializer")
                continue
            mask = self._mask(deep, n, across)
            row = self._moved(at[written], n)
            if isinstance(across, str) and self.by_rows:  # after the last one are no positions
                row = self._plain(row)
                row = self.scalars.call("smin", i64, 1, [row, self._last_row()])
            point = Point({**at, written: row}, mask=mask)
            self._evaluate(self.value, [point])
            rows.append(point.memo[id(self.value)][0])
        rows = self._turned(rows, type)
        self.vector_index = written
        for n in range(deep if isinstance(deep, int) else width):
            mask = self._mask(across, n, deep)
            point = Point({**at, read: self._moved(at[read], n)}, mask=mask)
            point.memo[id(self.value)] = rows[n], width
            self._store(point)

    def _last_row(self) -> str:
        return self.size(self.kernel.shape[self.written] - 1)

    def _turned(self, rows: list[str], type: str) -> list[str]:
        """The rows of a square tile as its columns: fours of rows within lanes of four elements,
        then these lanes as blocks. Each shuffle is one instruction of its own on x86-64."""
        low, high = self._lanes((0, 4, 1, 5)), self._lanes((2, 6, 3, 7))
        first, last = self._lanes((0, 1, 4, 5)), self._lanes((2, 3, 6, 7))
        columns: list[list[str]] = [[], [], [], []]
        for n in range(0, self.width, 4):
            a, b, c, d = rows[n : n + 4]
            for k, lanes in ((0, low), (2, high)):
                ab, cd = self._shuffle(type, a, b, lanes), self._shuffle(type, c, d, lanes)
                columns[k].append(self._shuffle(type, ab, cd, first))
                columns[k + 1].append(self._shuffle(type, ab, cd, last))
        blocks = [self._blocks_turned(column, type) for column in columns]
        return [blocks[n % 4][n // 4] for n in range(self.width)]

    def _lanes(self, four: tuple[int, ...]) -> list[int]:
        """A shuffle within each four elements of two registers: 0 to 3 the first's, 4 to 7 the
        second's."""
        return [
            n + k % 4 + (self.width if k >= 4 else 0) for n in range(0, self.width, 4) for k in four
        ]

    def _blocks_turned(self, rows: list[str], type: str) -> list[str]:
        """The same for a square of blocks of four elements."""
        if len(rows) == 1:
            return rows
        halves = []
        for odd in (0, 1):
            order = [n + k for n in range(4 * odd, 2 * self.width, 8) for k in range(4)]
            pairs = zip(rows[::2], rows[1::2], strict=True)
            picked = [self._shuffle(type, a, b, order) for a, b in pairs]
            halves.append(self._blocks_turned(picked, type))
        return [row for pair in zip(*halves, strict=True) for row in pair]

    def _shuffle(self, type: str, a: str, b: str, lanes: list[int]) -> str:
        order = ", ".join(f"i32 {n}" for n in lanes)
        return self.text.value(
            f"shufflevector {type} {a}, {type} {b}, <{self.width} x i32> <{order}>"
        )

    def _mask(self, used: Count, row: int, rows: Count) -> str | None:
        """The lanes in use of a row, which are none where that is not among `rows`."""
        if isinstance(rows, str):
            inside = self.text.value(f"icmp slt i64 {row}, {rows}")
            count = self.text.value(f"select i1 {inside}, i64 {used}, i64 0")
            return self._lanes_below(count, self.width)
        if isinstance(used, str):
            return self._lanes_below(used, self.width)
        if used == self.width:
            return None
        flags = ["true"] * used + ["false"] * (self.width - used)
        return "<" + ", ".join(f"i1 {f}" for f in flags) + ">"

    def _one_by_one(self, at: dict[str, str], deep: Count, across: Count) -> None:
        """An end of the copy where the target has no masks."""
        written, read = self.kernel.indices[self.written], self.kernel.indices[self.read]
        self.lanes = 1
        with self.text.loop("0", str(across), 1, []) as (a, _, _n):
            column = self._total(at[written], a)
            with self.text.loop("0", str(deep), 1, []) as (b, _, _m):
                row = self._total(at[read], b)
                self._points([Point({**at, written: column, read: row})])
