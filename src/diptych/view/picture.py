"""What a drawing shows: boxes and arrows taken from a graph, with values and partials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych import engine
from diptych.autodiff import gradients
from diptych.dtypes import Dim
from diptych.errors import FeedError
from diptych.graph.node import Constant, Graph, Node, constant_node, walk
from diptych.graph.rewrite import specialise

Array = np.ndarray[Any, Any]
MINUS, TIMES = "\u2212", "\u00d7"
SIGNS = {"add": "+", "subtract": MINUS, "multiply": TIMES, "divide": "÷", "negative": MINUS}
SHOWN = 3  # a value of so many elements is printed, a larger one shows its shape


@dataclass
class Box:
    """One rectangle: `kind` is input, parameter, operator or data."""

    title: str
    kind: str
    lines: list[str] = field(default_factory=list)
    partial: str = ""
    where: str = ""


@dataclass
class Arrow:
    """From one box to another, with what flows forward and what flows back."""

    source: int
    target: int
    label: str = ""
    value: str = ""
    partial: str = ""
    shape: bool = False  # whether the partial is said by its shape


@dataclass
class Picture:
    boxes: list[Box]
    arrows: list[Arrow]


class Values:
    """Values and partials of nodes, where they can be computed."""

    def __init__(
        self, nodes: Sequence[Node], root: Node | None, known: Mapping[int, Array]
    ) -> None:
        self.forward: dict[int, Array] = dict(known)
        self.backward: dict[int, Array] = {}
        for node in nodes:
            if isinstance(node.op, Constant):
                self.forward[id(node)] = node.op.array(node.type)
        leaves = [n for n in nodes if not n.inputs and not isinstance(n.op, Constant)]
        if any(id(n) not in known for n in leaves):
            return
        inner = [n for n in nodes if n.inputs]
        targets = [n for n in nodes if n.needs_grad] if root is not None else []
        partials: list[Node | None] = []
        if root is not None and root.needs_grad and root.type.size == 1:
            seed = constant_node(np.ones([1] * root.type.rank), root.type.dtype)
            partials = gradients([root], [seed], targets)
        pairs = [(t, g) for t, g in zip(targets, partials, strict=False) if g is not None]
        roots = [*inner, *[g for _, g in pairs]]
        graph = specialise(Graph(tuple(leaves), tuple(roots)), _sizes(leaves, known))
        results = engine.run_once(graph, [known[id(n)] for n in leaves], "cpu")
        self.forward.update(zip(map(id, inner), results, strict=False))
        self.backward.update(zip([id(t) for t, _ in pairs], results[len(inner) :], strict=True))


def _sizes(leaves: Sequence[Node], known: Mapping[int, Array]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for node in leaves:
        have = known[id(node)].shape
        fits = len(have) == node.type.rank
        for size, dim in zip(have, node.type.shape, strict=False):
            if isinstance(dim, Dim) and len(dim.terms) == 1 and len(dim.terms[0][0]) == 1:
                fits &= sizes.setdefault(dim.terms[0][0][0], size) == size
            else:
                fits &= dim == size
        if not fits:
            raise FeedError(
                "a drawing with values is fed as a run is",
                f"{node.label!r} is {node.type}, fed {list(have)}",
                "feed={'image': array}",
            )
    return sizes


def shown(value: Array | None) -> str:
    """A small value in figures, a larger one by its shape."""
    if value is None:
        return ""
    if value.size > SHOWN:
        return TIMES.join(map(str, value.shape))
    return ", ".join(f"{v:.4g}" for v in value.reshape(-1).tolist())


def _number(node: Node) -> str:
    value = node.value if node.value is not None else node.op.array(node.type)  # type: ignore[attr-defined]
    return f"{value.reshape(-1)[0]:.4g}"


def is_number(node: Node) -> bool:
    """A Python number of the author's; the dynamic panel hands it on as an input without a name."""
    plain = not node.inputs and not node.leaf and not node.label and node.value is not None
    return node.type.size == 1 and (isinstance(node.op, Constant) or plain)


def _title(node: Node) -> str:
    """An operator with the numbers among its operands: `× 2`."""
    sign = SIGNS.get(node.op.name)
    numbers = [_number(i) for i in node.inputs if is_number(i)]
    if sign is not None:
        return " ".join([sign, *numbers])
    return f"{node.op.name} {', '.join(numbers)}".strip()


def operators_as_boxes(
    nodes: Sequence[Node], roots: Sequence[Node], names: Mapping[int, str], values: Values
) -> Picture:
    """diptych's convention: a box is an operator or an input, an arrow is the data."""
    boxes, arrows, place = [], [], {}  # type: ignore[var-annotated]
    for node in nodes:
        if is_number(node):
            continue
        place[id(node)] = len(boxes)
        boxes.append(_box(node, names, values))
        for given in node.inputs:
            if id(given) in place:
                arrows.append(
                    Arrow(
                        place[id(given)],
                        place[id(node)],
                        value=shown(values.forward.get(id(given))),
                        partial=shown(values.backward.get(id(given))),
                        shape=given.type.size not in range(SHOWN + 1),
                    )
                )
    for root in roots:
        name = names.get(id(root), "result")
        boxes.append(Box(name, "data", _facts(root, values), where=str(root.where)))
        arrows.append(
            Arrow(
                place[id(root)],
                len(boxes) - 1,
                value=shown(values.forward.get(id(root))),
                partial=shown(values.backward.get(id(root))),
                shape=root.type.size not in range(SHOWN + 1),
            )
        )
    return Picture(boxes, arrows)


def data_as_boxes(
    nodes: Sequence[Node], roots: Sequence[Node], names: Mapping[int, str], values: Values
) -> Picture:
    """The article's convention: a box is data, an arrow is the operation that makes the next."""
    boxes, arrows, place = [], [], {}  # type: ignore[var-annotated]
    for node in nodes:
        if is_number(node):
            continue
        place[id(node)] = len(boxes)
        box = _box(node, names, values)
        if node.inputs:
            box = Box(names.get(id(node)) or _expression(node, names), "data", box.lines,
                      box.partial, box.where)  # fmt: skip
        boxes.append(box)
        for given in node.inputs:
            if id(given) in place:
                arrows.append(
                    Arrow(
                        place[id(given)],
                        place[id(node)],
                        _title(node),
                        partial=shown(values.backward.get(id(given))),
                        shape=given.type.size not in range(SHOWN + 1),
                    )
                )
    return Picture(boxes, arrows)


def _box(node: Node, names: Mapping[int, str], values: Values) -> Box:
    name = names.get(id(node), node.label)
    if node.inputs:
        box = Box(_title(node), "operator", _facts(node, values))
    else:
        box = Box(name or "input", "parameter" if node.leaf and node.type.rank else "input",
                  _facts(node, values))  # fmt: skip
    partial = shown(values.backward.get(id(node)))
    box.partial = f"∂ {partial}" if partial else ""
    box.where = str(node.where)
    return box


def _facts(node: Node, values: Values) -> list[str]:
    value = values.forward.get(id(node))
    if value is not None and value.size <= SHOWN:
        return [f"= {shown(value)}"]
    return [str(node.type) if value is None else f"{node.type.dtype} {shown(value)}"]


def _expression(node: Node, names: Mapping[int, str]) -> str:
    """`2a` for a small product or sum, else the operator's name."""
    parts = [
        _number(i) if is_number(i) else names.get(id(i), i.label if not i.inputs else "")
        for i in node.inputs
    ]
    if len(parts) == 2 and all(parts) and node.op.name in SIGNS:
        number = is_number(node.inputs[0]) or is_number(node.inputs[1])
        if node.op.name == "multiply" and number:
            return "".join(parts if is_number(node.inputs[0]) else parts[::-1])
        return f" {SIGNS[node.op.name]} ".join(parts)
    return node.label or node.op.name


def nodes_of(roots: Sequence[Node]) -> list[Node]:
    return walk(roots, stop=lambda n: n.leaf)
