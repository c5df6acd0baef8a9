"""Elements of buffers as LLVM text: pointers, offsets, loads and stores at a vector of elements."""

from __future__ import annotations

from dataclasses import dataclass, field

from diptych.compiler.affine import Affine, added, affine, offset, scaled, uses
from diptych.compiler.kernels import Buffer, Kernel
from diptych.compiler.scalars import Scalars, llvm_type
from diptych.compiler.sizes import Sizes
from diptych.compiler.text import FunctionText
from diptych.dtypes import Dim, Dimension, DType, bool_, i64
from diptych.kernel import expr as k

Value = tuple[str, int]  # name, lanes


def parts(at: str) -> tuple[str, int]:
    """A scalar as a name, or none, and a number: `%i`, `7` and `%i+7`, as points have them. The
    number becomes part of an address, so that elements side by side share one computed offset."""
    if not at.startswith("%"):
        return "", int(at)
    name, _, more = at.partition("+")
    return name, int(more or 0)


@dataclass
class Point:
    """One vector of output elements: the values of the indices there."""

    indices: dict[str, str]  # scalars (see `parts`); the vector axis has its first lane here
    memo: dict[int, Value] = field(default_factory=dict)
    mask: str | None = None  # lanes in use, where not all are
    base: str = "0"  # where the panel that holds the vector starts


class Access:
    """The part of an emitter that moves elements between memory and registers."""

    kernel: Kernel
    value: k.Expr
    text: FunctionText
    scalars: Scalars
    sizes: Sizes
    declare: set[str]
    affine_memo: dict[int, Affine | None]
    pointers: dict[int, str]
    lanes: int
    vector_index: str
    inner: frozenset[str]  # the indices of the fold whose loops are open

    def size(self, dim: Dimension) -> str:
        """A size: its literal, or the name of what the entry of the function loads."""
        return self.sizes.size(dim)

    def _pointer(self, n: int) -> str:
        """The n-th argument of the kernel: where the n-th of its buffers begins."""
        at, name = self.text.fresh("a"), self.text.fresh("p")
        self.text.do(f"{at} = getelementptr ptr, ptr %buffers, i64 {n}")
        self.text.do(f"{name} = load ptr, ptr {at}")
        return name

    def widen(self, value: Value, dtype: DType, lanes: int) -> str:
        name, have = value
        return name if have == lanes else self.scalars.splat(name, dtype, lanes)

    def _index(self, name: str, point: Point) -> Value:
        base = self._plain(point.indices[name])
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
            base, more = parts(point.indices[name])
            constant = constant + more * coefficient
            if not base:
                continue
            term = base if coefficient == 1 else self._product(base, coefficient)
            total = term if not total else self.text.value(f"add nsw i64 {total}, {term}")
        return self._moved(total, constant) if total else self.size(constant)

    def _moved(self, index: str, more: Dimension) -> str:
        """A scalar and a number beside it, added where that is needed."""
        if isinstance(more, Dim) or not index.startswith("%"):
            return self._sum(index, more)
        name, before = parts(index)
        return f"{name}+{before + more}" if before + more else name

    def _plain(self, at: str) -> str:
        """A scalar as one name, or a literal."""
        name, more = parts(at)
        return self._sum(name, more) if name and more else name or at

    def _sum(self, index: str, more: Dimension) -> str:
        if more == 0:
            return self._plain(index)
        if not index.startswith("%"):
            return self.size(int(index) + more)
        name, before = parts(index)
        return self.text.value(f"add nsw i64 {name}, {self.size(before + more)}")

    def _product(self, index: str, factor: Dimension) -> str:
        if not index.startswith("%"):
            return self.size(int(index) * factor)
        return self.text.value(f"mul nsw i64 {index}, {self.size(factor)}")

    def _total(self, a: str, b: str) -> str:
        (name, more), (other, further) = parts(a), parts(b)
        if name and other:
            name = self.text.value(f"add nsw i64 {name}, {other}")
        return self._moved(name or other or "0", more + further)

    def _address(self, buffer: Buffer, at: str) -> str:
        return self._place(buffer, self.pointers[id(buffer)], at)

    def _place(self, buffer: Buffer, pointer: str, at: str) -> str:
        """So many elements behind a pointer."""
        kind = "i8" if buffer.dtype == bool_ else llvm_type(buffer.dtype, 1)
        name, more = parts(at)
        if name:
            pointer = self.text.value(f"getelementptr {kind}, ptr {pointer}, i64 {name}")
        if more:
            pointer = self.text.value(f"getelementptr {kind}, ptr {pointer}, i64 {more}")
        return pointer

    def _load(self, e: k.Expr, point: Point) -> Value:
        buffer: Buffer = e.attr
        form = offset(e.args, buffer.strides, self.affine_memo)
        if form is None:
            return self._indirect_load(e, point)
        step = form.get(self.vector_index, 0) if self.lanes > 1 else 0
        if self.inner.intersection(form) and step in (0, 1):
            base = self._outside(buffer, form, point)
            at = self._offset({n: form[n] for n in form if n in self.inner}, point)
            return self._element(buffer, base, at, step, point)
        at = self._offset(form, point)
        at = self._in_panel(buffer, at, point)
        return self._strided_load(buffer, at, form, point)

    def _element(self, buffer: Buffer, base: str, at: str, step: Dimension, point: Point) -> Value:
        """An element for all lanes, or a vector of elements side by side, `at` from an address."""
        address = self._place(buffer, base, at)
        lanes, mask = (1, None) if step == 0 else (self.lanes, point.mask)
        return self._loaded(buffer, address, lanes, mask), lanes

    def _outside(self, buffer: Buffer, form: Affine, point: Point) -> str:
        """Where a load in the loops of a fold starts: what does not move in them."""
        at = self._offset({n: form[n] for n in form if n not in self.inner}, point)
        return self._address(buffer, self._in_panel(buffer, at, point))

    def _in_panel(self, buffer: Buffer, at: str, point: Point) -> str:
        """An offset by strides, in the panel where the vector is."""
        panels = buffer.panels
        if panels is None:
            return at
        return self._total(at, self._product(point.base, panels.step // panels.width - 1))

    def _strided_load(self, buffer: Buffer, at: str, form: Affine, point: Point) -> Value:
        """A load whose first lane is at the offset `at`; `form` says how lanes move."""
        step = form.get(self.vector_index, 0) if self.lanes > 1 else 0
        if step == 0:
            return self._loaded(buffer, self._address(buffer, at), 1, None), 1
        lanes, mask = self.lanes, point.mask
        if step == 1:
            return self._loaded(buffer, self._address(buffer, at), lanes, mask), lanes
        return self._gathered(buffer, self._lane_offsets(at, step), mask), lanes

    def _lane_offsets(self, at: str, step: Dimension) -> str:
        """The offsets of all lanes, which move by a step other than 1."""
        type = llvm_type(i64, self.lanes)
        wide = self.scalars.splat(self._plain(at), i64, self.lanes)
        if isinstance(step, Dim):
            steps = self.scalars.splat(self.size(step), i64, self.lanes)
            lanes = self.scalars.lane_numbers(self.lanes)
            numbers = self.text.value(f"mul nsw {type} {steps}, {lanes}")
        else:
            numbers = "<" + ", ".join(f"i64 {n * step}" for n in range(self.lanes)) + ">"
        return self.text.value(f"add {type} {wide}, {numbers}")

    def _lanes_below(self, left: str, lanes: int) -> str:
        """A mask: the first `left` lanes."""
        wide = self.scalars.splat(left, i64, lanes)
        numbers = self.scalars.lane_numbers(lanes)
        return self.text.value(f"icmp slt <{lanes} x i64> {numbers}, {wide}")

    def _one_row(self, e: k.Expr) -> bool:
        """Whether the computed positions of a load are the same for all lanes."""
        return self.lanes == 1 or all(
            affine(a, self.affine_memo) is not None or not uses(a, {self.vector_index})
            for a in e.args
        )

    def _needed(self, e: k.Expr) -> list[k.Expr]:
        """What must be computed before an expression is."""
        if e.op != "load" or not self._one_row(e):
            return list(e.args)
        return [a for a in e.args if affine(a, self.affine_memo) is None]

    def _indirect_load(self, e: k.Expr, point: Point) -> Value:
        """An index that is itself computed: one offset where it is the same for all lanes (the
        rows of a batch), else offsets lane by lane."""
        buffer: Buffer = e.attr
        if self._one_row(e):
            return self._row_load(e, point)
        values = [point.memo[id(a)] for a in e.args]
        total: k.Expr = k.const(0, i64)
        places: dict[str, str] = {}
        for n, (stride, value) in enumerate(zip(buffer.strides, values, strict=True)):
            total = total + k.var(f"i{n}", i64) * self._factor(stride, places, self.lanes)
            places[f"i{n}"] = self.widen(value, i64, self.lanes)
        offsets = self.scalars.tree(total, places, self.lanes)
        return self._gathered(buffer, offsets, point.mask), self.lanes

    def _row_load(self, e: k.Expr, point: Point) -> Value:
        """Some positions are computed scalars, the others move with the loops."""
        moving = self._moving(e)
        inside = {n: s for n, s in moving.items() if n in self.inner}
        step = moving.get(self.vector_index, 0) if self.lanes > 1 else 0
        if not self.inner or step not in (0, 1):
            at = self._total(self._row(e, point), self._offset(moving, point))
            return self._strided_load(e.attr, at, moving, point)
        base, at = self._row_base(e, point), self._offset(inside, point)
        if self._row_moves(e):
            at = self._total(self._row(e, point), at)
        return self._element(e.attr, base, at, step, point)

    def _row_base(self, e: k.Expr, point: Point) -> str:
        """Where a load in the loops of a fold starts: what does not move in them."""
        moving = self._moving(e)
        at = self._offset({n: s for n, s in moving.items() if n not in self.inner}, point)
        if not self._row_moves(e):
            at = self._total(self._row(e, point), at)
        return self._address(e.attr, at)

    def _row_moves(self, e: k.Expr) -> bool:
        """Whether the computed positions of a load change in the loops of the fold."""
        return any(affine(a, self.affine_memo) is None and uses(a, self.inner) for a in e.args)

    def _moving(self, e: k.Expr) -> Affine:
        """The part of a load's offset that is affine."""
        moving: Affine = {}
        for stride, a in zip(e.attr.strides, e.args, strict=True):
            moving = added(moving, scaled(affine(a, self.affine_memo) or {}, stride))
        return moving

    def _row(self, e: k.Expr, point: Point) -> str:
        """The part of a load's offset that is computed, one number for all lanes."""
        fixed: k.Expr = k.const(0, i64)
        places: dict[str, str] = {}
        for n, (stride, a) in enumerate(zip(e.attr.strides, e.args, strict=True)):
            if affine(a, self.affine_memo) is None:
                fixed = fixed + k.var(f"i{n}", i64) * self._factor(stride, places, 1)
                places[f"i{n}"] = point.memo[id(a)][0]
        return self.scalars.tree(fixed, places, 1)

    def _factor(self, stride: Dimension, places: dict[str, str], lanes: int) -> k.Operand:
        """A stride in an expression over `places`."""
        if isinstance(stride, Dim):
            name = self.size(stride)
            places[str(stride)] = name if lanes == 1 else self.scalars.splat(name, i64, lanes)
            return k.var(str(stride), i64)
        return stride

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

    def _store(self, point: Point) -> None:
        kernel, lanes, text = self.kernel, self.lanes, self.text
        out = kernel.out
        value = self.widen(point.memo[id(self.value)], self.value.dtype, lanes)
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
            offsets = self._lane_offsets(at, step)
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
