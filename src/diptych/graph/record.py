"""Recorders: what happens when an operator is called.

Operator functions do not know who calls them. They ask the current recorder of their thread to
record a node, and get back a handle: a Node inside rules and bodies, a Tensor in the panels.
"""

from __future__ import annotations

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from diptych.dtypes import DType
from diptych.graph.node import NOWHERE, Node, Operator, Where, constant_node

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Recorder(ABC):
    """Turns calls of operators into nodes."""

    @abstractmethod
    def record(self, op: Operator, operands: Sequence[Any]) -> Any:
        """A handle on the result of `op`."""

    @abstractmethod
    def scalar(self, value: float, dtype: DType) -> Any:
        """A handle on a Python number."""

    @abstractmethod
    def array(self, value: np.ndarray[Any, Any]) -> Any:
        """A handle on a host array."""

    @abstractmethod
    def random_state(self) -> Any:
        """A handle on i64[2]: seed and stream, the stream being new at every call."""


class GraphRecorder(Recorder):
    """Records plain nodes: inside gradient rules, bodies of operators and rewrites."""

    def record(self, op: Operator, operands: Sequence[Any]) -> Node:
        type = op.infer(*[o.type for o in operands])
        needs = type.dtype.is_float and any(o.needs_grad for o in operands)
        return Node(op, tuple(operands), type, _local.where, needs_grad=needs)

    def scalar(self, value: float, dtype: DType) -> Node:
        return constant_node(value, dtype, _local.where)

    def array(self, value: np.ndarray[Any, Any]) -> Node:
        from diptych.dtypes import as_dtype

        return constant_node(value, as_dtype(value.dtype), _local.where)

    def random_state(self) -> Node:
        raise NotImplementedError("random operators take their state from a panel's recorder")


class _Local(threading.local):
    def __init__(self) -> None:
        self.stack: list[Recorder] = []
        self.where = NOWHERE


_local = _Local()
_default: list[Recorder] = [GraphRecorder()]


def current() -> Recorder:
    """The recorder of this thread."""
    return _local.stack[-1] if _local.stack else _default[0]


def set_default(recorder: Recorder) -> None:
    """The recorder of threads that entered none; the dynamic panel sets itself."""
    _default[0] = recorder


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    _local.stack.append(recorder)
    try:
        yield
    finally:
        _local.stack.pop()


GRAPH = GraphRecorder()


@contextmanager
def origin(where: Where) -> Iterator[None]:
    """Record plain nodes that carry the line `where`."""
    before = _local.where
    _local.where = where
    _local.stack.append(GRAPH)
    try:
        yield
    finally:
        _local.stack.pop()
        _local.where = before


def author_line() -> Where:
    """The nearest line outside this package."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return Where(code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return NOWHERE
