"""Reductions: sum, prod, max, min, any, all, argmax, argmin, and mean made of sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import numpy as np

from diptych.dtypes import BY_NAME, Dim, Dimension, TensorType, bool_, i64, product
from diptych.errors import DtypeError, ShapeError
from diptych.graph.node import Node, Operator, Source
from diptych.kernel import expr as k
from diptych.kernel import scalar as scalar_ops
from diptych.kernel.expr import Expr
from diptych.ops.base import Handle, convert, operand, primitive, record
from diptych.ops.elementwise import divide, equal, multiply, where
from diptych.ops.shape import broadcast_to, normal_axis, reshape

Array = np.ndarray[Any, Any]
BLOCK = 1024  # terms in one chain (rules 3 and 4 of the contract)
_serial = count()


def ordered_sum(terms: Array) -> Array:
    """Rule 4 along axis 0: chains of 1024, then the list of their sums by the same rule."""
    n = terms.shape[0]
    if n == 0:
        return np.zeros(terms.shape[1:], terms.dtype)
    whole = n - n % BLOCK
    blocks = terms[:whole].reshape(whole // BLOCK, BLOCK, *terms.shape[1:])
    sums = [] if n == whole else [_chain(terms[whole:])]
    if whole:
        sums = [*_chain(blocks.swapaxes(0, 1)), *sums]
    return sums[0] if len(sums) == 1 else ordered_sum(np.stack(sums))


def _chain(terms: Array) -> Array:
    """The sum along axis 0, left to right."""
    total: Array = terms[0].copy()
    for term in terms[1:]:
        total = total + term
    return total


@dataclass(frozen=True)
class Reduction(Operator):
    """Over `axes` (ascending) as one list, lexicographic; without those axes in the result."""

    axes: tuple[int, ...]
    kind: ClassVar[str]

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if list(self.axes) != sorted(set(self.axes)) or not set(self.axes) <= set(range(x.rank)):
            raise ShapeError(
                "a reduction names axes in ascending order",
                f"{self.axes} of {x}",
                "sum(x, axis=(0, 1)) sorts them",
            )
        return TensorType(
            tuple(d for n, d in enumerate(x.shape) if n not in self.axes), self.result(x)
        )

    def result(self, x: TensorType) -> Any:
        return x.dtype

    def combine(self, terms: Array) -> Array:
        raise NotImplementedError

    def reference(self, *inputs: Array) -> Array:
        (x,) = inputs
        kept = [n for n in range(x.ndim) if n not in self.axes]
        listed = x.transpose([*self.axes, *kept])
        size = int(np.prod([x.shape[a] for a in self.axes], dtype=np.int64))
        with np.errstate(all="ignore"):
            return self.combine(listed.reshape(size, *[x.shape[n] for n in kept]))

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        (x,) = inputs
        loops = [k.Loop(f"r{next(_serial)}", x.type.shape[a]) for a in self.axes]

        def at(*i: Expr) -> Expr:
            outer = iter(i)
            inner = iter(loops)
            indices = [
                k.index(next(inner).name) if n in self.axes else next(outer)
                for n in range(x.type.rank)
            ]
            return k.fold(self.kind, loops, x.at(*indices))

        return at

    def spread(self, g: Node, x: Node) -> Handle:
        """g with the reduced axes back as size 1, then broadcast over x."""
        kept = tuple(1 if n in self.axes else d for n, d in enumerate(x.type.shape))
        return broadcast_to(reshape(g, kept), x.type.shape)


@primitive
class Sum(Reduction):
    """Integers wrap; floats by rule 4."""

    name: ClassVar[str] = "sum"
    kind = "sum"

    def combine(self, terms: Array) -> Array:
        return ordered_sum(terms)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [self.spread(g, node.inputs[0])]


@primitive
class Prod(Reduction):
    """Left to right. The cotangent multiplies the others: product of those before and after."""

    name: ClassVar[str] = "prod"
    kind = "prod"

    def combine(self, terms: Array) -> Array:
        if terms.shape[0] == 0:
            return np.ones(terms.shape[1:], terms.dtype)
        total = terms[0].copy()
        for term in terms[1:]:
            total = total * term
        return total  # type: ignore[no-any-return]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        """g times the product of all other terms, each read from an n x n table."""
        (x,) = node.inputs
        from diptych.ops.shape import transpose

        kept = [n for n in range(x.type.rank) if n not in self.axes]
        n = product(x.type.shape[a] for a in self.axes)
        rest = tuple(x.type.shape[a] for a in kept)
        order = [*self.axes, *kept]
        listed = reshape(transpose(x, order), (n, *rest))
        from diptych.ops.indexing import arange

        ones = (1,) * len(rest)
        identity = equal(reshape(arange(n), (n, 1, *ones)), reshape(arange(n), (1, n, *ones)))
        table = where(identity, 1.0, broadcast_to(listed, (n, n, *rest)))
        others = record(Prod((1,)), convert(table, x.type.dtype))
        back = [order.index(a) for a in range(x.type.rank)]
        spread = transpose(reshape(others, tuple(x.type.shape[a] for a in order)), back)
        return [multiply(self.spread(g, x), spread)]


class Extreme(Reduction):
    """NaN propagates, -0 < +0; the cotangent goes to the first place that has the value."""

    axes: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if any(x.shape[a] == 0 for a in self.axes):
            raise ShapeError(
                f"{self.name} of no elements has no value",
                f"{x} over {self.axes}",
                "check that the axis is not empty",
            )
        return super().infer(x)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        (x,) = node.inputs
        best = Argmax if self.kind == "max" else Argmin
        place = self.spread(record(best(self.axes), x), x)
        shape = tuple(d if n in self.axes else 1 for n, d in enumerate(x.type.shape))
        from diptych.ops.indexing import arange

        sizes = product(x.type.shape[a] for a in self.axes)
        position = reshape(arange(sizes), shape)
        return [where(equal(place, position), self.spread(g, x), operand(0.0, g.type.dtype))]


@primitive
class Max(Extreme):
    name: ClassVar[str] = "max"
    kind = "max"

    def combine(self, terms: Array) -> Array:
        total = terms[0].copy()
        for term in terms[1:]:
            total = scalar_ops.maximum(total, term)
        return total  # type: ignore[no-any-return]


@primitive
class Min(Extreme):
    name: ClassVar[str] = "min"
    kind = "min"

    def combine(self, terms: Array) -> Array:
        total = terms[0].copy()
        for term in terms[1:]:
            total = scalar_ops.minimum(total, term)
        return total  # type: ignore[no-any-return]


def _first_place(terms: Array, better: Callable[[Array, Array], Array]) -> Array:
    """Where the best term came from: it moves on only where the best becomes another value."""
    best, place = terms[0].copy(), np.zeros(terms.shape[1:], np.int64)
    for n, term in enumerate(terms[1:], 1):
        new = np.asarray(better(best, term), terms.dtype)
        changed = new != best
        if terms.dtype.kind == "f":
            changed = (changed | (np.signbit(new) != np.signbit(best))) & ~np.isnan(best)
        best, place = new, np.where(changed, n, place)
    return place


class ArgExtreme(Reduction):
    """Position in the list of the reduced axes: the first where equal, -0 < +0, and the first NaN
    wins."""

    axes: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if any(x.shape[a] == 0 for a in self.axes):
            raise ShapeError(
                f"{self.name} of no elements has no value",
                f"{x}",
                "check that the axis is not empty",
            )
        return super().infer(x)

    def result(self, x: TensorType) -> Any:
        return i64

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None]


@primitive
class Argmax(ArgExtreme):
    name: ClassVar[str] = "argmax"
    kind = "argmax"

    def combine(self, terms: Array) -> Array:
        return _first_place(terms, scalar_ops.maximum)


@primitive
class Argmin(ArgExtreme):
    name: ClassVar[str] = "argmin"
    kind = "argmin"

    def combine(self, terms: Array) -> Array:
        return _first_place(terms, scalar_ops.minimum)


class Truth(Reduction):
    def infer(self, *inputs: TensorType) -> TensorType:
        if inputs[0].dtype != bool_:
            raise DtypeError(f"{self.name} takes bool", f"{inputs[0]}", "compare first: x != 0")
        return super().infer(*inputs)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None]


@primitive
class Any_(Truth):
    name: ClassVar[str] = "any"
    kind = "any"

    def combine(self, terms: Array) -> Array:
        return np.any(terms, 0)  # type: ignore[no-any-return]


@primitive
class All_(Truth):
    name: ClassVar[str] = "all"
    kind = "all"

    def combine(self, terms: Array) -> Array:
        return np.all(terms, 0)  # type: ignore[no-any-return]


def _axes(axis: Any, x: Handle, what: str) -> tuple[int, ...]:
    rank = x.type.rank
    if axis is None:
        return tuple(range(rank))
    listed = axis if isinstance(axis, list | tuple) else (axis,)
    axes = sorted({normal_axis(a, rank, what) for a in listed})
    if len(axes) < len(listed):
        raise ShapeError(f"{what} names an axis once", f"axis {axis} of {x.type}", "drop one")
    return tuple(axes)


def _reduce(make: Any, x: Any, axis: Any, keepdims: bool) -> Handle:
    x = operand(x)
    axes = _axes(axis, x, make.name)
    result = record(make(axes), x)
    if keepdims:
        kept = tuple(1 if n in axes else d for n, d in enumerate(x.type.shape))
        result = reshape(result, kept)
    return result


def _wide(x: Any) -> Handle:
    """u8, i32 and bool as i64, in which they are added and multiplied."""
    x = operand(x)
    return x if x.type.dtype.is_float else convert(x, i64)


def reduce_sum(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """Sum over axes as one list: (2, 3), axis=1 -> (2,). u8, i32 and bool sum in i64."""
    return _reduce(Sum, _wide(x), axis, keepdims)


def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """Product over axes, left to right. That of u8, i32 and bool is i64."""
    return _reduce(Prod, _wide(x), axis, keepdims)


def reduce_max(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """Greatest over axes; NaN if there is one."""
    return _reduce(Max, x, axis, keepdims)


def reduce_min(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """Least over axes; NaN if there is one."""
    return _reduce(Min, x, axis, keepdims)


def argmax(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """Position of the greatest, i64, the first where equal: (2, 3), axis=1 -> (2,)."""
    return _reduce(Argmax, x, axis, keepdims)


def argmin(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """Position of the least, i64, the first where equal."""
    return _reduce(Argmin, x, axis, keepdims)


def reduce_any(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """Whether any element is true."""
    return _reduce(Any_, x, axis, keepdims)


def reduce_all(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """Whether all elements are true."""
    return _reduce(All_, x, axis, keepdims)


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """sum / n, n rounded once to the dtype."""
    x = operand(x)
    if not x.type.dtype.is_float:
        raise DtypeError("mean takes f32 or f64", f"{x.type}", "convert it with .astype('float32')")
    axes = _axes(axis, x, "mean")
    return divide(reduce_sum(x, axes, keepdims), size_of(x, axes))


@primitive
class Size(Operator):
    """The number of elements over `axes` of the input's shape, as a scalar of a float dtype: what
    programs saved by 0.1 have in place of `Extent`."""

    axes: tuple[int, ...]
    dtype: str
    name: ClassVar[str] = "size"

    def infer(self, *inputs: TensorType) -> TensorType:
        if not set(self.axes) <= set(range(inputs[0].rank)):
            raise ShapeError(
                "size names axes of its input", f"{self.axes} of {inputs[0]}", "check the rank"
            )
        return TensorType((), BY_NAME[self.dtype])

    def reference(self, *inputs: Array) -> Array:
        n = int(np.prod([inputs[0].shape[a] for a in self.axes], dtype=np.int64))
        return np.asarray(n, BY_NAME[self.dtype].numpy)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        n = product(inputs[0].type.shape[a] for a in self.axes)
        return lambda: k.cast(k.size(n), out.dtype)


@primitive
class Extent(Operator):
    """A size as a scalar of a dtype, rounded once."""

    size: Dimension
    dtype: str
    name: ClassVar[str] = "extent"

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType((), BY_NAME[self.dtype])

    def reference(self, *inputs: Array) -> Array:
        return np.asarray(self.size, BY_NAME[self.dtype].numpy)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return []

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        return lambda: k.cast(k.size(self.size), out.dtype)


def size_of(x: Handle, axes: tuple[int, ...]) -> Handle:
    """The number of elements over axes of x as a number of its dtype, also where it is symbolic."""
    n = product(x.type.shape[a] for a in axes)
    if isinstance(n, Dim):
        return record(Extent(n, x.type.dtype.name))
    return operand(float(n), x.type.dtype)
