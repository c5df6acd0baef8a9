"""What the dynamic panel remembers: a tree of everything that was recorded before.

A piece of graph starts at the root. Every call goes on to the point that is filed under what it is:
its operator, and where its inputs stand. An input that was made or read before in the piece is its
number; one that is read for the first time is its `kind`: type, layout, and how differentiation
sees it. So a point stands for the whole structure since the start of the piece, and what follows
from structure (types, gradients, which native call runs it) is found at the point, not derived
again: a step that recurs is recorded by a dict lookup a call.

What differentiation or assignment changes is a call too. Whatever else would change the meaning of
a piece takes it off the trail, to be keyed by a walk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych import interpret
from diptych.autodiff import Recurring, history_of
from diptych.dtypes import DType, TensorType, as_dtype
from diptych.graph.node import Input, Node, Operator, Where
from diptych.runtime import memory
from diptych.runtime.holders import ALONE, holders

Array = np.ndarray[Any, Any]
BACKWARD, ASSIGN, ADVANCE, SETTLE = (object() for _ in range(4))  # calls that are no operators
NO_HISTORY = object()  # at the end of a call where nothing is differentiated
MOST = 100_000  # points of the tree: programs that never repeat do not fill the memory
FEW = 64  # positions that are compared as Python numbers
SPARES, LARGEST = 3, 1 << 20  # arrays kept for the next batch, and how large they may be
SHAPES = 64  # of host arrays that are remembered, with the arrays that are kept for them


class Kind:
    """What a piece distinguishes of a value that it reads; one object for equal ones."""

    __slots__ = ("leaf", "needs_grad", "read", "released", "strides", "type")

    def __init__(
        self,
        type: TensorType,
        strides: tuple[int, ...],
        needs_grad: bool,
        leaf: bool,
        read: bool,
        released: bool,
    ) -> None:
        self.type, self.strides = type, strides
        self.needs_grad, self.leaf = needs_grad, leaf
        self.read = read  # whether gradients of what was computed before may read it
        self.released = released  # whether a backward went through what it came from


class Point(dict[Any, "Point"]):
    """A place on the trail: what was recorded next after it, and what follows from the way here."""

    __slots__ = (
        "backward", "checks", "counts", "needs_grad", "plan", "plans", "reads", "released",
        "sample", "type",
    )  # fmt: skip

    def __init__(
        self, type: TensorType | None = None, needs_grad: bool = False, released: bool = False
    ) -> None:
        self.type, self.needs_grad, self.released = type, needs_grad, released
        self.checks: list[tuple[int, int]] | None = None  # inputs with positions, their limits
        self.reads: list[int] = []  # inputs that are read for the first time
        self.sample: Node | None = None  # what the new node is like, where there is no more to it
        self.backward: Backward | None = None
        self.plans: dict[tuple[bool, ...], Plan] = {}  # by which handles are alive
        self.plan: Plan | None = None  # the last one, and the counts of references it was for
        self.counts: list[int] | None = None

    def then(self, call: Any) -> Point:
        """The point after a call whose result has no type."""
        found = self.get(call)  # where nothing was recorded after it, it is empty
        return self.setdefault(call, Point()) if found is None else found


@dataclass
class Backward:
    """What a backward records: gradients of leaves as operators on what they read. All are numbers
    of nodes but the operators."""

    leaves: list[int]
    operators: list[Operator]
    reads: list[int]
    released: list[int]


def differentiated(
    piece: Piece, root: Node, recurring: Recurring, retain_graph: bool
) -> Backward | None:
    """What a backward from a node of a piece records; None where the trail does not know it."""
    order, history, leaves = history_of(root)
    found = recurring.gradients(order, leaves, root.where)
    if root.type.size != 1 or any(leaf.owner is None for leaf in leaves):
        return None
    slots, made = piece.slots, [(slot, g) for slot, g in zip(leaves, found) if g is not None]
    return Backward(
        [slots[leaf] for leaf, _ in made],
        [g.op for _, g in made],
        [slots[n] for n in made[0][1].inputs] if made else [],
        [] if retain_graph else [slots[n] for n in history if not n.leaf],
    )


class Bundle:
    """The gradients of one backward, which become nodes and handles when somebody asks for one.

    Mostly nobody does: the optimizer reads them at once, and they are forgotten. Until then the
    bundle stands in the place of each.
    """

    __slots__ = (
        "backward", "first", "leaves", "nodes", "owners", "piece", "slots", "step",
        "where",
    )  # fmt: skip

    def __init__(self, piece: Piece, backward: Backward, leaves: list[Node], where: Where) -> None:
        self.piece, self.backward, self.leaves, self.where = piece, backward, leaves, where
        self.owners: list[Any] = [leaf.owner() for leaf in leaves]
        self.nodes, self.slots = nodes, _ = piece.nodes, piece.slots
        self.first = len(nodes)  # the number of the first gradient
        # A step that reads the gradients: all that it reads, where in it they are, its structure,
        # and the number of the first of its new values.
        self.step: tuple[list[Any], int, Any, int] | None = None
        nodes += backward.leaves  # type: ignore[arg-type]  # their places are taken

    def complete(self) -> list[Node]:
        """The gradients as nodes."""
        nodes, first = self.nodes, self.first
        if not isinstance(nodes[first], Node):
            inputs = tuple([nodes[n] for n in self.backward.reads])
            operators = zip(self.backward.leaves, self.backward.operators)
            for n, (leaf, op) in enumerate(operators, first):
                node = Node(op, inputs, nodes[leaf].type, self.where)
                node.pending = self.piece
                nodes[n], self.slots[node] = node, n
        made = nodes[first : first + len(self.owners)]
        if self.step is not None:
            given, at, structure, new = self.step
            given[at : at + len(made)] = made
            for n, (_, _, take) in enumerate(structure.updates, new):
                if nodes[n].value is None:
                    nodes[n].inputs = take(given)
        return made

    def is_all_of(self, piece: Piece, parameters: Sequence[Any]) -> bool:
        """Whether these gradients are those of a backward in this piece, all of them and in order,
        and no step has read them."""
        owners = self.owners
        if self.piece is not piece or self.step is not None or len(owners) != len(parameters):
            return False
        for owner, parameter in zip(owners, parameters):  # in half the time of all(...)
            if owner is not parameter or owner._grad is not self:
                return False
        return True

    def alive(self) -> bool:
        """Whether it still is the gradient of anything."""
        for owner in self.owners:  # noqa: SIM110  # any(...) takes twice as long
            if owner._grad is self:
                return True
        return False


class Piece:
    """What one thread has recorded and not yet run."""

    __slots__ = (
        "__weakref__", "_listed", "_sites", "at_boundary", "bundles", "grad_enabled", "handle",
        "held", "in_step", "nodes", "point", "replaced", "slots", "trail", "undo", "waiting",
    )  # fmt: skip

    def __init__(self, trail: Trail, handle: Callable[[Node], Any]) -> None:
        self.trail, self.handle = trail, handle
        self.grad_enabled = True
        self.at_boundary = False
        # While a step is recorded call by call: parameters, their nodes and values before it.
        self.undo: list[tuple[Any, Node, Any]] | None = None
        self.clear()

    def clear(self) -> None:
        self.waiting: list[Any] = []  # handles, also those that nobody else holds any more
        self.replaced: list[tuple[Node, Node]] = []  # (new value of a parameter, the old one)
        self.held = 0  # bytes of arrays handed over
        self.in_step = False  # gradients were taken
        self.point: Point | None = self.trail.start()  # where on the trail, or None off it
        self.nodes: list[Node] = []  # what was made and read, on the trail
        self.slots: dict[Node, int] = {}  # their numbers
        self.bundles: list[Bundle] = []
        self._sites: list[Any] = []
        self._listed = 0

    def sites(self) -> list[Any]:
        """Call sites of what waits, (line, operator) each."""
        new = self.nodes[self._listed :]
        self._listed = len(self.nodes)
        self._sites += [(n.where, n.op.name) for n in new if n.value is None]
        return self._sites

    def __enter__(self) -> None:
        """What is inside notes one call."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the trail where an error or Ctrl-C came in between."""
        if kind is not None:
            self.point = None

    def renew(self, owners: list[Any], olds: list[Node], samples: list[Node], where: Where) -> None:
        """New nodes for parameters, like samples."""
        for owner, old, sample in zip(owners, olds, samples):
            node = Node(sample.op, (), sample.type, where)
            node.leaf, node.needs_grad, node.owner = True, old.needs_grad, old.owner
            self.replaced.append((node, old))
            node.pending, owner.node = self, node
            self.slots[node] = len(self.nodes)
            self.nodes.append(node)
        self.waiting += owners

    def complete(self) -> None:
        """All that waits as nodes."""
        for bundle in self.bundles:
            bundle.complete()

    def settle(self, bundle: Bundle) -> list[Any]:
        """Give every owner a gradient of its own; returns these."""
        made = [self.handle(node) for node in bundle.complete()]
        self.waiting += made
        for owner, gradient in zip(bundle.owners, made):
            if owner is not None and owner._grad is bundle:
                owner._grad = gradient
        if self.point is not None:
            self.point = self.point.then((SETTLE, bundle.first))
        self.bundles.remove(bundle)  # last: who was interrupted settles it again
        return made

    def settle_alive(self) -> None:
        """Settle what is not forgotten."""
        for bundle in list(self.bundles):
            if bundle.alive():
                self.settle(bundle)


@dataclass
class Made:
    """An executable, the inputs that it overwrites, the kinds of its outputs, and whether it is
    `safe` to go on before it is done: nothing fails in it, and nothing is copied after it."""

    executable: Any
    overwritten: list[int]
    kinds: list[Any]
    safe: bool
    new: bool = True


@dataclass
class Plan:
    """How a piece is run where certain handles are alive; nodes by their numbers."""

    outputs: list[int]
    inputs: list[int]
    donors: list[tuple[int, int]]  # outputs that may go where an input is, by their places
    ended: list[bool]  # outputs that nobody differentiates through
    all_ended: bool
    watched: list[int]  # inputs among the donors that gradients of other values may read
    made: dict[Any, Made] = field(default_factory=dict)
    last: Made | None = None
    held: list[int] | None = None  # counts of references to the inputs at the last run
    device: str = ""


class Form:
    """Host arrays of one shape and dtype: their type and kind as inputs, and memory for copies."""

    def __init__(self, trail: Trail, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.type = TensorType(shape, as_dtype(dtype))
        self.shape, self.dtype = shape, self.type.dtype.numpy
        strides = memory.element_strides(np.empty(shape, self.dtype))
        self.sample = Node(Input(), (), self.type)
        self.sample.kind = trail.kind(self.type, strides)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self.small = self.nbytes <= memory.SMALL
        self.spare: list[Array] = []

    def copy(self, value: Array) -> Array:
        """The array in memory of our own; what nobody holds any more is used again."""
        for n, count in enumerate(holders(self.spare)):
            if count == ALONE:
                own = self.spare[n]
                break
        else:
            own = memory.empty(self.shape, self.dtype)
            if self.nbytes <= LARGEST and len(self.spare) < SPARES:
                self.spare.append(own)
        own[...] = value
        return own


class Trail:
    """The root of the tree, and what its points share."""

    def __init__(self) -> None:
        self.root, self.points = Point(), 0
        self.kinds: dict[Any, Kind] = {}
        self.forms: dict[Any, Form] = {}
        self.scalars: dict[DType, Node] = {}

    def start(self) -> Point:
        """Where a piece starts; what was remembered is forgotten where it is too much."""
        if self.points > MOST:
            self.root, self.points = Point(), 0
        return self.root

    def kind(
        self,
        type: TensorType,
        strides: tuple[int, ...],
        needs_grad: bool = False,
        leaf: bool = False,
        read: bool = False,
        released: bool = False,
    ) -> Kind:
        key = (type, strides, needs_grad, leaf, read, released)
        found = self.kinds.get(key)
        return self.kinds.setdefault(key, Kind(*key)) if found is None else found

    def kind_of(self, node: Node) -> Kind:
        """The kind of a node that has a value."""
        found = node.kind
        if found is None:
            assert node.value is not None
            strides = memory.element_strides(node.value)
            read = node.readers is not None
            found = node.kind = self.kind(
                node.type, strides, node.needs_grad, node.leaf, read, node.released
            )
        return found  # type: ignore[no-any-return]

    def explore(self, piece: Piece, op: Operator, inputs: Sequence[Node], key: Any) -> Point:
        """The point after a call that was not made from here before."""
        types = [i.type for i in inputs]
        type = op.infer(*types)
        needs, released = op.history(type, inputs) if piece.grad_enabled else (False, False)
        point = Point(type, needs, released)
        self.points += 1
        checks = [(n, size) for n, size, _ in op.positions(*types) if isinstance(size, int)]
        point.checks = checks or None
        kinds = [(n, kind) for n, kind in enumerate(key[1:]) if isinstance(kind, Kind)]
        point.reads = [n for n, _ in kinds]
        if len({kind for _, kind in kinds}) == len(kinds):
            point.sample = Node(op, (), type, needs_grad=needs)
            point.sample.released = released
        return piece.point.setdefault(key, point)  # type: ignore[union-attr]

    def form(self, value: Array) -> Form:
        """What is known of host arrays like this one."""
        key = (value.dtype, value.shape)
        found = self.forms.get(key)
        if found is None:
            if len(self.forms) >= SHAPES:
                self.forms.clear()
            found = self.forms.setdefault(key, Form(self, value.shape, value.dtype))
        return found

    def scalar(self, dtype: DType) -> Node:
        """A node for numbers to be like."""
        found = self.scalars.get(dtype)
        if found is None:
            type = TensorType((), dtype)
            found = self.scalars[dtype] = Node(Input(), (), type)
            found.kind = self.kind(type, ())
        return found


def alive(waiting: Sequence[Any]) -> tuple[bool, ...]:
    """Which of the handles in a list anybody else holds."""
    return tuple([count > ALONE for count in holders(waiting)])


def check_few(point: Point, op: Operator, inputs: Sequence[Node], where: Where) -> None:
    """Labels and positions that are there lie inside; a few are compared without numpy."""
    for n, size in point.checks or ():
        value = inputs[n].value
        if value is None or not value.size:
            continue
        few = value.ravel().tolist() if value.size <= FEW else (value.min(), value.max())
        if min(few) < 0 or max(few) >= size:
            interpret.check_positions(op, inputs, [i.value for i in inputs], where)
