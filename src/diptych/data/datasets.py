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


NAMES = ("images", "labels")  # of the first arrays of a set, for its errors


@dataclass(frozen=True, init=False, eq=False)
class ArrayDataset:
    """Rows of arrays (n, ...): `images`, then mostly `labels`, then others, such as weights.

    uint8 images are converted as f32(pixel) / scale + shift, each operation rounded to f32. In the
    other arrays integers become i64; floats, the targets of a regression, stay what they are.
    """

    columns: tuple[Array, ...]
    scale: float
    shift: float
    name: str
    source: str

    def __init__(
        self,
        *columns: Any,
        scale: float = 1.0,
        shift: float = 0.0,
        name: str = "arrays",
        source: str = "",
    ) -> None:
        names = [*NAMES, *[f"array {n}" for n in range(3, len(columns) + 1)]]
        made = tuple(map(_rows, columns, names))
        if len({len(column) for column in made}) != 1:
            raise ShapeError(
                "the arrays of a data set have one row for every example",
                f"rows: {', '.join(str(len(c)) for c in made) or 'no arrays'}",
                "data.arrays(images, labels)" if not made else "check the arrays",
            )
        if not (np.isfinite(scale) and np.isfinite(shift) and scale):
            raise ValueRangeError(
                "bytes become f32 as pixel / scale + shift",
                f"scale={scale}, shift={shift}",
                "e.g. scale=255.0",
            )
        settings = {"scale": scale, "shift": shift, "name": name, "source": source}
        for field, value in {"columns": made, **settings}.items():
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def images(self) -> Array:
        return self.columns[0]

    @property
    def labels(self) -> Array:
        if len(self.columns) < 2:
            raise ShapeError(
                "labels are the second array of a data set",
                "1 array",
                "data.arrays(images, labels)",
            )
        return self.columns[1]

    @property
    def features(self) -> int:
        return int(np.prod(self.images.shape[1:]))

    @property
    def classes(self) -> int:
        most = self.labels.max() if self.labels.size else np.nan
        if not np.isfinite(most):
            raise ShapeError(
                "classes are counted by the greatest label",
                f"{most} among {len(self)} labels",
                "integer labels, one or more",
            )
        return int(most) + 1

    def arrays(self) -> tuple[Array, ...]:
        """The arrays as they lie in memory, the images unconverted."""
        images, *others = self.columns
        return tuple(np.ascontiguousarray(c) for c in (images, *map(_labels, others)))

    def batch(self, rows: Array | slice) -> tuple[Array, ...]:
        """The rows of every array, uint8 images as f32 and other integers as i64."""
        if isinstance(rows, slice):
            return self._images(rows), *[_labels(c[rows]) for c in self.columns[1:]]
        images, *others = (take(rows) for take in self._takers)
        return (
            self._images(rows) if images is None else images,
            *[
                _labels(column[rows]) if taken is None else taken
                for column, taken in zip(self.columns[1:], others, strict=True)
            ],
        )

    def _images(self, rows: Array | slice) -> Array:
        picked = self.images[rows]
        if picked.dtype == np.uint8:
            picked = picked.astype(np.float32) / np.float32(self.scale) + np.float32(self.shift)
        return np.ascontiguousarray(picked)

    @cached_property
    def _takers(self) -> tuple[Taker, ...]:
        """What does the same natively, where the arrays are large."""
        if self.images.nbytes < LARGE:
            return (left,) * len(self.columns)
        pixels = (self.scale, self.shift) if self.images.dtype == np.uint8 else ()
        others = [
            taker(c) if c.dtype == np.int64 or c.dtype.kind == "f" else left
            for c in self.columns[1:]
        ]
        return taker(self.images, *pixels), *others

    def __getitem__(self, rows: Any) -> tuple[Array, ...]:
        return self.batch(rows)


def _rows(value: Any, name: str) -> Array:
    """An array as it is, or that of lists or a tensor."""
    array = value if isinstance(value, np.ndarray) else plain_array(value)
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise DtypeError(
            f"the {name} of a data set are rows of numbers",
            f"{array.dtype} {list(array.shape)}",
            "make numbers of them"
            if array.ndim
            else "an array (n, ...), a row for each; scale= and shift= are given by name",
        )
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueRangeError(
            f"the {name} of a data set fit into i64", f"{array.max()}", "number them from 0"
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
    return ArrayDataset(images[part], labels[part], scale=16.0, name="digits", source=source)


def arrays(*columns: Any, scale: float = 1.0, shift: float = 0.0) -> ArrayDataset:
    """Make a data set of rows of arrays, tensors, or lists, whose floats are f32.

    The first are images or features (n, ...), floats, or u8 that become f32(pixel) / scale + shift.
    Then come labels or targets (n, ...), and whatever else belongs to a row, integers or floats. A
    batch is a tuple with the rows of each. Raises ShapeError or DtypeError.
    """
    return ArrayDataset(*columns, scale=scale, shift=shift)


def check_split(split: str) -> str:
    """The name of a split."""
    if split not in ("train", "test", "all"):
        raise ValueRangeError("a split is train, test or all", repr(split), "'train'")
    return split
