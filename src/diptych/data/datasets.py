"""Data sets in memory: the bundled digits, and arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diptych.errors import DtypeError, ShapeError, ValueRangeError
from diptych.ops.base import plain_array
from diptych.runtime.rows import Taker, left, taker

Array = np.ndarray[Any, Any]
LARGE = 1 << 22  # bytes of images below which making code takes longer than it saves
DIGITS_TRAIN = 1437  # the first 1,437 digits train, the last 360 test, in file order


@dataclass(frozen=True)
class ArrayDataset:
    """Rows of `images` (n, ...) with `labels` (n, ...).

    uint8 images are converted as f32(pixel) / scale + shift, each operation rounded to f32. Labels
    that are integers become i64; floats, the targets of a regression, stay what they are.
    """

    images: Array
    labels: Array
    scale: float = 1.0
    shift: float = 0.0
    name: str = "arrays"
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("images", "labels"):
            object.__setattr__(self, name, _rows(getattr(self, name), name))
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
        return np.ascontiguousarray(self.images), np.ascontiguousarray(_labels(self.labels))

    def batch(self, rows: Array | slice) -> tuple[Array, Array]:
        """The rows, uint8 images as f32 and integer labels as i64."""
        if isinstance(rows, slice):
            return self._images(rows), _labels(self.labels[rows])
        images, labels = (take(rows) for take in self._takers)
        if images is None:
            images = self._images(rows)
        return images, _labels(self.labels[rows]) if labels is None else labels

    def _images(self, rows: Array | slice) -> Array:
        picked = self.images[rows]
        if picked.dtype == np.uint8:
            picked = picked.astype(np.float32) / np.float32(self.scale) + np.float32(self.shift)
        return np.ascontiguousarray(picked)

    @cached_property
    def _takers(self) -> tuple[Taker, Taker]:
        """What does the same natively, where the arrays are large."""
        if self.images.nbytes < LARGE:
            return left, left
        pixels = (self.scale, self.shift) if self.images.dtype == np.uint8 else ()
        as_they_are = self.labels.dtype == np.int64 or self.labels.dtype.kind == "f"
        return taker(self.images, *pixels), taker(self.labels) if as_they_are else left

    def __getitem__(self, rows: Any) -> tuple[Array, Array]:
        return self.batch(rows)


def _rows(value: Any, name: str) -> Array:
    """An array as it is, or that of lists or a tensor."""
    array = value if isinstance(value, np.ndarray) else plain_array(value)
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise DtypeError(
            f"the {name} of a data set are rows of numbers",
            f"{array.dtype} {list(array.shape)}",
            "make numbers of them" if array.ndim else "an array (n, ...), a row for each",
        )
    return array


def _labels(labels: Array) -> Array:
    return labels if labels.dtype.kind == "f" else labels.astype(np.int64)


def digits(split: str = "train") -> ArrayDataset:
    """The 1,797 digits of 8 x 8 pixels that come with the package: train 1,437, test 360."""
    with np.load(os.path.join(os.path.dirname(__file__), "files", "digits.npz")) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    part = {"train": slice(0, DIGITS_TRAIN), "test": slice(DIGITS_TRAIN, None), "all": slice(None)}[
        check_split(split)
    ]
    source = "UCI Optical Recognition of Handwritten Digits, CC BY 4.0"
    return ArrayDataset(images[part], labels[part], 16.0, 0.0, "digits", source)


def arrays(images: Any, labels: Any, scale: float = 1.0, shift: float = 0.0) -> ArrayDataset:
    """Rows of `images` (n, ...), floats or u8, with `labels` (n, ...), integers or floats: arrays,
    tensors, or lists, whose floats are f32. Raises ShapeError or DtypeError."""
    return ArrayDataset(images, labels, scale, shift)


def check_split(split: str) -> str:
    """The name of a split."""
    if split not in ("train", "test", "all"):
        raise ValueRangeError("a split is train, test or all", repr(split), "'train'")
    return split
