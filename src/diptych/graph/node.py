"""Nodes, operators and graphs.

A node is one call of an operator and has one result (an operator with two results is two
operators, which is what keeps rules, text and plans short). Nodes are compared by identity;
graphs are compared by their text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from diptych.dtypes import Dimension, DType, TensorType, as_dtype, f32
from diptych.errors import GraphError, InternalError
from diptych.kernel.expr import Expr


class Where(NamedTuple):
    """The author's line."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.line}"


NOWHERE = Where("?", 0)


@dataclass(frozen=True)
class Source:
    """What `lower` sees of an input: its type, and its element at given indices."""

    type: TensorType
    at: Callable[..., Expr]


@dataclass(frozen=True)
class Operator:  # not an ABC, whose isinstance is four times slower: it is asked of every node
    """A primitive: four rules and typed attributes (the dataclass fields of the subclass)."""

    name: ClassVar[str]

    @abstractmethod
    def infer(self, *inputs: TensorType) -> TensorType:
        """The type of the result, or an error that states the rule."""

    @abstractmethod
    def reference(self, *inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The result in plain numpy, in the order that docs/numerics.md fixes."""

    @abstractmethod
    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        """The cotangent of each input from that of the result; None where there is none."""

    @abstractmethod
    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        """The element of the result at given indices, in the kernel language."""

    def positions(self, *inputs: TensorType) -> list[tuple[int, Dimension, str]]:
        """Inputs that hold positions (or labels: their name in errors), and the size of the axis
        that they lie in. They are checked before anything is written."""
        return []

    def flows(self, *inputs: TensorType) -> bool:
        """Whether any gradient can pass from the result to an input."""
        return True

    def history(self, result: TensorType, inputs: Sequence[Node]) -> tuple[bool, bool]:
        """Whether the result of a call with these inputs has a gradient, where any is asked for;
        and whether it would have one, had no backward released what an input came from."""
        needs = any([i.needs_grad for i in inputs])
        lost = not needs and any([i.released for i in inputs])
        if not (needs or lost) or not result.dtype.is_float:
            return False, False
        flows = self.flows(*[i.type for i in inputs])
        return needs and flows, lost and flows

    def attributes(self) -> dict[str, Any]:
        return dict(vars(self))


class Leaf(Operator):
    """An operator without inputs whose value comes from outside, or is part of the graph."""

    def infer(self, *inputs: TensorType) -> TensorType:
        raise InternalError(f"a leaf ({self.name}) is given its type when it is made")

    def reference(self, *inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        raise InternalError(f"a leaf ({self.name}) is not computed")

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        return []

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        raise InternalError(f"a leaf ({self.name}) is not lowered")


@dataclass(frozen=True)
class Input(Leaf):
    """A value that is handed to the graph."""

    name: ClassVar[str] = "input"


@dataclass(frozen=True)
class Constant(Leaf):
    """A value that is part of the graph: its raw little-endian bytes."""

    data: bytes
    name: ClassVar[str] = "constant"

    def array(self, of: TensorType) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.data, of.dtype.numpy).reshape(of.shape)


class Operand:
    """What operators take: a node, or what a panel wraps around one. One that is `weak` takes the
    dtype of a tensor beside it, as plain numbers do."""

    __slots__ = ()
    weak: ClassVar[bool] = False


class Node(Operand):
    """One call of an operator. `label` is a name for people; `value` caches a computed result.

    A node that is a `leaf` ends differentiation: a parameter, whatever computed its value. One that
    is `released` had a gradient, or would have one, until a backward went through where it comes
    from: another through it is an error.
    """

    __slots__ = (
        "__weakref__", "inputs", "kind", "label", "leaf", "needs_grad", "op", "owner", "pending",
        "readers", "released", "type", "value", "where",
    )  # fmt: skip

    def __init__(
        self,
        op: Operator,
        inputs: tuple[Node, ...],
        type: TensorType,
        where: Where = NOWHERE,
        label: str = "",
        needs_grad: bool = False,
    ) -> None:
        self.op, self.inputs, self.type, self.where = op, inputs, type, where
        self.label, self.needs_grad = label, needs_grad
        self.leaf = self.released = False
        self.value: np.ndarray[Any, Any] | None = None
        self.pending: Any = None  # what a panel has recorded and not yet run, this among it
        self.owner: Any = None  # a weak reference to the handle that gets the gradient
        self.kind: Any = None  # what the dynamic panel's memory distinguishes of a value
        self.readers: Any = None  # weak references to computed nodes whose gradients read this

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def __repr__(self) -> str:
        return f"<{self.label or self.op.name}: {self.type}  # {self.where}>"


def input_node(
    type: TensorType, label: str = "", where: Where = NOWHERE, needs_grad: bool = False
) -> Node:
    return Node(Input(), (), type, where, label=label, needs_grad=needs_grad)


def constant_node(value: Any, dtype: DType = f32, where: Where = NOWHERE) -> Node:
    array = np.ascontiguousarray(value, as_dtype(dtype).numpy)
    shape = np.shape(value)
    return Node(Constant(array.tobytes()), (), TensorType(shape, as_dtype(dtype)), where)


def walk(roots: Iterable[Node], stop: Callable[[Node], bool] | None = None) -> list[Node]:
    """All nodes under the roots, inputs before users, each once; does not go past `stop`."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[Node | None] = list(roots)
    stack.reverse()
    while stack:
        node = stack.pop()
        if node is None:  # what stands under it follows all its inputs
            order.append(stack.pop())  # type: ignore[arg-type]
        elif node not in seen:
            seen.add(node)
            if node.inputs and (stop is None or not stop(node)):
                stack += (node, None, *node.inputs[::-1])
            else:
                order.append(node)
    return order


@dataclass(frozen=True, eq=False)
class Graph:
    """Inputs and outputs; the nodes between them are what `walk` finds."""

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    nodes: list[Node] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = set(self.inputs)
        object.__setattr__(self, "nodes", walk(self.outputs, stop=known.__contains__))
        for node in self.nodes:
            if not node.inputs and isinstance(node.op, Input) and node not in known:
                raise GraphError(
                    "a graph may read only its own inputs",
                    f"{node!r} is read and is not among them",
                    "add it to the inputs",
                )
