"""Batches of a data set, shuffled as a function of length, seed and epoch."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diptych.errors import DiptychError, DtypeError, ShapeError, is_own
from diptych.generator import drawn_seed
from diptych.ops.base import whole
from diptych.philox import permutation
from diptych.states import numbers

Array = np.ndarray[Any, Any]


class DataLoader:
    """Iterates over batches; epoch e is in the order of permutation(n, seed, e).

    `dataset` has a length and gives a row by its number: a number or array, a tuple of them, or a
    dict of them by name. A batch is the same with the arrays stacked. Or it has `batch(rows)`, as
    the data sets of diptych have. With `prefetch` above 0 that many batches are made ahead by a
    thread; by default 2 for data sets that give single rows, and none for arrays in memory, where
    the hand-over would cost more than the batch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 16,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        prefetch: int | None = None,
    ) -> None:
        batch_size = whole(batch_size, "the number of rows in a batch", 1)
        if isinstance(dataset, dict) or not hasattr(dataset, "__len__"):
            raise DiptychError(
                "a data set has a length, and gives a row by its number",
                f"a {type(dataset).__name__}",
                "data.arrays(images, labels), a list of rows, or __len__ and __getitem__",
            )
        if isinstance(dataset, tuple) and all(isinstance(a, np.ndarray) for a in dataset):
            raise DiptychError(
                "a data set gives rows by their numbers",
                f"a tuple of {len(dataset)} arrays",
                "DataLoader(data.arrays(images, labels), 16)",
            )
        if prefetch is not None:
            prefetch = whole(prefetch, "the number of batches made ahead", 0)
        if seed is not None:
            seed = whole(seed, "the seed of an order")
        self.dataset, self.batch_size = dataset, batch_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self.seed = drawn_seed("the order of the data") if shuffle and seed is None else seed or 0
        self.prefetch = (0 if hasattr(dataset, "batch") else 2) if prefetch is None else prefetch
        self.epoch = 0

    def __len__(self) -> int:
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def state_dict(self) -> dict[str, Array]:
        """The number of the next epoch, and the seed of all orders."""
        return {"epoch": np.asarray(self.epoch), "seed": np.asarray(self.seed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict, with the epoch after the last that was begun."""
        self.epoch, self.seed = numbers(state, "a loader", epoch=int, seed=int)

    def order(self, epoch: int) -> Array:
        """Row numbers in the order of an epoch, i64."""
        n = len(self.dataset)
        return permutation(n, self.seed, epoch) if self.shuffle else np.arange(n)

    def __iter__(self) -> Iterator[Any]:
        order = self.order(self.epoch)
        self.epoch += 1
        size = self.batch_size
        rows = [order[n * size : (n + 1) * size] for n in range(len(self))]
        if not self.prefetch:
            return (batch(self.dataset, r) for r in rows)
        return _Ahead(self.dataset, rows, self.prefetch)


def batch(dataset: Any, rows: Array) -> Any:
    """The rows of a data set as arrays with the batch first."""
    if hasattr(dataset, "batch"):
        return dataset.batch(rows)
    items = [dataset[int(n)] for n in rows]
    if isinstance(items[0], tuple | list):
        _check_alike([len(i) if isinstance(i, tuple | list) else None for i in items], "length")
        parts = [_stacked([i[n] for i in items]) for n in range(len(items[0]))]
        named = hasattr(items[0], "_fields")  # a named tuple
        return type(items[0])(*parts) if named else tuple(parts)
    return _stacked(items)


def _stacked(values: Sequence[Any]) -> Any:
    """Stack numbers and arrays; dicts of them by their keys."""
    if isinstance(values[0], Mapping):
        _check_alike([sorted(map(str, v)) if isinstance(v, Mapping) else None for v in values],
                     "set of keys")  # fmt: skip
        return {key: _stacked([v[key] for v in values]) for key in values[0]}
    arrays = [_array(value) for value in values]
    shapes = list(dict.fromkeys(a.shape for a in arrays))
    if len(shapes) > 1:
        raise ShapeError(
            "the rows of a batch have one shape",
            f"{list(shapes[0])} and {list(shapes[1])}",
            "pad them to one length, or take batch_size=1",
        )
    return np.stack(arrays)


def _array(value: Any) -> Array:
    """Return an array of numbers, or of text, from what stands in a row."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths in a list
        array = np.array(None)
    if array.dtype.hasobject:
        raise DtypeError(
            "a row of a data set is made of numbers and arrays, in a tuple or a dict",
            f"{type(value).__name__}: {value!r:.40}",
            "let __getitem__ give such rows, e.g. (image, label)",
        )
    return array


def _check_alike(found: Sequence[Any], what: str) -> None:
    """Raise unless all rows of a batch are built alike."""
    for one in found:
        if one != found[0]:
            shown = ["a row of another kind" if f is None else f for f in (found[0], one)]
            raise ShapeError(
                f"the rows of a batch have one {what}",
                f"{shown[0]} and {shown[1]}",
                "let __getitem__ give rows that are built alike",
            )


class _Ahead:
    """Batches made by a thread, some ahead. Dropping the iterator ends the thread."""

    def __init__(self, dataset: Any, rows: Sequence[Array], ahead: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._left = len(rows)
        self._thread = threading.Thread(
            target=_work, args=(dataset, rows, self._queue, self._stop), daemon=True
        )
        self._thread.start()
        self._end = weakref.finalize(self, _finish, self._queue, self._stop, self._thread)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._left:
            self._end()
            raise StopIteration
        self._left -= 1
        made, problem = self._queue.get()
        if problem is not None:
            self._left = 0
            self._end()
            raise _placed(problem)
        return made


def _placed(problem: BaseException) -> BaseException:
    """Return an error of the other thread, with the line of the loop where it has no other."""
    trace = problem.__traceback__
    while trace is not None and is_own(trace.tb_frame):
        trace = trace.tb_next
    if trace is not None or not isinstance(problem, DiptychError):
        return problem
    return type(problem)(problem.rule, problem.facts, problem.cure)


def _work(
    dataset: Any, rows: Sequence[Array], out: queue.Queue[Any], stop: threading.Event
) -> None:
    for r in rows:
        try:
            item = (batch(dataset, r), None)
        except BaseException as problem:  # raised where the batch is asked for
            item = (None, problem)  # type: ignore[assignment]
        while not stop.is_set():
            try:
                out.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if stop.is_set() or item[1] is not None:
            return


def _finish(out: queue.Queue[Any], stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    while not out.empty():
        out.get_nowait()
    if thread is not threading.current_thread():
        thread.join(timeout=5)
