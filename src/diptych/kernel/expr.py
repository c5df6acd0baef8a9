"""The kernel language: scalar expressions over loop indices, buffers and constants.

    expr  := const | size | index | var | load(buffer, expr...) | op(expr...)
           | fold(kind, loops, expr)
    op    := add sub mul div fma neg abs sqrt floor ceil rint minimum maximum     floats
             add sub mul div rem minimum maximum and or xor shl lshr ashr          integers
             lt le eq ne                                                           -> bool
             and or not                                                            bools
             select(bool, a, b)  cast  bits (same bits, other dtype)

An operator's `lower` writes these; the compiler reads them; `evaluate` runs the straight ones in
numpy. Every operation has one exact meaning (docs/numerics.md): floats are IEEE 754 with every
rounding where it is written, integers wrap, integer div truncates with x/0 = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diptych.dtypes import Dim, Dimension, DType, as_dtype, bool_, f32, f64, i32, i64
from diptych.errors import InternalError
from diptych.kernel import scalar


class Expr:
    """A node of a scalar expression; `args` are its operands, `attr` what else it needs."""

    __slots__ = ("args", "attr", "dtype", "op")

    def __init__(self, op: str, args: tuple[Expr, ...], dtype: DType, attr: Any = None) -> None:
        self.op, self.args, self.dtype, self.attr = op, args, dtype, attr

    def __add__(self, other: Operand) -> Expr:
        return binary("add", self, other)

    def __radd__(self, other: Operand) -> Expr:
        return binary("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return binary("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return binary("div", other, self)

    def __neg__(self) -> Expr:
        return Expr("neg", (self,), self.dtype)

    def __and__(self, other: Operand) -> Expr:
        return binary("and", self, other)

    def __or__(self, other: Operand) -> Expr:
        return binary("or", self, other)

    def __xor__(self, other: Operand) -> Expr:
        return binary("xor", self, other)

    def __lshift__(self, other: Operand) -> Expr:
        return binary("shl", self, other)

    def __rshift__(self, other: Operand) -> Expr:
        """Arithmetic shift; `lshr` is the logical one."""
        return binary("ashr", self, other)

    def __invert__(self) -> Expr:
        return Expr("not", (self,), self.dtype)

    def __lt__(self, other: Operand) -> Expr:
        return compare("lt", self, other)

    def __le__(self, other: Operand) -> Expr:
        return compare("le", self, other)

    def __gt__(self, other: Operand) -> Expr:
        return compare("lt", other, self)

    def __ge__(self, other: Operand) -> Expr:
        return compare("le", other, self)

    def equals(self, other: Operand) -> Expr:
        return compare("eq", self, other)

    def differs(self, other: Operand) -> Expr:
        return compare("ne", self, other)

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.args))
        if self.op in ("const", "size", "index", "var"):
            return str(self.attr)
        extra = "" if self.attr is None else f"[{self.attr}]"
        return f"{self.op}{extra}({inner})"


Operand = Expr | int | float | bool | Dim


def const(value: float, dtype: DType) -> Expr:
    """A constant; a float is rounded once to the dtype."""
    return Expr("const", (), dtype, dtype.numpy.type(value))


def size(dim: Dimension) -> Expr:
    """A size as i64, known when the code is written or when it runs."""
    return Expr("size", (), i64, dim) if isinstance(dim, Dim) else const(dim, i64)


def index(name: str) -> Expr:
    """A loop index, i64."""
    return Expr("index", (), i64, name)


def var(name: str, dtype: DType) -> Expr:
    """A named scalar that the surroundings supply."""
    return Expr("var", (), dtype, name)


def load(buffer: Any, indices: Sequence[Operand], dtype: DType) -> Expr:
    """The element of `buffer` (named by any hashable) at the indices."""
    return Expr("load", tuple(_operand(i, i64) for i in indices), dtype, buffer)


def _operand(value: Operand, dtype: DType) -> Expr:
    if isinstance(value, Dim):
        return cast(size(value), dtype)
    return value if isinstance(value, Expr) else const(value, dtype)


def _pair(a: Operand, b: Operand) -> tuple[Expr, Expr]:
    if isinstance(a, Expr):
        b = _operand(b, a.dtype)
    elif isinstance(b, Expr):
        a = _operand(a, b.dtype)
    assert isinstance(a, Expr) and isinstance(b, Expr)
    if a.dtype != b.dtype:
        raise InternalError(f"kernel operands differ in dtype: {a.dtype} and {b.dtype}")
    return a, b


def binary(op: str, a: Operand, b: Operand) -> Expr:
    x, y = _pair(a, b)
    return Expr(op, (x, y), x.dtype)


def compare(op: str, a: Operand, b: Operand) -> Expr:
    x, y = _pair(a, b)
    return Expr(op, (x, y), bool_)


def unary(op: str, x: Expr) -> Expr:
    return Expr(op, (x,), x.dtype)


def sqrt(x: Expr) -> Expr:
    return unary("sqrt", x)


def absolute(x: Expr) -> Expr:
    return unary("abs", x)


def floor(x: Expr) -> Expr:
    return unary("floor", x)


def ceil(x: Expr) -> Expr:
    return unary("ceil", x)


def rint(x: Expr) -> Expr:
    """To the nearest integer, ties to even."""
    return unary("rint", x)


def minimum(a: Operand, b: Operand) -> Expr:
    return binary("minimum", a, b)


def maximum(a: Operand, b: Operand) -> Expr:
    return binary("maximum", a, b)


def lshr(x: Expr, count: Operand) -> Expr:
    return binary("lshr", x, count)


def rem(a: Operand, b: Operand) -> Expr:
    """Remainder of the truncating division; x rem 0 = x."""
    return binary("rem", a, b)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a*b + c with one rounding."""
    return Expr("fma", (a, b, c), a.dtype)


def select(condition: Expr, a: Operand, b: Operand) -> Expr:
    x, y = _pair(a, b)
    return Expr("select", (condition, x, y), x.dtype)


def cast(x: Expr, dtype: DType) -> Expr:
    """Conversion by value: float to int truncates and saturates, NaN gives 0."""
    return x if x.dtype == dtype else Expr("cast", (x,), dtype)


_BITS = {f32: i32, f64: i64, i32: f32, i64: f64}


def bits(x: Expr) -> Expr:
    """The same bits read as the integer, or float, of the same width."""
    return Expr("bits", (x,), _BITS[x.dtype])


class Loop:
    """An inner loop of a fold: an index that runs from 0 to `extent`."""

    __slots__ = ("extent", "name")

    def __init__(self, name: str, extent: Dimension) -> None:
        self.name, self.extent = name, extent

    def __repr__(self) -> str:
        return f"{self.name}<{self.extent}"


def fold(kind: str, loops: Sequence[Loop], *args: Expr) -> Expr:
    """Combine `args` over the loops, lexicographic, by rules 2 to 4 of the contract.

    `kind` is sum, prod, max, min, any, all, argmax, argmin (one argument), contract (two
    arguments: a chain of fused multiply-adds) or scatter (a bool and what is added where it is).
    """
    dtype = i64 if kind in ("argmax", "argmin") else args[-1].dtype
    return Expr("fold", args, dtype, (kind, tuple(loops)))


def walk(roots: Sequence[Expr]) -> list[Expr]:
    """Every expression under the roots, operands first, each once; iterative."""
    order: list[Expr] = []
    seen: set[Expr] = set()
    stack: list[Expr | None] = list(reversed(roots))
    while stack:
        expr = stack.pop()
        if expr is None:  # what stands under it follows all its operands
            order.append(stack.pop())  # type: ignore[arg-type]
        elif expr not in seen:
            seen.add(expr)
            if expr.args:
                stack += (expr, None, *expr.args[::-1])
            else:
                order.append(expr)
    return order


def substitute(root: Expr, replace: Callable[[Expr], Expr | None]) -> Expr:
    """Rebuild an expression; `replace` gives the new form of a node, or None to keep it."""
    done: dict[int, Expr] = {}
    for expr in walk([root]):
        new = replace(expr)
        if new is None:
            args = tuple(done[id(a)] for a in expr.args)
            same = all(a is b for a, b in zip(args, expr.args, strict=True))
            new = expr if same else Expr(expr.op, args, expr.dtype, expr.attr)
        done[id(expr)] = new
    return done[id(root)]


def evaluate(root: Expr, values: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Run a straight expression (no loads, no folds) elementwise in numpy."""
    done: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for expr in walk([root]):
            if expr.op == "const":
                done[id(expr)] = expr.attr
            elif expr.op in ("var", "index"):
                done[id(expr)] = values[expr.attr]
            else:
                operands = [done[id(a)] for a in expr.args]
                done[id(expr)] = scalar.apply(expr.op, operands, as_dtype(expr.dtype))
    return done[id(root)]  # type: ignore[no-any-return]
