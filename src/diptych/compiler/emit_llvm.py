"""Kernels to LLVM text.

A kernel becomes a loop nest over its output. One axis is the vector axis; where the value folds
(a reduction or a contraction) a tile of rows and vectors is computed at once, so that every load
serves several chains. Tiles, lanes and threads choose only which elements are computed together:
each element is its own chain, in the order of the contract, so no choice here can change a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diptych.compiler.access import Access, Point, Value
from diptych.compiler.affine import Affine, offset, step_along, uses
from diptych.compiler.ahead import next_batch
from diptych.compiler.blocks import BLOCK, LEVEL, helpers, sum_blocks
from diptych.compiler.folds import FoldRule
from diptych.compiler.kernels import Kernel
from diptych.compiler.scalars import Scalars, literal
from diptych.compiler.sizes import Sizes, SizeTable, Units
from diptych.compiler.target import Target
from diptych.compiler.text import FunctionText
from diptych.dtypes import Dim, Dimension, i64, product
from diptych.kernel import expr as k
from diptych.lazy import lazy

PARALLEL_COST = 1 << 16  # scalar operations below which a kernel stays on one thread
FEW_UNITS = 8
SIDE_BY_SIDE, LIGHT = 4, 24  # vectors that are folded at once, in kernels of so few expressions
MANY_TERMS = 64  # of a fold, from which on that is worth the code


class KernelEmitter(Access):
    """Emits one kernel as a function of its buffers, the words, and a range of its units."""

    def __init__(
        self, kernel: Kernel, target: Target, declare: set[str], number: int, table: SizeTable
    ) -> None:
        self.kernel, self.target, self.number = kernel, target, number
        self.text = FunctionText()
        self.sizes = Sizes(table)
        self.scalars = Scalars(self.text, target, declare)
        self.declare = declare
        self.affine_memo: dict[int, Affine | None] = {}
        self.pointers: dict[int, str] = {}
        for n, buffer in enumerate(kernel.buffers):
            self.pointers[id(buffer)] = self._pointer(n)
        self.value = self._readable(kernel.value)
        self.expressions = k.walk([self.value])
        self.folds = [e for e in self.expressions if e.op == "fold"]
        self.lanes = 1
        self.vector_index = ""
        self.inner: frozenset[str] = frozenset()
        self.split = -1  # the axis that threads divide; its units are tiles
        self.next_batch: dict[int, k.Expr | None] = {}

    def _readable(self, value: k.Expr) -> k.Expr:
        """The value with loads that loops over single elements can make: those from panels go by
        the address of each element."""

        def by_address(e: k.Expr) -> k.Expr | None:
            if e.op != "load" or e.attr.panels is None:
                return None
            self.pointers[id(e.attr.flat)] = self.pointers[id(e.attr)]
            return k.load(e.attr.flat, [e.attr.address(e.args)], e.dtype)

        return k.substitute(value, by_address)

    @lazy
    def over_folds(self) -> set[int]:
        """Expressions that hold a fold. They are computed before what stands beside them: values
        that are loaded before a chain take registers from it, or are stored until it ends."""
        found: set[int] = set()
        for e in self.expressions:  # operands first
            if e.op == "fold" or any(id(a) in found for a in e.args):
                found.add(id(e))
        return found

    # ---- loops over the output -------------------------------------------------------------

    def emit(self) -> str:
        """The whole function."""
        axes, self.split = self.axes, self.divided()[0]
        sizes = zip(self.kernel.indices, self.kernel.shape, strict=True)
        fixed = {name: "0" for name, extent in sizes if extent == 1}
        if axes:
            self._outer_loops(axes[:-1], fixed, axes[-1])
        else:
            self._points([Point(fixed)])
        self.text.do("ret void")
        return self._function()

    def _function(self) -> str:
        entry, *lines = self.text.lines
        body = "\n".join([entry, *self.sizes.lines, *lines])
        return (
            f"define internal void @k{self.number}"
            f"(ptr %buffers, ptr %words, i64 %begin, i64 %end) {{\n{body}\n}}\n"
        )

    def work(self) -> tuple[Dimension, int]:
        """Scalar operations, and how many of them are worth a second thread."""
        if self.kernel.limit is not None:
            return 0, 1
        cost: Dimension = len(self.expressions)
        for fold in self.folds:
            terms = product(loop.extent for loop in fold.attr[1])
            cost = cost + terms * len(k.walk(fold.args))
        return cost * product(self.kernel.shape), PARALLEL_COST

    @lazy
    def axes(self) -> list[int]:
        """Axes of the output from the outermost loop to the vector axis."""
        kernel = self.kernel
        real = [n for n, d in enumerate(kernel.shape) if d != 1]
        if not real or kernel.limit is not None:
            return real
        vector = max(real, key=lambda n: (self._vector_score(n), n))
        rest = sorted(
            (n for n in real if n != vector),
            key=lambda n: -self.sizes.typical(kernel.out.strides[n]),
        )
        return [*rest, vector]

    def divided(self) -> tuple[int, Units]:
        """The axis that threads divide, and its units: the outermost loop, or the vector axis where
        that loop is short."""
        if not self.axes:
            return -1, ()
        *outer, vector = self.axes
        shape, step = self.kernel.shape, self._vector_step(vector)
        if outer:
            rows = self.sizes.typical(shape[outer[0]])
            if rows >= FEW_UNITS or rows >= -(-self.sizes.typical(shape[vector]) // step):
                return outer[0], ((shape[outer[0]], 1),)
        return vector, ((shape[vector], step),)

    def units(self) -> Units:
        """What the range of a call counts: sizes and the steps that cover them."""
        return self.divided()[1]

    def _bounds(self, axis: int, step: int) -> tuple[str, str]:
        """Where the loop over whole tiles of an axis starts and stops, for this range of units."""
        whole = self.sizes.whole(self.kernel.shape[axis], step)
        if axis != self.split:
            return "0", whole
        if step == 1:
            return "%begin", "%end"
        start = self.text.value(f"mul nsw i64 %begin, {step}")
        end = self.text.value(f"mul nsw i64 %end, {step}")
        return start, self.scalars.call("smin", i64, 1, [end, whole])

    @contextmanager
    def _last_unit(self, axis: int, step: int) -> Iterator[None]:
        """What remains of an axis after its whole tiles: the last unit of its range."""
        if axis != self.split:
            with self.text.scope():
                yield
            return
        last = self.sizes.tiles(self.kernel.shape[axis], step)
        first = self.scalars.call("smax", i64, 1, ["%begin", last])
        with self.text.loop(first, "%end", 1, []):
            yield

    def _vector_score(self, axis: int) -> float:
        name, score = self.kernel.indices[axis], 0.0
        for e in self.expressions:
            if e.op == "load":
                form = offset(e.args, e.attr.strides, self.affine_memo)
                step = None if form is None else form.get(name, 0)
                score += -4.0 if step is None else 0.0 if step == 0 else 2.0 if step == 1 else -8.0
        step = self.kernel.out.strides[axis]
        score += 1.0 if step == 1 else -4.0
        extent = self.sizes.typical(self.kernel.shape[axis])
        return score + min(extent, self.target.lanes) / self.target.lanes * 6.0

    def _outer_loops(self, axes: list[int], at: dict[str, str], vector: int) -> None:
        if not axes:
            self._vector_loops(at, vector)
            return
        name = self.kernel.indices[axes[0]]
        with self.text.loop(*self._bounds(axes[0], 1), 1, []) as (index, _, _n):
            self._outer_loops(axes[1:], {**at, name: index}, vector)

    def _side_by_side(self, vector: int) -> int:
        """Vectors whose chains run at once where a light fold reads them side by side: the adds of
        one chain wait for each other, and the lines of memory are read once."""
        plain = len(self.folds) == 1 and self.folds[0].attr[0] in ("sum", "max", "min", "prod")
        if not plain or len(self.expressions) > LIGHT:
            return 1
        terms = product(loop.extent for loop in self.folds[0].attr[1])
        if self.sizes.typical(terms) < MANY_TERMS:
            return 1
        name = self.kernel.indices[vector]
        loads = [e for e in k.walk(self.folds[0].args) if e.op == "load"]
        if not any(step_along(e, name, self.affine_memo) == 1 for e in loads):
            return 1
        vectors = -(-self.sizes.typical(self.kernel.shape[vector]) // self.target.lanes)
        return min(SIDE_BY_SIDE, vectors)

    def _vector_step(self, vector: int) -> int:
        """Elements of a tile along the vector axis."""
        return 1 if self._must_be_scalar() else self.target.lanes * self._side_by_side(vector)

    def _vector_loops(self, at: dict[str, str], vector: int) -> None:
        kernel, text = self.kernel, self.text
        extent, name = kernel.shape[vector], kernel.indices[vector]
        self.vector_index = name
        lanes = 1 if self._must_be_scalar() else self.target.lanes
        step = self._vector_step(vector)
        if lanes > 1:
            self._rows_before([at], lanes)
        if isinstance(extent, Dim) or extent >= step:
            with text.loop(*self._bounds(vector, step), step, []) as (index, _, _n):
                self._tile(at, name, index, step // lanes, lanes)
        if isinstance(extent, Dim):
            if step > 1:
                with self._last_unit(vector, step):
                    self._symbolic_end(at, name, extent, step, lanes)
        elif extent % step:
            whole = extent - extent % step
            with self._last_unit(vector, step):
                left = (extent - whole) // lanes if lanes > 1 else 0
                if left:
                    with text.scope():
                        self._tile(at, name, str(whole), left, lanes)
                    whole += left * lanes
                if whole < extent:
                    self._ragged(at, name, whole, extent, lanes)

    def _symbolic_end(
        self, at: dict[str, str], name: str, extent: Dim, step: int, lanes: int
    ) -> None:
        """What remains of a vector axis whose size is read at run time: vectors, then a rest."""
        size = self.size(extent)
        vectors = self.sizes.whole(extent, lanes)
        if step > lanes:
            first = self.sizes.whole(extent, step)
            with self.text.loop(first, vectors, lanes, []) as (index, _, _n):
                self._tile(at, name, index, 1, lanes)
        if not self.target.has_masks:
            with self.text.loop(vectors, size, 1, []) as (index, _, _n):
                self._tile(at, name, index, 1, 1)
            return
        with self.text.loop(vectors, size, lanes, []) as (index, _, _n):
            left = self.text.value(f"sub nsw i64 {size}, {index}")
            self._tile(at, name, index, 1, lanes, self._lanes_below(left, lanes))

    def _must_be_scalar(self) -> bool:
        return self.kernel.limit is not None

    def _ragged(self, at: dict[str, str], name: str, start: int, extent: int, lanes: int) -> None:
        """The last elements, fewer than a vector: masked where the target can, else one by one."""
        if self.target.has_masks and lanes > 1:
            flags = ["true"] * (extent - start) + ["false"] * (lanes - extent + start)
            mask = "<" + ", ".join(f"i1 {f}" for f in flags) + ">"
            with self.text.scope():
                self._tile(at, name, str(start), 1, lanes, mask)
            return
        with self.text.loop(str(start), str(extent), 1, []) as (index, _, _n):
            self._tile(at, name, index, 1, 1)

    def _tile(
        self,
        at: dict[str, str],
        name: str,
        index: str,
        columns: int,
        lanes: int,
        mask: str | None = None,
    ) -> None:
        self.lanes = lanes
        places = [self._moved(index, n * lanes) if n else index for n in range(columns)]
        points = [Point({**at, name: place}, mask=mask) for place in places]
        self._points(points)

    def _points(self, points: list[Point]) -> None:
        self._evaluate(self.value, points)
        for point in points:
            if self.kernel.limit is not None:
                self._check(point)
            else:
                self._store(point)

    # ---- expressions -----------------------------------------------------------------------

    def _evaluate(self, root: k.Expr, points: list[Point]) -> None:
        """Emit an expression at all points; results are in the points' memos.

        A fold is emitted when it is reached; what is under it belongs to its loop.
        """
        stack: list[tuple[k.Expr, bool]] = [(root, False)]
        while stack:
            e, ready = stack.pop()
            if id(e) in points[0].memo:
                continue
            if e.op == "fold":
                for point, name in zip(points, self._fold(e, points), strict=True):
                    point.memo[id(e)] = name
            elif ready:
                for point in points:
                    point.memo[id(e)] = self._one(e, point)
            else:
                stack.append((e, True))
                needed = sorted(self._needed(e), key=lambda a: id(a) in self.over_folds)
                stack.extend((a, False) for a in needed)  # the last one first

    def _one(self, e: k.Expr, point: Point) -> Value:
        if e.op == "const":
            return literal(e.attr, e.dtype), 1
        if e.op == "size":
            return self.size(e.attr), 1
        if e.op == "index":
            return self._index(e.attr, point)
        if e.op == "load":
            self._ask_next(e, point)
            return self._load(e, point)
        args = [point.memo[id(a)] for a in e.args]
        lanes = max(n for _, n in args)
        names = [self.widen(v, a.dtype, lanes) for v, a in zip(args, e.args, strict=True)]
        return self.scalars.apply(e, names, lanes), lanes

    def _ask_next(self, e: k.Expr, point: Point) -> None:
        """Ask for what a load will read in the next batch of an epoch."""
        later = self._later(e)
        if later is None or self.inner or self.lanes == 1:
            return
        self._evaluate_positions(later, point)
        at = self._total(self._row(later, point), self._offset(self._moving(later), point))
        place = self._address(later.attr, at)
        self.declare.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.text.do(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 2, i32 1)")

    def _later(self, e: k.Expr) -> k.Expr | None:
        """The load a batch later, where vectors of it lie in one row."""
        if id(e) not in self.next_batch:
            along = step_along(e, self.vector_index, self.affine_memo)
            hints = self.sizes.table.hints
            self.next_batch[id(e)] = (
                next_batch(e, self.kernel, hints, self.affine_memo)
                if along == 1 and offset(e.args, e.attr.strides, self.affine_memo) is None
                else None
            )
        return self.next_batch[id(e)]

    def _evaluate_positions(self, e: k.Expr, point: Point) -> None:
        for a in self._needed(e):
            self._evaluate(a, [point])

    def _rows_before(self, lines: list[dict[str, str]], lanes: int) -> None:
        """Compute the rows that vectors lie in before the loop along these."""
        self.lanes = lanes
        folded = {loop.name for f in self.folds for loop in f.attr[1]}
        for e in self.expressions:
            along = step_along(e, self.vector_index, self.affine_memo) if e.op == "load" else None
            plain = e.op != "load" or offset(e.args, e.attr.strides, self.affine_memo) is not None
            if along != 1 or plain or uses(e, folded):
                continue
            later = self._later(e)
            for line in lines:
                self._evaluate_positions(e, Point(line))
                if later is not None:
                    self._evaluate_positions(later, Point(line))

    # ---- folds -----------------------------------------------------------------------------

    def _fold(self, fold: k.Expr, points: list[Point]) -> list[Value]:
        """A reduction at all points at once: one loop, one accumulator a point."""
        total = product(loop.extent for loop in fold.attr[1])
        rule = FoldRule(self, fold)
        if total == 0:
            return [(rule.empty(), 1)] * len(points)
        lanes = [self._fold_lanes(fold) for _ in points]
        start = [rule.start(n) for n in lanes]
        if not rule.blocked or (isinstance(total, int) and total <= BLOCK):
            finals = self._chain(fold, rule, points, lanes, start, None)
        elif isinstance(total, Dim):
            self.declare.add(helpers(rule.source))
            finals = sum_blocks(
                self.text,
                self.sizes.scratch(4 * LEVEL),
                self.size(total),
                rule.source,
                lanes,
                lambda *bounds: self._chain(fold, rule, points, lanes, start, bounds),
            )
        else:
            finals = self._blocks(fold, rule, points, lanes, total)
        return [(rule.result(name, n), n) for name, n in zip(finals, lanes, strict=True)]

    def _fold_lanes(self, fold: k.Expr) -> int:
        """Lanes of a fold's result: 1 where nothing under it moves along the vector axis."""
        if self.lanes == 1:
            return 1
        for e in k.walk(fold.args):
            if e.op == "index" and e.attr == self.vector_index:
                return self.lanes
        return 1

    def _inner_points(self, points: list[Point], fold: k.Expr, more: dict[str, str]) -> list[Point]:
        """Points inside the fold's loop: what depends on its indices is computed anew."""
        own = {loop.name for loop in fold.attr[1]}
        moving: set[int] = set()
        for e in k.walk(fold.args):
            if (e.op == "index" and e.attr in own) or any(id(a) in moving for a in e.args):
                moving.add(id(e))
        return [
            Point(
                {**p.indices, **more},
                {n: v for n, v in p.memo.items() if n not in moving},
                p.mask,
                p.base,
            )
            for p in points
        ]

    def _chain(
        self,
        fold: k.Expr,
        rule: FoldRule,
        points: list[Point],
        lanes: list[int],
        start: list[str],
        bounds: tuple[str, str] | None,
    ) -> list[str]:
        """One chain over all loops, or over list positions bounds[0] to bounds[1]."""
        loops = fold.attr[1]
        types = [rule.type(n) for n in lanes]
        self._before(fold, points)
        if bounds is not None:
            with self.text.loop(*bounds, 1, list(zip(types, start, strict=True))) as (q, now, new):
                more = self._unravel(q, loops)
                new.extend(self._step(fold, rule, points, lanes, now, more))
            return new

        def nest(n: int, carried: list[str], more: dict[str, str]) -> list[str]:
            if n == len(loops):
                return self._step(fold, rule, points, lanes, carried, more)
            pairs = list(zip(types, carried, strict=True))
            with self.text.loop("0", self.size(loops[n].extent), 1, pairs) as (index, now, new):
                new.extend(nest(n + 1, now, {**more, loops[n].name: index}))
            return new

        return nest(0, start, {})

    def _before(self, fold: k.Expr, points: list[Point]) -> None:
        """Write what loads in the fold's loops have in common before these begin."""
        self.inner = frozenset(loop.name for loop in fold.attr[1])
        for e in k.walk(fold.args):
            if e.op != "load":
                continue
            form = offset(e.args, e.attr.strides, self.affine_memo)
            for point in points:
                if form is None:
                    self._before_row(e, point)
                elif self.inner.intersection(form):
                    self._outside(e.attr, form, point)

    def _before_row(self, e: k.Expr, point: Point) -> None:
        """`_before` for a load with computed positions."""
        if not self._one_row(e):
            return
        if not self._row_moves(e):
            for a in self._needed(e):
                self._evaluate(a, [point])
        self._row_base(e, point)

    def _unravel(self, q: str, loops: tuple[k.Loop, ...]) -> dict[str, str]:
        more, rest = {}, q
        for loop in reversed(loops[1:]):
            extent = self.size(loop.extent)
            more[loop.name] = self.text.value(f"urem i64 {rest}, {extent}")
            rest = self.text.value(f"udiv i64 {rest}, {extent}")
        more[loops[0].name] = rest
        return more

    def _step(
        self,
        fold: k.Expr,
        rule: FoldRule,
        points: list[Point],
        lanes: list[int],
        carried: list[str],
        more: dict[str, str],
    ) -> list[str]:
        inner = self._inner_points(points, fold, more)
        for argument in fold.args:
            self._evaluate(argument, inner)
        result = []
        for point, before, n in zip(inner, carried, lanes, strict=True):
            args = [self.widen(point.memo[id(a)], a.dtype, n) for a in fold.args]
            result.append(rule.step(before, args, n, more))
        return result

    def _blocks(
        self, fold: k.Expr, rule: FoldRule, points: list[Point], lanes: list[int], total: int
    ) -> list[str]:
        """Blocks of 1024 list positions, their sums summed by the same rule (rules 3 and 4)."""
        sizes = [BLOCK]
        while sizes[-1] * BLOCK < total:
            sizes.append(sizes[-1] * BLOCK)

        def level(n: int, first: str, last: str) -> list[str]:
            if n < 0:
                start = [rule.start(m) for m in lanes]
                return self._chain(fold, rule, points, lanes, start, (first, last))
            types = [rule.type(m) for m in lanes]
            zero = [rule.sum_start(m) for m in lanes]
            pairs = list(zip(types, zero, strict=True))
            with self.text.loop(first, last, sizes[n], pairs) as (q, now, new):
                end = self.text.value(f"add nsw i64 {q}, {sizes[n]}")
                ended = self.scalars.call("smin", i64, 1, [end, last])
                parts = level(n - 1, q, ended)
                for before, part, m in zip(now, parts, lanes, strict=True):
                    new.append(
                        self.text.value(f"{rule.addition()} {rule.type(m)} {before}, {part}")
                    )
            return new

        return level(len(sizes) - 1, "0", str(total))

    # ---- stores ----------------------------------------------------------------------------

    def _check(self, point: Point) -> None:
        """A position outside its axis is written to the check's place: position, and 1."""
        text = self.text
        value, _ = point.memo[id(self.value)]
        assert self.kernel.limit is not None
        bad = text.value(f"icmp uge i64 {value}, {self.size(self.kernel.limit)}")
        tag = text.fresh("bad")[1:]
        text.do(f"br i1 {bad}, label %{tag}.yes, label %{tag}.no")
        text.label(f"{tag}.yes")
        text.do(f"store i64 {value}, ptr {self.pointers[id(self.kernel.out)]}")
        second = text.fresh()
        text.do(f"{second} = getelementptr i64, ptr {self.pointers[id(self.kernel.out)]}, i64 1")
        text.do(f"store i64 1, ptr {second}")
        text.do(f"br label %{tag}.no")
        text.label(f"{tag}.no")
