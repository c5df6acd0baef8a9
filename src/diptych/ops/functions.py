"""Elementwise functions: elementary ones, rounding, sign and power."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from diptych.dtypes import TensorType, as_dtype
from diptych.graph.node import Node
from diptych.kernel import expr as k
from diptych.kernel import math as kernel_math
from diptych.kernel import trigonometry
from diptych.kernel.expr import Expr
from diptych.ops.base import (
    Handle,
    is_scalar,
    need_float,
    operand,
    pair,
    primitive,
    record,
    weak_dtype,
)
from diptych.ops.elementwise import (
    Elementwise,
    add,
    divide,
    equal,
    greater,
    greater_equal,
    less,
    logical_and,
    logical_not,
    multiply,
    negative,
    subtract,
    unary,
    where,
    zeros_as,
)
from diptych.ops.shape import unbroadcast

Array = np.ndarray[Any, Any]


class Function(Elementwise):
    """A float function; `derivative` gives the factor on g from x and the result."""

    rule: ClassVar[Callable[..., Any]]

    def result(self, *inputs: TensorType) -> Any:
        need_float(inputs[0], self.name)
        return inputs[0].dtype

    def scalar(self, *x: Expr) -> Expr:
        return type(self).rule(x[0])  # type: ignore[no-any-return]

    def reference(self, *inputs: Array) -> Array:
        """The same straight program, run by numpy: no host library is asked."""
        (x,) = inputs
        place = k.var("x", as_dtype(x.dtype))
        value = k.evaluate(self.scalar(place), {"x": x})
        return np.broadcast_to(value, x.shape)


@primitive
class Exp(Function):
    name: ClassVar[str] = "exp"
    rule = kernel_math.exp

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [multiply(g, node)]


@primitive
class Log(Function):
    name: ClassVar[str] = "log"
    rule = kernel_math.log

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [divide(g, node.inputs[0])]


@primitive
class Log1p(Function):
    name: ClassVar[str] = "log1p"
    rule = kernel_math.log1p

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [divide(g, add(node.inputs[0], 1.0))]


@primitive
class Expm1(Function):
    name: ClassVar[str] = "expm1"
    rule = kernel_math.expm1

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [multiply(g, add(node, 1.0))]


@primitive
class Tanh(Function):
    """Cotangent g * (1 - y*y)."""

    name: ClassVar[str] = "tanh"
    rule = kernel_math.tanh

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [multiply(g, subtract(1.0, multiply(node, node)))]


@primitive
class Sigmoid(Function):
    """1 / (1 + exp(-x)); cotangent g * (y * (1 - y))."""

    name: ClassVar[str] = "sigmoid"
    rule = kernel_math.sigmoid

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [multiply(g, multiply(node, subtract(1.0, node)))]


@primitive
class Erf(Function):
    """Cotangent g * (2/sqrt(pi) * exp(-(x*x)))."""

    name: ClassVar[str] = "erf"
    rule = kernel_math.erf

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        (x,) = node.inputs
        slope = multiply(exp(negative(multiply(x, x))), 1.1283791670955126)
        return [multiply(g, slope)]


@primitive
class Sin(Function):
    name: ClassVar[str] = "sin"
    rule = trigonometry.sin

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [multiply(g, cos(node.inputs[0]))]


@primitive
class Cos(Function):
    name: ClassVar[str] = "cos"
    rule = trigonometry.cos

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [multiply(g, negative(sin(node.inputs[0])))]


@primitive
class Sqrt(Function):
    """Cotangent g / (y + y)."""

    name: ClassVar[str] = "sqrt"
    rule = k.sqrt

    def reference(self, *inputs: Array) -> Array:
        return np.sqrt(inputs[0])

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [divide(g, add(node, node))]


@primitive
class Rsqrt(Function):
    """1 / sqrt(x), rounded once; cotangent g * (-0.5 * (y / x))."""

    name: ClassVar[str] = "rsqrt"
    rule = kernel_math.rsqrt

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [multiply(g, multiply(divide(node, node.inputs[0]), -0.5))]


class Step(Elementwise):
    """Piecewise constant: no gradient but zero."""

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None]


@primitive
class Floor(Step):
    name: ClassVar[str] = "floor"

    def reference(self, *inputs: Array) -> Array:
        return np.floor(inputs[0]) if inputs[0].dtype.kind == "f" else inputs[0]

    def scalar(self, *x: Expr) -> Expr:
        return k.floor(x[0]) if x[0].dtype.is_float else x[0]


@primitive
class Ceil(Step):
    name: ClassVar[str] = "ceil"

    def reference(self, *inputs: Array) -> Array:
        return np.ceil(inputs[0]) if inputs[0].dtype.kind == "f" else inputs[0]

    def scalar(self, *x: Expr) -> Expr:
        return k.ceil(x[0]) if x[0].dtype.is_float else x[0]


@primitive
class Round(Step):
    """To the nearest integer, ties to even."""

    name: ClassVar[str] = "round"

    def reference(self, *inputs: Array) -> Array:
        return np.rint(inputs[0]) if inputs[0].dtype.kind == "f" else inputs[0]

    def scalar(self, *x: Expr) -> Expr:
        return k.rint(x[0]) if x[0].dtype.is_float else x[0]


@primitive
class Sign(Step):
    """-1, 0 or 1 with the sign of x; sign(0) = x, sign(NaN) = NaN."""

    name: ClassVar[str] = "sign"

    def reference(self, *inputs: Array) -> Array:
        (x,) = inputs
        one = x.dtype.type(1)
        negative = -one if x.dtype.kind in "fi" else one
        return np.where(x > 0, one, np.where(x < 0, negative, x))

    def scalar(self, *x: Expr) -> Expr:
        (v,) = x
        one = k.const(1, v.dtype)
        below = v if v.dtype.kind == "uint" else k.select(v < 0, k.const(-1, v.dtype), v)
        return k.select(v > 0, one, below)


@primitive
class Abs(Elementwise):
    """Cotangent g where x > 0, -g where x < 0, else zero: at 0 and at NaN."""

    name: ClassVar[str] = "abs"

    def reference(self, *inputs: Array) -> Array:
        return np.abs(inputs[0])

    def scalar(self, *x: Expr) -> Expr:
        if x[0].dtype.is_float:
            return k.absolute(x[0])
        return x[0] if x[0].dtype.kind == "uint" else k.select(x[0] < 0, -x[0], x[0])

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        (x,) = node.inputs
        zero = zeros_as(g)
        down = where(less(x, 0.0), negative(g), zero)
        return [where(greater(x, 0.0), g, down)]


@primitive
class Pow(Elementwise):
    """a ** b for floats. Cotangents g*(b*a**(b-1)) and g*(out*log(a)); the first is 0 where b = 0,
    the second where a = 0 and b >= 0."""

    name: ClassVar[str] = "pow"

    def result(self, *inputs: TensorType) -> Any:
        need_float(inputs[0], "pow")
        return inputs[0].dtype

    def scalar(self, *x: Expr) -> Expr:
        from diptych.kernel import power  # its constants are exact fractions, made when imported

        return power.pow(*x)

    def reference(self, *inputs: Array) -> Array:
        a, b = np.broadcast_arrays(*inputs)
        places = [k.var(n, as_dtype(a.dtype)) for n in "ab"]
        return k.evaluate(self.scalar(*places), {"a": a, "b": b})

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        """Where the factors would be 0 * inf or 0 * NaN, one of them is replaced before it is
        computed, and not the product after it: so the gradient of this is right as well."""
        a, b = node.inputs
        result: list[Node | None] = [None, None]
        if a.needs_grad:
            vanishes = logical_and(equal(b, 0.0), logical_not(greater(abs(a), 0.0)))
            slope = multiply(b, record(Pow(), a, where(vanishes, 0.0, subtract(b, 1.0))))
            result[0] = unbroadcast(multiply(g, slope), a.type.shape)
        if b.needs_grad:
            vanishes = logical_and(equal(a, 0.0), greater_equal(b, 0.0))
            slope = multiply(node, log(where(vanishes, 1.0, a)))
            result[1] = unbroadcast(multiply(g, slope), b.type.shape)
        return result


exp = unary(Exp, "exp")
log = unary(Log, "log")
log1p = unary(Log1p, "log1p")
expm1 = unary(Expm1, "expm1")
tanh = unary(Tanh, "tanh")
sigmoid = unary(Sigmoid, "sigmoid")
erf = unary(Erf, "erf")
sin = unary(Sin, "sin")
cos = unary(Cos, "cos")
sqrt = unary(Sqrt, "sqrt")
rsqrt = unary(Rsqrt, "rsqrt")
floor = unary(Floor, "floor")
ceil = unary(Ceil, "ceil")
round = unary(Round, "round")
sign = unary(Sign, "sign")
abs = unary(Abs, "abs")


def pow(a: Any, b: Any) -> Handle:
    """a ** b. The exponents 2 and 2.0 as plain numbers mean a * a."""
    if is_scalar(b) and b == 2:
        a = operand(a)
        weak_dtype(b, a.type.dtype, "pow")
        return multiply(a, a)
    return record(Pow(), *pair(a, b, "pow"))
