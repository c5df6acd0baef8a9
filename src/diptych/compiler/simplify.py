"""Rewrites of a graph that keep every bit: inlining, common subexpressions, dead code."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.graph.node import Constant, Graph, Node, Where
from diptych.ops.base import Composite

NOTHING = ("identity", "stop_gradient")  # operators that give what they are given


class _Rewriter:
    """New nodes, each value computed once."""

    def __init__(self) -> None:
        self.known: dict[object, Node] = {}

    def one(self, node: Node, inputs: Sequence[Node], where: Where) -> Node:
        """What computes a node from new inputs; all of it carries one line."""
        op = node.op
        if isinstance(op, Composite):
            body = op.body(*[i.type for i in inputs])
            new = dict(zip(body.inputs, inputs, strict=True))
            for inner in body.nodes:
                if inner not in new:
                    new[inner] = self.one(inner, [new[i] for i in inner.inputs], where)
            return new[body.outputs[0]]
        if op.name in NOTHING:
            return inputs[0]
        key = (type(op), op, node.type, *map(id, inputs))
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = Node(op, tuple(inputs), node.type, where, label=node.label)
        return found


def simplify(graph: Graph) -> Graph:
    """The graph in primitives, each value computed once; source lines are carried along."""
    rewriter = _Rewriter()
    new: dict[Node, Node] = {i: i for i in graph.inputs}
    for node in graph.nodes:
        if node not in new:
            new[node] = rewriter.one(node, [new[i] for i in node.inputs], node.where)
    return Graph(graph.inputs, tuple(new[o] for o in graph.outputs))


def is_scalar_constant(node: Node) -> bool:
    return isinstance(node.op, Constant) and node.type.size == 1
