"""Data sets: the bundled digits, MNIST from its original files, and arrays."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import FileFormatError, MissingFileError, ShapeError

Array = np.ndarray[Any, Any]
DIGITS_TRAIN = 1437  # the first 1,437 digits train, the last 360 test, in file order


@dataclass(frozen=True)
class ArrayDataset:
    """Rows of `images` (n, features) with `labels` (n,).

    uint8 images are converted as f32(pixel) / scale + shift, each operation rounded to f32.
    """

    images: Array
    labels: Array
    scale: float = 1.0
    shift: float = 0.0
    name: str = "arrays"
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ShapeError(
                "a data set has one label for every row",
                f"{len(self.images)} rows, {len(self.labels)} labels",
                "check the arrays",
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def features(self) -> int:
        return int(np.prod(self.images.shape[1:]))

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def arrays(self) -> tuple[Array, Array]:
        """Images and labels as they lie in memory, unconverted."""
        return np.ascontiguousarray(self.images), np.ascontiguousarray(self.labels, np.int64)

    def batch(self, rows: Array | slice) -> tuple[Array, Array]:
        """The rows as f32 images and i64 labels."""
        picked = self.images[rows]
        if picked.dtype == np.uint8:
            picked = picked.astype(np.float32) / np.float32(self.scale) + np.float32(self.shift)
        return np.ascontiguousarray(picked), self.labels[rows].astype(np.int64)

    def __getitem__(self, rows: Any) -> tuple[Array, Array]:
        return self.batch(rows)


def digits(split: str = "train") -> ArrayDataset:
    """The 1,797 digits of 8 x 8 pixels that come with the package: train 1,437, test 360."""
    raw = files("diptych.data").joinpath("files/digits.npz").read_bytes()
    with np.load(BytesIO(raw)) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    part = {"train": slice(0, DIGITS_TRAIN), "test": slice(DIGITS_TRAIN, None), "all": slice(None)}[
        _split(split)
    ]
    source = "UCI Optical Recognition of Handwritten Digits, CC BY 4.0"
    return ArrayDataset(images[part], labels[part], 16.0, 0.0, "digits", source)


def _split(split: str) -> str:
    if split not in ("train", "test", "all"):
        raise ShapeError("a split is train, test or all", repr(split), "")
    return split


MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MNIST_SHA256: dict[str, str] = {
    # of the unpacked bytes
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The first folder that has the files: the given one, DIPTYCH_DATA, the caches."""
    home = Path.home()
    candidates: Sequence[Path] = (
        [Path(folder)]
        if folder is not None
        else [
            *([Path(os.environ["DIPTYCH_DATA"])] if os.environ.get("DIPTYCH_DATA") else []),
            home / ".cache" / "diptych" / "mnist",
            home / ".cache" / "paddle" / "dataset" / "mnist",
        ]
    )
    for candidate in candidates:
        if _find(candidate, MNIST_FILES["test"][0]) is not None:
            return candidate
    names = ", ".join(f"{n}.gz" for pair in MNIST_FILES.values() for n in pair)
    raise MissingFileError(
        "MNIST is read from its four original files",
        f"none in {', '.join(map(str, candidates))}",
        f"put {names} into {candidates[0]}, or name their folder in DIPTYCH_DATA",
    )


def _find(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _read_idx(folder: Path, name: str) -> Array:
    path = _find(folder, name)
    if path is None:
        raise MissingFileError("MNIST has four files", f"{name}.gz is not in {folder}", "add it")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as problem:
        raise FileFormatError(
            "an MNIST file is a gzip file", f"{path}: {problem}", "fetch it again"
        ) from None
    rank = data[3] if len(data) >= 4 and data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data, ">u4", rank, 4) if len(data) >= 4 + 4 * rank else np.zeros(0)
    if not rank or len(data) != 4 + 4 * rank + int(np.prod(shape)):
        raise FileFormatError(
            "an idx file has a header and as many bytes as it says", f"{path}", "fetch it again"
        )
    wanted = MNIST_SHA256.get(name)
    if wanted and shape[0] in (60000, 10000) and hashlib.sha256(data).hexdigest() != wanted:
        raise FileFormatError(
            "MNIST's files have known checksums", f"{path} has another", "fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape.astype(int))


def mnist(split: str = "train", folder: str | os.PathLike[str] | None = None) -> ArrayDataset:
    """MNIST from its original idx files, packed or not: images (n, 784) uint8, scale 255."""
    where = mnist_folder(folder)
    images, labels = (_read_idx(where, name) for name in MNIST_FILES[_split(split)])
    return ArrayDataset(
        images.reshape(len(images), -1), labels.astype(np.int64), 255.0, 0.0, "mnist", str(where)
    )
