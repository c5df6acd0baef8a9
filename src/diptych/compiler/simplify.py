"""Rewrites of a graph that keep every bit: inlining, common subexpressions, dead code."""

from __future__ import annotations

from diptych.graph.node import Constant, Graph, Node
from diptych.ops.base import Composite, inline


class _Rewriter:
    """Old nodes to new ones; `alive` keeps the old ones, whose ids are keys."""

    def __init__(self, graph: Graph) -> None:
        self.new: dict[int, Node] = {id(i): i for i in graph.inputs}
        self.known: dict[object, Node] = {}
        self.alive: list[Node] = list(graph.inputs)

    def rewrite(self, root: Node) -> Node:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if id(node) in self.new:
                continue
            self.alive.append(node)
            if not ready:
                stack.append((node, True))
                stack.extend((i, False) for i in reversed(node.inputs))
            else:
                self.new[id(node)] = self.one(node, [self.new[id(i)] for i in node.inputs])
        return self.new[id(root)]

    def one(self, node: Node, inputs: list[Node]) -> Node:
        if isinstance(node.op, Composite):
            for given in inputs:  # new nodes stand for themselves inside the body
                self.new[id(given)] = given
                self.alive.append(given)
            return self.rewrite(inline(node, inputs))
        if node.op.name in ("identity", "stop_gradient"):
            return inputs[0]
        key = (type(node.op), node.op, node.type, tuple(id(i) for i in inputs))
        found = self.known.get(key)
        if found is None:
            found = Node(node.op, tuple(inputs), node.type, node.where, label=node.label)
            self.known[key] = found
        return found


def simplify(graph: Graph) -> Graph:
    """The graph in primitives, each value computed once; source lines are carried along."""
    rewriter = _Rewriter(graph)
    return Graph(graph.inputs, tuple(rewriter.rewrite(o) for o in graph.outputs))


def is_scalar_constant(node: Node) -> bool:
    return isinstance(node.op, Constant) and node.type.size == 1
