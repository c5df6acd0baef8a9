"""What was compiled, and why: a record of every compile with what was new about it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diptych.dtypes import TensorType
from diptych.errors import RecompileError
from diptych.graph.node import NOWHERE, Constant, Graph, Node, Operator, Where

KEPT = 1000  # compiles that are remembered


@dataclass(frozen=True)
class Compile:
    """One compile: the line of its first call, what was new, seconds, kernels, whether the code
    came from the cache on disk, and how it was made (or that it was not yet)."""

    where: Where
    new: str
    seconds: float
    kernels: int
    from_disk: bool
    how: str

    def __str__(self) -> str:
        took = f"{self.how} {self.kernels} kernels in {self.seconds * 1e3:.1f} ms"
        return f"{self.where}  {took}: {self.new}"


class Compiles(list[Compile]):
    """Compiles in order; prints as one line each."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "nothing was compiled"


@dataclass(frozen=True)
class Form:
    """What is compared of graphs with the same calls."""

    types: tuple[TensorType, ...]
    operators: tuple[Operator, ...]
    constants: tuple[tuple[bytes, TensorType], ...]  # bytes of numbers; none of arrays
    outputs: tuple[int, ...]
    layout: tuple[Any, ...]
    in_place: tuple[Any, ...]


@dataclass
class Announced:
    """A compile that is about to be made, and what the record says of it."""

    where: Where
    new: str
    noted: Compile | None = None


class _Local(threading.local):
    forbidden = 0


_local = _Local()
_log: deque[Compile] = deque(maxlen=KEPT)
_forms: dict[Any, Form] = {}  # the last one of every structure
_orders: dict[str, Any] = {}  # operators in the order they were called in, each under the last
_lock = threading.Lock()


def announce(
    graph: Graph, strides: Mapping[int, Any], donated: Mapping[int, int], loop: bool
) -> Announced:
    """Say what is new about a graph; raises RecompileError inside `forbidden`."""
    calls, form = _described(graph, strides, donated)
    key = (calls, loop)
    with _lock:
        before = _forms.get(key)
        computed = [n for n in graph.nodes if n.inputs]
        new = _new_calls(computed) if before is None else _difference(before, form)
        lines = (n.where for n in computed if n.where != NOWHERE)
        found = Announced(next(lines, NOWHERE), new)
        if _local.forbidden:
            raise RecompileError(
                "inside no_recompile everything runs that was compiled before it",
                f"{new}    ({found.where})",
                "run it once before with the same types; dp.why() lists what was compiled",
            )
        _forms[key] = form
        at = _orders
        for node in computed:
            at = at.setdefault(node.op.name, {})
    return found


def note(
    announced: Announced, seconds: float, kernels: int, from_disk: bool, how: str = "compiled"
) -> None:
    """A compile was made, or put off; the later word replaces the earlier one."""
    made = Compile(announced.where, announced.new, seconds, kernels, from_disk, how)
    with _lock:
        at = next((n for n, old in enumerate(_log) if old is announced.noted), None)
        if at is None:
            _log.append(made)
        else:
            _log[at] = made
        announced.noted = made


def _described(
    graph: Graph, strides: Mapping[int, Any], donated: Mapping[int, int]
) -> tuple[tuple[Any, ...], Form]:
    """The calls and their wiring; and what may differ between graphs of the same calls."""
    number: dict[Node, int] = {n: k for k, n in enumerate(graph.inputs)}
    calls: list[Any] = []
    operators: list[Operator] = []
    constants: list[tuple[bytes, TensorType]] = []
    for node in graph.nodes:
        if node not in number:
            number[node] = len(number)
            calls.append((node.op.name, *[number[i] for i in node.inputs]))
            if node.inputs:
                operators.append(node.op)
            elif isinstance(node.op, Constant):
                constants.append((node.op.data if node.type.size == 1 else b"", node.type))
    form = Form(
        tuple(n.type for n in graph.inputs),
        tuple(operators),
        tuple(constants),
        tuple(number[o] for o in graph.outputs),
        tuple(sorted(strides.items())),
        tuple(sorted(donated.items())),
    )
    return (len(graph.inputs), *calls), form


def _new_calls(computed: list[Node]) -> str:
    """What is new where no graph had the same calls: from which on it is like none before."""
    at = _orders
    for node in computed:
        if node.op.name not in at:
            return f"calls that were not made in this order before, from {_called(node)} on"
        at = at[node.op.name]
    return "calls that were made in this order before, on other values or with more behind them"


def _called(node: Node) -> str:
    return node.op.name if node.where == NOWHERE else f"{node.op.name} ({node.where})"


def _difference(before: Form, now: Form) -> str:
    for was, is_ in zip(before.types, now.types, strict=True):
        if was != is_:
            return f"the same calls with another type: {is_} instead of {was}"
    for op, new in zip(before.operators, now.operators, strict=True):
        if op is not new and repr(op.attributes()) != repr(new.attributes()):  # 0.0 is not -0.0
            had, has = op.attributes(), new.attributes()
            return f"the same calls with other attributes: {has} instead of {had}"
    for held, holds in zip(before.constants, now.constants, strict=False):
        if held != holds:
            number, instead = _shown(*holds), _shown(*held)
            return f"the same calls with another constant: {number} instead of {instead}"
    if before.outputs != now.outputs:
        return "the same calls, but other values are kept"
    if before.layout != now.layout:
        return "the same calls on values that lie in memory in another way"
    if before.in_place != now.in_place:
        return "the same calls, but other parameters are updated in place"
    return "the same calls, which were compiled for another owner"


def _shown(data: bytes, type: TensorType) -> str:
    """The number that a constant is; of more than one, their type."""
    return str(Constant(data).array(type).ravel()[0]) if data else repr(type)


def why() -> Compiles:
    """What was compiled so far, in order: the line of its first call, how long it took, and what
    was new about it. Prints as one line each."""
    with _lock:
        return Compiles(_log)


@contextmanager
def forbidden() -> Iterator[None]:
    """Inside, a new compile of this thread is a RecompileError."""
    _local.forbidden += 1
    try:
        yield
    finally:
        _local.forbidden -= 1


def _forked() -> None:
    """In a child of a fork no other thread holds the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
