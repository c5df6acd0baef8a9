"""Memory for tensors: new, aligned where it is large, used again; and copies that lie otherwise."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from diptych.runtime.call import address
from diptych.runtime.holders import ALONE, holders

Array = np.ndarray[Any, Any]
ALIGN = 64
SMALL = 1 << 12  # bytes below which alignment is not worth its price
MOST_KEPT = 1 << 20  # bytes of a result whose memory may be used again


def empty(shape: Sequence[int], dtype: Any) -> Array:
    """Memory for a tensor in row-major order, aligned where it is large."""
    dtype = np.dtype(dtype)
    size = math.prod(shape)
    if size * dtype.itemsize <= SMALL:
        return np.empty(shape, dtype)
    return _aligned(size, dtype).reshape(shape)


def empty_columns(shape: tuple[int, int], dtype: Any) -> Array:
    """Memory for a matrix with its first axis innermost. Each column starts on a cache line, where
    that costs little: loads meet fewer lines, and threads that divide a matrix share none."""
    dtype = np.dtype(dtype)
    line = ALIGN // dtype.itemsize
    pitch = -(-shape[0] // line) * line
    if (pitch - shape[0]) * 8 > shape[0]:
        pitch = shape[0]
    return _aligned(shape[1] * pitch, dtype).reshape(shape[1], pitch)[:, : shape[0]].T


def copied(array: Array) -> Array:
    """A copy that lies as the original, aligned where it is large; axes of size 1 may differ."""
    if array.flags.c_contiguous:
        new = empty(array.shape, array.dtype)
    elif array.flags.f_contiguous:
        new = empty(array.shape[::-1], array.dtype).T
    elif array.ndim == 2:
        new = empty_columns(array.shape, array.dtype)
    else:
        return array.copy(order="K")
    new[...] = array
    return new


def turned(array: Array, innermost: int) -> Array:
    """The matrix with this axis innermost in memory: itself, or a copy."""
    if array.strides[innermost] == array.itemsize or 1 in array.shape:
        return array
    turn = innermost == 0
    new = empty_columns(array.shape if turn else array.shape[::-1], array.dtype)
    new = new if turn else new.T
    new[...] = array
    return new


def relaid(array: Array, old: Array | None) -> Array:
    """The array with the strides of the value that it replaces, for which code is there."""
    if old is None or array.strides == old.strides or array.ndim != 2:
        return array
    new = empty_columns(array.shape, array.dtype)
    if new.strides != old.strides:
        return array
    new[...] = array
    return new


def _aligned(size: int, dtype: np.dtype[Any]) -> Array:
    raw = np.empty(max(size, 1) * dtype.itemsize + ALIGN, np.uint8)
    start = -address(raw) % ALIGN
    return raw[start : start + size * dtype.itemsize].view(dtype)


def maker(shape: tuple[int, ...], dtype: Any, again: bool) -> Callable[[], Array]:
    """What makes memory for a result, call after call; `again` where it may be used again."""
    size = math.prod(shape) * dtype.itemsize
    if size <= SMALL:
        return partial(np.empty, shape, dtype)
    again = again and size <= MOST_KEPT
    return _reusing(shape, dtype, size) if again else partial(empty, shape, dtype)


def _reusing(shape: tuple[int, ...], dtype: Any, size: int) -> Callable[[], Array]:
    """Aligned memory, also that of an earlier result which nobody has any more: to find where new
    memory lies takes Python longer than a small product. The last two results are looked at, for
    one is often kept until the next is there."""
    kept: deque[tuple[Array, int] | None] = deque([None, None], maxlen=2)

    def make() -> Array:
        try:
            known = kept.popleft()
        except IndexError:  # other threads have both
            known = None
        if known is None or holders(known)[0] > ALONE:
            raw = np.empty(size + ALIGN, np.uint8)
            known = raw, -address(raw) % ALIGN
        kept.append(known)
        return np.ndarray(shape, dtype, *known)

    return make


def element_strides(array: Array) -> tuple[int, ...]:
    return tuple(s // array.itemsize for s in array.strides)
