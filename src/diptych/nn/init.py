"""Initial values: f32 arrays from the generator's streams, by Philox."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from diptych import engine
from diptych.dtypes import Dim, TensorType, i64
from diptych.errors import ShapeError
from diptych.generator import default_generator
from diptych.graph.node import Graph, input_node
from diptych.graph.record import author_line, origin
from diptych.ops.random import normal_from
from diptych.philox import philox

Array = np.ndarray[Any, Any]
MANY = 1 << 16  # values that compiled code draws sooner, its compile included, than the reference


def uniform(shape: Sequence[int], low: float, high: float) -> Array:
    """low + u * (high - low), u the top 24 bits of a word times 2^-24, in f32."""
    count = math.prod(shape)
    seed, stream = default_generator().take()
    words = philox(seed, stream, count)
    u = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    span = np.float32(high - low)
    return (u * span + np.float32(low)).reshape(shape)


def normal(shape: Sequence[int], mean: float = 0.0, std: float = 1.0) -> Array:
    """z * std + mean, z as `dp.normal` draws it (Box and Muller), in f32."""
    count = math.prod(shape)
    device = "cpu" if count >= MANY else "reference"
    drawing = _drawing().find(device, [(1,)], {}, {"N": count})
    (z,) = drawing.run([np.array(default_generator().take(), np.int64)])
    values: Array = z * np.float32(std) + np.float32(mean)
    return values.reshape(shape)


@lru_cache(maxsize=1)
def _drawing() -> engine.Family:
    """Standard normal numbers from the state of a generator, however many: one executable."""
    state = input_node(TensorType((2,), i64))
    with origin(author_line()):
        drawn = normal_from((Dim.symbol("N"),), state)
    return engine.Family(Graph((state,), (drawn,)))


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, ...)."""
    if len(shape) < 2:
        raise ShapeError(
            "a weight has two axes or more, (out, in, ...)",
            f"{tuple(shape)}",
            "initialise vectors with uniform or normal",
        )
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


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
