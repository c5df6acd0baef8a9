"""Graphs from graphs: nodes replaced, symbols bound; source lines and labels are carried along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diptych.dtypes import Dim, bind
from diptych.errors import DiptychError
from diptych.graph.node import Graph, Leaf, Node, Operator, walk


def rebuilt(roots: Sequence[Node], replaced: Mapping[int, Node]) -> list[Node]:
    """The roots with some nodes, by id, replaced by others."""
    new: dict[int, Node] = dict(replaced)
    for node in walk(roots, stop=lambda n: id(n) in replaced):
        if id(node) in new:
            continue
        inputs = tuple(new[id(i)] for i in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        new[id(node)] = (
            node if same else Node(node.op, inputs, node.type, node.where, label=node.label)
        )
    return [new[id(r)] for r in roots]


def specialise(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The graph with its symbolic sizes replaced by ints. Raises ShapeError where a primitive
    does not take them: an index outside of its axis, the greatest of nothing."""
    if not sizes:
        return graph
    new: dict[int, Node] = {}
    for node in walk([*graph.outputs, *graph.inputs]):
        inputs = tuple(new[id(i)] for i in node.inputs)
        op = node.op
        changed = {
            name: _bound(value, sizes)
            for name, value in op.attributes().items()
            if _has_symbol(value)
        }
        if changed:
            op = type(op)(**{**op.attributes(), **changed})
        if not isinstance(op, Leaf) and not hasattr(op, "body"):
            _check(op, inputs, node)
        new[id(node)] = Node(op, inputs, node.type.bound(sizes), node.where, label=node.label)
    return Graph(tuple(new[id(i)] for i in graph.inputs), tuple(new[id(o)] for o in graph.outputs))


def _check(op: Operator, inputs: Sequence[Node], node: Node) -> None:
    try:
        op.infer(*[i.type for i in inputs])
    except DiptychError as problem:
        facts = f"{problem.facts.partition('    (')[0]}    ({node.where})"
        raise type(problem)(problem.rule, facts, problem.cure) from None


def _has_symbol(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_has_symbol(v) for v in value)
    return isinstance(value, Dim)


def _bound(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_bound(v, sizes) for v in value)
    return bind(value, sizes) if isinstance(value, Dim) else value
