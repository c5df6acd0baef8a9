"""Arrays by name in a safetensors file, with a digest that shows damage.

Any safetensors library reads the file. Two metadata are diptych's. `diptych` is a JSON object whose
"format" names the kind of file. `diptych.blake2b` is a BLAKE2b-256 in hexadecimal: of that JSON and
then, in the order of their names, of each array's name, dtype and shape (as a JSON list) and bytes.
A file that has one of the two must have both, and they must agree, so a flipped byte is an error.
A file of another program has neither and is read as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import DtypeError, FileFormatError, MissingFileError
from diptych.runtime.files import write_whole

Array = np.ndarray[Any, Any]
KEY, DIGEST = "diptych", "diptych.blake2b"
UNDIGESTED = ("diptych program 1",)  # formats from before there was a digest
RESERVED = "__metadata__"  # the name that safetensors uses itself
ALIGNMENT = 8  # bytes
DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32",
    "int32": "I32", "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32",
    "float64": "F64", "complex64": "C64",
}  # fmt: skip


def write_tensors(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], stated: Mapping[str, Any]
) -> None:
    """Write arrays and the JSON object `stated`, whole or not at all; equal ones as equal bytes.

    Raises DtypeError for a dtype that safetensors lacks, and UnwritableFileError.
    """
    arrays = {name: _little(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if name == RESERVED or array.dtype.name not in DTYPES:
            raise DtypeError(
                "a file of weights has arrays by name, of a dtype that safetensors has",
                f"{name!r}, {array.dtype}",
                f"one of {', '.join(DTYPES)}, and any name but {RESERVED}",
            )
    text = json.dumps(dict(stated))
    write_whole(Path(path), _encoded(arrays, {KEY: text, DIGEST: _digest(text, arrays)}))


def _encoded(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file; its own library writes metadata in no fixed order."""
    header: dict[str, Any] = {RESERVED: metadata}
    parts, at = [], 0
    for name in sorted(arrays, key=lambda n: (-arrays[n].itemsize, n)):  # so that each is aligned
        array = arrays[name]
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [at, at + array.nbytes],
        }
        parts.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return what a file states of itself, {} where another program wrote it, and its arrays.

    Raises MissingFileError, or FileFormatError where the file is no safetensors file or damaged.
    """
    import safetensors

    if not Path(path).is_file():
        raise MissingFileError("the file is not there", repr(os.fspath(path)), "check the path")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as problem:
        raise FileFormatError(
            "a file of weights is in the safetensors format",
            f"{path}: {problem}",
            "check that it was written whole",
        ) from problem
    return _checked(path, metadata, arrays), arrays


def _checked(
    path: str | os.PathLike[str], metadata: Mapping[str, str], arrays: Mapping[str, Array]
) -> dict[str, Any]:
    """Return what the metadata state, once the digest agrees."""
    if KEY not in metadata and DIGEST not in metadata:
        return {}
    text, digest = metadata.get(KEY, ""), metadata.get(DIGEST)
    try:
        stated = json.loads(text)
        undigested = digest is None and stated["format"] in UNDIGESTED
    except (ValueError, LookupError, TypeError, RecursionError):
        stated, undigested = {}, False
    if not undigested and (not stated or digest != _digest(text, arrays)):
        raise FileFormatError(
            "a file of weights has the digest of what is in it",
            f"{path} is damaged: its digest is another, or missing",
            "take a copy that is whole, or write it again",
        )
    return dict(stated)


def _digest(text: str, arrays: Mapping[str, Array]) -> str:
    """Return the digest of the JSON text and all arrays."""
    from hashlib import blake2b

    found = blake2b(text.encode(), digest_size=32)
    for name in sorted(arrays):
        array = _little(arrays[name])
        head = [name, array.dtype.name, array.shape]
        found.update(json.dumps(head).encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _little(array: Array) -> Array:
    """Return the array as a file has it: in row-major order, the least byte of a number first."""
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(array).reshape(array.shape)
