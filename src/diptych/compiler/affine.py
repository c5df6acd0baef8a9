"""Index expressions as constant + sum of coefficient * index, where they are that."""

from __future__ import annotations

from diptych.dtypes import Dimension, Shape
from diptych.kernel.expr import Expr, walk

Affine = dict[str, Dimension]  # index name -> coefficient; "" -> constant


def affine(e: Expr, memo: dict[int, Affine | None]) -> Affine | None:
    """The affine form of an i64 expression, or None."""
    if id(e) in memo:
        return memo[id(e)]
    result: Affine | None = None
    if e.op == "const":
        result = {"": int(e.attr)}
    elif e.op == "size":
        result = {"": e.attr}
    elif e.op == "index":
        result = {e.attr: 1}
    elif e.op in ("add", "sub", "mul"):
        a, b = (affine(x, memo) for x in e.args)
        if a is not None and b is not None:
            if e.op == "mul":
                constant = a if set(a) <= {""} else b if set(b) <= {""} else None
                if constant is not None:
                    other = b if constant is a else a
                    result = scaled(other, constant.get("", 0))
            else:
                result = added(a, scaled(b, 1 if e.op == "add" else -1))
    memo[id(e)] = result
    return result


def scaled(a: Affine, factor: Dimension) -> Affine:
    return {n: c * factor for n, c in a.items()} if factor != 0 else {}


def added(a: Affine, b: Affine) -> Affine:
    total = dict(a)
    for n, c in b.items():
        total[n] = total.get(n, 0) + c
    return {n: c for n, c in total.items() if c != 0}


def offset(
    indices: tuple[Expr, ...], strides: Shape, memo: dict[int, Affine | None]
) -> Affine | None:
    """The affine element offset of a load, or None where an index is not affine."""
    total: Affine = {}
    for e, stride in zip(indices, strides, strict=True):
        part = affine(e, memo)
        if part is None:
            return None
        total = added(total, scaled(part, stride))
    return total


def step_along(load: Expr, name: str, memo: dict[int, Affine | None]) -> Dimension | None:
    """How far a load moves along an index; None where a computed position depends on it."""
    total: Dimension = 0
    for e, stride in zip(load.args, load.attr.strides, strict=True):
        part = affine(e, memo)
        if part is not None:
            total = total + part.get(name, 0) * stride
        elif uses(e, {name}):
            return None
    return total


def uses(e: Expr, names: set[str] | frozenset[str]) -> bool:
    """Whether one of these indices is under an expression."""
    return any(part.op == "index" and part.attr in names for part in walk([e]))
