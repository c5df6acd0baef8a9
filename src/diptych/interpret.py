"""The reference device: runs a graph in numpy, node by node, as the contract states it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.errors import ValueRangeError
from diptych.graph.node import Constant, Graph, Node, Operator
from diptych.ops.base import Composite, inline

Array = np.ndarray[Any, Any]


def check_positions(op: Operator, inputs: Sequence[Node], values: Sequence[Any], at: Any) -> None:
    """Positions that are there (not None) lie inside their axis."""
    for which, size, what in op.positions(*[i.type for i in inputs]):
        positions = values[which]
        if positions is None or not positions.size or not isinstance(size, int):
            continue
        if positions.min() < 0 or positions.max() >= size:
            bad = positions[(positions < 0) | (positions >= size)].reshape(-1)[0]
            raise position_error(what, int(bad), size, at)


def position_error(what: str, bad: int, size: int, at: Any) -> ValueRangeError:
    error = ValueRangeError(
        f"a {what} lies from 0 to {size - 1}" if size else f"an empty axis has no {what}",
        f"{what} {bad}    ({at})",
        f"check the {what}s, or the number of classes",
    )
    error.position, error.at = (what, bad, size), at  # type: ignore[attr-defined]
    return error


def run(graph: Graph, values: Sequence[Array]) -> list[Array]:
    """The outputs of a graph for the given inputs."""
    computed: dict[int, Array] = {}
    for place, value in zip(graph.inputs, values, strict=True):
        computed[id(place)] = np.asarray(value)
    for node in graph.nodes:
        if id(node) not in computed:
            computed[id(node)] = run_node(node, computed)
    return [
        np.ascontiguousarray(computed[id(o)]).reshape(computed[id(o)].shape) for o in graph.outputs
    ]


def run_node(node: Node, computed: dict[int, Array]) -> Array:
    if isinstance(node.op, Constant):
        return node.op.array(node.type)
    inputs = [computed[id(i)] for i in node.inputs]
    if isinstance(node.op, Composite):
        places = list(node.inputs)
        root = inline(node, places)
        return (
            run(Graph(tuple(places), (root,)), inputs)[0]
            if len({id(p) for p in places}) == len(places)
            else _run_shared(root, node, inputs)
        )
    check_positions(node.op, node.inputs, inputs, node.where)
    with np.errstate(all="ignore"):
        result = node.op.reference(*inputs)
    return np.asarray(result, node.type.dtype.numpy)


def _run_shared(root: Node, node: Node, inputs: Sequence[Array]) -> Array:
    """A composite whose inputs repeat: each place once."""
    places = dict(zip(map(id, node.inputs), zip(node.inputs, inputs, strict=True), strict=True))
    nodes = tuple(p for p, _ in places.values())
    return run(Graph(nodes, (root,)), [v for _, v in places.values()])[0]
