"""Recorders: what happens when an operator is called.

Operator functions do not know who calls them. They ask the current recorder of their thread to
record a node, and get back a handle: a Node inside rules and bodies, a Tensor in the panels.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, ClassVar

import numpy as np

from diptych import errors
from diptych.dtypes import DType, as_dtype
from diptych.graph.node import NOWHERE, Node, Operator, Where, constant_node


class Recorder(ABC):
    """Turns calls of operators into nodes."""

    is_panel: ClassVar[bool] = False  # whether handles are tensors
    is_program: ClassVar[bool] = False  # whether calls are recorded for later runs

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
    def live_scalar(self, read: Callable[[], float], dtype: DType) -> Any:
        """A handle on a number that is read anew at every run: a learning rate, a step count."""

    @abstractmethod
    def random_state(self) -> Any:
        """A handle on i64[2]: seed and stream, the stream being new at every call."""


class GraphRecorder(Recorder):
    """Records plain nodes: inside gradient rules, bodies of operators and rewrites."""

    def record(self, op: Operator, operands: Sequence[Any]) -> Node:
        type = op.infer(*[o.type for o in operands])
        needs, _ = op.history(type, operands)
        return Node(op, tuple(operands), type, LOCAL.where, needs_grad=needs)

    def scalar(self, value: float, dtype: DType) -> Node:
        return constant_node(value, dtype, LOCAL.where)

    def array(self, value: np.ndarray[Any, Any]) -> Node:
        return constant_node(value, as_dtype(value.dtype), LOCAL.where)

    def live_scalar(self, read: Callable[[], float], dtype: DType) -> Node:
        return constant_node(read(), dtype, LOCAL.where)

    def random_state(self) -> Node:
        raise NotImplementedError("random operators take their state from a panel's recorder")


class _Local(threading.local):
    def __init__(self) -> None:
        self.stack: list[Recorder] = []
        self.where = NOWHERE
        # The author's line, where it is known without a look: below code of this package that calls
        # no code of the author all lines are one. Who sets it puts it back.
        self.line: Where | None = None


LOCAL = _Local()
_default: list[Recorder] = [GraphRecorder()]


def current() -> Recorder:
    """The recorder of this thread."""
    stack = LOCAL.stack
    return stack[-1] if stack else _default[0]


def set_default(recorder: Recorder) -> None:
    """The recorder of threads that entered none; the dynamic panel sets itself."""
    _default[0] = recorder


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    stack, depth = LOCAL.stack, len(LOCAL.stack)
    try:  # from here on, for Ctrl-C may come as soon as it is there
        stack.append(recorder)
        yield
    finally:
        del stack[depth:]


GRAPH = GraphRecorder()


@contextmanager
def origin(where: Where) -> Iterator[None]:
    """Record plain nodes that carry the line `where`."""
    stack, depth, before = LOCAL.stack, len(LOCAL.stack), LOCAL.where
    try:
        LOCAL.where = where
        stack.append(GRAPH)
        yield
    finally:
        del stack[depth:]
        LOCAL.where = before


# By instruction (code objects have theirs inside, so an address is one of one instruction): the
# code, which is kept so that nothing else gets its place, and the line, or None in this package.
_places: dict[int, tuple[CodeType, Where | None]] = {}


def author_line(depth: int = 2) -> Where:
    """The nearest line outside this package; the same object for the same instruction. `depth`: how
    many calls further up it may be; mostly what calls this is called by another."""
    where: Where | None = LOCAL.line
    if where is not None:
        return where
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        found = _places.get(id(code) + frame.f_lasti)
        where = _place(frame) if found is None else found[1]
        if where is not None:
            return where
        frame = frame.f_back
    return NOWHERE


def _place(frame: FrameType) -> Where | None:
    """The line of a frame that is not of this package; from here on it is known."""
    code = frame.f_code
    where = None if errors.is_own(frame) else Where(code.co_filename, frame.f_lineno)
    return _places.setdefault(id(code) + frame.f_lasti, (code, where))[1]
