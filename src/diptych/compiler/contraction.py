"""Kernels around one contraction to LLVM text: register tiles over the result, panels of one side.

The result is divided into units, a register tile of rows by columns each; threads take ranges of
units. A unit loops over all terms with its chains in registers and ends with the epilogue (bias,
activation, update), so the product itself is never written. Which elements share a tile cannot
change a bit: each element has a chain of its own (rule 3 of docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diptych.compiler.access import Point
from diptych.compiler.affine import offset, step_along
from diptych.compiler.emit_llvm import KernelEmitter
from diptych.compiler.folds import FoldRule
from diptych.compiler.kernels import Kernel, Rows
from diptych.compiler.scalars import llvm_type
from diptych.compiler.sizes import SizeTable, Units
from diptych.compiler.target import LINE, Target
from diptych.compiler.tiling import SHORT, Piece
from diptych.dtypes import Dim, Dimension, i64, product
from diptych.errors import InternalError
from diptych.kernel import expr as k

SMALL_SIDE = 1 << 14  # bytes of the vector side that stay in the nearest cache
FIRST_CACHE, SECOND_CACHE = 1 << 16, 1 << 19  # bytes that are not in the one; that are in the other
FAR_RESULT = 1 << 18  # bytes of a result that is not in the nearest cache when it is written over
FAR_ROWS = 1 << 20  # bytes of what rows are picked from, where they come from memory
PARALLEL_TERMS = 1 << 16  # multiply-adds below which a kernel stays on one thread


class ContractionEmitter(KernelEmitter):
    """Emits one kernel whose value holds one contraction, as its `Choice` says."""

    def __init__(
        self, kernel: Kernel, target: Target, declare: set[str], number: int, table: SizeTable
    ) -> None:
        choice = kernel.choice
        if choice is None:
            raise InternalError(f"no choice of tiles for {kernel.node!r}")
        self.choice = choice
        super().__init__(kernel, target, declare, number, table)
        (self.fold,) = self.folds
        self.terms = self.sizes.typical(product(loop.extent for loop in self.fold.attr[1]))
        self.vector, self.row, self.outer = choice.vector, choice.row, choice.outer
        self.tile = choice.tile
        self.rows: Dimension = kernel.shape[self.row] if self.row >= 0 else 1
        self.columns: Dimension = kernel.shape[self.vector]
        self.down = (self.rows, self.tile.rows)
        self.across = (self.columns, self._width())

    def _width(self) -> int:
        return self.tile.columns * self.target.lanes

    def _readable(self, value: k.Expr) -> k.Expr:
        """The value as it is: panels are read a tile a panel, by vectors along them."""
        choice = self.choice
        for load in [e for e in k.walk([value]) if e.op == "load" and e.attr.panels is not None]:
            along = step_along(load, self.kernel.indices[choice.vector], self.affine_memo)
            width = choice.tile.columns * self.target.lanes
            if not (load.attr.panels.width == choice.panel == width and along == 1):
                raise InternalError(f"{load.attr.panels} are not those of {choice}")
        return value

    # ---- units -------------------------------------------------------------------------------

    def units(self) -> Units:
        return (*((self.kernel.shape[n], 1) for n in self.outer), self.down, self.across)

    def work(self) -> tuple[Dimension, int]:
        terms = product(loop.extent for loop in self.fold.attr[1])
        return product(self.kernel.shape) * terms, PARALLEL_TERMS

    def emit(self) -> str:
        """The whole function: a loop over a range of units."""
        fixed = {
            name: "0"
            for name, extent in zip(self.kernel.indices, self.kernel.shape, strict=True)
            if extent == 1
        }
        with self.text.loop("%begin", "%end", 1, []) as (unit, _, _n):
            down, across, at = self._decoded(unit)
            self._unit({**fixed, **at}, down, across)
        self.text.do("ret void")
        return self._function()

    def _decoded(self, unit: str) -> tuple[str, str, dict[str, str]]:
        """The tile row, the tile column and the outer indices of a unit."""
        if self._halves():
            return *self._in_halves(unit), {}
        outer = [(self.kernel.indices[n], self.size(self.kernel.shape[n])) for n in self.outer]
        tiles = [
            ("down", self.sizes.covering(*self.down)),
            ("across", self.sizes.covering(*self.across)),
        ]
        if self._panels_first():
            tiles.reverse()
        at: dict[str, str] = {}
        rest = unit
        for name, extent in reversed([*outer, *tiles]):
            if extent == "1":
                at[name] = "0"
                continue
            at[name] = self.text.value(f"urem i64 {rest}, {extent}")
            rest = self.text.value(f"udiv i64 {rest}, {extent}")
        return at.pop("down"), self._ends_amid(at.pop("across")), at

    def _ends_amid(self, across: str) -> str:
        """Columns in an order where the narrow ones at the end are the last but one: threads start
        at both ends, and the narrow ones pass so fast that they would wait for memory."""
        if isinstance(self.columns, Dim) or not self.tile.ends or not self._panels_first():
            return across
        whole = self.columns // self._width()
        if whole < 2:
            return across
        last = self.text.value(f"icmp eq i64 {across}, {whole}")
        before = self.text.value(f"icmp eq i64 {across}, {whole - 1}")
        swapped = self.text.value(f"select i1 {before}, i64 {whole}, i64 {across}")
        return self.text.value(f"select i1 {last}, i64 {whole - 1}, i64 {swapped}")

    def _halves(self) -> bool:
        """Whether the upper half of the rows comes before the lower: a weight that is updated over
        columns first, whose rows then belong to one thread as they do where it is read."""
        tiles = -(-self.sizes.typical(self.rows) // self.tile.rows)
        return self._panels_first() and not self.outer and tiles > 3 and bool(self._own_loads())

    def _in_halves(self, unit: str) -> tuple[str, str]:
        """The tile row and the tile column of a unit."""
        text, down = self.text, self.sizes.covering(*self.down)
        across = self.sizes.covering(*self.across)
        half = text.value(f"udiv i64 {down}, 2")
        upper = text.value(f"mul nsw i64 {half}, {across}")
        flag = text.value(f"icmp slt i64 {unit}, {upper}")
        first = text.value(f"select i1 {flag}, i64 0, i64 {half}")
        lower = text.value(f"sub nsw i64 {down}, {half}")
        rows = text.value(f"select i1 {flag}, i64 {half}, i64 {lower}")
        before = text.value(f"select i1 {flag}, i64 0, i64 {upper}")
        rest = text.value(f"sub nsw i64 {unit}, {before}")
        row = text.value(f"urem i64 {rest}, {rows}")
        return text.value(f"add nsw i64 {first}, {row}"), text.value(f"udiv i64 {rest}, {rows}")

    def rows_in_order(self) -> Rows | None:
        """How the units lie over rows, where a row of tiles comes before the next."""
        if self.row < 0 or self.outer or self._panels_first():
            return None
        count = -(-int(self.columns) // self._width())  # type: ignore[arg-type]
        return Rows(self.row, int(self.rows), self.tile.rows, count)  # type: ignore[arg-type]

    def _panels_first(self) -> bool:
        """Whether all rows pass over some columns first, not all columns over some rows: where the
        vector side does not stay near; but where it does in the second cache, and the other side
        does not, that one is read only once."""
        line = self.terms * self.fold.dtype.bytes
        side, other = line * self.sizes.typical(self.columns), line * self.sizes.typical(self.rows)
        if line * self._width() > FIRST_CACHE and side <= SECOND_CACHE < other:
            return False
        again = self.terms > SHORT or (not self._narrow() and bool(self._own_loads()))
        return again and side > SMALL_SIDE

    def _narrow(self) -> bool:
        """Whether tiles of one column are best: short chains, where a column's stores overlap the
        next one's and its loads do not keep the multiply-adds waiting."""
        return self.terms <= SHORT and self.target.fma_per_cycle == 1

    def _unit(self, at: dict[str, str], down: str, across: str) -> None:
        """One tile, whole or at an end."""
        if self.row < 0:
            self._columns([at], across)
            return
        name, rows, tile = self.kernel.indices[self.row], self.rows, self.tile.rows
        with self._when(down, *self.down):
            first = self._product(down, tile)
            self._columns([{**at, name: self._moved(first, r)} for r in range(tile)], across)
        if isinstance(rows, Dim):
            with self._when(down, *self.down, after=True):
                self._last_rows(at, name, across)
        elif rows % tile:
            with self._when(down, *self.down, after=True):
                left = range(rows - rows % tile, rows)
                self._columns([{**at, name: str(r)} for r in left], across)

    def _last_rows(self, at: dict[str, str], name: str, across: str) -> None:
        """Rows after the whole tiles, whose number is known at run time, in tiles of half the
        height. Where a tile is too high, its last rows are all the last row: the same element is
        computed again, from the same values, before any is stored."""
        half = -(-self.tile.rows // 2)
        size, last = self.size(self.rows), self.size(self.rows - 1)
        with self.text.loop(self.sizes.whole(*self.down), size, half, []) as (first, _, _n):
            lines = [{**at, name: first}]
            for r in range(1, half):
                row = self.scalars.call("smin", i64, 1, [self._sum(first, r), last])
                lines.append({**at, name: row})
            self._columns(lines, across)

    def _columns(self, lines: list[dict[str, str]], across: str) -> None:
        name = self.kernel.indices[self.vector]
        if isinstance(self.columns, Dim) or self.columns >= self._width():
            with self._when(across, *self.across):
                first = self._product(across, self._width())
                piece = Piece(0, self.tile.columns, self.target.lanes)
                self._piece(lines, name, first, first, piece)
        if isinstance(self.columns, Dim):
            with self._when(across, *self.across, after=True):
                self._last_columns(lines, name)
        elif self.tile.ends:
            with self._when(across, *self.across, after=True):
                base = self.sizes.whole(*self.across)
                for piece in self.tile.ends:
                    with self.text.scope():
                        self._piece(lines, name, base, str(piece.start), piece)

    def _last_columns(self, lines: list[dict[str, str]], name: str) -> None:
        """Columns after the whole tiles, whose number is known at run time, vector by vector."""
        lanes, size = self.target.lanes, self.size(self.columns)
        first, whole = self.sizes.whole(*self.across), self.sizes.whole(self.columns, lanes)
        if self.target.has_masks:
            with self.text.loop(first, size, lanes, []) as (index, _, _n):
                left = self.text.value(f"sub nsw i64 {size}, {index}")
                mask = self._lanes_below(left, lanes)
                self._piece(lines, name, "0", index, Piece(0, 1, lanes), mask)
            return
        with self.text.loop(first, whole, lanes, []) as (index, _, _n):
            self._piece(lines, name, "0", index, Piece(0, 1, lanes))
        with self.text.loop(whole, size, 1, []) as (index, _, _n):
            self._piece(lines, name, "0", index, Piece(0, 1, 1))

    def _piece(
        self,
        lines: list[dict[str, str]],
        name: str,
        base: str,
        first: str,
        piece: Piece,
        mask: str | None = None,
    ) -> None:
        """A tile of rows x vectors; the last vector may be masked."""
        self.lanes, self.vector_index = piece.lanes, name
        if self._narrow() and piece.vectors > 1 and not piece.masked and mask is None:
            last = self._sum(first, piece.vectors * piece.lanes)
            with self.text.loop(first, last, piece.lanes, []) as (index, _, _n):
                points = [Point({**line, name: index}, base=base) for line in lines]
                self._fetch_ahead(points)
                self._points(points)
            return
        columns = []
        for n in range(piece.vectors):
            if piece.masked and n == piece.vectors - 1:
                mask = self._mask(piece)
            at = self._moved(first, n * piece.lanes)
            columns.append([Point({**line, name: at}, mask=mask, base=base) for line in lines])
        points = [point for row in zip(*columns, strict=True) for point in row]
        self._fetch_ahead(points)
        self._points(points)

    def _fetch_ahead(self, points: list[Point]) -> None:
        """What the epilogue will read and write over is asked for before the chains are run."""
        if self.sizes.typical(self.kernel.out.bytes) < FAR_RESULT:
            return
        self.declare.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        for load in self._own_loads():
            form = offset(load.args, load.attr.strides, self.affine_memo)
            if form is None:
                continue
            for point in points:
                at = self._address(load.attr, self._offset(form, point))
                self.text.do(f"call void @llvm.prefetch.p0(ptr {at}, i32 1, i32 3, i32 1)")

    def _own_loads(self) -> list[k.Expr]:
        """Reads of the values that this kernel writes over."""
        root = self.kernel.out.root
        own = self.kernel.out
        return [
            e for e in self.expressions
            if e.op == "load" and (e.attr.root is root or (
                e.attr.kind == own.kind == "input" and e.attr.slot == own.slot))
        ]  # fmt: skip

    # ---- rows that are read where they lie -----------------------------------------------------

    def _chain(
        self,
        fold: k.Expr,
        rule: FoldRule,
        points: list[Point],
        lanes: list[int],
        start: list[str],
        bounds: tuple[str, str] | None,
    ) -> list[str]:
        """The chains of a tile; while they run, the rows of the next tile come from memory."""
        soon = self._soon(points) if bounds is None else []
        if not soon:
            return super()._chain(fold, rule, points, lanes, start, bounds)
        self._before(fold, points)
        ((name, extent),) = ((loop.name, loop.extent) for loop in fold.attr[1])
        types = [rule.type(n) for n in lanes]
        line = LINE // fold.dtype.bytes
        whole = extent - extent % line

        def run(first: str, last: str, carried: list[str]) -> list[str]:
            pairs = list(zip(types, carried, strict=True))
            with self.text.loop(first, last, 1, pairs) as (index, now, new):
                new.extend(self._step(fold, rule, points, lanes, now, {name: index}))
            return new

        pairs = list(zip(types, start, strict=True))
        with self.text.loop("0", str(whole), line, pairs) as (index, now, new):
            for base in soon:
                at = self.text.value(
                    f"getelementptr {llvm_type(fold.dtype, 1)}, ptr {base}, i64 {index}"
                )
                self.text.do(f"call void @llvm.prefetch.p0(ptr {at}, i32 0, i32 2, i32 1)")
            new.extend(run(index, self._sum(index, line), now))
        return run(str(whole), str(extent), new) if whole < extent else new

    def _soon(self, points: list[Point]) -> list[str]:
        """Where the rows of the next tile begin, where a side's rows are picked from far memory."""
        loops = self.fold.attr[1]
        if self.row < 0 or len(loops) != 1 or isinstance(loops[0].extent, Dim):
            return []
        name, found = self.kernel.indices[self.row], list[str]()
        self.inner = frozenset({loops[0].name})
        for load in [a for a in self.fold.args if a.op == "load"]:
            far = self.sizes.typical(load.attr.bytes) >= FAR_ROWS
            rows = step_along(load, name, self.affine_memo) is None
            if not far or not rows or step_along(load, loops[0].name, self.affine_memo) != 1:
                continue
            for row in dict.fromkeys(point.indices[name] for point in points):
                after = self._sum(row, self.tile.rows)
                last = self.size(self.rows - 1)
                after = self.scalars.call("smin", i64, 1, [after, last])
                point = Point({**points[0].indices, name: after})
                for a in self._needed(load):
                    self._evaluate(a, [point])
                found.append(self._row_base(load, point))
        if found:
            self.declare.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        return found

    def _mask(self, piece: Piece) -> str:
        flags = ["true"] * piece.masked + ["false"] * (piece.lanes - piece.masked)
        return "<" + ", ".join(f"i1 {f}" for f in flags) + ">"

    @contextmanager
    def _when(self, index: str, size: Dimension, step: int, after: bool = False) -> Iterator[None]:
        """Only for a tile that is whole, or for the one after these."""
        if isinstance(size, int) and ((size < step and after) or (size % step == 0 and not after)):
            with self.text.scope():
                yield
            return
        code = "sge" if after else "slt"
        whole = self.sizes.tiles(size, step)
        flag = self.text.value(f"icmp {code} i64 {index}, {whole}")
        with self.text.branch(flag):
            yield
