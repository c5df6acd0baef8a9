"""Reverse-mode differentiation, from graph to graph.

Cotangents of a value used several times are added in reverse node order, within a node by input
position, starting from the first (rule 6 of docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.dtypes import TensorType
from diptych.errors import GraphError, InternalError
from diptych.graph.node import Graph, Node, constant_node, input_node, walk
from diptych.graph.record import origin
from diptych.graph.rewrite import rebuilt
from diptych.ops import base
from diptych.ops.base import Composite
from diptych.ops.elementwise import add


def _ends(node: Node) -> bool:
    return node.leaf or not node.needs_grad


def seen(root: Node, targets: Sequence[Node] = ()) -> list[Node]:
    """All that differentiation sees of what a value came from: between it and targets, if any."""
    wanted = set(targets)

    def ends(node: Node) -> bool:
        return node in wanted or _ends(node)

    order = walk([root], stop=ends)
    for target in wanted if len(wanted) > 1 else ():  # one may be computed of another
        below = [] if _ends(target) else walk(target.inputs, stop=ends)
        if not wanted.isdisjoint(below):
            order += below
    if any(n.released for n in order):  # what it lacks would be missing from gradients
        raise was_released(root)
    return order


def history_of(root: Node) -> tuple[list[Node], list[Node], list[Node]]:
    """What a value came from: all of it that differentiation sees, what of it has a gradient, and
    its leaves."""
    order = seen(root)
    history = [n for n in order if n.needs_grad]
    leaves = [n for n in history if n.leaf]
    if not leaves:
        raise GraphError(
            "backward starts from a value that depends on a parameter",
            f"{root.type} depends on none",
            "check no_grad and detach, or set requires_grad on a leaf",
        )
    return order, history, leaves


def release(history: Sequence[Node]) -> None:
    """Backward went through: these nodes cannot be differentiated again."""
    for node in history:
        if not node.leaf:
            node.needs_grad, node.released, node.kind = False, True, None


def was_released(node: Node) -> GraphError:
    return GraphError(
        "backward releases the history it went through; a compiled function hands out none",
        f"{node.type}",
        "of a compiled function, call backward inside it; else pass retain_graph=True to the first "
        "backward, or .detach() what it went through",
    )


def expand(roots: Sequence[Node], done: Sequence[Node] = ()) -> list[Node]:
    """Nodes under the roots for differentiation, with composites that have no gradient of their
    own replaced by their bodies; returns the new roots. Those in `done` are as they should be."""
    new: dict[int, Node] = {id(node): node for node in done}
    for node in walk(roots, stop=lambda n: id(n) in new or _ends(n)):
        if id(node) in new:
            continue
        if _ends(node):
            new[id(node)] = node
            continue
        inputs = tuple(new.get(id(i), i) for i in node.inputs)
        if isinstance(node.op, Composite) and node.op.operator.gradient is None:
            new[id(node)] = expand([base.inline(node, inputs)], inputs)[0]
        elif all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            new[id(node)] = node
        else:
            new[id(node)] = Node(
                node.op, inputs, node.type, node.where, label=node.label, needs_grad=True
            )
    return [new[id(r)] for r in roots]


def gradients(
    outputs: Sequence[Node], seeds: Sequence[Node], targets: Sequence[Node]
) -> list[Node | None]:
    """The cotangent of each target, given those of the outputs; None where nothing flows."""
    both = expand([*outputs, *targets])
    roots, targets = both[: len(outputs)], both[len(outputs) :]
    order = [n for n in walk(roots, stop=_ends) if n.needs_grad]
    wanted = {id(t) for t in targets}
    reaches = set(wanted)
    for node in order:
        if not node.leaf and any(id(i) in reaches for i in node.inputs):
            reaches.add(id(node))
    cotangent: dict[int, Node] = {}
    for root, seed in zip(roots, seeds, strict=True):
        _accumulate(cotangent, root, seed)
    for node in reversed(order):
        g = cotangent.get(id(node))
        if g is None or node.leaf or not node.inputs or id(node) not in reaches:
            continue
        with origin(node.where):
            parts = node.op.grad(g, node)
        if len(parts) != len(node.inputs):
            raise InternalError(
                f"{node.op.name} has {len(parts)} cotangents, not {len(node.inputs)}"
            )
        for given, part in zip(node.inputs, parts, strict=True):
            if part is not None and given.needs_grad and id(given) in reaches:
                _accumulate(cotangent, given, part)
    return [cotangent.get(id(t)) for t in targets]


def _accumulate(cotangent: dict[int, Node], node: Node, part: Node) -> None:
    if part.type != node.type:
        raise InternalError(f"the cotangent of {node!r} has type {part.type}")
    before = cotangent.get(id(node))
    if before is None:
        cotangent[id(node)] = part
    else:
        with origin(node.where):
            cotangent[id(node)] = add(before, part)


# ---- gradients that recur ------------------------------------------------------------------


class Part(Composite):
    """One result of a piece of graph, as an operator on what the piece reads."""

    def __init__(self, graph: Graph, name: str) -> None:
        object.__setattr__(self, "graph", graph)
        object.__setattr__(self, "name", name)

    graph: Graph
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def body(self, *inputs: TensorType) -> Graph:
        return self.graph

    def attributes(self) -> dict[str, Any]:
        return {}

    def positions(self, *inputs: TensorType) -> list[Any]:
        return []  # the piece itself checks them


class Recurring:
    """The gradients of pieces of graph that have been differentiated before, by structure.

    A training loop differentiates the same structure at every step. The first time it is
    transformed; from then on its gradients are recorded as one node each, which the compiler takes
    apart, when it sees them for the first time, to the nodes that the transformation made.
    """

    def __init__(self) -> None:
        self.known: dict[Any, tuple[list[int], list[Part | None]]] = {}

    def gradients(self, order: Sequence[Node], leaves: Sequence[Node], where: Any) -> list[Any]:
        """The gradient nodes of the last of `order`, one number, for its leaves; `order` is its
        history, ends included."""
        number: dict[int, int] = {}
        parts: list[Any] = []
        for n, node in enumerate(order):
            number[id(node)] = n
            if node.leaf or not node.needs_grad:
                parts.append((node.type, node.leaf, node.needs_grad))
            else:
                parts.append((node.op, node.value is None, *[number[id(i)] for i in node.inputs]))
        key = tuple(parts)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._made(order, leaves)
        inputs = tuple([order[n] for n in found[0]])
        return [
            None if op is None else Node(op, inputs, leaf.type, where)
            for op, leaf in zip(found[1], leaves, strict=True)
        ]

    def _made(
        self, order: Sequence[Node], leaves: Sequence[Node]
    ) -> tuple[list[int], list[Part | None]]:
        root = order[-1]
        ones = np.ones(root.type.shape)  # type: ignore[type-var]
        seed = constant_node(ones, root.type.dtype, root.where)
        found = gradients([root], [seed], leaves)
        read = [
            n for n, node in enumerate(order)
            if node.leaf or not node.needs_grad or node.value is not None
        ]  # fmt: skip
        places = {id(order[n]): input_node(order[n].type, "", order[n].where) for n in read}
        made: list[Part | None] = []
        for grad in found:
            if grad is None:
                made.append(None)
            else:
                (out,) = rebuilt([grad], places)
                made.append(Part(Graph(tuple(places.values()), (out,)), "gradient"))
        return read, made
