"""`compile`: an ordinary function, a whole training step included, captured as a program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from diptych.dtypes import TensorType, as_dtype
from diptych.errors import FrozenValueError
from diptych.graph.node import Node, Where, input_node
from diptych.graph.record import author_line, current
from diptych.static.executor import Executor, Feed
from diptych.static.program import Program
from diptych.tensor import Tensor, default_panel

Array = np.ndarray[Any, Any]


class Captured:
    """One capture: a program, the structure of its result, and the gradients it leaves."""

    def __init__(self, function: Callable[..., Any], args: list[Any]) -> None:
        self.program = Program(captured=True)
        code = getattr(function, "__code__", None)
        self.where = Where(code.co_filename, code.co_firstlineno) if code else author_line()
        self.arrays = [n for n, a in enumerate(args) if is_array(a)]
        given = list(args)
        for n in self.arrays:
            given[n] = self._place(n, args[n])
        with self.program:
            result = function(*given)
        self.results: list[Node] = []
        self.structure = self._flatten(result)
        self.kept = [
            (handle, grad) for handle, grad in self.program.grads.values() if grad is not None
        ]
        self.wanted = [*self.results, *[self.program.node_of(g) for _, g in self.kept]]

    def _place(self, n: int, value: Any) -> Tensor:
        array = value if isinstance(value, Tensor) else np.asarray(value)
        dtype = array.dtype if isinstance(array, Tensor) else as_dtype(array.dtype)
        name = f"argument_{n}"
        node = input_node(TensorType(tuple(array.shape), dtype), name, self.where)
        self.program.feeds[name] = Feed(name, node)
        self.program.names[name] = node
        return Tensor(node, self.program)

    def _flatten(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            self.results.append(self.program.node_of(result))
            return len(self.results) - 1
        if isinstance(result, tuple | list):
            return type(result)(self._flatten(r) for r in result)
        if isinstance(result, dict):
            return {key: self._flatten(r) for key, r in result.items()}
        if result is None:
            return None
        raise FrozenValueError(
            "a compiled function returns tensors, or tuples, lists and dicts of them",
            f"{type(result).__name__}",
            "return the tensor it came from",
        )

    def run(self, executor: Executor, args: list[Any]) -> Any:
        feed = {f"argument_{n}": _host(args[n]) for n in self.arrays}
        values = executor.run_nodes(self.program, feed, self.wanted)
        panel = default_panel()
        handles = [_wrap(panel, v) for v in values]
        for (handle, _), grad in zip(self.kept, handles[len(self.results) :], strict=True):
            handle._grad = grad
        return _build(self.structure, handles)


def _wrap(panel: Any, value: Array) -> Tensor:
    node = input_node(TensorType(value.shape, as_dtype(value.dtype)))
    node.value = value
    return Tensor(node, panel)


def _build(structure: Any, handles: list[Tensor]) -> Any:
    if isinstance(structure, int):
        return handles[structure]
    if isinstance(structure, tuple | list):
        return type(structure)(_build(s, handles) for s in structure)
    if isinstance(structure, dict):
        return {key: _build(s, handles) for key, s in structure.items()}
    return None


def is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray | np.generic)


def _host(value: Any) -> Array:
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)


def _guard(args: list[Any]) -> tuple[Any, ...]:
    return tuple((tuple(a.shape), str(a.dtype)) if is_array(a) else ("value", a) for a in args)


def compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Capture `function` at its first call with arguments of given types; later calls run the
    capture as one native call. State it reads or assigns is found by the recorder."""
    executor = Executor()
    captures: dict[Any, Captured] = {}

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if isinstance(current(), Program):
            return function(*args)
        given = list(args)
        key = _guard(given)
        found = captures.get(key)
        if found is None:
            found = captures[key] = Captured(function, given)
        return found.run(executor, given)

    call.captures = captures  # type: ignore[attr-defined]
    return call
