"""fluid.Executor and DataFeeder."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import diptych as dp
from diptych.fluid.core import EnforceNotMet, LoDTensor
from diptych.fluid.framework import SCOPE, STATE, Program, Scope, Variable


class Executor:
    """Runs programs: feeds in, fetches out."""

    def __init__(self, place: Any = None) -> None:
        self.place = place
        self._inner = dp.Executor()
        self._closed = False

    def close(self) -> None:
        self._closed = True

    def run(
        self,
        program: Program | None = None,
        feed: Any = None,
        fetch_list: Any = None,
        feed_var_name: str = "feed",
        fetch_var_name: str = "fetch",
        scope: Scope | None = None,
        return_numpy: bool = True,
        use_program_cache: bool = False,
        return_merged: bool = True,
        use_prune: bool = False,
    ) -> list[Any]:
        """Values in the order of fetch_list; numbers have shape (1,)."""
        if self._closed:
            raise RuntimeError("Attempted to use a closed Executor")
        program = STATE.main if program is None else program
        if not isinstance(program, Program):
            raise TypeError(f"Executor.run takes a Program, not {type(program).__name__}")
        if scope is not None and scope is not SCOPE:
            raise NotImplementedError("diptych.fluid has one scope, the global one")
        if isinstance(feed, list) and len(feed) == 1:
            feed = feed[0]
        if feed is not None and not isinstance(feed, dict):
            raise TypeError(f"feed takes a dict, not {type(feed).__name__}")
        if program.initialisers:
            self._initialise(program)
        elif not program.operations and not program.variables:
            warnings.warn("The current program is empty.", stacklevel=2)
            return []
        wanted = [self._target(program, item) for item in _listed(fetch_list)]
        arrays = self._feed(program, feed or {})
        if not program.operations:
            return []
        try:
            values = self._inner.run(program.inner, arrays, wanted)
        except dp.DiptychError as problem:
            raise EnforceNotMet(str(problem)) from problem
        return list(values) if return_numpy else [LoDTensor(v) for v in values]

    def _initialise(self, startup: Program) -> None:
        made = startup.inner.startup
        made.initial = list(startup.initialisers)
        self._inner.run(made)

    def _target(self, program: Program, item: Any) -> Any:
        if isinstance(item, str):
            found = program.variables.get(item)
            if found is None:
                raise EnforceNotMet(
                    f"fetch_list names a variable that the program does not have: {item!r}\n"
                    "  try  pass the variable instead of its name"
                )
            return found.tensor
        if isinstance(item, Variable):
            return item.tensor
        raise TypeError(f"fetch_list takes variables and names, not {type(item).__name__}")

    def _feed(self, program: Program, feed: dict[str, Any]) -> dict[str, Any]:
        arrays = {}
        for name, value in feed.items():
            variable = program.variables.get(name)
            if variable is None or name not in program.inner.feeds:
                warnings.warn(
                    f"the program has no variable {name!r} to feed",
                    stacklevel=3,
                )
                continue
            arrays[name] = _fitted(_array(name, value), variable)
        return arrays


def _listed(fetch: Any) -> Sequence[Any]:
    if fetch is None:
        return ()
    return fetch if isinstance(fetch, list | tuple) else (fetch,)


def _array(name: str, value: Any) -> Any:
    if isinstance(value, LoDTensor):
        return value.array
    if isinstance(value, list | tuple):
        raise RuntimeError(
            f"{name!r} is fed a Python list, which would need LoD; feed np.array(...) instead"
        )
    return np.asarray(value).reshape(1) if np.isscalar(value) else np.asarray(value)


def _fitted(array: Any, variable: Variable) -> Any:
    """A batch of flat rows stands for a batch of pictures of as many pixels."""
    want = variable.shape
    if array.ndim == len(want) or array.ndim < 2 or -1 in want[1:]:
        return array
    size = int(np.prod(want[1:]))
    rows = array.reshape(len(array), -1) if len(array) else array
    return rows.reshape(len(array), *want[1:]) if rows.shape[-1] == size else array


class DataFeeder:
    """Lists of samples to a feed."""

    def __init__(
        self, feed_list: Sequence[Any], place: Any, program: Program | None = None
    ) -> None:
        program = program or STATE.main
        self.variables = [program.var(v) if isinstance(v, str) else v for v in feed_list]
        self.slots = [(v.name, v.dtype.numpy, v.shape) for v in self.variables]

    def feed(self, iterable: Iterable[Sequence[Any]]) -> dict[str, LoDTensor]:
        """A column of samples each: 784-vectors become (N, 1, 28, 28), ints (N, 1)."""
        columns = list(zip(*iterable, strict=True))
        assert len(columns) == len(self.slots), (
            f"The number of fields in data ({len(columns)}) does not match "
            f"len(feed_list) ({len(self.slots)})"
        )
        made = {}
        for (name, dtype, shape), column in zip(self.slots, columns, strict=True):
            array = np.array(column, dtype)
            if array.ndim != len(shape):
                try:
                    array = array.reshape(shape)
                except ValueError as problem:
                    raise ValueError(
                        f"{name!r} is {list(shape)}; a batch of {array.shape} does not fit"
                    ) from problem
            made[name] = LoDTensor(array)
        return made
