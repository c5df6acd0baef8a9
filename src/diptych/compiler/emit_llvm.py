"""Kernels to LLVM text.

A kernel becomes a loop nest over its output. One axis is the vector axis; where the value folds
(a reduction or a contraction) a tile of rows and vectors is computed at once, so that every load
serves several chains. Tiles, lanes and threads choose only which elements are computed together:
each element is its own chain, in the order of the contract, so no choice here can change a bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from diptych.compiler.affine import Affine, added, affine, offset, scaled
from diptych.compiler.folds import FoldRule
from diptych.compiler.kernels import Buffer, Kernel
from diptych.compiler.scalars import Scalars, literal, llvm_type
from diptych.compiler.target import Target
from diptych.compiler.text import FunctionText
from diptych.dtypes import DType, bool_, i64
from diptych.kernel import expr as k

BLOCK = 1024
PARALLEL_COST = 1 << 16  # scalar operations below which a kernel stays on one thread
FEW_UNITS = 8
Value = tuple[str, int]  # name, lanes


@dataclass
class Point:
    """One vector of output elements: the values of the indices there."""

    indices: dict[str, str]  # scalar names; the vector axis has its first lane here
    memo: dict[int, Value] = field(default_factory=dict)
    mask: str | None = None  # lanes in use, where not all are
    base: str = "0"  # where the panel that holds the vector starts


class KernelEmitter:
    """Emits one kernel as a function of the pointer table and a range of its outer loop."""

    def __init__(self, kernel: Kernel, target: Target, declare: set[str], number: int) -> None:
        self.kernel, self.target, self.number = kernel, target, number
        self.text = FunctionText()
        self.scalars = Scalars(self.text, target, declare)
        self.declare = declare
        self.affine_memo: dict[int, Affine | None] = {}
        self.expressions = k.walk([kernel.value])
        self.folds = [e for e in self.expressions if e.op == "fold"]
        self.lanes = 1
        self.vector_index = ""
        self.split = -1  # the axis that threads divide; its units are tiles
        self.units = 1
        self.pointers: dict[int, str] = {}
        for buffer in dict.fromkeys([*kernel.reads, kernel.out]):
            self.pointers[id(buffer)] = self._pointer(buffer)

    # ---- loops over the output -------------------------------------------------------------

    def emit(self) -> str:
        """The whole function."""
        axes = self._ordered_axes()
        sizes = zip(self.kernel.indices, self.kernel.shape, strict=True)
        fixed = {name: "0" for name, extent in sizes if extent == 1}
        if axes:
            vector = axes[-1]
            self._choose_split(axes[:-1], vector)
            self._outer_loops(axes[:-1], fixed, vector)
        else:
            self._points([Point(fixed)])
        self.text.do("ret void")
        return self._function()

    def _function(self) -> str:
        body = "\n".join(self.text.lines)
        return (
            f"define internal void @k{self.number}"
            f"(ptr %table, ptr %arena, i64 %begin, i64 %end) {{\n{body}\n}}\n"
        )

    @property
    def parallel(self) -> bool:
        """Whether the kernel is worth a second thread."""
        if self.units < 2 or self.kernel.limit is not None:
            return False
        cost = len(self.expressions)
        for fold in self.folds:
            terms = math.prod(loop.extent for loop in fold.attr[1])
            cost += terms * len(k.walk(fold.args))
        return cost * math.prod(self.kernel.shape) >= PARALLEL_COST

    def _choose_split(self, outer: list[int], vector: int) -> None:
        """Threads divide the outermost loop, or the vector axis where that loop is short."""
        shape = self.kernel.shape
        step = self._vector_step(vector)
        self.split, self.units = vector, -(-shape[vector] // step)
        if outer:
            rows = self._row_tile(outer, vector)
            tiles = -(-shape[outer[0]] // rows)
            if tiles >= FEW_UNITS or tiles >= self.units:
                self.split, self.units = outer[0], tiles

    def _bounds(self, axis: int, whole: int, step: int) -> tuple[str, str]:
        """Where the loop over whole tiles of an axis starts and stops, for this range of units."""
        if axis != self.split:
            return "0", str(whole)
        if step == 1:
            return "%begin", "%end"
        start = self.text.value(f"mul nsw i64 %begin, {step}")
        end = self.text.value(f"mul nsw i64 %end, {step}")
        return start, self.scalars.call("smin", i64, 1, [end, str(whole)])

    @contextmanager
    def _last_unit(self, axis: int, whole: int, step: int) -> Iterator[None]:
        """What remains of an axis after its whole tiles: the last unit of its range."""
        if axis != self.split:
            with self.text.scope():
                yield
            return
        last = str(whole // step)
        first = self.scalars.call("smax", i64, 1, ["%begin", last])
        with self.text.loop(first, "%end", 1, []):
            yield

    def _pointer(self, buffer: Buffer) -> str:
        root = buffer.root
        name = self.text.fresh("p")
        shift = buffer.first * buffer.dtype.bytes
        if root.kind == "temporary":
            self.text.do(f"{name} = getelementptr i8, ptr %arena, i64 {root.offset + shift}")
            return name
        slot, base = self.text.fresh("s"), self.text.fresh("b")
        self.text.do(f"{slot} = getelementptr ptr, ptr %table, i64 {root.slot}")
        self.text.do(f"{base} = load ptr, ptr {slot}")
        self.text.do(f"{name} = getelementptr i8, ptr {base}, i64 {shift}")
        return name

    def _ordered_axes(self) -> list[int]:
        """Axes of the output from the outermost loop to the vector axis."""
        kernel = self.kernel
        real = [n for n, d in enumerate(kernel.shape) if d != 1]
        if not real or kernel.limit is not None:
            return real
        vector = max(real, key=lambda n: (self._vector_score(n), n))
        rest = sorted((n for n in real if n != vector), key=lambda n: -kernel.out.strides[n])
        return [*rest, vector]

    def _vector_score(self, axis: int) -> float:
        name, score = self.kernel.indices[axis], 0.0
        for e in self.expressions:
            if e.op == "load":
                form = offset(e.args, e.attr.strides, self.affine_memo)
                step = None if form is None else form.get(name, 0)
                score += {None: -4.0, 0: 0.0, 1: 2.0}.get(step, -8.0)
        step = self.kernel.out.strides[axis]
        score += 1.0 if step == 1 else -4.0
        extent = self.kernel.shape[axis]
        return score + min(extent, self.target.lanes) / self.target.lanes * 6.0

    def _outer_loops(self, axes: list[int], at: dict[str, str], vector: int) -> None:
        kernel, text = self.kernel, self.text
        rows = self._row_tile(axes, vector)
        if not axes:
            self._vector_loops([at], vector)
            return
        axis = axes[0]
        extent, name = kernel.shape[axis], kernel.indices[axis]
        if len(axes) > 1 or rows == 1:
            with text.loop(*self._bounds(axis, extent, 1), 1, []) as (index, _, _n):
                self._outer_loops(axes[1:], {**at, name: index}, vector)
            return
        whole = extent - extent % rows
        if whole:
            with text.loop(*self._bounds(axis, whole, rows), rows, []) as (index, _, _n):
                lines = [
                    {**at, name: index if r == 0 else text.value(f"add nsw i64 {index}, {r}")}
                    for r in range(rows)
                ]
                self._vector_loops(lines, vector)
        if whole < extent:
            with self._last_unit(axis, whole, rows):
                self._vector_loops([{**at, name: str(r)} for r in range(whole, extent)], vector)

    def _row_tile(self, axes: list[int], vector: int) -> int:
        """Rows of a tile: as many as keep the accumulators and operands in registers."""
        if len(axes) != 1 or not any(f.attr[0] == "contract" for f in self.folds):
            return 1
        extent = self.kernel.shape[axes[0]]
        columns = self._column_tile(vector)
        best = max(1, (self.target.registers - columns - 2) // columns)
        best = min(best, extent, 8)
        if extent % best:
            for r in range(best, best // 2, -1):
                if extent % r == 0:
                    return r
        return best

    def _column_tile(self, vector: int) -> int:
        """Vectors of a tile."""
        if not any(f.attr[0] == "contract" for f in self.folds):
            return 1
        vectors = -(-self.kernel.shape[vector] // self.target.lanes)
        if vectors <= 4:
            return vectors
        return 4 if vectors % 4 == 0 else 3 if vectors % 3 in (0, 2) else 4

    def _vector_step(self, vector: int) -> int:
        """Elements of a tile along the vector axis."""
        return 1 if self._must_be_scalar() else self.target.lanes * self._column_tile(vector)

    def _vector_loops(self, lines: list[dict[str, str]], vector: int) -> None:
        kernel, text = self.kernel, self.text
        extent, name = kernel.shape[vector], kernel.indices[vector]
        self.vector_index = name
        lanes = 1 if self._must_be_scalar() else self.target.lanes
        step = self._vector_step(vector)
        whole = extent - extent % step
        if whole:
            with text.loop(*self._bounds(vector, whole, step), step, []) as (index, _, _n):
                self._tile(lines, name, index, step // lanes, lanes)
        if whole < extent:
            with self._last_unit(vector, whole, step):
                left = (extent - whole) // lanes if lanes > 1 else 0
                if left:
                    with text.scope():
                        self._tile(lines, name, str(whole), left, lanes)
                    whole += left * lanes
                if whole < extent:
                    self._ragged(lines, name, whole, extent, lanes)

    def _must_be_scalar(self) -> bool:
        return self.kernel.limit is not None

    def _ragged(
        self, lines: list[dict[str, str]], name: str, start: int, extent: int, lanes: int
    ) -> None:
        """The last elements, fewer than a vector: masked where the target can, else one by one."""
        if self.target.has_masks and lanes > 1:
            flags = ["true"] * (extent - start) + ["false"] * (lanes - extent + start)
            mask = "<" + ", ".join(f"i1 {f}" for f in flags) + ">"
            with self.text.scope():
                self._tile(lines, name, str(start), 1, lanes, mask)
            return
        with self.text.loop(str(start), str(extent), 1, []) as (index, _, _n):
            self._tile(lines, name, index, 1, 1)

    def _tile(
        self,
        lines: list[dict[str, str]],
        name: str,
        index: str,
        columns: int,
        lanes: int,
        mask: str | None = None,
    ) -> None:
        self.lanes = lanes
        points = []
        for line in lines:
            for column in range(columns):
                at = index
                if column:
                    at = self._sum(index, column * lanes)
                points.append(Point({**line, name: at}, mask=mask))
        self._points(points)

    def _sum(self, index: str, more: int) -> str:
        if more == 0:
            return index
        if not index.startswith("%"):
            return str(int(index) + more)
        return self.text.value(f"add nsw i64 {index}, {more}")

    def _points(self, points: list[Point]) -> None:
        self._evaluate(self.kernel.value, points)
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
                needed = e.args
                if e.op == "load" and offset(e.args, e.attr.strides, self.affine_memo) is not None:
                    needed = ()
                stack.extend((a, False) for a in needed)

    def _one(self, e: k.Expr, point: Point) -> Value:
        if e.op == "const":
            return literal(e.attr, e.dtype), 1
        if e.op == "index":
            return self._index(e.attr, point)
        if e.op == "load":
            return self._load(e, point)
        args = [point.memo[id(a)] for a in e.args]
        lanes = max(n for _, n in args)
        names = [self.widen(v, a.dtype, lanes) for v, a in zip(args, e.args, strict=True)]
        return self.scalars.apply(e, names, lanes), lanes

    def widen(self, value: Value, dtype: DType, lanes: int) -> str:
        name, have = value
        return name if have == lanes else self.scalars.splat(name, dtype, lanes)

    def _index(self, name: str, point: Point) -> Value:
        base = point.indices[name]
        if name != self.vector_index or self.lanes == 1:
            return base, 1
        type = llvm_type(i64, self.lanes)
        wide = self.scalars.splat(base, i64, self.lanes)
        steps = self.scalars.lane_numbers(self.lanes)
        return self.text.value(f"add {type} {wide}, {steps}"), self.lanes

    def _offset(self, form: Affine, point: Point) -> str:
        """Scalar offset of the first lane."""
        total, constant = "", form.get("", 0)
        for name, coefficient in form.items():
            if name == "":
                continue
            at = point.indices[name]
            if not at.startswith("%"):
                constant += int(at) * coefficient
                continue
            term = at if coefficient == 1 else self.text.value(f"mul nsw i64 {at}, {coefficient}")
            total = term if not total else self.text.value(f"add nsw i64 {total}, {term}")
        if not total:
            return str(constant)
        return self._sum(total, constant)

    def _product(self, index: str, factor: int) -> str:
        if not index.startswith("%"):
            return str(int(index) * factor)
        return self.text.value(f"mul nsw i64 {index}, {factor}")

    def _total(self, a: str, b: str) -> str:
        if not b.startswith("%"):
            return self._sum(a, int(b))
        if not a.startswith("%"):
            return self._sum(b, int(a))
        return self.text.value(f"add nsw i64 {a}, {b}")

    def _address(self, buffer: Buffer, at: str) -> str:
        kind = "i8" if buffer.dtype == bool_ else llvm_type(buffer.dtype, 1)
        pointer = self.pointers[id(buffer)]
        return self.text.value(f"getelementptr inbounds {kind}, ptr {pointer}, i64 {at}")

    def _load(self, e: k.Expr, point: Point) -> Value:
        buffer: Buffer = e.attr
        form = offset(e.args, buffer.strides, self.affine_memo)
        if form is None:
            return self._indirect_load(e, point)
        at = self._offset(form, point)
        if buffer.panel:
            more = self._product(point.base, buffer.panel_step)
            at = self._total(at, more)
        return self._strided_load(buffer, at, form, point)

    def _strided_load(self, buffer: Buffer, at: str, form: Affine, point: Point) -> Value:
        """A load whose first lane is at the offset `at`; `form` says how lanes move."""
        step = form.get(self.vector_index, 0) if self.lanes > 1 else 0
        if step == 0:
            return self._loaded(buffer, self._address(buffer, at), 1, None), 1
        lanes, mask = self.lanes, point.mask
        if step == 1:
            return self._loaded(buffer, self._address(buffer, at), lanes, mask), lanes
        type = llvm_type(i64, lanes)
        numbers = "<" + ", ".join(f"i64 {n * step}" for n in range(lanes)) + ">"
        wide = self.scalars.splat(at, i64, lanes)
        return self._gathered(buffer, self.text.value(f"add {type} {wide}, {numbers}"), mask), lanes

    def _indirect_load(self, e: k.Expr, point: Point) -> Value:
        """An index that is itself computed: one offset where it is the same for all lanes (the
        rows of a batch), else offsets lane by lane."""
        buffer: Buffer = e.attr
        values = [point.memo[id(a)] for a in e.args]
        forms = [affine(a, self.affine_memo) for a in e.args]
        computed = [v for v, form in zip(values, forms, strict=True) if form is None]
        if all(lanes == 1 for _, lanes in computed):
            return self._row_load(buffer, values, forms, point)
        total: k.Expr = k.const(0, i64)
        places = {}
        for n, (stride, value) in enumerate(zip(buffer.strides, values, strict=True)):
            total = total + k.var(f"i{n}", i64) * stride
            places[f"i{n}"] = self.widen(value, i64, self.lanes)
        offsets = self.scalars.tree(total, places, self.lanes)
        return self._gathered(buffer, offsets, point.mask), self.lanes

    def _row_load(
        self, buffer: Buffer, values: list[Value], forms: list[Affine | None], point: Point
    ) -> Value:
        """Some indices are computed scalars, the others move with the loops."""
        moving: Affine = {}
        fixed: k.Expr = k.const(0, i64)
        places = {}
        for n, (stride, form) in enumerate(zip(buffer.strides, forms, strict=True)):
            if form is not None:
                moving = added(moving, scaled(form, stride))
            else:
                fixed = fixed + k.var(f"i{n}", i64) * stride
                places[f"i{n}"] = values[n][0]
        row, along = self.scalars.tree(fixed, places, 1), self._offset(moving, point)
        at = self.text.value(f"add nsw i64 {row}, {along}")
        return self._strided_load(buffer, at, moving, point)

    def _loaded(self, buffer: Buffer, address: str, lanes: int, mask: str | None) -> str:
        """A load, masked at a ragged end; bools are bytes in memory."""
        kind = "i8" if buffer.dtype == bool_ else llvm_type(buffer.dtype, 1)
        type = kind if lanes == 1 else f"<{lanes} x {kind}>"
        align = buffer.dtype.bytes
        if lanes == 1 or mask is None:
            raw = self.text.value(f"load {type}, ptr {address}, align {align}")
        else:
            name = f"@llvm.masked.load.v{lanes}{self._suffix(buffer.dtype)}.p0"
            flag = f"<{lanes} x i1>"
            raw = self.text.value(
                f"call {type} {name}(ptr align {align} {address}, {flag} {mask}, "
                f"{type} zeroinitializer)"
            )
            self.declare.add(f"declare {type} {name}(ptr, {flag}, {type})")
        return self._from_memory(raw, buffer.dtype, type, lanes)

    def _suffix(self, dtype: DType) -> str:
        return {"f32": "f32", "f64": "f64", "i32": "i32", "i64": "i64"}.get(dtype.name, "i8")

    def _from_memory(self, raw: str, dtype: DType, type: str, lanes: int) -> str:
        if dtype != bool_:
            return raw
        zero = "0" if lanes == 1 else "zeroinitializer"
        return self.text.value(f"icmp ne {type} {raw}, {zero}")

    def _gathered(self, buffer: Buffer, offsets: str, mask: str | None) -> str:
        lanes = self.lanes
        kind = "i8" if buffer.dtype == bool_ else llvm_type(buffer.dtype, 1)
        type, flag = f"<{lanes} x {kind}>", f"<{lanes} x i1>"
        pointers = self.text.value(
            f"getelementptr {kind}, ptr {self.pointers[id(buffer)]}, "
            f"{llvm_type(i64, lanes)} {offsets}"
        )
        mask = mask or "<" + ", ".join(["i1 true"] * lanes) + ">"
        name = f"@llvm.masked.gather.v{lanes}{self._suffix(buffer.dtype)}.v{lanes}p0"
        align = buffer.dtype.bytes
        raw = self.text.value(
            f"call {type} {name}(<{lanes} x ptr> align {align} {pointers}, {flag} {mask}, "
            f"{type} zeroinitializer)"
        )
        self.declare.add(f"declare {type} {name}(<{lanes} x ptr>, {flag}, {type})")
        return self._from_memory(raw, buffer.dtype, type, lanes)

    # ---- folds -----------------------------------------------------------------------------

    def _fold(self, fold: k.Expr, points: list[Point]) -> list[Value]:
        """A reduction at all points at once: one loop, one accumulator a point."""
        loops = fold.attr[1]
        total = 1
        for loop in loops:
            total *= loop.extent
        rule = FoldRule(self, fold)
        if total == 0:
            return [(rule.empty(), 1)] * len(points)
        lanes = [self._fold_lanes(fold) for _ in points]
        start = [rule.start(n) for n in lanes]
        if total <= BLOCK or not rule.blocked:
            finals = self._chain(fold, rule, points, lanes, start, None)
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
        if bounds is not None:
            with self.text.loop(*bounds, 1, list(zip(types, start, strict=True))) as (q, now, new):
                more = self._unravel(q, loops)
                new.extend(self._step(fold, rule, points, lanes, now, more))
            return new

        def nest(n: int, carried: list[str], more: dict[str, str]) -> list[str]:
            if n == len(loops):
                return self._step(fold, rule, points, lanes, carried, more)
            pairs = list(zip(types, carried, strict=True))
            with self.text.loop("0", str(loops[n].extent), 1, pairs) as (index, now, new):
                new.extend(nest(n + 1, now, {**more, loops[n].name: index}))
            return new

        return nest(0, start, {})

    def _unravel(self, q: str, loops: tuple[k.Loop, ...]) -> dict[str, str]:
        more, rest = {}, q
        for loop in reversed(loops[1:]):
            more[loop.name] = self.text.value(f"urem i64 {rest}, {loop.extent}")
            rest = self.text.value(f"udiv i64 {rest}, {loop.extent}")
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

    def _store(self, point: Point) -> None:
        kernel, lanes, text = self.kernel, self.lanes, self.text
        out = kernel.out
        value = self.widen(point.memo[id(kernel.value)], kernel.value.dtype, lanes)
        form: Affine = {
            n: s
            for n, s, d in zip(kernel.indices, out.strides, kernel.shape, strict=True)
            if d != 1
        }
        kind = "i8" if out.dtype == bool_ else llvm_type(out.dtype, 1)
        type = kind if lanes == 1 else f"<{lanes} x {kind}>"
        if out.dtype == bool_:
            value = text.value(f"zext {llvm_type(bool_, lanes)} {value} to {type}")
        at = self._offset(form, point)
        step = form.get(self.vector_index, 0)
        align = out.dtype.bytes
        flag = f"<{lanes} x i1>"
        if lanes == 1 or (step == 1 and point.mask is None):
            text.do(f"store {type} {value}, ptr {self._address(out, at)}, align {align}")
        elif step == 1:
            name = f"@llvm.masked.store.v{lanes}{self._suffix(out.dtype)}.p0"
            text.do(
                f"call void {name}({type} {value}, ptr align {align} "
                f"{self._address(out, at)}, {flag} {point.mask})"
            )
            self.declare.add(f"declare void {name}({type}, ptr, {flag})")
        else:
            numbers = "<" + ", ".join(f"i64 {n * step}" for n in range(lanes)) + ">"
            wide = self.scalars.splat(at, i64, lanes)
            offsets = text.value(f"add {llvm_type(i64, lanes)} {wide}, {numbers}")
            pointers = text.value(
                f"getelementptr {kind}, ptr {self.pointers[id(out)]}, "
                f"{llvm_type(i64, lanes)} {offsets}"
            )
            mask = point.mask or "<" + ", ".join(["i1 true"] * lanes) + ">"
            name = f"@llvm.masked.scatter.v{lanes}{self._suffix(out.dtype)}.v{lanes}p0"
            text.do(
                f"call void {name}({type} {value}, <{lanes} x ptr> align {align} {pointers}, "
                f"{flag} {mask})"
            )
            self.declare.add(f"declare void {name}({type}, <{lanes} x ptr>, {flag})")

    def _check(self, point: Point) -> None:
        """A position outside its axis is written to the check's place: position, and 1."""
        text = self.text
        value, _ = point.memo[id(self.kernel.value)]
        bad = text.value(f"icmp uge i64 {value}, {self.kernel.limit}")
        tag = text.fresh("bad")[1:]
        text.do(f"br i1 {bad}, label %{tag}.yes, label %{tag}.no")
        text.label(f"{tag}.yes")
        text.do(f"store i64 {value}, ptr {self.pointers[id(self.kernel.out)]}")
        second = text.fresh()
        text.do(f"{second} = getelementptr i64, ptr {self.pointers[id(self.kernel.out)]}, i64 1")
        text.do(f"store i64 1, ptr {second}")
        text.do(f"br label %{tag}.no")
        text.label(f"{tag}.no")
