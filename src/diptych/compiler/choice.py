"""How a kernel around one contraction goes over its result, decided once: by fusion, which makes
the kernel. The emitter obeys, and refuses a layout of memory that the choice does not name."""

from __future__ import annotations

from collections.abc import Mapping

from diptych.compiler.affine import Affine, step_along
from diptych.compiler.kernels import Buffer, Choice, index_names
from diptych.compiler.sizes import typical
from diptych.compiler.target import Target
from diptych.compiler.tiling import Tile, choose_tile
from diptych.dtypes import Dimension, Shape, product
from diptych.kernel import expr as k

LITTLE, THRIFT = 1 << 19, 0.03  # multiply-adds of a product whose code costs more than its tiles


def contraction_of(value: k.Expr) -> k.Expr | None:
    """The fold of a value that tiles can compute: its only one, a contraction that has terms, whose
    sides are elements of memory and at most one literal."""
    folds = [e for e in k.walk([value]) if e.op == "fold"]
    if len(folds) != 1 or folds[0].attr[0] != "contract":
        return None
    (fold,) = folds
    sides = sorted(a.op for a in fold.args)
    terms = all(loop.extent for loop in fold.attr[1])
    return fold if terms and sides in (["load", "load"], ["const", "load"]) else None


def choose(
    value: k.Expr,
    shape: Shape,
    out: Buffer,
    along: int | None,
    target: Target,
    hints: Mapping[str, int],
) -> Choice | None:
    """The choice for a kernel that writes `value` to `out`; None where it has no tiles. `along` is
    the axis that the sides were laid out for, if they were."""
    fold = contraction_of(value)
    if fold is None or 0 in shape or all(d == 1 for d in shape):
        return None
    return _Chooser(value, fold, shape, out, target, hints).choice(along)


class _Chooser:
    def __init__(
        self,
        value: k.Expr,
        fold: k.Expr,
        shape: Shape,
        out: Buffer,
        target: Target,
        hints: Mapping[str, int],
    ) -> None:
        self.value, self.fold, self.shape, self.out = value, fold, shape, out
        self.target, self.hints = target, hints
        self.names = index_names(len(shape))
        self.sides = [a for a in fold.args if a.op == "load"]
        self.memo: dict[int, Affine | None] = {}
        self.terms = self.typical(product(loop.extent for loop in fold.attr[1]))

    def typical(self, dim: Dimension) -> int:
        return typical(dim, self.hints)

    def choice(self, along: int | None) -> Choice:
        real = [n for n, d in enumerate(self.shape) if d != 1]
        vector = max(real, key=lambda n: (self._score(n), n)) if along is None else along
        side = self._vector_side(vector)
        rest = [n for n in real if n != vector]
        row = max(rest, key=lambda n: self._row_score(n, side), default=-1)
        others = (n for n in rest if n != row)
        outer = sorted(others, key=lambda n: -self.typical(self.out.strides[n]))
        panel = 0 if side is None or side.panels is None else side.panels.width
        return Choice(vector, row, tuple(outer), self._tile(vector, row, panel), panel)

    def _tile(self, vector: int, row: int, panel: int) -> Tile:
        work = self.terms * self.typical(product(self.shape))
        return choose_tile(
            1 if row < 0 else self.typical(self.shape[row]),
            self.typical(self.shape[vector]),
            self.target,
            width=panel,
            thrift=THRIFT if work < LITTLE else 0.0,
            column=0 if panel else self.terms * self.target.lanes * self.fold.dtype.bytes,
        )

    def _steps(self, axis: int, under: k.Expr) -> list[Dimension | None]:
        """How far each load under an expression moves along an axis of the result."""
        name = self.names[axis]
        return [step_along(e, name, self.memo) for e in k.walk([under]) if e.op == "load"]

    def _score(self, axis: int) -> float:
        """How well vectors lie along an axis: inside the fold it counts for every term."""
        inside = sum(_worth(s) for s in self._steps(axis, self.fold))
        everything = sum(_worth(s) for s in self._steps(axis, self.value))
        score = everything + min(self.terms, 64) * inside
        score += 1.0 if self.out.strides[axis] == 1 else -8.0
        extent = self.typical(self.shape[axis])
        return score + 6.0 * min(extent, self.target.lanes) / self.target.lanes

    def _vector_side(self, vector: int) -> Buffer | None:
        """The buffer that is read a vector at a time, or None where both sides are, or neither."""
        name = self.names[vector]
        moving = [a.attr for a in self.sides if step_along(a, name, self.memo) not in (0, None)]
        return moving[0] if len(moving) == 1 else None

    def _row_score(self, axis: int, side: Buffer | None) -> tuple[bool, int, int]:
        """Rows share the vectors of a tile: best is a long axis that the vector side lacks."""
        name = self.names[axis]
        shared = all(a.attr is not side or step_along(a, name, self.memo) == 0 for a in self.sides)
        return shared, min(self.typical(self.shape[axis]), 24), axis


def _worth(step: Dimension | None) -> float:
    """A load for a vector that stays, goes on by 1, or does anything else."""
    return 0.0 if step == 0 else 2.0 if step == 1 else -8.0
