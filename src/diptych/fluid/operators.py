"""Paddle's operators by type, each as a function on diptych tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import diptych as dp
import diptych.nn.functional as F
from diptych.fluid.core import EnforceNotMet, VarType


@dataclass(frozen=True)
class Operator:
    """Names of inputs and outputs, and the function; attributes that it does not name are
    Paddle's own business (devices, roles) and are left alone."""

    function: Callable[..., Any]
    slots: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]

    def run(self, *operands: Any, **attributes: Any) -> Any:
        known = {n: attributes[n] for n in self.attributes if n in attributes}
        return self.function(*operands, **known)


OPERATORS: dict[str, Operator] = {}


def operator(
    type: str, slots: str = "X", outputs: str = "Out"
) -> Callable[[Callable[..., Any]], Any]:
    """Enter a function under Paddle's name; its keyword-only parameters are the attributes."""

    def enter(function: Callable[..., Any]) -> Any:
        names = tuple(getattr(function, "__kwdefaults__", None) or ())
        OPERATORS[type] = Operator(function, tuple(slots.split()), tuple(outputs.split()), names)
        return function

    return enter


def flat(x: Any, columns: int) -> Any:
    """A matrix: the first `columns` axes are its rows."""
    shape = x.shape
    if len(shape) == 2 and columns == 1:
        return x
    return dp.reshape(x, math.prod(shape[:columns]), math.prod(shape[columns:]))


@operator("mul", "X Y")
def mul(x: Any, y: Any, *, x_num_col_dims: int = 1, y_num_col_dims: int = 1) -> Any:
    out = dp.matmul(flat(x, x_num_col_dims), flat(y, y_num_col_dims))
    shape = (*x.shape[:x_num_col_dims], *y.shape[y_num_col_dims:])
    return out if len(shape) == 2 else out.reshape(*shape)


@operator("matmul", "X Y")
def matmul(x: Any, y: Any) -> Any:
    return dp.matmul(x, y)


def _aligned(x: Any, y: Any, axis: int) -> Any:
    """y with ones behind, so that its axes begin at `axis` of x."""
    missing = len(x.shape) - axis - len(y.shape)
    return y if axis < 0 or missing <= 0 else y.reshape(*y.shape, *[1] * missing)


@operator("elementwise_add", "X Y")
def elementwise_add(x: Any, y: Any, *, axis: int = -1) -> Any:
    return x + _aligned(x, y, axis)


ACTIVATIONS: dict[str, Any] = {}  # of `fluid_linear`, filled below


@dp.operator
def fluid_linear(x: Any, weight: Any, bias: Any, *, act: str = "") -> Any:
    """act(x W + b): what mul, elementwise_add and the activation do one after the other."""
    out = dp.add(dp.matmul(x, weight), bias)
    return ACTIVATIONS[act](out) if act else out


@operator("elementwise_sub", "X Y")
def elementwise_sub(x: Any, y: Any, *, axis: int = -1) -> Any:
    return x - _aligned(x, y, axis)


@operator("elementwise_mul", "X Y")
def elementwise_mul(x: Any, y: Any, *, axis: int = -1) -> Any:
    return x * _aligned(x, y, axis)


@operator("elementwise_div", "X Y")
def elementwise_div(x: Any, y: Any, *, axis: int = -1) -> Any:
    y = _aligned(x, y, axis)
    return x / y if x.dtype.is_float else _cut(x, y)


def _cut(x: Any, y: Any) -> Any:
    """The quotient of integers towards zero."""
    down = x // y
    return down + dp.cast((down * y != x) & (down < 0), x.dtype)


@operator("elementwise_floordiv", "X Y")
def elementwise_floordiv(x: Any, y: Any, *, axis: int = -1) -> Any:
    """Of integers only, and towards zero: Paddle's name promises more than it does."""
    if x.dtype.is_float:
        raise EnforceNotMet(f"elementwise_floordiv takes integers, not {x.dtype.numpy.name}")
    return _cut(x, _aligned(x, y, axis))


@operator("elementwise_mod", "X Y")
def elementwise_mod(x: Any, y: Any, *, axis: int = -1) -> Any:
    """The rest has the sign of x for integers, and of y for floats."""
    y = _aligned(x, y, axis)
    return x % y if x.dtype.is_float else x - _cut(x, y) * y


@operator("elementwise_pow", "X Y")
def elementwise_pow(x: Any, y: Any, *, axis: int = -1) -> Any:
    y = _aligned(x, y, axis)
    if x.dtype.is_float:
        return dp.pow(x, y)
    return dp.cast(dp.pow(dp.cast(x, "f64"), dp.cast(y, "f64")), x.dtype)


@operator("fill_constant", "")
def fill_constant(*, shape: Sequence[int] = (), dtype: int = 5, value: float = 0.0) -> Any:
    return dp.tensor(np.full(tuple(shape), value, VarType(dtype).numpy))


@operator("scale")
def scale(x: Any, *, scale: float = 1.0, bias: float = 0.0) -> Any:
    number = float if x.dtype.is_float else int
    if (scale, bias) == (1.0, 0.0):
        return x * number(1)
    return x * number(scale) + number(bias) if scale != 1.0 else x + number(bias)


_PLAIN: dict[str, Callable[..., Any]] = {
    "relu": F.relu, "tanh": dp.tanh, "sigmoid": dp.sigmoid, "exp": dp.exp, "log": dp.log,
    "sqrt": dp.sqrt, "abs": dp.abs,
}  # fmt: skip
_COMPARED: dict[str, Callable[..., Any]] = {
    "less_than": dp.less, "less_equal": dp.less_equal, "greater_than": dp.greater,
    "greater_equal": dp.greater_equal, "equal": dp.equal, "not_equal": dp.not_equal,
}  # fmt: skip
for _name, _function in _PLAIN.items():
    operator(_name)(_function)
for _name, _function in _COMPARED.items():
    operator(_name, "X Y")(_function)


@operator("leaky_relu")
def leaky_relu(x: Any, *, alpha: float = 0.02) -> Any:
    return F.leaky_relu(x, negative_slope=alpha)


@dp.operator
def softmax_from_64(x: Any) -> Any:
    """Softmax over the last axis with x - max(x) cut at -64, as Paddle has it on CPUs: e / sum(e),
    e = exp(max(x - max(x), -64)). Cotangent y * (g - sum(g * y))."""
    top = dp.stop_gradient(dp.max(x, -1, keepdims=True))
    e = dp.exp(dp.maximum(dp.subtract(x, top), -64.0))
    return dp.divide(e, dp.sum(e, -1, keepdims=True))


@softmax_from_64.with_gradient
def _softmax_gradient(g: Any, y: Any) -> list[Any]:
    return [dp.multiply(y, dp.subtract(g, dp.sum(dp.multiply(g, y), -1, keepdims=True)))]


@operator("softmax")
def softmax(x: Any) -> Any:
    return softmax_from_64(x)


@operator("cross_entropy2", "X Label", "Y XShape MatchX")
@dp.operator
def fluid_cross_entropy(x: Any, label: Any, *, ignore_index: int = -100) -> Any:
    """-log(p[label]) per row with infinities cut to 1e20, 0 where the label is ignored; the shape
    of the label. Cotangent -g / p at the label."""
    rows, labels = flat(x, len(x.shape) - 1), dp.reshape(label, -1)
    used = dp.not_equal(labels, ignore_index)
    loss = F.cross_entropy_on_probabilities(rows, dp.where(used, labels, 0))
    return dp.reshape(dp.where(used, loss, 0.0), label.shape)


@operator("cross_entropy", "X Label", "Y")
def cross_entropy_soft(x: Any, label: Any) -> Any:
    """-sum(label * log(x)) over the last axis, the logarithm no less than -1e20."""
    return -dp.sum(label * dp.maximum(dp.log(x), -1e20), -1, keepdims=True)


@operator("mean")
@dp.operator
def fluid_mean(x: Any) -> Any:
    """The mean of everything, shape (1,)."""
    return dp.reshape(dp.mean(x), 1)


@operator("accuracy", "Out Label", "Accuracy Correct Total")
@dp.operator
def fluid_accuracy(x: Any, label: Any, *, k: int = 1) -> Any:
    """Share of rows whose label (n, 1) is among the k greatest of x (n, c); of equal ones the lower
    index leads. Shape (1,)."""
    if k == 1:
        return dp.reshape(F.accuracy(x, dp.reshape(label, -1)), 1)
    index = dp.expand_dims(dp.arange(x.shape[1]), 0)
    score = dp.max(dp.where(dp.equal(index, label), x, -math.inf), 1, keepdims=True)
    level = dp.logical_and(dp.equal(x, score), dp.less(index, label))
    ahead = dp.logical_or(dp.greater(x, score), level)
    found = dp.less(dp.sum(dp.cast(ahead, "i64"), 1), k)
    return dp.reshape(dp.mean(dp.cast(found, "f32")), 1)


@operator("reshape2", "X", "Out XShape")
def reshape(x: Any, *, shape: Sequence[int] = ()) -> Any:
    return x.reshape(*[x.shape[n] if d == 0 else d for n, d in enumerate(shape)])


ACTIVATIONS.update({n: o.function for n, o in OPERATORS.items() if o.slots == ("X",)})
