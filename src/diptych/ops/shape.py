"""Primitives that move elements: broadcast, reshape, transpose, slice, pad, concat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from diptych.dtypes import (
    Dimension,
    Shape,
    TensorType,
    bool_,
    broadcast_shapes,
    exact_quotient,
    i64,
    product,
    promote,
    symbols,
)
from diptych.errors import ShapeError
from diptych.graph.node import Node, Operator, Source
from diptych.kernel import expr as k
from diptych.kernel.expr import Expr
from diptych.ops.base import Handle, as_shape, convert, operand, primitive, record, whole

Array = np.ndarray[Any, Any]


def broadcast_source(source: Source, shape: Shape) -> Callable[..., Expr]:
    """The element of `source` seen as broadcast to `shape`."""
    own = source.type.shape
    skip = len(shape) - len(own)
    spread = [d == 1 and shape[skip + n] != 1 for n, d in enumerate(own)]
    zero = k.const(0, i64)
    return lambda *i: source.at(*[zero if s else x for s, x in zip(spread, i[skip:], strict=True)])


def unbroadcast(g: Handle, shape: Shape) -> Handle:
    """Sum a cotangent back to the shape that was broadcast: one list, ascending axes."""
    from diptych.ops.reduce import reduce_sum

    have = g.type.shape
    if have == shape:
        return g
    extra = len(have) - len(shape)
    if extra < 0:
        return broadcast_to(g, shape)
    axes = [*range(extra)]
    axes += [n + extra for n, d in enumerate(shape) if d == 1 and have[n + extra] != 1]
    if axes:
        g = reduce_sum(g, tuple(axes), keepdims=False)
    if g.type.shape != shape:
        sized = [d for n, d in enumerate(have) if n not in axes]
        if tuple(d for d in sized if d != 1) != tuple(d for d in shape if d != 1):
            g = broadcast_to(g, shape)
        else:
            g = reshape(g, shape)
    return g


@primitive
class Broadcast(Operator):
    """Spread to a larger shape by numpy's rule."""

    shape: Shape
    name: ClassVar[str] = "broadcast"

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if broadcast_shapes(x.shape, self.shape, "broadcast") != self.shape:
            raise ShapeError(
                "broadcast_to keeps sizes or spreads a size of 1",
                f"{x} to {list(self.shape)}",
                "reshape it first",
            )
        return x.with_shape(self.shape)

    def reference(self, *inputs: Array) -> Array:
        return np.broadcast_to(inputs[0], self.shape)  # type: ignore[arg-type]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [unbroadcast(g, node.inputs[0].type.shape)]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        return broadcast_source(inputs[0], out.shape)


def broadcast_to(x: Any, shape: Sequence[Dimension]) -> Handle:
    """x spread to `shape`: (3, 1) -> (3, 4)."""
    x, shape = operand(x), as_shape(shape)
    return x if x.type.shape == shape else record(Broadcast(shape), x)


@primitive
class Reshape(Operator):
    """The same elements in row-major order under another shape."""

    shape: Shape
    name: ClassVar[str] = "reshape"

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if x.size != product(self.shape):
            raise ShapeError(
                "reshape keeps the number of elements",
                f"{x} has {x.size}, {list(self.shape)} has {product(self.shape)}",
                "give one dimension as -1 to have it computed",
            )
        return x.with_shape(self.shape)

    def reference(self, *inputs: Array) -> Array:
        return inputs[0].reshape(self.shape)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [reshape(g, node.inputs[0].type.shape)]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        (x,) = inputs

        def at(*i: Expr) -> Expr:
            linear: Expr = k.const(0, i64)
            for extent, position in zip(out.shape, i, strict=True):
                linear = linear * extent + position
            indices: list[Expr] = []
            for extent in reversed(x.type.shape):
                indices.append(k.rem(linear, extent))
                linear = linear / extent
            return x.at(*reversed(indices))

        return at


def reshape(x: Any, *shape: Any) -> Handle:
    """x under another shape; one dimension may be -1: (2, 6) -> (3, 4)."""
    x = operand(x)
    dims = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
    listed: list[Dimension] = [whole(d, "a size") for d in dims]
    holes = [n for n, d in enumerate(listed) if isinstance(d, int) and d == -1]
    if any(isinstance(d, int) and d < -1 for d in listed) or len(holes) > 1:
        raise ShapeError(
            "reshape takes sizes, at most one of them -1", f"{list(dims)}", "give the others"
        )
    if holes:
        known = product(d for n, d in enumerate(listed) if n != holes[0])
        if known == 0:
            raise ShapeError(
                "a size of -1 is computed from the others, none of them 0",
                f"{x.type} to {list(dims)}",
                "write the size out: any would do",
            )
        rest = exact_quotient(x.type.size, known)
        if rest is None:
            raise ShapeError(
                "reshape keeps the number of elements",
                f"{x.type} has {x.type.size}, not a multiple of {known}",
                "check the other dimensions",
            )
        listed[holes[0]] = rest
    if tuple(listed) == x.type.shape:
        return x
    return record(Reshape(tuple(listed)), x)


@primitive
class Transpose(Operator):
    """Axes in another order: out axis n is input axis order[n]."""

    order: tuple[int, ...]
    name: ClassVar[str] = "transpose"

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if sorted(self.order) != list(range(x.rank)):
            raise ShapeError(
                "transpose takes every axis once", f"{self.order} for {x}", "e.g. (1, 0)"
            )
        return x.with_shape(x.shape[a] for a in self.order)

    def reference(self, *inputs: Array) -> Array:
        return inputs[0].transpose(self.order)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        back = tuple(self.order.index(n) for n in range(len(self.order)))
        return [transpose(g, back)]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        (x,) = inputs
        back = [self.order.index(n) for n in range(len(self.order))]
        return lambda *i: x.at(*[i[b] for b in back])


def transpose(x: Any, order: Sequence[int] | None = None) -> Handle:
    """Axes in another order, reversed by default: (2, 3, 4) -> (4, 3, 2)."""
    x = operand(x)
    rank = x.type.rank
    axes = tuple(range(rank))[::-1]
    if order is not None:
        axes = tuple(normal_axis(a, rank, "transpose") for a in order)
    return x if axes == tuple(range(rank)) else record(Transpose(axes), x)


def _inside(
    starts: Sequence[Dimension], sizes: Shape, steps: Sequence[int], shape: Shape, what: str
) -> None:
    """Positions start + step * n for n below size lie inside a shape, on every axis."""
    for start, size, step, extent in zip(starts, sizes, steps, shape, strict=True):
        if size == extent and start == 0 and step == 1:
            continue
        last = start + step * (size - 1)
        known = not symbols((start, last, extent))
        if step == 0 or (known and size != 0 and not (0 <= start < extent and 0 <= last < extent)):  # type: ignore[operator]
            raise ShapeError(
                f"{what} stays inside the axis",
                f"{size} positions from {start} in steps of {step} in a size of {extent}",
                "check the start, the size and the step",
            )


@primitive
class Slice(Operator):
    """x[start : start + step*size : step] along every axis; step may be negative."""

    starts: tuple[Dimension, ...]
    sizes: Shape
    steps: tuple[int, ...]
    name: ClassVar[str] = "slice"

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        _inside(self.starts, self.sizes, self.steps, x.shape, "slice")
        return x.with_shape(self.sizes)

    def reference(self, *inputs: Array) -> Array:
        result = inputs[0]
        for axis, (start, size, step) in enumerate(
            zip(self.starts, self.sizes, self.steps, strict=True)
        ):
            places = start + step * np.arange(size)  # type: ignore[operator, arg-type]
            result = np.take(result, places, axis)
        return result

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [record(Place(self.starts, node.inputs[0].type.shape, self.steps), g)]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        (x,) = inputs
        parts = list(zip(self.starts, self.steps, strict=True))
        return lambda *i: x.at(*[n * t + s for n, (s, t) in zip(i, parts, strict=True)])


@primitive
class Place(Operator):
    """Zeros of `shape` with the input at start, start + step, ... : the transpose of slice."""

    starts: tuple[Dimension, ...]
    shape: Shape
    steps: tuple[int, ...]
    name: ClassVar[str] = "place"

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        _inside(self.starts, x.shape, self.steps, self.shape, "place")
        return x.with_shape(self.shape)

    def reference(self, *inputs: Array) -> Array:
        (x,) = inputs
        result = np.zeros(self.shape, x.dtype)  # type: ignore[type-var]
        where = [
            s + t * np.arange(n) for s, t, n in zip(self.starts, self.steps, x.shape, strict=True)
        ]
        result[np.ix_(*where)] = x
        return result

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [record(Slice(self.starts, node.inputs[0].type.shape, self.steps), g)]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        (x,) = inputs
        parts = list(zip(self.starts, self.steps, x.type.shape, strict=True))

        def at(*i: Expr) -> Expr:
            if 0 in x.type.shape:  # which has no element to read
                return k.const(0, x.type.dtype)
            inside: Expr = k.const(True, bool_)
            indices = []
            for n, (start, step, size) in zip(i, parts, strict=True):
                offset = n - start if step > 0 else start - n
                place = offset if abs(step) == 1 else offset / abs(step)
                ok = (offset >= 0) & (place < size)
                if abs(step) != 1:
                    ok = ok & k.rem(offset, abs(step)).equals(0)
                inside = inside & ok
                indices.append(k.select(ok, place, 0))
            return k.select(inside, x.at(*indices), 0)

        return at


def pad(x: Any, widths: Sequence[tuple[int, int]]) -> Handle:
    """Zeros around x: one (before, after) pair per axis."""
    x, pairs = operand(x), [as_shape(w) for w in widths]
    if len(pairs) != x.type.rank or any(len(p) != 2 for p in pairs):
        raise ShapeError(
            "pad takes one (before, after) pair per axis",
            f"{widths!r} for {x.type}",
            "use (0, 0) for axes that stay",
        )
    shape = tuple(d + a + b for d, (a, b) in zip(x.type.shape, pairs, strict=True))
    starts = tuple(int(a) for a, _ in pairs)  # type: ignore[arg-type]
    return record(Place(starts, shape, (1,) * x.type.rank), x)


@primitive
class Concat(Operator):
    """Inputs one after another along an axis."""

    axis: int
    name: ClassVar[str] = "concat"

    def infer(self, *inputs: TensorType) -> TensorType:
        first = inputs[0]
        total: Dimension = 0
        for t in inputs:
            same = t.rank == first.rank and all(
                n == self.axis or a == b
                for n, (a, b) in enumerate(zip(t.shape, first.shape, strict=False))
            )
            if not same:
                raise ShapeError(
                    f"concat needs equal sizes on every axis but {self.axis}",
                    f"{first} and {t}",
                    "reshape or transpose one of them",
                )
            total = total + t.shape[self.axis]
        shape = list(first.shape)
        shape[self.axis] = total
        return first.with_shape(shape)

    def reference(self, *inputs: Array) -> Array:
        return np.concatenate(inputs, self.axis)

    def _starts(self, inputs: Sequence[TensorType]) -> list[Dimension]:
        starts: list[Dimension] = []
        at: Dimension = 0
        for t in inputs:
            starts.append(at)
            at = at + t.shape[self.axis]
        return starts

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        types = [i.type for i in node.inputs]
        result: list[Node | None] = []
        for start, t in zip(self._starts(types), types, strict=True):
            starts: list[Dimension] = [0] * t.rank
            starts[self.axis] = start
            result.append(record(Slice(tuple(starts), t.shape, (1,) * t.rank), g))
        return result

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        starts = self._starts([s.type for s in inputs])

        def at(*i: Expr) -> Expr:
            position = i[self.axis]
            result: Expr | None = None
            for start, source in zip(starts, inputs, strict=True):
                size = source.type.shape[self.axis]
                if size == 0:
                    continue
                inside = (position >= start) & (position < start + size)
                own = list(i)
                own[self.axis] = k.select(inside, position - start, 0)
                value = source.at(*own)
                result = value if result is None else k.select(inside, value, result)
            return result if result is not None else k.const(0, out.dtype)

        return at


def normal_axis(axis: Any, rank: int, what: str) -> int:
    axis = whole(axis, "an axis")
    if rank == 0:
        raise ShapeError(
            f"{what} takes an axis", f"axis {axis} of a number, which has none", "x.reshape(1)"
        )
    if not -rank <= axis < rank:
        raise ShapeError(
            f"{what} takes an axis from {-rank} to {rank - 1}", f"axis {axis}", "check the rank"
        )
    return int(axis % rank)


def concat(tensors: Sequence[Any], axis: int = 0) -> Handle:
    """Tensors one after another along an axis: (2, 3), (1, 3) -> (3, 3)."""
    handles = [operand(t) for t in tensors]
    if not handles:
        raise ShapeError(
            "concat needs at least one tensor", "an empty list", "pass a list of tensors"
        )
    dtype = handles[0].type.dtype
    for h in handles[1:]:
        dtype = promote(dtype, h.type.dtype, "concat")
    axis = normal_axis(axis, handles[0].type.rank, "concat")
    return record(Concat(axis), *[convert(h, dtype) for h in handles])


def stack(tensors: Sequence[Any], axis: int = 0) -> Handle:
    """Tensors of one shape along a new axis: two of (3,) -> (2, 3)."""
    handles = [operand(t) for t in tensors]
    if not handles:
        raise ShapeError(
            "stack needs at least one tensor", "an empty list", "pass a list of tensors"
        )
    axis = normal_axis(axis, handles[0].type.rank + 1, "stack")
    return concat([expand_dims(h, axis) for h in handles], axis)


def expand_dims(x: Any, axis: int) -> Handle:
    """A new axis of size 1."""
    x = operand(x)
    axis = normal_axis(axis, x.type.rank + 1, "expand_dims")
    return reshape(x, (*x.type.shape[:axis], 1, *x.type.shape[axis:]))


def squeeze(x: Any, axis: int | None = None) -> Handle:
    """Without the axes of size 1, or without one of them."""
    x = operand(x)
    shape = x.type.shape
    if axis is None:
        return reshape(x, tuple(d for d in shape if d != 1))
    axis = normal_axis(axis, len(shape), "squeeze")
    if shape[axis] != 1:
        raise ShapeError(
            "squeeze removes an axis of size 1",
            f"axis {axis} of {x.type}",
            "check the shape, or use reshape",
        )
    return reshape(x, shape[:axis] + shape[axis + 1 :])


def flatten(x: Any, start: int = 1) -> Handle:
    """The axes from `start` on as one: (16, 28, 28) -> (16, 784). A number becomes one element."""
    x = operand(x)
    shape = x.type.shape
    start = normal_axis(start, len(shape), "flatten") if shape else 0
    return reshape(x, (*shape[:start], product(shape[start:])))
