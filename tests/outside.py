"""Facts from outside on values and gradients: the form of their tables.

The expected numbers are those of PyTorch 2.13 and numpy, found by running the samples of PyTorch's
OpInfo and the situations of tinygrad's operator tests, and rounded to seven digits. Inputs and
expectations are written as diptych reads them: floats are f32, integers i64; other dtypes have a
helper. Element n of the result (row-major, from 1) has the cotangent n, so that no two places have
the same. `slopes` are those of the float inputs; none are given where nothing is differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diptych.errors import DiptychError

inf, nan = float("inf"), float("nan")
f32, f64 = partial(np.array, dtype=np.float32), partial(np.array, dtype=np.float64)
i32, u8 = partial(np.array, dtype=np.int32), partial(np.array, dtype=np.uint8)


def empty(*shape, dtype="f32"):
    """Make an array without elements."""
    return np.zeros(shape, {"f32": np.float32, "i64": np.int64, "bool": bool}[dtype])


@dataclass(frozen=True, eq=False)
class Case:
    """What `call` gives for `inputs`, and `why` that matters."""

    name: str
    call: Callable[..., Any]
    inputs: list[Any]
    value: Any
    slopes: list[Any]
    why: str


@dataclass(frozen=True, eq=False)
class Refusal:
    """The error of `call` on `inputs`, and `why` it is one."""

    name: str
    call: Callable[..., Any]
    inputs: list[Any]
    error: type[DiptychError]
    why: str


case, refused = Case, Refusal
