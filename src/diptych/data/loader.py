"""Batches of a data set, shuffled as a function of length, seed and epoch."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np

from diptych.errors import DiptychError
from diptych.philox import permutation


class DataLoader:
    """Iterates over batches; epoch e is in the order of permutation(n, seed, e)."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 16,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DiptychError("a batch has at least one row", f"batch_size={batch_size}", "")
        self.dataset, self.batch_size = dataset, batch_size
        self.shuffle, self.drop_last = shuffle, drop_last
        if shuffle and seed is None:
            seed = secrets.randbits(31)
            logging.getLogger("diptych").info("unseeded loader: the seed drawn is %d", seed)
        self.seed = seed or 0
        self.epoch = 0

    def __len__(self) -> int:
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def order(self, epoch: int) -> np.ndarray[Any, Any]:
        n = len(self.dataset)
        return permutation(n, self.seed, epoch) if self.shuffle else np.arange(n)

    def __iter__(self) -> Iterator[Any]:
        order = self.order(self.epoch)
        self.epoch += 1
        for n in range(len(self)):
            yield self.dataset[order[n * self.batch_size : (n + 1) * self.batch_size]]
