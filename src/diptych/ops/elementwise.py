"""Elementwise primitives: arithmetic, comparison, logic, selection, conversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from diptych.dtypes import BY_NAME, TensorType, as_dtype, bool_, broadcast_shapes, f32
from diptych.errors import DtypeError
from diptych.graph.node import Node, Operator, Source
from diptych.kernel import expr as k
from diptych.kernel import remainder as kernel_remainder
from diptych.kernel import scalar as scalar_ops
from diptych.kernel.expr import Expr
from diptych.ops.base import (
    Handle,
    composite,
    convert,
    need_float,
    operand,
    pair,
    primitive,
    record,
    strength,
)
from diptych.ops.shape import broadcast_source, unbroadcast

Array = np.ndarray[Any, Any]


class Elementwise(Operator):
    """out[i] = scalar(inputs[i]...) with numpy broadcasting; operands share a dtype."""

    def infer(self, *inputs: TensorType) -> TensorType:
        shape = inputs[0].shape
        for other in inputs[1:]:
            shape = broadcast_shapes(shape, other.shape, self.name)
        return TensorType(shape, self.result(*inputs))

    def result(self, *inputs: TensorType) -> Any:
        return inputs[0].dtype

    def scalar(self, *x: Expr) -> Expr:
        raise NotImplementedError

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        sources = [broadcast_source(s, out.shape) for s in inputs]
        return lambda *i: self.scalar(*[s(*i) for s in sources])


class Arithmetic(Elementwise):
    def result(self, *inputs: TensorType) -> Any:
        if inputs[0].dtype == bool_:
            raise DtypeError(
                f"{self.name} takes numbers", f"{inputs[0]}", "convert with .astype first"
            )
        return inputs[0].dtype


@primitive
class Add(Arithmetic):
    name: ClassVar[str] = "add"

    def reference(self, *inputs: Array) -> Array:
        return np.add(*inputs)

    def scalar(self, *x: Expr) -> Expr:
        return x[0] + x[1]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [unbroadcast(g, i.type.shape) for i in node.inputs]


@primitive
class Subtract(Arithmetic):
    name: ClassVar[str] = "subtract"

    def reference(self, *inputs: Array) -> Array:
        return np.subtract(*inputs)

    def scalar(self, *x: Expr) -> Expr:
        return x[0] - x[1]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        a, b = node.inputs
        return [unbroadcast(g, a.type.shape), unbroadcast(negative(g), b.type.shape)]


@primitive
class Multiply(Arithmetic):
    name: ClassVar[str] = "multiply"

    def reference(self, *inputs: Array) -> Array:
        return np.multiply(*inputs)

    def scalar(self, *x: Expr) -> Expr:
        return x[0] * x[1]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        a, b = node.inputs
        return [
            unbroadcast(multiply(g, b), a.type.shape) if a.needs_grad else None,
            unbroadcast(multiply(g, a), b.type.shape) if b.needs_grad else None,
        ]


@primitive
class Divide(Arithmetic):
    """Floats: the IEEE quotient. Cotangents: g / b and -(g * out) / b."""

    name: ClassVar[str] = "divide"

    def result(self, *inputs: TensorType) -> Any:
        need_float(inputs[0], "divide")
        return inputs[0].dtype

    def reference(self, *inputs: Array) -> Array:
        return np.divide(*inputs)

    def scalar(self, *x: Expr) -> Expr:
        return x[0] / x[1]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        a, b = node.inputs
        return [
            unbroadcast(divide(g, b), a.type.shape) if a.needs_grad else None,
            unbroadcast(divide(negative(multiply(g, node)), b), b.type.shape)
            if b.needs_grad
            else None,
        ]


def numpy_division(a: Array, b: Array) -> tuple[Array, Array]:
    """a // b and a % b of floats, both from the exact remainder with the sign of a, by numpy's
    rule; a quotient by 0 is a / b."""
    with np.errstate(all="ignore"):
        rest, plain = np.fmod(a, b), np.divide(a, b)
        turned = (rest != 0) & ((rest < 0) != (b < 0))
        quotient = (a - rest) / b
        quotient = np.where(turned, quotient - 1, quotient)
        down = np.floor(quotient)
        down = np.where(quotient - down > 0.5, down + 1, down)
        down = np.where(quotient == 0, np.copysign(np.zeros_like(plain), plain), down)
        moved = np.where(turned, rest + b, rest)
        moved = np.where(rest == 0, np.copysign(np.zeros_like(rest), b), moved)
        return np.where(b == 0, plain, down), moved


@primitive
class FloorDivide(Arithmetic):
    """The quotient rounded down: of floats numpy's, from the exact remainder; x // 0.0 = x / 0.0.
    An integer divided by zero is 0."""

    name: ClassVar[str] = "floor_divide"

    def reference(self, *inputs: Array) -> Array:
        a, b = inputs
        if a.dtype.kind == "f":
            return numpy_division(a, b)[0]
        with np.errstate(all="ignore"):
            return np.where(b == 0, np.zeros_like(a), np.floor_divide(a, b))

    def scalar(self, *x: Expr) -> Expr:
        a, b = x
        if a.dtype.is_float:
            return kernel_remainder.floor_divide(a, b)
        remainder = k.rem(a, b)
        wrong_way = remainder.differs(0) & ((remainder ^ b) < 0) & b.differs(0)
        return a / b - k.select(wrong_way, k.const(1, a.dtype), 0)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None, None]


@primitive
class Remainder(Arithmetic):
    """What a // b leaves, exactly, with the sign of b: 5.0 % inf = 5.0, -5.0 % inf = inf, and
    x % 0.0 is NaN; of integers x % 0 = 0. Cotangents g and -(g * (a // b))."""

    name: ClassVar[str] = "remainder"

    def reference(self, *inputs: Array) -> Array:
        a, b = inputs
        if a.dtype.kind == "f":
            return numpy_division(a, b)[1]
        return np.where(b == 0, np.zeros_like(a), np.remainder(a, b))

    def scalar(self, *x: Expr) -> Expr:
        a, b = x
        if a.dtype.is_float:
            return kernel_remainder.remainder(a, b)
        remainder = k.rem(a, b)
        wrong_way = remainder.differs(0) & ((remainder ^ b) < 0)
        moved = k.select(wrong_way, remainder + b, remainder)
        return k.select(b.equals(0), k.const(0, a.dtype), moved)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        a, b = node.inputs
        return [
            unbroadcast(g, a.type.shape),
            unbroadcast(negative(multiply(g, floor_divide(a, b))), b.type.shape),
        ]


@primitive
class Negative(Arithmetic):
    name: ClassVar[str] = "negative"

    def reference(self, *inputs: Array) -> Array:
        return np.negative(inputs[0])

    def scalar(self, *x: Expr) -> Expr:
        return -x[0]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [negative(g)]


@primitive
class Fma(Arithmetic):
    """a * b + c rounded once: the form of every update rule."""

    name: ClassVar[str] = "fma"

    def result(self, *inputs: TensorType) -> Any:
        need_float(inputs[0], "fma")
        return inputs[0].dtype

    def reference(self, *inputs: Array) -> Array:
        return scalar_ops.fma(*inputs)  # type: ignore[no-any-return]

    def scalar(self, *x: Expr) -> Expr:
        return k.fma(*x)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        a, b, c = node.inputs
        return [
            unbroadcast(multiply(g, b), a.type.shape),
            unbroadcast(multiply(g, a), b.type.shape),
            unbroadcast(g, c.type.shape),
        ]


class Extremum(Arithmetic):
    """The gradient goes to the argument that has the value: a NaN, or else the one beyond the
    other. Of two NaNs or two equal values that is the first."""

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        a, b = node.inputs
        zero = zeros_as(g)
        first = first_wins(self.name, a, b)
        return [
            unbroadcast(where(first, g, zero), a.type.shape),
            unbroadcast(where(first, zero, g), b.type.shape),
        ]


def zeros_as(g: Node) -> Handle:
    return operand(0.0, g.type.dtype)


def first_wins(name: str, a: Handle, b: Handle) -> Handle:
    """Tell where the first argument has the extremum; of two zeros the reciprocals tell the signs.

    A NaN is the extremum.
    """
    beyond, over = (greater, greater_equal) if name == "maximum" else (less, less_equal)
    if not a.type.dtype.is_float:
        return over(a, b)
    same = logical_and(equal(a, b), over(divide(1.0, a), divide(1.0, b)))
    return logical_or(logical_or(beyond(a, b), same), not_equal(a, a))


@primitive
class Minimum(Extremum):
    name: ClassVar[str] = "minimum"

    def reference(self, *inputs: Array) -> Array:
        return scalar_ops.minimum(*inputs)  # type: ignore[no-any-return]

    def scalar(self, *x: Expr) -> Expr:
        return k.minimum(x[0], x[1])


@primitive
class Maximum(Extremum):
    name: ClassVar[str] = "maximum"

    def reference(self, *inputs: Array) -> Array:
        return scalar_ops.maximum(*inputs)  # type: ignore[no-any-return]

    def scalar(self, *x: Expr) -> Expr:
        return k.maximum(x[0], x[1])


# ---- comparison and logic ------------------------------------------------------------------


class Comparison(Elementwise):
    rule: ClassVar[Callable[..., Any]]
    operation: ClassVar[str]
    swapped: ClassVar[bool] = False

    def result(self, *inputs: TensorType) -> Any:
        return bool_

    def reference(self, *inputs: Array) -> Array:
        return type(self).rule(*inputs)  # type: ignore[no-any-return]

    def scalar(self, *x: Expr) -> Expr:
        a, b = (k.cast(v, BY_NAME["u8"]) if v.dtype == bool_ else v for v in x)
        return k.compare(self.operation, *((b, a) if self.swapped else (a, b)))

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None, None]


@primitive
class Less(Comparison):
    name: ClassVar[str] = "less"
    rule = np.less
    operation = "lt"


@primitive
class LessEqual(Comparison):
    name: ClassVar[str] = "less_equal"
    rule = np.less_equal
    operation = "le"


@primitive
class Greater(Comparison):
    name: ClassVar[str] = "greater"
    rule = np.greater
    operation, swapped = "lt", True


@primitive
class GreaterEqual(Comparison):
    name: ClassVar[str] = "greater_equal"
    rule = np.greater_equal
    operation, swapped = "le", True


@primitive
class Equal(Comparison):
    name: ClassVar[str] = "equal"
    rule = np.equal
    operation = "eq"


@primitive
class NotEqual(Comparison):
    name: ClassVar[str] = "not_equal"
    rule = np.not_equal
    operation = "ne"


class Logic(Elementwise):
    """On bool: logical; on integers: bitwise."""

    def result(self, *inputs: TensorType) -> Any:
        if inputs[0].dtype.is_float:
            raise DtypeError(
                f"{self.name} takes bool or integers", f"{inputs[0]}", "compare first: x != 0"
            )
        return inputs[0].dtype

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None] * len(node.inputs)


@primitive
class LogicalAnd(Logic):
    name: ClassVar[str] = "logical_and"

    def reference(self, *inputs: Array) -> Array:
        return inputs[0] & inputs[1]

    def scalar(self, *x: Expr) -> Expr:
        return x[0] & x[1]


@primitive
class LogicalOr(Logic):
    name: ClassVar[str] = "logical_or"

    def reference(self, *inputs: Array) -> Array:
        return inputs[0] | inputs[1]

    def scalar(self, *x: Expr) -> Expr:
        return x[0] | x[1]


@primitive
class LogicalXor(Logic):
    name: ClassVar[str] = "logical_xor"

    def reference(self, *inputs: Array) -> Array:
        return inputs[0] ^ inputs[1]

    def scalar(self, *x: Expr) -> Expr:
        return x[0] ^ x[1]


@primitive
class LogicalNot(Logic):
    name: ClassVar[str] = "logical_not"

    def reference(self, *inputs: Array) -> Array:
        return ~inputs[0]

    def scalar(self, *x: Expr) -> Expr:
        return ~x[0]


@primitive
class Where(Elementwise):
    """where(condition, a, b): a where the condition holds, else b."""

    name: ClassVar[str] = "where"

    def result(self, *inputs: TensorType) -> Any:
        return inputs[1].dtype

    def reference(self, *inputs: Array) -> Array:
        return np.where(*inputs)

    def scalar(self, *x: Expr) -> Expr:
        return k.select(*x)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        condition, a, b = node.inputs
        zero = zeros_as(g)
        return [
            None,
            unbroadcast(where(condition, g, zero), a.type.shape),
            unbroadcast(where(condition, zero, g), b.type.shape),
        ]


@primitive
class Cast(Elementwise):
    """Conversion by value: float to int truncates toward zero and saturates, NaN gives 0."""

    dtype: str
    name: ClassVar[str] = "cast"

    def result(self, *inputs: TensorType) -> Any:
        return BY_NAME[self.dtype]

    def reference(self, *inputs: Array) -> Array:
        target = BY_NAME[self.dtype]
        if target == bool_:
            return inputs[0] != 0  # type: ignore[no-any-return]
        return scalar_ops.convert(inputs[0], target)  # type: ignore[no-any-return]

    def scalar(self, *x: Expr) -> Expr:
        target = BY_NAME[self.dtype]
        if target == bool_ and x[0].dtype != bool_:
            return x[0].differs(0)
        return k.cast(x[0], target)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        (x,) = node.inputs
        return [convert(g, x.type.dtype) if x.type.dtype.is_float else None]


@primitive
class StopGradient(Elementwise):
    """The value, cut off from differentiation."""

    name: ClassVar[str] = "stop_gradient"

    def flows(self, *inputs: TensorType) -> bool:
        return False

    def reference(self, *inputs: Array) -> Array:
        return inputs[0]

    def scalar(self, *x: Expr) -> Expr:
        return x[0]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None]


@primitive
class Identity(Elementwise):
    """The value itself as a node of its own: what `dp.grad` differentiates by."""

    name: ClassVar[str] = "identity"

    def reference(self, *inputs: Array) -> Array:
        return inputs[0]

    def scalar(self, *x: Expr) -> Expr:
        return x[0]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [g]


# ---- the functions that users call ---------------------------------------------------------


def binary(make: Any, what: str) -> Callable[[Any, Any], Handle]:
    op = make()

    def call(a: Any, b: Any) -> Handle:
        return record(op, *pair(a, b, what))

    call.__name__ = call.__qualname__ = what
    call.__doc__ = make.__doc__ or f"{what} of two tensors, elementwise with broadcasting."
    return call


def unary(make: Any, what: str) -> Callable[[Any], Handle]:
    op = make()

    def call(x: Any) -> Handle:
        return record(op, operand(x))

    call.__name__ = call.__qualname__ = what
    call.__doc__ = make.__doc__ or f"{what} of each element; f32 results are correctly rounded."
    return call


add = binary(Add, "add")
subtract = binary(Subtract, "subtract")
multiply = binary(Multiply, "multiply")
divide = binary(Divide, "divide")
floor_divide = binary(FloorDivide, "floor_divide")
remainder = binary(Remainder, "remainder")
minimum = binary(Minimum, "minimum")
maximum = binary(Maximum, "maximum")
less = binary(Less, "less")
less_equal = binary(LessEqual, "less_equal")
greater = binary(Greater, "greater")
greater_equal = binary(GreaterEqual, "greater_equal")
equal = binary(Equal, "equal")
not_equal = binary(NotEqual, "not_equal")
logical_and = binary(LogicalAnd, "logical_and")
logical_or = binary(LogicalOr, "logical_or")
logical_xor = binary(LogicalXor, "logical_xor")
logical_not = unary(LogicalNot, "logical_not")
negative = unary(Negative, "negative")
identity = unary(Identity, "identity")
stop_gradient = unary(StopGradient, "stop_gradient")


def fma(a: Any, b: Any, c: Any) -> Handle:
    """a * b + c with one rounding; floats of one dtype, with broadcasting."""
    b, c = pair(b, c, "fma")
    a, b = pair(a, b, "fma")
    return record(Fma(), a, b, c)


def where(condition: Any, a: Any, b: Any) -> Handle:
    """a where the bool condition holds, else b; with broadcasting."""
    condition = operand(condition)
    if condition.type.dtype != bool_:
        raise DtypeError(
            "where takes a bool condition", f"{condition.type}", "compare first: x > 0"
        )
    if strength(a) == strength(b) == 0:
        a = operand(a, f32 if isinstance(a, float) or isinstance(b, float) else None)
    return record(Where(), condition, *pair(a, b, "where"))


def cast(x: Any, dtype: Any) -> Handle:
    """Convert by value to a dtype."""
    return convert(operand(x), as_dtype(dtype))


@composite
def clip_low(x: Handle, low: Handle) -> Handle:
    """maximum(x, low); the cotangent goes to x above the bound, to the bound below it."""
    return maximum(x, low)


@clip_low.with_gradient
def _clip_low_gradient(g: Node, node: Node) -> list[Node | None]:
    x, low = node.inputs
    return _shared(g, [(x, greater(x, low)), (low, less(x, low))])


@composite
def clip_high(x: Handle, high: Handle) -> Handle:
    """minimum(x, high); the cotangent goes to x below the bound, to the bound above it."""
    return minimum(x, high)


@clip_high.with_gradient
def _clip_high_gradient(g: Node, node: Node) -> list[Node | None]:
    x, high = node.inputs
    return _shared(g, [(x, less(x, high)), (high, greater(x, high))])


@composite
def clip_both(x: Handle, low: Handle, high: Handle) -> Handle:
    """minimum(maximum(x, low), high). The cotangent goes to x strictly between the bounds, else to
    the bound that x lies strictly beyond; to `high` alone where low > high."""
    return minimum(maximum(x, low), high)


@clip_both.with_gradient
def _clip_both_gradient(g: Node, node: Node) -> list[Node | None]:
    x, low, high = node.inputs
    inside = logical_and(greater(x, low), less(x, high))
    below = logical_and(less(x, low), less_equal(low, high))
    above = logical_or(greater(x, high), greater(low, high))
    return _shared(g, [(x, inside), (low, below), (high, above)])


def _shared(g: Node, parts: Sequence[tuple[Node, Handle]]) -> list[Node | None]:
    """The cotangents of inputs, each of which has g where its condition holds."""
    zero = zeros_as(g)
    return [
        unbroadcast(where(has, g, zero), i.type.shape) if i.needs_grad else None for i, has in parts
    ]


def clip(x: Any, low: Any = None, high: Any = None) -> Handle:
    """minimum(maximum(x, low), high), either bound optional, numbers or tensors that broadcast.

    The cotangent goes to x strictly between the bounds, else to the bound that x lies strictly
    beyond. Where x equals a bound, or is NaN, nobody receives it. Where low > high the result is
    high, and high alone receives it.
    """
    if low is None and high is None:
        return operand(x)
    if low is None:
        return clip_high(*pair(x, high, "clip"))
    if high is None:
        return clip_low(*pair(x, low, "clip"))
    x, low = pair(x, low, "clip")
    x, high = pair(x, high, "clip")
    return clip_both(x, pair(x, low, "clip")[1], high)
