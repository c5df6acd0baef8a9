"""Rewrites of a graph that keep every bit: inlining, common subexpressions, dead code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diptych.graph.node import Constant, Graph, Node, Operator, Where
from diptych.ops.base import Composite

NOTHING = ("identity", "stop_gradient")  # operators that give what they are given


class Same:
    """Of equal primitives one object: from then on they are compared by identity, where large
    graphs would compute their hashes again and again."""

    def __init__(self) -> None:
        self.first: dict[tuple[type, Operator], Operator] = {}
        # By id: what was given, which lives on here, and what it is equal to.
        self.seen: dict[int, tuple[Operator, Operator]] = {}

    def __call__(self, op: Operator) -> Operator:
        found = self.seen.get(id(op))
        if found is None:
            found = self.seen[id(op)] = op, self.first.setdefault((type(op), op), op)
        return found[1]


class _Rewriter:
    """New nodes, each value computed once; equal operators are one object."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], Node] = {}
        self.same = Same()

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
        op = self.same(op)
        # An operator and its inputs say what type the result has, here and in fusion.
        key = (id(op), *map(id, inputs)) if inputs else (id(op), node.type)
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
