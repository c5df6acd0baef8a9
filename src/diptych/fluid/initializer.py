"""Initial values as PaddlePaddle 1.8.5 draws them, to the bit where a seed is set.

Every initialiser seeds a generator of its own: x <- 48271 x mod (2^31 - 1), starting from the
seed; u = (x - 1) / 2147483646 in f32 (the minimal standard generator of Park and Miller).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.nn import init

Array = np.ndarray[Any, Any]
MULTIPLIER, MODULUS = 48271, 2**31 - 1


def units(seed: int, count: int) -> Array:
    """`count` numbers from 0 to 1 in f32."""
    state = np.array([seed % MODULUS * MULTIPLIER % MODULUS], np.int64)
    jump = MULTIPLIER
    while len(state) < count:  # x[n + len] = x[n] * multiplier^len
        state = np.concatenate([state, state * jump % MODULUS])
        jump = jump * jump % MODULUS
    return (state[:count] - 1).astype(np.float32) / np.float32(MODULUS - 1)


class Initializer:
    """Called with a shape and the seed of the program; 0 draws from diptych's generator."""

    def __call__(self, shape: Sequence[int], seed: int) -> Array:
        raise NotImplementedError


class Constant(Initializer):
    def __init__(self, value: float = 0.0, force_cpu: bool = False) -> None:
        self.value = value

    def __call__(self, shape: Sequence[int], seed: int) -> Array:
        return np.full(tuple(shape), self.value, np.float32)


class Uniform(Initializer):
    """low + u * (high - low), in f32."""

    def __init__(self, low: float = -1.0, high: float = 1.0, seed: int = 0) -> None:
        self.low, self.high, self.seed = low, high, seed

    def __call__(self, shape: Sequence[int], seed: int) -> Array:
        low, high = np.float32(self.low), np.float32(self.high)
        seed = self.seed or seed
        if not seed:
            return init.uniform(shape, float(low), float(high))
        return (units(seed, math.prod(shape)) * (high - low) + low).reshape(tuple(shape))


class Xavier(Initializer):
    """U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""

    def __init__(
        self,
        uniform: bool = True,
        fan_in: float | None = None,
        fan_out: float | None = None,
        seed: int = 0,
    ) -> None:
        if not uniform:
            raise NotImplementedError("diptych.fluid has Xavier with uniform=True")
        self.fan_in, self.fan_out, self.seed = fan_in, fan_out, seed

    def __call__(self, shape: Sequence[int], seed: int) -> Array:
        fan_in, fan_out = fans(shape)
        fan_in = fan_in if self.fan_in is None else self.fan_in
        fan_out = fan_out if self.fan_out is None else self.fan_out
        limit = math.sqrt(6.0 / (fan_in + fan_out))
        return Uniform(-limit, limit, self.seed)(shape, seed)


def fans(shape: Sequence[int]) -> tuple[float, float]:
    """(fan_in, fan_out) as Paddle counts them: a matrix is (in, out)."""
    if len(shape) < 2:
        size = shape[0] if shape else 1
        return size, size
    rest = math.prod(shape[2:])
    if len(shape) == 2:
        return shape[0], shape[1]
    return shape[1] * rest, shape[0] * rest


ConstantInitializer, UniformInitializer, XavierInitializer = Constant, Uniform, Xavier
