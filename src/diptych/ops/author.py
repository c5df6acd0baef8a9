"""Operators of other authors: their bodies and rules are written with Python's operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych.dtypes import DType
from diptych.errors import GraphError, ObservedWhileRecording
from diptych.graph.node import Node, Operator
from diptych.graph.record import GRAPH, Recorder, recording
from diptych.ops.base import CompositeOperator, Handle, operand
from diptych.ops.methods import Methods


class BodyValue(Methods):
    """A value inside a body or a rule: it has a type and the operators of a tensor, no data."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def inputs(self) -> tuple[BodyValue, ...]:
        """What the call that a rule differentiates was given."""
        return tuple(map(BodyValue, self.node.inputs))

    def numpy(self) -> Any:
        raise ObservedWhileRecording(
            "the body of an operator is recorded once, for all values",
            f"the value of {self.type} is asked for",
            "dp.where(condition, a, b) chooses by value",
        )

    def __repr__(self) -> str:
        return repr(self.node)

    __hash__ = object.__hash__


def _node(handle: Any) -> Node:
    if not isinstance(handle, BodyValue):
        raise GraphError(
            "the body of an operator reads its own inputs, arrays and numbers",
            f"{handle.type} from outside",
            "make it an input, or an array: .numpy()",
        )
    return handle.node


class AuthorRecorder(Recorder):
    """Records plain nodes and hands out body values."""

    def record(self, op: Operator, operands: Sequence[Any]) -> BodyValue:
        return BodyValue(GRAPH.record(op, [_node(o) for o in operands]))

    def scalar(self, value: float, dtype: DType) -> BodyValue:
        return BodyValue(GRAPH.scalar(value, dtype))

    def array(self, value: np.ndarray[Any, Any]) -> BodyValue:
        return BodyValue(GRAPH.array(value))

    def live_scalar(self, read: Callable[[], float], dtype: DType) -> BodyValue:
        return BodyValue(GRAPH.live_scalar(read, dtype))

    def random_state(self) -> Any:
        return GRAPH.random_state()


AUTHOR = AuthorRecorder()


class AuthorOperator(CompositeOperator):
    """A composite operator whose body and rule see body values in place of nodes."""

    def made_of(self, places: Sequence[Node], attributes: dict[str, Any]) -> Node:
        with recording(AUTHOR):
            return _node(operand(self.function(*map(BodyValue, places), **attributes)))

    def cotangents(self, g: Node, node: Node, values: Sequence[Any]) -> list[Node | None]:
        assert self.gradient is not None
        with recording(AUTHOR):
            found = self.gradient(BodyValue(g), BodyValue(node), *values)
        return [None if part is None else _node(part) for part in found]


def operator(function: Callable[..., Handle]) -> AuthorOperator:
    """An operator made of others: recorded, drawn and saved under the function's own name.

    Positional parameters are tensors, keyword-only ones are attributes. Its gradient follows from
    its body unless one is stated: `@f.with_gradient def rule(g, node, *attributes)` gives the
    cotangents of `node.inputs` (None where nothing flows) from g, that of the result `node`.
    """
    return AuthorOperator(function)
