"""Kernels around one contraction to LLVM text: register tiles over the result, panels of one side.

The result is divided into units, a register tile of rows by columns each; threads take ranges of
units. A unit loops over all terms with its chains in registers and ends with the epilogue (bias,
activation, update), so the product itself is never written. Which elements share a tile cannot
change a bit: each element has a chain of its own (rule 3 of docs/numerics.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from diptych.compiler.affine import offset
from diptych.compiler.emit_llvm import KernelEmitter, Point
from diptych.compiler.kernels import Kernel
from diptych.compiler.target import Target
from diptych.compiler.tiling import SHORT, Piece, choose_tile
from diptych.kernel import expr as k

SMALL_SIDE = 1 << 14  # bytes of the vector side that stay in the nearest cache
FAR_RESULT = 1 << 20  # bytes of a result that does not stay in the nearer caches
PARALLEL_TERMS = 1 << 17  # multiply-adds below which a kernel stays on one thread


def is_contraction(kernel: Kernel) -> bool:
    """Whether the value folds once, over a product with terms, and has an axis to divide."""
    if kernel.limit is not None or all(d == 1 for d in kernel.shape):
        return False
    folds = [e for e in k.walk([kernel.value]) if e.op == "fold"]
    return (
        len(folds) == 1
        and folds[0].attr[0] == "contract"
        and all(loop.extent for loop in folds[0].attr[1])
        and all(a.op == "load" for a in folds[0].args)
    )


class ContractionEmitter(KernelEmitter):
    """Emits one kernel whose value holds one contraction of two loads."""

    def __init__(self, kernel: Kernel, target: Target, declare: set[str], number: int) -> None:
        super().__init__(kernel, target, declare, number)
        (self.fold,) = self.folds
        self.terms = math.prod(loop.extent for loop in self.fold.attr[1])
        real = [n for n, d in enumerate(kernel.shape) if d != 1]
        self.vector = max(real, key=lambda n: (self._score(n), n))
        self.side = self._vector_side()
        rest = [n for n in real if n != self.vector]
        self.row = max(rest, key=self._row_score, default=-1)
        strides = kernel.out.strides
        self.outer = sorted((n for n in rest if n != self.row), key=lambda n: -strides[n])
        rows = kernel.shape[self.row] if rest else 1
        width = self.side.panel if self.side is not None else 0
        self.tile = choose_tile(rows, kernel.shape[self.vector], target, width)
        self.down = -(-rows // self.tile.rows)
        whole = kernel.shape[self.vector] // self._width()
        self.across = whole + bool(self.tile.ends)
        self.units = math.prod(kernel.shape[n] for n in self.outer) * self.down * self.across

    def _width(self) -> int:
        return self.tile.columns * self.target.lanes

    # ---- which axis is which -----------------------------------------------------------------

    def _steps(self, axis: int, under: tuple[k.Expr, ...]) -> list[int | None]:
        """How far each load under some expressions moves along an axis of the result."""
        name = self.kernel.indices[axis]
        steps: list[int | None] = []
        for e in k.walk(under):
            if e.op == "load":
                form = offset(e.args, e.attr.strides, self.affine_memo)
                steps.append(None if form is None else form.get(name, 0))
        return steps

    def _score(self, axis: int) -> float:
        """How well vectors lie along an axis: inside the fold it counts for every term."""
        worth = {0: 0.0, 1: 2.0}
        inside = sum(worth.get(s, -8.0) for s in self._steps(axis, self.fold.args))  # type: ignore[arg-type]
        everything = sum(worth.get(s, -8.0) for s in self._steps(axis, (self.kernel.value,)))  # type: ignore[arg-type]
        score = everything + min(self.terms, 64) * inside
        score += 1.0 if self.kernel.out.strides[axis] == 1 else -8.0
        extent = self.kernel.shape[axis]
        return score + 6.0 * min(extent, self.target.lanes) / self.target.lanes

    def _vector_side(self):  # type: ignore[no-untyped-def]
        """The buffer that is read a vector at a time, or None where both sides are."""
        moving = [
            load.attr
            for load in self.fold.args
            if self._steps(self.vector, (load,))[0] not in (0, None)
        ]
        return moving[0] if len(moving) == 1 else None

    def _row_score(self, axis: int) -> tuple[bool, int, int]:
        """Rows share the vectors of a tile: best is a long axis that the vector side lacks."""
        shared = all(
            load.attr is not self.side or self._steps(axis, (load,))[0] == 0
            for load in self.fold.args
        )
        return shared, min(self.kernel.shape[axis], 24), axis

    # ---- units -------------------------------------------------------------------------------

    @property
    def parallel(self) -> bool:
        work = math.prod(self.kernel.shape) * self.terms
        return self.units > 1 and work >= PARALLEL_TERMS

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
        outer = [(self.kernel.indices[n], self.kernel.shape[n]) for n in self.outer]
        tiles = [("down", self.down), ("across", self.across)]
        if self._panels_first():
            tiles.reverse()
        at: dict[str, str] = {}
        rest = unit
        for name, extent in reversed([*outer, *tiles]):
            if extent == 1:
                at[name] = "0"
                continue
            at[name] = self.text.value(f"urem i64 {rest}, {extent}")
            rest = self.text.value(f"udiv i64 {rest}, {extent}")
        return at.pop("down"), at.pop("across"), at

    def _panels_first(self) -> bool:
        """Whether all rows pass over some columns first: the vector side does not stay near."""
        side = self.terms * self.fold.dtype.bytes * self.kernel.shape[self.vector]
        return self.terms > SHORT and side > SMALL_SIDE

    def _unit(self, at: dict[str, str], down: str, across: str) -> None:
        """One tile, whole or at an end."""
        rows = self.kernel.shape[self.row] if self.row >= 0 else 1
        whole, left = divmod(rows, self.tile.rows)
        if self.row < 0:
            self._columns([at], across)
            return
        name = self.kernel.indices[self.row]
        if whole:
            with self._when(down, whole, self.down):
                first = self._product(down, self.tile.rows)
                lines = [{**at, name: self._sum(first, r)} for r in range(self.tile.rows)]
                self._columns(lines, across)
        if left:
            with self._when(down, whole, self.down, after=True):
                lines = [{**at, name: str(r)} for r in range(rows - left, rows)]
                self._columns(lines, across)

    def _columns(self, lines: list[dict[str, str]], across: str) -> None:
        name = self.kernel.indices[self.vector]
        whole = self.kernel.shape[self.vector] // self._width()
        if whole:
            with self._when(across, whole, self.across):
                first = self._product(across, self._width())
                self._piece(
                    lines, name, first, first, Piece(0, self.tile.columns, self.target.lanes)
                )
        if self.tile.ends:
            with self._when(across, whole, self.across, after=True):
                base = str(whole * self._width())
                for piece in self.tile.ends:
                    with self.text.scope():
                        self._piece(lines, name, base, str(piece.start), piece)

    def _piece(
        self, lines: list[dict[str, str]], name: str, base: str, first: str, piece: Piece
    ) -> None:
        """A tile of rows x vectors; the last vector may be masked."""
        self.lanes, self.vector_index = piece.lanes, name
        columns = []
        for n in range(piece.vectors):
            mask = self._mask(piece) if piece.masked and n == piece.vectors - 1 else None
            at = self._sum(first, n * piece.lanes)
            columns.append([Point({**line, name: at}, mask=mask, base=base) for line in lines])
        points = [point for row in zip(*columns, strict=True) for point in row]
        self._fetch_ahead(points)
        if self.terms > SHORT:
            self._points(points)
            return
        for column in columns:  # short chains: a column at a time, whose stores overlap the next
            with self.text.scope():
                self._points(column)

    def _fetch_ahead(self, points: list[Point]) -> None:
        """What the epilogue will read and write over is asked for before the chains are run."""
        if self.kernel.out.bytes < FAR_RESULT:
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

    def _mask(self, piece: Piece) -> str:
        flags = ["true"] * piece.masked + ["false"] * (piece.lanes - piece.masked)
        return "<" + ", ".join(f"i1 {f}" for f in flags) + ">"

    @contextmanager
    def _when(self, index: str, whole: int, extent: int, after: bool = False) -> Iterator[None]:
        """Only for an index below `whole`, or from it on."""
        if (whole == 0 and after) or (whole == extent and not after):
            with self.text.scope():
                yield
            return
        code = "sge" if after else "slt"
        flag = self.text.value(f"icmp {code} i64 {index}, {whole}")
        with self.text.branch(flag):
            yield
