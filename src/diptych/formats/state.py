"""State dicts in safetensors files: weights by name, as PyTorch's state_dict has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from diptych.errors import DtypeError
from diptych.formats.tensors import read_tensors, write_tensors
from diptych.states import need_mapping
from diptych.tensor import Tensor

Array = np.ndarray[Any, Any]
FORMAT = "diptych state 1"


def save_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write arrays or tensors by name, e.g. `model.state_dict()`, whole or not at all."""
    need_mapping(state)
    arrays = {}
    for name, value in state.items():
        array = _array(value)
        if array.dtype.kind in "OUSMmV" or not isinstance(name, str):
            raise DtypeError(
                "a state has numbers by name",
                f"{name!r} is a {type(value).__name__}",
                "leave it out, or make an array of numbers of it",
            )
        arrays[name] = array
    write_tensors(path, arrays, {"format": FORMAT})


def _array(value: Any) -> Array:
    """Return a value as an array, of objects where it is none."""
    try:
        return value.numpy() if isinstance(value, Tensor) else np.asarray(value)
    except ValueError:  # a list of lists of different lengths
        return np.array(None)


def load_state(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Return the arrays by name of a safetensors file, whoever wrote it.

    The digest of a file by `save_state` or `save` is checked. Raises MissingFileError or
    FileFormatError, which name the file.
    """
    return read_tensors(path)[1]
