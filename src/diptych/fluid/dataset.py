"""paddle.batch and paddle.dataset.mnist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from diptych import data
from diptych.errors import FileFormatError, MissingFileError

Reader = Callable[[], Iterator[Any]]
BLOCK = 1000  # samples converted at a time


class _Settings:
    source = "mnist"  # or "digits": diptych fluid --data digits


SETTINGS = _Settings()


def batch(reader: Reader, batch_size: int, drop_last: bool = False) -> Reader:
    """A reader of lists of samples; the last may be short."""
    size = int(batch_size)
    if size <= 0:
        raise ValueError(f"batch_size should be a positive integer value, but got {batch_size}")

    def batches() -> Iterator[Any]:
        samples = iter(reader())
        while len(rows := list(islice(samples, size))) == size:
            yield rows
        if rows and not drop_last:
            yield rows

    return batches


def train() -> Reader:
    """MNIST's 60,000 pictures: (float32[784] from -1 to 1, int)."""
    return _reader("train")


def test() -> Reader:
    """MNIST's 10,000 pictures: (float32[784] from -1 to 1, int)."""
    return _reader("test")


def _reader(split: str) -> Reader:
    if SETTINGS.source == "digits":
        source = data.digits(split)
        pixels = _enlarged(source.images)
    else:
        try:
            source = data.mnist(split)
        except (MissingFileError, FileFormatError) as problem:
            problem.add_note("or diptych fluid --data digits SCRIPT, which needs no download")
            raise
        pixels = source.images
    labels = source.labels.tolist()

    def samples() -> Iterator[Any]:
        for start in range(0, len(labels), BLOCK):
            rows = pixels[start : start + BLOCK].astype(np.float32)
            rows /= np.float32(255.0)
            rows *= np.float32(2.0)
            rows -= np.float32(1.0)
            yield from zip(rows, labels[start : start + BLOCK], strict=True)

    return samples


def _enlarged(images: Any) -> Any:
    """8 x 8 pixels from 0 to 16 as 28 x 28 from 0 to 255, linearly between their centres."""
    at = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
    low = np.minimum(at.astype(int), 6)
    mix = np.zeros((28, 8))
    mix[np.arange(28), low] = 1 - (at - low)
    mix[np.arange(28), low + 1] = at - low
    squares = images.reshape(-1, 8, 8).astype(np.float64)
    large = np.einsum("yi,nij,xj->nyx", mix, squares, mix) * (255 / 16)
    return np.rint(large).astype(np.uint8).reshape(len(images), 784)
