"""fluid.layers: what the article's programs call, in both modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import diptych as dp
from diptych.fluid.core import EnforceNotMet, VarType
from diptych.fluid.framework import STATE, Helper, Variable, dynamic
from diptych.fluid.initializer import Constant, Initializer, Xavier
from diptych.fluid.operators import fluid_accuracy, fluid_cross_entropy, fluid_mean


def data(
    name: str,
    shape: Sequence[int | None],
    append_batch_size: bool = True,
    dtype: Any = "float32",
    lod_level: int = 0,
    type: Any = None,
    stop_gradient: bool = True,
) -> Variable:
    """A placeholder: [1, 28, 28] -> (-1, 1, 28, 28)."""
    if STATE.tracer is not None:
        raise AssertionError(
            "fluid.layers.data makes a variable of a static program, and this is dygraph"
        )
    if lod_level:
        raise NotImplementedError("diptych.fluid has no sequences (lod_level) yet")
    sizes = [None if d is None or d < 0 else int(d) for d in shape]
    if append_batch_size and None not in sizes:
        sizes = [None, *sizes]
    program = STATE.main
    wanted = tuple(-1 if d is None else d for d in sizes)
    if name in program.variables:
        if program.variables[name].shape != wanted:
            raise ValueError(
                f"Variable {name!r} has been created before; the shape was "
                f"{program.variables[name].shape} and is now {wanted}"
            )
        return program.variables[name]
    with program.inner:
        tensor = dp.placeholder(name, sizes, VarType.of(dtype).numpy)
    program.variables[name] = made = Variable(program, name, tensor)
    return made


def initialiser(attr: Any, default: Initializer) -> Initializer:
    """The initialiser that an attribute names: None and True mean the default."""
    if attr is None or attr is True:
        return default
    if isinstance(attr, Initializer):
        return attr
    raise NotImplementedError(
        f"diptych.fluid takes an initializer as an attribute, not {attr!r} yet"
    )


def fc(
    input: Any,
    size: int,
    num_flatten_dims: int = 1,
    param_attr: Any = None,
    bias_attr: Any = None,
    act: str | None = None,
    name: str | None = None,
) -> Any:
    """act(x W + b), x flattened to a matrix; a list of inputs has a weight each."""
    helper = Helper("fc", name)
    parts = []
    for x in input if isinstance(input, list | tuple) else [input]:
        if not hasattr(x, "tensor"):
            raise TypeError(f"The type of 'input' in fc must be Variable, but received {type(x)}")
        if not x.tensor.dtype.is_float:
            raise TypeError(
                "The data type of 'input' in fc must be float32 or float64, but received "
                f"{x.tensor.dtype.numpy.name}"
            )
        columns = num_flatten_dims if num_flatten_dims >= 0 else len(x.shape) + num_flatten_dims
        width = math.prod(x.shape[columns:])
        weight = helper.parameter([width, size], initialiser(param_attr, Xavier()), "w")
        slots = {"X": [x], "Y": [weight]}
        parts.append(helper.op("mul", slots, x_num_col_dims=columns, y_num_col_dims=1))
    out = parts[0]
    for part in parts[1:]:
        out = helper.op("elementwise_add", {"X": [out], "Y": [part]}, axis=-1)
    if bias_attr is not False:
        bias = helper.parameter([size], initialiser(bias_attr, Constant(0.0)), "b")
        out = helper.op("elementwise_add", {"X": [out], "Y": [bias]}, axis=len(out.shape) - 1)
    return helper.act(out, act)


def cross_entropy(
    input: Any, label: Any, soft_label: bool = False, ignore_index: int = -100
) -> Any:
    """-log(probability of the label), a row each."""
    if soft_label:
        return Helper("cross_entropy").op("cross_entropy", {"X": [input], "Label": [label]})
    if label.tensor.dtype.name != "i64":
        raise EnforceNotMet(
            "cross_entropy takes int64 labels\n"
            f"  got  {label.tensor.dtype.numpy.name}\n  try  labels.astype('int64')"
        )
    if STATE.tracer is not None and ignore_index == -100:
        return dynamic(fluid_cross_entropy, input, label)
    helper, slots = Helper("cross_entropy2"), {"X": [input], "Label": [label]}
    return helper.op("cross_entropy2", slots, ignore_index=ignore_index)


def mean(x: Any, name: str | None = None) -> Any:
    """The mean of everything, shape (1,)."""
    if not x.tensor.dtype.is_float:
        raise TypeError(f"mean takes floats, not {x.tensor.dtype.numpy.name}")
    if STATE.tracer is not None:
        return dynamic(fluid_mean, x)
    return Helper("mean", name).op("mean", {"X": [x]})


def accuracy(input: Any, label: Any, k: int = 1, correct: Any = None, total: Any = None) -> Any:
    """Share of rows whose label is among the k greatest, shape (1,)."""
    if label.tensor.ndim != 2 or label.tensor.dtype.name != "i64":
        raise EnforceNotMet(
            "accuracy takes int64 labels of 2 dimensions, (N, 1)\n"
            f"  got  {list(label.shape)}\n  try  labels.reshape(-1, 1).astype('int64')"
        )
    if STATE.tracer is not None and k == 1:
        return dynamic(fluid_accuracy, input, label)
    return Helper("accuracy").op("accuracy", {"Out": [input], "Label": [label]}, k=k)


def reshape(
    x: Any,
    shape: Sequence[int],
    actual_shape: Any = None,
    act: str | None = None,
    inplace: bool = False,
    name: str | None = None,
) -> Any:
    """0 keeps a size, one -1 is inferred."""
    sizes = [int(d) for d in shape]
    assert sizes.count(-1) <= 1, "Only one dimension value of 'shape' in reshape can be -1"
    helper = Helper("reshape2", name)
    out = helper.op("reshape2", {"X": [x]}, shape=sizes)
    return helper.act(out, act)


def softmax(input: Any, use_cudnn: bool = False, name: str | None = None, axis: int = -1) -> Any:
    if axis not in (-1, len(input.shape) - 1):
        raise NotImplementedError("diptych.fluid has softmax over the last axis")
    return Helper("softmax", name).op("softmax", {"X": [input]})


def relu(x: Any, name: str | None = None) -> Any:
    return Helper("relu", name).op("relu", {"X": [x]})


def tanh(x: Any, name: str | None = None) -> Any:
    return Helper("tanh", name).op("tanh", {"X": [x]})


def sigmoid(x: Any, name: str | None = None) -> Any:
    return Helper("sigmoid", name).op("sigmoid", {"X": [x]})
