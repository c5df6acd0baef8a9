"""Dtypes, dimensions and the type of a tensor.

A dimension is an int or a `Dim`: a polynomial in named symbols, such as the batch size of a
static program. `Dim` knows + - * and exact division, which is what shape rules need.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.errors import DtypeError, ShapeError
from diptych.lazy import lazy


@dataclass(frozen=True, eq=False)
class DType:
    """An element type: `name` as in f32, `kind` one of float, int, uint, bool. There is one object
    of each, so that comparing and hashing them is free."""

    name: str
    kind: str
    bits: int

    def __reduce__(self) -> tuple[Any, ...]:
        return as_dtype, (self.name,)

    @property
    def numpy(self) -> np.dtype[Any]:
        return _NUMPY[self.name]

    @lazy
    def bytes(self) -> int:
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    def __repr__(self) -> str:
        return self.name


f32 = DType("f32", "float", 32)
f64 = DType("f64", "float", 64)
i32 = DType("i32", "int", 32)
i64 = DType("i64", "int", 64)
u8 = DType("u8", "uint", 8)
bool_ = DType("bool", "bool", 1)

ALL = (f32, f64, i32, i64, u8, bool_)
BY_NAME = {d.name: d for d in ALL}
_NUMPY: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("float32"),
    "f64": np.dtype("float64"),
    "i32": np.dtype("int32"),
    "i64": np.dtype("int64"),
    "u8": np.dtype("uint8"),
    "bool": np.dtype("bool"),
}
_FROM_NUMPY = {v: BY_NAME[k] for k, v in _NUMPY.items()}


def as_dtype(value: Any) -> DType:
    """The dtype that a DType, a name, a numpy dtype or a Python type stands for."""
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in BY_NAME:
        return BY_NAME[value]
    if value is float:
        return f32
    try:
        return _FROM_NUMPY[np.dtype(value)]
    except (TypeError, KeyError):
        raise DtypeError(
            "diptych knows the dtypes " + ", ".join(BY_NAME),
            f"{value!r}",
            _advice(value),
        ) from None


def _advice(value: Any) -> str:
    """What to do about an array of a dtype that is none of these."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        return "write one of them, e.g. 'f32'"
    if dtype.kind in "OMm":
        return "make numbers of it: numbers, and lists of one length, become arrays"
    if dtype.kind in "US":
        return "numbers for names: np.unique(names, return_inverse=True)[1]"
    if dtype.kind == "c":
        return "hand over .real and .imag"
    near = dtype.newbyteorder("=") if dtype.newbyteorder("=") in _FROM_NUMPY else None
    name = near.name if near else {"f": "float32", "i": "int32"}.get(dtype.kind, "int64")
    return f"convert the array with .astype({name!r}) before handing it over"


# Promotion as in the Python array API standard; pairs across kinds that the standard leaves
# undefined (an integer array with a float array) are errors there and here.
_PROMOTE = {
    frozenset((f32, f64)): f64,
    frozenset((i32, i64)): i64,
    frozenset((u8, i32)): i32,
    frozenset((u8, i64)): i64,
}


def promote(a: DType, b: DType, what: str = "the operator") -> DType:
    """The common dtype of two strong dtypes."""
    if a == b:
        return a
    found = _PROMOTE.get(frozenset((a, b)))
    if found is None:
        raise DtypeError(
            f"{what} has no common dtype for {a} and {b}",
            f"{a} and {b}",
            "convert one side with .astype(...)",
        )
    return found


@dataclass(frozen=True, eq=False)
class Dim:
    """A symbolic dimension: a sum of integer multiples of products of symbols."""

    terms: tuple[tuple[tuple[str, ...], int], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    @staticmethod
    def symbol(name: str) -> Dim:
        return Dim((((name,), 1),))

    def __add__(self, other: Dimension) -> Dimension:
        if not isinstance(other, DIMENSIONS):
            return NotImplemented
        return _normal([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __mul__(self, other: Dimension) -> Dimension:
        if not isinstance(other, DIMENSIONS):
            return NotImplemented
        return _normal(
            (tuple(sorted(a + b)), m * n) for a, m in self.terms for b, n in _terms(other)
        )

    __rmul__ = __mul__

    def __sub__(self, other: Dimension) -> Dimension:
        if not isinstance(other, DIMENSIONS):
            return NotImplemented
        return self + (-1) * other

    def __rsub__(self, other: Dimension) -> Dimension:
        if not isinstance(other, DIMENSIONS):
            return NotImplemented
        return other + (-1) * self

    def __floordiv__(self, other: Dimension) -> Dimension:
        if not isinstance(other, DIMENSIONS):
            return NotImplemented
        quotient = exact_quotient(self, other)
        if quotient is None:
            raise ShapeError(
                "a symbolic dimension divides only exactly",
                f"{self} / {other}",
                "pad or crop to a multiple first",
            )
        return quotient

    def __repr__(self) -> str:
        parts = []
        for names, count in self.terms:
            factors = [str(count)] if count != 1 or not names else []
            parts.append("*".join(factors + list(names)))
        return "+".join(parts)


Dimension = int | Dim
DIMENSIONS = (int, np.integer, Dim)  # what a dimension is added to and multiplied by
Shape = tuple[Dimension, ...]


def _terms(value: Dimension) -> tuple[tuple[tuple[str, ...], int], ...]:
    if isinstance(value, Dim):
        return value.terms
    return (((), int(value)),)


def _normal(terms: Iterable[tuple[tuple[str, ...], int]]) -> Dimension:
    total: dict[tuple[str, ...], int] = {}
    for names, count in terms:
        total[names] = total.get(names, 0) + count
    kept = tuple(sorted((n, c) for n, c in total.items() if c))
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return Dim(kept)


def exact_quotient(a: Dimension, b: Dimension) -> Dimension | None:
    """a / b where that is again a dimension, else None; b has one term."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return 1 if a == b else None
    names, count = divisor[0]
    result = []
    for have, n in _terms(a):
        rest = list(have)
        for name in names:
            if name not in rest:
                return None
            rest.remove(name)
        if count == 0 or n % count:
            return None
        result.append((tuple(rest), n // count))
    return _normal(result)


def product(dims: Iterable[Dimension]) -> Dimension:
    result: Dimension = 1
    for d in dims:
        result = result * d
    return result


def symbols(shape: Iterable[Dimension]) -> set[str]:
    return {n for d in shape if isinstance(d, Dim) for names, _ in d.terms for n in names}


def bind(dim: Dimension, sizes: Mapping[str, int]) -> int:
    """The int that a dimension has once its symbols have the given sizes."""
    if isinstance(dim, int):
        return dim
    return sum(c * math.prod(sizes[n] for n in names) for names, c in dim.terms)


@dataclass(frozen=True)
class TensorType:
    """Shape and dtype of a tensor."""

    shape: Shape
    dtype: DType

    @property
    def rank(self) -> int:
        return len(self.shape)

    @lazy
    def size(self) -> Dimension:
        return product(self.shape)

    def with_shape(self, shape: Iterable[Dimension]) -> TensorType:
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(self.shape, dtype)

    def bound(self, sizes: Mapping[str, int]) -> TensorType:
        return TensorType(tuple(bind(d, sizes) for d in self.shape), self.dtype)

    def __repr__(self) -> str:
        return f"{self.dtype}[{','.join(str(d) for d in self.shape)}]"


def broadcast_shapes(a: Shape, b: Shape, what: str) -> Shape:
    """numpy's broadcasting of two shapes."""
    rank = max(len(a), len(b))
    left = (1,) * (rank - len(a)) + a
    right = (1,) * (rank - len(b)) + b
    result: list[Dimension] = []
    for x, y in zip(left, right, strict=True):
        if x == y or y == 1:
            result.append(x)
        elif x == 1:
            result.append(y)
        else:
            raise ShapeError(
                f"{what} needs shapes that broadcast: equal sizes, or 1, from the right",
                f"{list(a)} and {list(b)}: {x} is not {y}",
                "reshape one side, or add an axis with x[:, None]",
            )
    return tuple(result)


def row_major(shape: Shape) -> Shape:
    """The strides, in elements, of memory whose last axis is innermost."""
    strides: list[Dimension] = []
    step: Dimension = 1
    for d in reversed(shape):
        strides.append(step)
        step = step * d
    return tuple(reversed(strides))


def innermost_strides(shape: Shape, axis: int) -> Shape:
    """Row-major strides but for one axis, which is innermost in memory."""
    order = [n for n in range(len(shape)) if n != axis] + [axis]
    steps = dict(zip(order, row_major(tuple(shape[n] for n in order)), strict=True))
    return tuple(steps[n] for n in range(len(shape)))
