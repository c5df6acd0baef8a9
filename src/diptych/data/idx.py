"""MNIST (LeCun, Cortes and Burges) from its four idx files, and other sets of that form."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych import config
from diptych.data import unpacked
from diptych.data.datasets import ArrayDataset, check_split
from diptych.data.download import download
from diptych.errors import FileFormatError, MissingFileError

Array = np.ndarray[Any, Any]
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SHA256 = {  # of the unpacked bytes
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MUCH = 1 << 30  # bytes above which the size that a gzip file states is not trusted
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
)


def mnist(
    split: str = "train",
    folder: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = MIRRORS,
    checksums: Mapping[str, str] = SHA256,
) -> ArrayDataset:
    """MNIST, or another set of its form: images (n, height * width) u8 that become f32 from 0 to 1,
    labels (n,) i64. MNIST has 60,000 of 28 x 28 to train and 10,000 to test.

    Read from `folder`, or without one from DIPTYCH_DATA or the caches of diptych and of Paddle. A
    folder may hold any set under the four names, such as Fashion-MNIST; its `name` is then the
    folder's. Where none has the files MNIST is fetched into the cache, and checked there against
    `checksums`. Large files are kept there unpacked, too, so that they are unpacked once. Raises
    MissingFileError, which says which files to put where, or FileFormatError where a file is broken
    or pictures and labels do not fit together.
    """
    splits = FILES if check_split(split) == "all" else {split: FILES[split]}
    names = [name for pair in splits.values() for name in pair]
    where = _folder(folder, names, mirrors, checksums)
    found = [_read(_find(where, name)) for name in names]
    known = all(digest == checksums[n] for (_, digest), n in zip(found, names, strict=True))
    pairs = [(found[n][0], found[n + 1][0]) for n in range(0, len(found), 2)]
    for name, (images, labels) in zip(names[0::2], pairs, strict=True):
        _check_form(where / name, images, labels, pairs[0][0])
    images, labels = (_joined(arrays) for arrays in zip(*pairs, strict=True))
    return ArrayDataset(
        images.reshape(len(images), -1),
        labels.astype(np.int64),
        scale=255.0,
        name="mnist" if known else where.resolve().name,
        source=str(where),
    )


def _check_form(path: Path, images: Array, labels: Array, first: Array) -> None:
    """Raise FileFormatError unless the arrays are pictures and a label for each of them."""
    fit = images.ndim == 3 and images.size and labels.shape == images.shape[:1]
    if not fit or images.shape[1:] != first.shape[1:]:
        raise FileFormatError(
            "a set of MNIST's form has pictures (n, height, width) of one size, and n labels",
            f"{path}: pictures {list(images.shape)}, labels {list(labels.shape)}"
            + (f", beside pictures {list(first.shape)}" if first is not images else ""),
            "check that the four files belong together",
        )


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _folder(
    given: str | os.PathLike[str] | None,
    names: Sequence[str],
    mirrors: Sequence[str],
    checksums: Mapping[str, str],
) -> Path:
    cache = Path(config.data_folder()) / "mnist"
    places = [Path(given)] if given is not None else []
    if given is None:
        named = os.environ.get("DIPTYCH_DATA")
        places += [Path(named)] if named else []
        places += [cache, Path.home() / ".cache" / "paddle" / "dataset" / "mnist"]
    for place in places:
        if all(_find(place, name) is not None for name in names):
            return place
    packed = ", ".join(f"{name}.gz" for name in names)
    cure = f"put {packed} into {places[0]}, or name their folder in DIPTYCH_DATA"
    if given is not None:
        missing = [name for name in names if _find(places[0], name) is None]
        facts = f"{', '.join(missing)} not in {given}"
        raise MissingFileError("MNIST, or a set of its form, is read from idx files", facts, cure)
    for name in names:
        if _find(cache, name) is None:
            try:
                download(
                    f"{name}.gz",
                    cache,
                    mirrors,
                    lambda path, n=name: _check(path, n, checksums),  # type: ignore[misc]
                )
            except (MissingFileError, OSError) as problem:
                looked = ", ".join(map(str, places))
                reason = problem.facts if isinstance(problem, MissingFileError) else problem
                raise MissingFileError(
                    "MNIST, or a set of its form, is read from idx files",
                    f"not in {looked}, and the network does not have them: {reason}",
                    cure,
                ) from problem
    return cache


def _find(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _check(path: Path, name: str, checksums: Mapping[str, str]) -> None:
    """Raise FileFormatError unless a fetched file is the one that its name says."""
    _, digest = _content(path, packed=True)
    if digest != checksums[name]:
        raise FileFormatError(
            "MNIST's files have known checksums", f"{path} has another", "fetch it again"
        )


def _read(path: Path | None) -> tuple[Array, str]:
    """Return the array of an idx file, packed or not, and the SHA-256 of its unpacked bytes."""
    assert path is not None
    packed = path.suffix == ".gz"
    found = unpacked.kept(path) if packed else None
    if found is not None:
        return _array(found[0], path), found[1]
    data, digest = _content(path, packed)
    array = _array(np.frombuffer(data, np.uint8), path)
    if packed:
        unpacked.keep(path, digest, data)
    return array, digest


def _content(path: Path, packed: bool) -> tuple[bytes, str]:
    """Return the unpacked bytes of a file, and their SHA-256."""
    try:
        data = path.read_bytes()
        data = _unpacked(data) if packed else data
    except (OSError, EOFError, zlib.error) as problem:
        raise FileFormatError(
            "an MNIST file is a gzip file", f"{path}: {problem}", "fetch it again"
        ) from problem
    return data, hashlib.sha256(data).hexdigest()


def _unpacked(data: bytes) -> bytes:
    """The content of a gzip file: of one member at once, in memory of the size it ends with."""
    size = int.from_bytes(data[-4:], "little")
    if data[:2] == b"\x1f\x8b" and size < MUCH:
        one = zlib.decompressobj(31)
        out = one.decompress(data, size + 1)
        if one.eof and not one.unused_data:
            return out
    return gzip.decompress(data)


def _array(data: Array, path: Path) -> Array:
    """The array that the bytes of an idx file hold."""
    rank = int(data[3]) if len(data) >= 4 and data[:3].tobytes() == b"\0\0\x08" else 0
    header = 4 + 4 * rank
    shape = [int(n) for n in data[4:header].view(">u4")] if len(data) >= header else []
    if not rank or len(shape) != rank or len(data) != header + math.prod(shape):
        raise FileFormatError(
            "an idx file has a header and as many bytes as it says", f"{path}", "fetch it again"
        )
    return data[header:].reshape(shape)
