"""Reverse-mode differentiation, from graph to graph.

Cotangents of a value used several times are added in reverse node order, within a node by input
position, starting from the first (rule 6 of docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.errors import InternalError
from diptych.graph.node import Node, walk
from diptych.graph.record import origin
from diptych.ops import base
from diptych.ops.base import Composite
from diptych.ops.elementwise import add


def _ends(node: Node) -> bool:
    return node.leaf or not node.needs_grad


def expand(roots: Sequence[Node]) -> list[Node]:
    """Nodes under the roots for differentiation, with composites that have no gradient of their
    own replaced by their bodies; returns the new roots."""
    new: dict[int, Node] = {}
    for node in walk(roots, stop=_ends):
        if _ends(node):
            new[id(node)] = node
            continue
        inputs = tuple(new.get(id(i), i) for i in node.inputs)
        if isinstance(node.op, Composite) and node.op.operator.gradient is None:
            new[id(node)] = expand([base.inline(node, inputs)])[0]
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
