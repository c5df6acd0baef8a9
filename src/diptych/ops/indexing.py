"""Primitives that read or write by position: gather, scatter_add, one_hot, arange, indexing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from diptych.dtypes import BY_NAME, Dim, Dimension, TensorType, as_dtype, f32, i64
from diptych.errors import DtypeError, ShapeError
from diptych.graph.node import Node, Operator, Source
from diptych.kernel import expr as k
from diptych.kernel.expr import Expr
from diptych.ops.base import Handle, convert, operand, primitive, record, whole
from diptych.ops.elementwise import add, equal, multiply
from diptych.ops.shape import Slice, expand_dims, normal_axis, reshape, transpose

Array = np.ndarray[Any, Any]


def _need_integer(t: TensorType, what: str) -> None:
    if t.dtype not in (i64, BY_NAME["i32"]):
        raise DtypeError(f"{what} takes i32 or i64 positions", f"{t}", "convert with .astype")


@primitive
class Gather(Operator):
    """out[i..., j...] = x[index[i...], j...] along axis 0; positions are checked to be inside."""

    name: ClassVar[str] = "gather"

    def infer(self, *inputs: TensorType) -> TensorType:
        x, index = inputs
        _need_integer(index, "gather")
        if x.rank == 0:
            raise ShapeError(
                "gather reads along the first axis",
                f"{x} has none",
                "give it an axis with x.reshape(1)",
            )
        return x.with_shape((*index.shape, *x.shape[1:]))

    def positions(self, *inputs: TensorType) -> list[tuple[int, Dimension, str]]:
        return [(1, inputs[0].shape[0], "position")]

    def reference(self, *inputs: Array) -> Array:
        return inputs[0][inputs[1]]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        x, index = node.inputs
        return [record(ScatterAdd(x.type.shape), index, g), None]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        x, index = inputs
        rank = index.type.rank
        return lambda *i: x.at(k.cast(index.at(*i[:rank]), i64), *i[rank:])


@primitive
class ScatterAdd(Operator):
    """Zeros of `shape`, and out[index[i...]] += update[i...] in ascending order of i.

    Each element starts from +0, and the updates at its position are added in ascending order.
    """

    shape: tuple[Dimension, ...]
    name: ClassVar[str] = "scatter_add"

    def infer(self, *inputs: TensorType) -> TensorType:
        index, update = inputs
        _need_integer(index, "scatter_add")
        if update.shape != (*index.shape, *self.shape[1:]):
            raise ShapeError(
                "scatter_add takes one row of the result per position",
                f"index {index}, update {update}, result {list(self.shape)}",
                "check the shapes of index and update",
            )
        return update.with_shape(self.shape)

    def positions(self, *inputs: TensorType) -> list[tuple[int, Dimension, str]]:
        return [(0, self.shape[0], "position")]

    def reference(self, *inputs: Array) -> Array:
        index, update = inputs
        result = np.zeros(self.shape, update.dtype)  # type: ignore[type-var]
        np.add.at(
            result, index.reshape(-1), update.reshape(index.size, *update.shape[index.ndim :])
        )
        return result

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None, record(Gather(), g, node.inputs[0])]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        index, update = inputs
        rank = index.type.rank
        from diptych.ops.reduce import _serial

        loops = [k.Loop(f"s{next(_serial)}", d) for d in index.type.shape]
        places = [k.index(loop.name) for loop in loops]

        def at(*i: Expr) -> Expr:
            hit = k.cast(index.at(*places), i64).equals(i[0])
            return k.fold("scatter", loops, hit, update.at(*places, *i[1:]))

        assert rank == len(loops)
        return at


@primitive
class Arange(Operator):
    """0, 1, ... size - 1 in i64."""

    size: Dimension
    name: ClassVar[str] = "arange"

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType((self.size,), i64)

    def reference(self, *inputs: Array) -> Array:
        return np.arange(self.size, dtype=np.int64)  # type: ignore[arg-type]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return []

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        return lambda i: i


def gather(x: Any, index: Any, axis: int = 0) -> Handle:
    """Rows of x by position: x (5, 3), index (2,) -> (2, 3). Negative positions are errors."""
    x, index = operand(x), operand(index)
    axis = normal_axis(axis, x.type.rank, "gather")
    if axis == 0:
        return record(Gather(), x, index)
    rank, extra = x.type.rank, index.type.rank
    front = transpose(x, (axis, *[n for n in range(rank) if n != axis]))
    taken = record(Gather(), front, index)
    order = [*range(extra, extra + axis), *range(extra), *range(extra + axis, extra + rank - 1)]
    return transpose(taken, order)


def scatter_add(index: Any, update: Any, size: int) -> Handle:
    """Rows summed by position: index (n,), update (n, d) -> (size, d)."""
    index, update = operand(index), operand(update)
    shape = (whole(size, "a size", 0), *update.type.shape[index.type.rank :])
    return record(ScatterAdd(shape), index, update)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Handle:
    """start, start + step, ... below stop, as numpy has it; start + i*step is computed in f64
    for floats and rounded once."""

    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ShapeError("arange moves on", f"step {step}", "a step above or below 0")
    numbers = (start, stop, step)
    if any(isinstance(v, float) for v in numbers):
        count = np.ceil((stop - start) / step)
        if not np.isfinite(count):
            raise ShapeError(
                "arange ends somewhere", f"from {start} to {stop} by {step}", "finite numbers"
            )
        size = max(0, int(count))
        base = convert(record(Arange(size)), as_dtype("f64"))
        return convert(add(multiply(base, float(step)), float(start)), as_dtype(dtype or f32))
    if isinstance(stop, Dim) or isinstance(start, Dim):
        size_ = stop - start
    else:
        size_ = max(0, -((start - stop) // step))
    result = record(Arange(whole(size_, "a size")))
    if step != 1:
        result = multiply(result, step)
    if not (isinstance(start, int) and start == 0):
        result = add(result, start)
    return convert(result, as_dtype(dtype or i64))


def is_at(index: Any, classes: Dimension, dtype: Any) -> Handle:
    """1 where the last axis equals the index, else 0. Positions are not checked: gradients call
    this, whose forward operator has checked them."""
    return convert(equal(expand_dims(index, -1), arange(classes, dtype=index.type.dtype)), dtype)


@primitive
class OneHot(Operator):
    """1 where the last axis equals the index, else 0; positions are checked to be inside."""

    classes: Dimension
    dtype: str
    name: ClassVar[str] = "one_hot"

    def infer(self, *inputs: TensorType) -> TensorType:
        (index,) = inputs
        _need_integer(index, "one_hot")
        return TensorType((*index.shape, self.classes), BY_NAME[self.dtype])

    def positions(self, *inputs: TensorType) -> list[tuple[int, Dimension, str]]:
        return [(0, self.classes, "position")]

    def reference(self, *inputs: Array) -> Array:
        (index,) = inputs
        hot: Array = index[..., None] == np.arange(self.classes)  # type: ignore[arg-type]
        return hot.astype(BY_NAME[self.dtype].numpy)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        (index,) = inputs
        return lambda *i: k.cast(k.cast(index.at(*i[:-1]), i64).equals(i[-1]), out.dtype)


def one_hot(index: Any, classes: Dimension, dtype: Any = f32) -> Handle:
    """1 where the last axis equals the index, else 0: (n,) -> (n, classes). Positions below 0, and
    from `classes` on, are errors."""
    classes = whole(classes, "the number of classes", 0)
    return record(OneHot(classes, as_dtype(dtype).name), operand(index))


def take(x: Any, key: Any) -> Handle:
    """Basic indexing: ints, slices, ellipsis, None, and an index tensor on one axis."""
    x = operand(x)
    parts = list(key) if isinstance(key, tuple) else [key]
    parts = _without_ellipsis(parts, x.type)
    starts, sizes, steps, shape = [], [], [], []
    tensor: tuple[int, Any] | None = None
    axis = 0
    for part in parts:
        if part is None:
            shape.append(1)
            continue
        size = x.type.shape[axis]
        if isinstance(part, slice):
            start, count, step = _slice(part, size)
            shape.append(count)  # type: ignore[arg-type]
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            start, count, step = _position(int(part), size, x.type), 1, 1
        else:
            if tensor is not None:
                raise ShapeError(
                    "indexing takes an index tensor on one axis", f"{x.type}", "use gather"
                )
            tensor = (len(shape), operand(part))
            if tensor[1].type.dtype.name == "bool":
                raise DtypeError(
                    "an index tensor holds positions; how many a mask selects is not known",
                    f"{tensor[1].type} as an index of {x.type}",
                    "where(mask, x, 0) keeps the shape",
                )
            start, count, step = 0, size, 1
            shape.append(count)
        starts.append(start)
        sizes.append(count)
        steps.append(step)
        axis += 1
    result = x
    if tuple(sizes) != x.type.shape or any(s != 1 for s in steps):
        result = record(Slice(tuple(starts), tuple(sizes), tuple(steps)), x)
    result = reshape(result, tuple(shape))
    return result if tensor is None else gather(result, tensor[1], tensor[0])


def _without_ellipsis(parts: list[Any], t: TensorType) -> list[Any]:
    if sum(p is Ellipsis for p in parts) > 1:
        raise ShapeError("indexing takes one ellipsis", f"two for {t}", "write out the axes")
    used = sum(p is not None and p is not Ellipsis for p in parts)
    if used > t.rank:
        raise ShapeError(
            "indexing takes at most one index per axis", f"{used} for {t}", "drop some"
        )
    fill = [slice(None)] * (t.rank - used)
    for n, p in enumerate(parts):
        if p is Ellipsis:
            return parts[:n] + fill + parts[n + 1 :]
    return parts + fill


def _position(n: int, size: Dimension, t: TensorType) -> int:
    if isinstance(size, Dim):
        if n < 0:
            raise ShapeError(
                "an index from the end of a symbolic axis",
                f"{n} of {t}",
                "count from the front, or give the axis a size",
            )
        return n
    if not -size <= n < size:
        raise ShapeError(
            "an index lies inside its axis", f"{n} for size {size} of {t}", "check the shape"
        )
    return n % size


def _slice(part: slice, size: Dimension) -> tuple[Dimension, Dimension, int]:
    for bound in (part.start, part.stop, part.step):
        if bound is not None:
            whole(bound, "a bound of a slice")
    if isinstance(size, Dim):
        if part == slice(None):
            return 0, size, 1
        if part == slice(None, None, -1):
            return size - 1, size, -1
        raise ShapeError(
            "a slice of a symbolic axis takes all of it, forward or backward",
            f"{part} of {size}",
            "give the axis a size, or slice outside of the program",
        )
    if part.step == 0:
        raise ShapeError("a slice moves on", "a step of 0", "a step above or below 0")
    start, stop, step = part.indices(size)
    return start, len(range(start, stop, step)), step
