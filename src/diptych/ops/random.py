"""Random operators: Philox 4x32-10 keyed by seed and stream (rule 8 of docs/numerics.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from diptych.dtypes import Dimension, TensorType, f32, i64
from diptych.errors import DtypeError, ShapeError, ValueRangeError
from diptych.graph.node import Node, Operator, Source
from diptych.graph.record import current
from diptych.kernel import expr as k
from diptych.kernel.expr import Expr
from diptych.ops.base import (
    Handle,
    as_shape,
    composite,
    is_scalar,
    need_float,
    operand,
    primitive,
    record,
    whole,
)
from diptych.ops.elementwise import (
    add,
    cast,
    equal,
    greater_equal,
    less,
    logical_and,
    logical_or,
    multiply,
    subtract,
)
from diptych.ops.elementwise import where as choose
from diptych.ops.functions import cos, log, sqrt
from diptych.ops.indexing import arange, take
from diptych.ops.reduce import reduce_sum
from diptych.ops.shape import expand_dims
from diptych.philox import M0, M1, MASK, W0, W1, philox

Array = np.ndarray[Any, Any]
UNIT = 2.0**-24


def _word(seed: Expr, stream: Expr, element: Expr) -> Expr:
    """Word `element` mod 4 of counter `element` div 4, as i64 below 2^32."""
    mask = int(MASK)
    counter = k.lshr(element, 2)
    c = [counter & mask, k.lshr(counter, 32), stream & mask, k.lshr(stream, 32)]
    key0, key1 = seed & mask, k.lshr(seed, 32)
    for _ in range(10):
        p0, p1 = c[0] * int(M0), c[2] * int(M1)
        c = [
            k.lshr(p1, 32) ^ c[1] ^ key0,
            p1 & mask,
            k.lshr(p0, 32) ^ c[3] ^ key1,
            p0 & mask,
        ]
        key0, key1 = (key0 + W0) & mask, (key1 + W1) & mask
    lane = element & 3
    high = k.select(lane.equals(2), c[2], c[3])
    return k.select(lane.equals(0), c[0], k.select(lane.equals(1), c[1], high))


@primitive
class Words(Operator):
    """`size` words of 32 bits as i64. Input: seed and stream."""

    size: Dimension
    name: ClassVar[str] = "words"

    def infer(self, *inputs: TensorType) -> TensorType:
        if inputs[0] != TensorType((2,), i64):
            raise DtypeError("words takes its state, i64[2]", f"{inputs[0]}", "dp.permutation(n)")
        return TensorType((self.size,), i64)

    def reference(self, *inputs: Array) -> Array:
        state = inputs[0]
        return philox(int(state[0]), int(state[1]), int(self.size)).astype(np.int64)  # type: ignore[arg-type]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        seed, stream = (inputs[0].at(k.const(n, i64)) for n in range(2))
        return lambda i: _word(seed, stream, i)


@primitive
class Uniform(Operator):
    """The top 24 bits of a word times 2^-24: f32 from 0 to 1 - 2^-24. Input: seed and stream."""

    shape: tuple[Dimension, ...]
    name: ClassVar[str] = "uniform"

    def infer(self, *inputs: TensorType) -> TensorType:
        if inputs[0] != TensorType((2,), i64):
            raise DtypeError("uniform takes its state, i64[2]", f"{inputs[0]}", "dp.uniform(...)")
        return TensorType(self.shape, f32)

    def reference(self, *inputs: Array) -> Array:
        count = int(np.prod(self.shape, dtype=np.int64))  # type: ignore[arg-type]
        words = philox(int(inputs[0][0]), int(inputs[0][1]), count)
        units = (words >> np.uint32(8)).astype(np.float32) * np.float32(UNIT)
        return units.reshape(self.shape)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return [None]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        state = inputs[0]

        def at(*i: Expr) -> Expr:
            element: Expr = k.const(0, i64)
            for extent, position in zip(out.shape, i, strict=True):
                element = element * extent + position
            seed, stream = (state.at(k.const(n, i64)) for n in range(2))
            word = _word(seed, stream, element)
            return k.cast(k.lshr(word, 8), f32) * UNIT

        return at


def uniform(shape: Any, low: float = 0.0, high: float = 1.0) -> Handle:
    """low + u * (high - low), u from 0 to 1 - 2^-24, f32."""
    u = uniform_from(as_shape(shape), current().random_state())
    if (low, high) == (0.0, 1.0):
        return u
    return add(multiply(u, high - low), low)


def uniform_from(shape: tuple[Dimension, ...], state: Handle) -> Handle:
    """The top 24 bits of random words, times 2^-24, f32."""
    return record(Uniform(shape), state)


def normal(shape: Any, mean: float = 0.0, std: float = 1.0) -> Handle:
    """z * std + mean, z from the standard normal distribution as `normal_from` has it, f32."""
    if not std >= 0:
        raise ValueRangeError("a standard deviation is not negative", f"std={std}", "e.g. 1.0")
    z = normal_from(as_shape(shape), current().random_state())
    return add(multiply(z, std), mean) if (mean, std) != (0.0, 1.0) else z


def normal_from(shape: tuple[Dimension, ...], state: Handle) -> Handle:
    """Box and Muller: sqrt(-2 log(1 - u)) * cos(2 pi v) in f32, u the first half of the uniform
    numbers and v the second; u = 0 gives 0."""
    pair = record(Uniform((2, *shape)), state)
    u, v = take(pair, 0), take(pair, 1)
    radius = sqrt(multiply(log(subtract(1.0, u)), -2.0))
    return multiply(radius, cos(multiply(v, 6.283185307179586)))


def permutation(n: int) -> Handle:
    """0 .. n-1 in random order, i64 (n,): element i is the rank of word i among n words, the first
    of equal words being the lower. Takes time n^2; for whole data sets there is `data.permutation`.
    """
    size = whole(n, "a size", 0)
    return rank(record(Words(size), current().random_state()))


@composite
def rank(x: Handle) -> Handle:
    """How many elements of a vector come before each: those that are less, and equal ones on its
    left. i64 (n,)."""
    n = x.type.shape[0]
    other, own = expand_dims(x, 0), expand_dims(x, 1)
    left = less(expand_dims(arange(n), 0), expand_dims(arange(n), 1))
    before = logical_or(less(other, own), logical_and(equal(other, own), left))
    return reduce_sum(cast(before, "i64"), 1)


def bernoulli(p: Any, shape: Any = None) -> Handle:
    """True where u < p."""
    if is_scalar(p):
        if shape is None:
            raise ShapeError("bernoulli of one number needs a shape", f"p={p}", "shape=(3,)")
        if not 0.0 <= p <= 1.0:
            raise ValueRangeError("a probability lies from 0 to 1", f"p={p}", "e.g. 0.5")
        return less(record(Uniform(as_shape(shape)), current().random_state()), float(p))
    p = operand(p)
    return less(record(Uniform(p.type.shape), current().random_state()), p)


@composite
def dropout_with(x: Handle, state: Handle, *, p: float = 0.5) -> Handle:
    """where(u >= p, x * (1 / (1 - p)), 0), u drawn by position."""
    need_float(x.type, "dropout")
    keep = greater_equal(record(Uniform(x.type.shape), state), p)
    scale = 1.0 / (1.0 - p) if p < 1 else 0.0
    return choose(keep, multiply(x, scale), operand(0.0, x.type.dtype))


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Handle:
    """Zero each element with probability p and scale the others by 1 / (1 - p); in training."""
    if not 0.0 <= p <= 1.0:
        raise ValueRangeError("a dropout probability lies from 0 to 1", f"p={p}", "e.g. 0.5")
    x = operand(x)
    if not training or p == 0.0:
        return x
    return dropout_with(x, current().random_state(), p=float(p))
