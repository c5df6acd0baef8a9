"""numpy's functions by what diptych records for them: each takes numpy's arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych.dtypes import bool_
from diptych.errors import ShapeError
from diptych.ops import contract, elementwise, functions, indexing, reduce
from diptych.ops import shape as shapes
from diptych.ops.base import Handle, operand


def _reduction(function: Callable[..., Handle]) -> Callable[..., Handle]:
    """A reduction, whose keepdims comes after dtype and out in numpy: by its name alone."""

    def call(a: Any, axis: Any = None, *, keepdims: bool = False) -> Handle:
        return function(a, axis, keepdims)

    return call


def _truth(x: Any) -> Handle:
    """Whether numbers are other than 0."""
    x = operand(x)
    return x if x.type.dtype == bool_ else elementwise.not_equal(x, 0)


def _logic(function: Callable[..., Handle]) -> Callable[..., Handle]:
    """A function of truth, which numpy's logical ones ask for."""

    def call(*values: Any) -> Handle:
        return function(*map(_truth, values))

    return call


def _any(a: Any, axis: Any, keepdims: bool) -> Handle:
    return reduce.reduce_any(_truth(a), axis, keepdims)


def _all(a: Any, axis: Any, keepdims: bool) -> Handle:
    return reduce.reduce_all(_truth(a), axis, keepdims)


def _square(x: Any) -> Handle:
    return functions.pow(x, 2)


def _reciprocal(x: Any) -> Handle:
    return elementwise.divide(1.0, x)


def _divmod(a: Any, b: Any) -> tuple[Handle, Handle]:
    return elementwise.floor_divide(a, b), elementwise.remainder(a, b)


def _isnan(x: Any) -> Handle:
    return elementwise.not_equal(x, x)


def _isfinite(x: Any) -> Handle:
    x = operand(x)
    if not x.type.dtype.is_float:
        return elementwise.equal(x, x)
    return elementwise.less(functions.abs(x), np.inf)


def _isinf(x: Any) -> Handle:
    x = operand(x)
    if not x.type.dtype.is_float:
        return elementwise.not_equal(x, x)
    return elementwise.equal(functions.abs(x), np.inf)


def _clip(
    a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None
) -> Handle:
    return elementwise.clip(a, a_min if min is None else min, a_max if max is None else max)


def _round(a: Any) -> Handle:
    return functions.round(a)


def _transpose(a: Any, axes: Any = None) -> Handle:
    return shapes.transpose(a, axes)


def _reshape(a: Any, shape: Any) -> Handle:
    return shapes.reshape(a, shape)


def _ravel(a: Any) -> Handle:
    return shapes.reshape(a, -1)


def _swapaxes(a: Any, axis1: int, axis2: int) -> Handle:
    a = operand(a)
    order = list(range(a.type.rank))
    one, other = (shapes.normal_axis(n, a.type.rank, "swapaxes") for n in (axis1, axis2))
    order[one], order[other] = other, one
    return shapes.transpose(a, order)


def _concatenate(arrays: Sequence[Any], axis: int = 0) -> Handle:
    return shapes.concat(arrays, axis)


def _where(condition: Any, x: Any, y: Any) -> Handle:
    return elementwise.where(condition, x, y)


def _take(a: Any, indices: Any, axis: int | None = None) -> Handle:
    return indexing.gather(_ravel(a) if axis is None else a, indices, axis or 0)


def _dot(a: Any, b: Any) -> Handle:
    a, b = operand(a), operand(b)
    if a.type.rank == 0 or b.type.rank == 0:
        return elementwise.multiply(a, b)
    if b.type.rank > 2:
        raise ShapeError(
            "numpy.dot of tensors takes a second one of at most two axes",
            f"{a.type} and {b.type}",
            "dp.contract(a, b, 'ij,kjl->ikl') names the axes",
        )
    return contract.matmul(a, b)


def _shape(a: Any) -> tuple[Any, ...]:
    return tuple(operand(a).type.shape)


def _ndim(a: Any) -> int:
    return int(operand(a).type.rank)


RECORDED: dict[Any, Callable[..., Any]] = {
    # arithmetic
    np.add: elementwise.add,
    np.subtract: elementwise.subtract,
    np.multiply: elementwise.multiply,
    np.divide: elementwise.divide,
    np.floor_divide: elementwise.floor_divide,
    np.remainder: elementwise.remainder,
    np.divmod: _divmod,
    np.power: functions.pow,
    np.matmul: contract.matmul,
    np.dot: _dot,
    np.negative: elementwise.negative,
    np.positive: operand,
    np.reciprocal: _reciprocal,
    np.square: _square,
    np.maximum: elementwise.maximum,
    np.minimum: elementwise.minimum,
    np.clip: _clip,
    # functions
    np.absolute: functions.abs,
    np.sign: functions.sign,
    np.floor: functions.floor,
    np.ceil: functions.ceil,
    np.rint: functions.round,
    np.round: _round,
    np.around: _round,
    np.exp: functions.exp,
    np.expm1: functions.expm1,
    np.log: functions.log,
    np.log1p: functions.log1p,
    np.tanh: functions.tanh,
    np.sin: functions.sin,
    np.cos: functions.cos,
    np.sqrt: functions.sqrt,
    # comparison, logic and choice
    np.less: elementwise.less,
    np.less_equal: elementwise.less_equal,
    np.greater: elementwise.greater,
    np.greater_equal: elementwise.greater_equal,
    np.equal: elementwise.equal,
    np.not_equal: elementwise.not_equal,
    np.logical_and: _logic(elementwise.logical_and),
    np.logical_or: _logic(elementwise.logical_or),
    np.logical_xor: _logic(elementwise.logical_xor),
    np.logical_not: _logic(elementwise.logical_not),
    np.bitwise_and: elementwise.logical_and,
    np.bitwise_or: elementwise.logical_or,
    np.bitwise_xor: elementwise.logical_xor,
    np.invert: elementwise.logical_not,
    np.isnan: _isnan,
    np.isinf: _isinf,
    np.isfinite: _isfinite,
    np.where: _where,
    # reductions
    np.sum: _reduction(reduce.reduce_sum),
    np.prod: _reduction(reduce.prod),
    np.mean: _reduction(reduce.mean),
    np.max: _reduction(reduce.reduce_max),
    np.amax: _reduction(reduce.reduce_max),
    np.min: _reduction(reduce.reduce_min),
    np.amin: _reduction(reduce.reduce_min),
    np.argmax: _reduction(reduce.argmax),
    np.argmin: _reduction(reduce.argmin),
    np.any: _reduction(_any),
    np.all: _reduction(_all),
    # shapes
    np.shape: _shape,
    np.ndim: _ndim,
    np.transpose: _transpose,
    np.swapaxes: _swapaxes,
    np.reshape: _reshape,
    np.ravel: _ravel,
    np.squeeze: shapes.squeeze,
    np.expand_dims: shapes.expand_dims,
    np.broadcast_to: shapes.broadcast_to,
    np.concatenate: _concatenate,
    np.stack: shapes.stack,
    np.take: _take,
}
