"""Activations, losses and measures: operators made of primitives, each under its own name."""

from __future__ import annotations

from diptych.dtypes import TensorType, bool_, f32, i64
from diptych.errors import DtypeError, ShapeError
from diptych.graph.node import Node
from diptych.ops.base import Handle, composite, convert, need_float, operand, record
from diptych.ops.elementwise import (
    add,
    divide,
    equal,
    greater,
    less_equal,
    maximum,
    minimum,
    multiply,
    negative,
    stop_gradient,
    subtract,
    where,
)
from diptych.ops.functions import abs, erf, exp, expm1, log, log1p, sigmoid
from diptych.ops.indexing import is_at
from diptych.ops.pick import PickLabel
from diptych.ops.reduce import argmax, mean, reduce_max, reduce_sum, size_of
from diptych.ops.shape import expand_dims


def _zero(x: Handle) -> Handle:
    return operand(0.0, x.type.dtype)


@composite
def relu(x: Handle) -> Handle:
    """x where x > 0, else 0 (NaN stays NaN, and its cotangent passes)."""
    return maximum(x, _zero(x))


@relu.with_gradient
def _relu_gradient(g: Node, node: Node) -> list[Node | None]:
    """By the result, which is 0 where x is not positive: x itself need not be kept."""
    return [where(less_equal(node, _zero(node)), _zero(g), g)]


@composite
def leaky_relu(x: Handle, *, negative_slope: float = 0.01) -> Handle:
    """x where x > 0, else x * negative_slope."""
    return where(greater(x, _zero(x)), x, multiply(x, negative_slope))


@composite
def elu(x: Handle, *, alpha: float = 1.0) -> Handle:
    """x where x > 0, else alpha * expm1(x)."""
    below = multiply(expm1(minimum(x, _zero(x))), alpha)
    return where(greater(x, _zero(x)), x, below)


@composite
def gelu(x: Handle) -> Handle:
    """x * (0.5 * (1 + erf(x / sqrt(2)))), the erf form."""
    return multiply(x, multiply(add(erf(multiply(x, 0.7071067811865476)), 1.0), 0.5))


@composite
def silu(x: Handle) -> Handle:
    """x * sigmoid(x)."""
    return multiply(x, sigmoid(x))


@composite
def softplus(x: Handle) -> Handle:
    """max(x, 0) + log1p(exp(-|x|))."""
    return add(maximum(x, _zero(x)), log1p(exp(negative(abs(x)))))


@softplus.with_gradient
def _softplus_gradient(g: Node, node: Node) -> list[Node | None]:
    return [multiply(g, sigmoid(node.inputs[0]))]


def _shifted(x: Handle, axis: int) -> Handle:
    need_float(x.type, "softmax")
    if x.type.size == 0:  # also where the axis is empty and has no greatest
        return x
    return subtract(x, stop_gradient(reduce_max(x, axis, keepdims=True)))


@composite
def softmax(x: Handle, *, axis: int = -1) -> Handle:
    """s = x - max(x), e = exp(s): e / sum(e) along the axis."""
    e = exp(_shifted(x, axis))
    return divide(e, reduce_sum(e, axis, keepdims=True))


@softmax.with_gradient
def _softmax_gradient(g: Node, node: Node, axis: int) -> list[Node | None]:
    """y * (g - sum(g * y))."""
    total = reduce_sum(multiply(g, node), axis, keepdims=True)
    return [multiply(node, subtract(g, total))]


@composite
def log_softmax(x: Handle, *, axis: int = -1) -> Handle:
    """s - log(sum(exp(s))) with s = x - max(x)."""
    s = _shifted(x, axis)
    return subtract(s, log(reduce_sum(exp(s), axis, keepdims=True)))


@log_softmax.with_gradient
def _log_softmax_gradient(g: Node, node: Node, axis: int) -> list[Node | None]:
    """g - softmax(x) * sum(g)."""
    return [
        subtract(
            g, multiply(softmax(node.inputs[0], axis=axis), reduce_sum(g, axis, keepdims=True))
        )
    ]


def _check_labels(x: TensorType, label: TensorType, what: str) -> None:
    if x.rank != 2 or label.rank != 1 or x.shape[0] != label.shape[0]:
        cure = "give one class number for every row"
        if label.shape == x.shape and x.rank == 2:
            cure = "give class numbers: labels.argmax(1) of one-hot rows"
        elif x.rank == 2 and label.shape == (x.shape[0], 1):
            cure = "flatten the labels with .reshape(-1)"
        raise ShapeError(
            f"{what} takes scores (n, classes) and labels (n,)", f"{x} and labels {label}", cure
        )
    if not label.dtype.is_integer:
        raise DtypeError(f"{what} takes integer labels", f"{label}", "use .astype('int64')")


@composite
def cross_entropy(x: Handle, label: Handle) -> Handle:
    """Mean over rows of log(sum(e)) - s[label], with s = x - max(x), e = exp(s): logits (n, c)
    and labels (n,) -> (). Cotangent (e / sum(e) - one_hot(label)) * (g / n)."""
    _check_labels(x.type, label.type, "cross_entropy")
    s = _shifted(x, 1)
    return mean(subtract(log(reduce_sum(exp(s), 1)), _select_label(s, label)))


def _select_label(s: Handle, label: Handle) -> Handle:
    """s[i, label[i]], exactly: the one term of the row that is not masked out."""
    return record(PickLabel(), s, label)


@cross_entropy.with_gradient
def _cross_entropy_gradient(g: Node, node: Node) -> list[Node | None]:
    x, label = node.inputs
    scale = divide(g, size_of(x, (0,)))
    hot = is_at(convert(label, i64), x.type.shape[1], x.type.dtype)
    return [multiply(subtract(softmax(x, axis=1), hot), scale), None]


@composite
def nll_loss(x: Handle, label: Handle) -> Handle:
    """Mean over rows of -x[label]: log-probabilities (n, c), labels (n,) -> ()."""
    _check_labels(x.type, label.type, "nll_loss")
    return mean(negative(_select_label(x, label)))


@composite
def cross_entropy_on_probabilities(p: Handle, label: Handle) -> Handle:
    """-log(p[label]) per row, as the article's programs use it: (n, c), (n,) -> (n,).

    Infinities of the logarithm are cut to 1e20; the cotangent is -g / p at the label."""
    _check_labels(p.type, label.type, "cross_entropy_on_probabilities")
    loss = negative(log(_select_label(p, label)))
    return where(equal(loss, float("inf")), 1e20, where(equal(loss, float("-inf")), -1e20, loss))


@cross_entropy_on_probabilities.with_gradient
def _probability_gradient(g: Node, node: Node) -> list[Node | None]:
    p, label = node.inputs
    hot = is_at(convert(label, i64), p.type.shape[1], bool_)
    slope = divide(expand_dims(negative(g), -1), p)
    return [where(hot, slope, _zero(p)), None]


def _same_shape(x: Handle, y: Handle, what: str) -> None:
    if x.type.shape != y.type.shape:
        raise ShapeError(
            f"{what} takes a prediction and a target of one shape",
            f"{x.type} and {y.type}",
            "reshape one of them",
        )
    for type in (x.type, y.type):
        need_float(type, what)


@composite
def mse_loss(x: Handle, target: Handle) -> Handle:
    """mean((x - target)^2)."""
    _same_shape(x, target, "mse_loss")
    d = subtract(x, target)
    return mean(multiply(d, d))


@composite
def l1_loss(x: Handle, target: Handle) -> Handle:
    """mean(|x - target|)."""
    _same_shape(x, target, "l1_loss")
    return mean(abs(subtract(x, target)))


@composite
def binary_cross_entropy(p: Handle, target: Handle) -> Handle:
    """mean(-(t*log(p) + (1-t)*log(1-p))), each logarithm no less than -100. Cotangent of p
    (p - t) / max(p*(1-p), 1e-12) * (g / n), as PyTorch has it: finite where p is 0 or 1."""
    _same_shape(p, target, "binary_cross_entropy")
    hit, miss = _logarithms(p)
    both = add(multiply(target, hit), multiply(subtract(1.0, target), miss))
    return mean(negative(both))


def _logarithms(p: Handle) -> tuple[Handle, Handle]:
    """log(p) and log(1 - p), no less than -100."""
    return maximum(log(p), -100.0), maximum(log1p(negative(p)), -100.0)


@binary_cross_entropy.with_gradient
def _binary_gradient(g: Node, node: Node) -> list[Node | None]:
    p, target = node.inputs
    scale = divide(g, size_of(p, tuple(range(p.type.rank))))
    hit, miss = _logarithms(p)
    slope = divide(subtract(p, target), maximum(multiply(p, subtract(1.0, p)), 1e-12))
    return [multiply(slope, scale), multiply(subtract(miss, hit), scale)]


@composite
def binary_cross_entropy_with_logits(x: Handle, target: Handle) -> Handle:
    """The binary cross entropy of sigmoid(x), without an infinity on the way:
    mean(max(x, 0) - x*t + log(1 + exp(-|x|))); where x is infinite, the limit of that, 0 or
    infinite. Cotangents (sigmoid(x) - t) * (g / n) and -x * (g / n)."""
    _same_shape(x, target, "binary_cross_entropy_with_logits")
    straight = subtract(maximum(x, 0.0), multiply(x, target))
    missed = where(greater(x, 0.0), subtract(1.0, target), target)  # by a certain answer
    limit = where(equal(missed, 0.0), 0.0, multiply(abs(x), missed))
    straight = where(equal(abs(x), float("inf")), limit, straight)
    return mean(add(straight, log1p(exp(negative(abs(x))))))


@binary_cross_entropy_with_logits.with_gradient
def _logits_gradient(g: Node, node: Node) -> list[Node | None]:
    x, target = node.inputs
    scale = divide(g, size_of(x, tuple(range(x.type.rank))))
    return [multiply(subtract(sigmoid(x), target), scale), multiply(negative(x), scale)]


@composite
def accuracy(x: Handle, label: Handle) -> Handle:
    """Share of rows whose greatest score is at the label: (n, c), (n,) -> f32."""
    _check_labels(x.type, label.type, "accuracy")
    return mean(convert(equal(argmax(x, 1), convert(label, i64)), f32))
