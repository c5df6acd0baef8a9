"""Initial values: f32 arrays from the generator's streams, by Philox."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.generator import default_generator
from diptych.philox import philox

Array = np.ndarray[Any, Any]


def uniform(shape: Sequence[int], low: float, high: float) -> Array:
    """low + u * (high - low), u the top 24 bits of a word times 2^-24, in f32."""
    count = math.prod(shape)
    seed, stream = default_generator().take()
    words = philox(seed, stream, count)
    u = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    span = np.float32(high - low)
    return (u * span + np.float32(low)).reshape(shape)


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, ...)."""
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def kaiming_uniform(shape: Sequence[int]) -> Array:
    """U(-b, b), b = 1 / sqrt(fan_in): PyTorch's default for Linear."""
    bound = 1.0 / math.sqrt(fans(shape)[0])
    return uniform(shape, -bound, bound)


def xavier_uniform(shape: Sequence[int]) -> Array:
    """U(-b, b), b = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    bound = math.sqrt(6.0 / sum(fans(shape)))
    return uniform(shape, -bound, bound)


def constant(shape: Sequence[int], value: float) -> Array:
    return np.full(shape, value, np.float32)
