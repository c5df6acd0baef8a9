"""How matrices that a graph only reads should lie in memory.

With few rows a product with a matrix is as fast as the matrix is read, and vectors lie along its
columns: a matrix that lies the other way would be turned round at every call. Who runs the graph
turns it once instead. With many rows the rows are turned, which costs little beside the product.
"""

from __future__ import annotations

import math

from diptych.compiler.simplify import simplify
from diptych.graph.node import Graph, Input, Node
from diptych.ops.contract import Contract
from diptych.ops.shape import Transpose

FEW_ROWS = 16


def wanted_orders(graph: Graph) -> dict[int, int]:
    """For inputs that are matrices, by their places: the axis that should be innermost."""
    place = {id(node): n for n, node in enumerate(graph.inputs)}
    wanted: dict[int, set[int]] = {}
    for node in simplify(graph).nodes:
        if not isinstance(node.op, Contract):
            continue
        sides = (node.op.left, node.op.right)
        for side in (0, 1):
            source, axes = _behind(node.inputs[side])
            if id(source) not in place or source.type.rank != 2:
                continue
            own = [n for n, c in enumerate(sides[side]) if c not in sides[1 - side]]
            few = len(own) == 1 and _rows(node, 1 - side) < FEW_ROWS
            axis = axes[own[0]] if few else -1
            wanted.setdefault(place[id(source)], set()).add(axis)
    return {n: axes.pop() for n, axes in wanted.items() if len(axes) == 1 and -1 not in axes}


def _behind(node: Node) -> tuple[Node, list[int]]:
    """What a node shows transposed, and which of its axes each axis is."""
    axes = list(range(node.type.rank))
    while isinstance(node.op, Transpose):
        axes = [node.op.order[n] for n in axes]
        node = node.inputs[0]
    return node, axes if isinstance(node.op, Input) else []


def _rows(node: Node, side: int) -> float:
    """Elements of a side that meet each element of the other."""
    sides = (node.op.left, node.op.right)  # type: ignore[attr-defined]
    shape = node.inputs[side].type.shape
    own = [d for c, d in zip(sides[side], shape, strict=True) if c not in sides[1 - side]]
    return math.prod(own) if all(isinstance(d, int) for d in own) else math.inf  # type: ignore[arg-type]
