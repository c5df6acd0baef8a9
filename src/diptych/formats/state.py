"""State dicts in safetensors files: weights by name, as PyTorch's state_dict has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import DtypeError
from diptych.formats.program import read_safetensors
from diptych.runtime.files import write_whole
from diptych.states import need_mapping
from diptych.tensor import Tensor

Array = np.ndarray[Any, Any]


def save_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write arrays or tensors by name, e.g. `model.state_dict()`, whole or not at all."""
    from safetensors.numpy import save as encode

    need_mapping(state)
    arrays = {}
    for name, value in state.items():
        array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.kind in "OUSMm" or not isinstance(name, str):
            raise DtypeError(
                "a state has numbers by name",
                f"{name!r} is a {type(value).__name__}",
                "leave it out, or make an array of numbers of it",
            )
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
    write_whole(Path(path), encode(arrays))


def load_state(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Arrays by name from a safetensors file, whoever wrote it.

    Raises MissingFileError or FileFormatError, which name the file.
    """
    return read_safetensors(path)[1]
