"""Files of 1.8.5: pickled weights and parameter files; paths that --map redirects."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import FileFormatError, UnwritableFileError
from diptych.fluid.core import VarType
from diptych.fluid.wire import Message, integer
from diptych.runtime.files import write_whole

Array = np.ndarray[Any, Any]
MAPPED: list[tuple[str, str]] = []  # (old, new) prefixes of --map


def mapped(path: Any) -> Path:
    """A path of a script, with its beginning replaced as --map says."""
    text = os.fspath(path)
    for old, new in MAPPED:
        if text == old or text.startswith(old.rstrip("/") + "/"):
            return Path(new + text[len(old.rstrip("/")) :])
    return Path(text)


def write_all(folder: Path, contents: Mapping[str, bytes], path: str) -> None:
    """Write files whole; `path` is what the script calls the place. Where one cannot be written,
    all of them go into a folder `diptych-rescue-...` here, at home, or where temporary files are,
    and then it raises: trained weights are never lost."""
    try:
        _write_into(folder, contents)
    except OSError as problem:
        rescue = _rescued(contents)
        raise UnwritableFileError(
            "a model is saved where the script says",
            f"{folder} cannot be written ({_reason(problem)}); all of it is in {rescue} instead",
            f"diptych fluid --map {path}={Path.home() / Path(path).name} SCRIPT",
        ) from problem


def _write_into(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        write_whole(folder / name, data)


def _reason(problem: OSError) -> str:
    """What the system said."""
    cause = problem.__cause__ if isinstance(problem.__cause__, OSError) else problem
    return cause.strerror or str(cause)


def _rescued(contents: Mapping[str, bytes]) -> Path:
    """The folder into which all of it could be written; it is a new one."""
    tried = []
    for place in (Path.cwd(), Path.home(), Path(tempfile.gettempdir()), Path("/dev/shm")):
        try:
            folder = Path(tempfile.mkdtemp(prefix="diptych-rescue-", dir=place))
        except OSError as problem:
            tried.append(f"{place}: {_reason(problem)}")
            continue
        try:
            _write_into(folder, contents)
            return folder
        except OSError as problem:
            shutil.rmtree(folder, ignore_errors=True)
            tried.append(f"{place}: {_reason(problem)}")
    raise UnwritableFileError(
        "a model is saved where the script says, or in a folder diptych-rescue",
        "no place takes it: " + "; ".join(tried),
        "make room on a disk",
    )


# ---- pickles ---------------------------------------------------------------------------------

_ADMITTED = {
    ("collections", "OrderedDict"), ("_codecs", "encode"), ("numpy", "ndarray"),
    ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}  # fmt: skip


class _Reader(pickle.Unpickler):
    """Admits arrays, numbers, strings and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not data")
        if module.startswith("numpy.core"):
            module = module.replace("numpy.core", "numpy._core")
        return super().find_class(module, name)


class _Writer(pickle._Pickler):
    """Names numpy's functions as the numpy of 1.8.5's time has them."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__module__", "") == "numpy._core.multiarray":
            self.write(b"cnumpy.core.multiarray\n" + obj.__name__.encode() + b"\n")  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]


def dump(content: Mapping[str, Any]) -> bytes:
    """A pickle of protocol 2."""
    stream = io.BytesIO()
    _Writer(stream, protocol=2).dump(dict(content))
    return stream.getvalue()


def load(path: Path) -> dict[str, Any]:
    """A pickle of arrays by name."""
    try:
        found = _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        if not isinstance(found, dict) or not all(map(_is_data, found.values())):
            raise pickle.UnpicklingError("it does not hold arrays by name")
    except FileNotFoundError:
        raise
    except Exception as problem:  # a broken pickle raises anything
        raise FileFormatError(
            "weights are a pickle of arrays by name", f"{path}: {problem}", "save them again"
        ) from problem
    return dict(found)


def _is_data(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    return isinstance(value, int | float | str | np.generic | type(None))


# ---- parameter files -------------------------------------------------------------------------


def parameter_bytes(array: Array) -> bytes:
    """One parameter as save_inference_model writes it."""
    array = np.ascontiguousarray(array)
    description = integer(1, VarType.of(array.dtype)) + b"".join(
        integer(2, size) for size in array.shape
    )
    head = struct.pack("<IQIi", 0, 0, 0, len(description))
    return head + description + array.tobytes()


def read_parameter(data: bytes, at: int, path: Path) -> tuple[Array, int]:
    """The parameter at a place of a file, and where the next begins."""
    try:
        version, levels, tensor_version, length = struct.unpack_from("<IQIi", data, at)
        if version or tensor_version or levels or length < 0:
            raise ValueError("another version, or a sequence")
        at += struct.calcsize("<IQIi")
        fields = Message(data[at : at + length])
        dtype = VarType(fields.integers(1)[0]).numpy
        shape = fields.integers(2)
        at += length
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if min(shape, default=0) < 0 or at + size > len(data):
            raise ValueError("it ends too early")
        array = np.frombuffer(data, dtype, int(np.prod(shape, dtype=np.int64)), at)
    except (struct.error, ValueError, LookupError, StopIteration) as problem:
        raise FileFormatError(
            "a parameter file of fluid holds one tensor", f"{path}: {problem}", "save it again"
        ) from problem
    return array.reshape(shape).copy(), at + size
