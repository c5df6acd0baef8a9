"""Long contractions as blocks: one product for every 1024 terms, and the sum of the products.

That is what rule 3 of docs/numerics.md says they are, so no bit changes. Written out like this a
tile reads its vector side block by block, from the caches, where one pass over all terms would
fetch it from memory for every tile: a weight gradient over a batch of 16384 is twice as fast.
"""

from __future__ import annotations

from diptych.compiler.simplify import Same
from diptych.graph.node import Graph, Node
from diptych.ops.contract import Contract
from diptych.ops.reduce import BLOCK, Sum
from diptych.ops.shape import Reshape

LONG = 4  # blocks from which on the vectors of a tile outgrow the nearer caches
MOST = 1 << 26  # bytes of the products, which are written and read


def split_long(graph: Graph) -> Graph:
    """The graph with its long contractions, whose sizes are known, in blocks."""
    if not any(isinstance(node.op, Contract) and _is_long(node) for node in graph.nodes):
        return graph
    new: dict[int, Node] = {}
    same = Same()
    for node in graph.nodes:
        same(node.op)
    for node in graph.nodes:
        inputs = tuple(new[id(i)] for i in node.inputs)
        if isinstance(node.op, Contract) and _is_long(node):
            new[id(node)] = _in_blocks(node, inputs, same)
        elif all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            new[id(node)] = node
        else:
            new[id(node)] = Node(node.op, inputs, node.type, node.where, label=node.label)
    return Graph(graph.inputs, tuple(new[id(o)] for o in graph.outputs))


def _is_long(node: Node) -> bool:
    op = node.op
    assert isinstance(op, Contract)
    if len(op.over) != 1 or op.over not in op.left or op.over not in op.right:
        return False
    terms, size = node.inputs[0].type.shape[op.left.index(op.over)], node.type.size
    if not isinstance(terms, int) or terms % BLOCK or not isinstance(size, int):
        return False
    blocks = terms // BLOCK
    return blocks >= LONG and 0 < blocks * size * node.type.dtype.bytes <= MOST


def _in_blocks(node: Node, inputs: tuple[Node, ...], same: Same) -> Node:
    op = node.op
    assert isinstance(op, Contract)
    block = next(c for c in "QRSTUVWXYZ" if c not in op.left + op.right)
    parts, specs = [], []
    for given, letters in zip(inputs, (op.left, op.right), strict=True):
        at = letters.index(op.over)
        shape = given.type.shape
        shape = (*shape[:at], shape[at] // BLOCK, BLOCK, *shape[at + 1 :])
        type = given.type.with_shape(shape)
        parts.append(Node(same(Reshape(shape)), (given,), type, node.where))
        specs.append(letters.replace(op.over, block + op.over))
    blocks = parts[0].type.shape[specs[0].index(block)]
    products = Node(
        same(Contract(specs[0], specs[1], block + op.out, op.over)),
        tuple(parts),
        node.type.with_shape((blocks, *node.type.shape)),
        node.where,
    )
    return Node(same(Sum((0,))), (products,), node.type, node.where, label=node.label)
