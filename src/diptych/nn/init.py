"""Initial values: f32 arrays from the generator's streams, by Philox."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from diptych import engine, interpret
from diptych.dtypes import Dim, Dimension, TensorType, i64
from diptych.errors import ShapeError
from diptych.generator import default_generator
from diptych.graph.node import Graph, input_node
from diptych.graph.record import author_line, origin
from diptych.ops.base import as_shape
from diptych.ops.random import normal_from, uniform_from

Array = np.ndarray[Any, Any]
# Values that compiled code draws sooner than the reference, which needs no compile.
MANY_UNIFORM, MANY_NORMAL = 1 << 22, 1 << 16


def uniform(shape: Sequence[int], low: float, high: float) -> Array:
    """low + u * (high - low), u the top 24 bits of a word times 2^-24, in f32."""
    values = _drawn(uniform_from, shape, MANY_UNIFORM)
    values *= np.float32(high - low)
    values += np.float32(low)
    return values


def normal(shape: Sequence[int], mean: float = 0.0, std: float = 1.0) -> Array:
    """z * std + mean, z as `dp.normal` draws it (Box and Muller), in f32."""
    values = _drawn(normal_from, shape, MANY_NORMAL)
    values *= np.float32(std)
    values += np.float32(mean)
    return values


def _drawn(draw: Callable[..., Any], shape: Sequence[int], many: int) -> Array:
    """Numbers of the next stream."""
    sizes: Any = as_shape(shape)
    count = math.prod(sizes)
    given = [np.array(default_generator().take(), np.int64)]
    if count >= many:
        found = _drawing(draw).find("cpu", [(1,)], {}, {"N": count}).run(given)
    else:
        found = interpret.run(_graph(draw, count), given)
    values: Array = found[0].reshape(sizes)
    return values


@lru_cache(maxsize=2)
def _drawing(draw: Callable[..., Any]) -> engine.Family:
    """One executable for any count."""
    return engine.Family(_graph(draw, Dim.symbol("N")))


def _graph(draw: Callable[..., Any], count: Dimension) -> Graph:
    """So many numbers from the state of a generator."""
    state = input_node(TensorType((2,), i64))
    with origin(author_line()):
        return Graph((state,), (draw((count,), state),))


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, ...)."""
    sizes: Any = as_shape(shape)
    if len(sizes) < 2:
        raise ShapeError(
            "a weight has two axes or more, (out, in, ...)",
            f"{sizes}",
            "initialise vectors with uniform or normal",
        )
    receptive = math.prod(sizes[2:])
    return sizes[1] * receptive, sizes[0] * receptive


def kaiming_uniform(shape: Sequence[int]) -> Array:
    """U(-b, b), b = 1 / sqrt(fan_in): PyTorch's default for Linear."""
    bound = 1.0 / math.sqrt(fans(shape)[0])
    return uniform(shape, -bound, bound)


def kaiming_normal(shape: Sequence[int], gain: float = math.sqrt(2.0)) -> Array:
    """N(0, gain / sqrt(fan_in)) (He, Zhang, Ren and Sun, 2015); the gain is for a relu."""
    return normal(shape, 0.0, gain / math.sqrt(fans(shape)[0]))


def xavier_normal(shape: Sequence[int]) -> Array:
    """N(0, sqrt(2 / (fan_in + fan_out))) (Glorot and Bengio, 2010)."""
    return normal(shape, 0.0, math.sqrt(2.0 / sum(fans(shape))))


def xavier_uniform(shape: Sequence[int]) -> Array:
    """U(-b, b), b = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    bound = math.sqrt(6.0 / sum(fans(shape)))
    return uniform(shape, -bound, bound)


def constant(shape: Sequence[int], value: float) -> Array:
    """Everywhere the value, f32."""
    return np.full(shape, value, np.float32)
