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
from diptych.graph.node import Constant, Graph, Node, constant_node
from diptych.graph.rewrite import specialise
from diptych.ops.elementwise import Identity

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
    """Values and partials of nodes, where they can be computed. A node has the sum of what flows
    back to it; `parts` are what flows along each arrow: the input of a node, by its place."""

    def __init__(
        self, nodes: Sequence[Node], roots: Sequence[Node], known: Mapping[int, Array]
    ) -> None:
        self.forward: dict[int, Array] = dict(known)
        self.backward: dict[int, Array] = {}
        self.parts: dict[tuple[int, int], Array] = {}
        self.numbers = {id(n) for n in nodes if is_number(n)} - set(map(id, roots))
        for node in nodes:
            if isinstance(node.op, Constant):
                self.forward[id(node)] = node.op.array(node.type)
        leaves = [n for n in nodes if not n.inputs and not isinstance(n.op, Constant)]
        if any(id(n) not in known for n in leaves):
            return
        wanted: list[tuple[dict[Any, Array], Any, Node]]
        wanted = [(self.forward, id(n), n) for n in nodes if n.inputs]
        (root, *more) = roots
        if not more and root.needs_grad and root.type.size == 1:
            of = {id(n): n for n in nodes if n.needs_grad}
            wanted += [(self.backward, key, g) for key, g in _partials(root, of)]
            whole, arrows = _with_arrows(nodes)
            wanted += [(self.parts, key, g) for key, g in _partials(whole[id(root)], arrows)]
        results = [node for *_, node in wanted]
        graph = specialise(Graph(tuple(leaves), tuple(results)), _sizes(leaves, known))
        values = engine.run_once(graph, [known[id(n)] for n in leaves], "cpu")
        for (found, key, _), value in zip(wanted, values, strict=True):
            found[key] = value


def _partials(root: Node, of: Mapping[Any, Node]) -> list[tuple[Any, Node]]:
    """The partial derivatives of a number, where there are any, by the keys of what they are of."""
    seed = constant_node(np.ones([1] * root.type.rank), root.type.dtype)
    found = gradients([root], [seed], list(of.values()))
    return [(key, g) for key, g in zip(of, found, strict=True) if g is not None]


def _with_arrows(nodes: Sequence[Node]) -> tuple[dict[int, Node], dict[tuple[int, int], Node]]:
    """A copy of a graph in which every arrow is a node too: its partial is a part of the sum. The
    nodes by those they stand for; the arrows by what they lead to, and the place there."""
    new: dict[int, Node] = {}
    arrows: dict[tuple[int, int], Node] = {}
    for node in nodes:
        inputs = []
        for n, given in enumerate(node.inputs):
            own = (new[id(given)],)
            inputs.append(Node(Identity(), own, given.type, needs_grad=given.needs_grad))
            if given.needs_grad:
                arrows[id(node), n] = inputs[-1]
        new[id(node)] = node
        if inputs:
            new[id(node)] = Node(node.op, tuple(inputs), node.type, node.where)
            new[id(node)].needs_grad, new[id(node)].leaf = node.needs_grad, node.leaf
    return new, arrows


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


def _title(node: Node, values: Values) -> str:
    """An operator with the numbers among its operands: `× 2`."""
    sign = SIGNS.get(node.op.name)
    numbers = [_number(i) for i in node.inputs if id(i) in values.numbers]
    if sign is not None:
        return " ".join([sign, *numbers])
    return f"{node.op.name} {', '.join(numbers)}".strip()


def operators_as_boxes(
    nodes: Sequence[Node], roots: Sequence[Node], names: Mapping[int, str], values: Values
) -> Picture:
    """diptych's convention: a box is an operator or an input, an arrow is the data."""
    boxes, arrows, place = [], [], {}  # type: ignore[var-annotated]
    for node in nodes:
        if id(node) in values.numbers:
            continue
        place[id(node)] = len(boxes)
        boxes.append(_box(node, names, values))
        for n, given in enumerate(node.inputs):
            if id(given) in place:
                arrows.append(
                    Arrow(
                        place[id(given)],
                        place[id(node)],
                        value=shown(values.forward.get(id(given))),
                        partial=shown(values.parts.get((id(node), n))),
                        shape=given.type.size not in range(SHOWN + 1),
                    )
                )
    for root in roots:
        if not root.inputs:  # its box is there
            continue
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
        if id(node) in values.numbers:
            continue
        place[id(node)] = len(boxes)
        box = _box(node, names, values)
        if node.inputs:
            title = names.get(id(node)) or _expression(node, names, values)
            box = Box(title, "data", box.lines, box.partial, box.where)
        boxes.append(box)
        for n, given in enumerate(node.inputs):
            if id(given) in place:
                arrows.append(
                    Arrow(
                        place[id(given)],
                        place[id(node)],
                        _title(node, values),
                        partial=shown(values.parts.get((id(node), n))),
                        shape=given.type.size not in range(SHOWN + 1),
                    )
                )
    return Picture(boxes, arrows)


def _box(node: Node, names: Mapping[int, str], values: Values) -> Box:
    name = names.get(id(node), node.label)
    if node.inputs:
        box = Box(_title(node, values), "operator", _facts(node, values))
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


def _expression(node: Node, names: Mapping[int, str], values: Values) -> str:
    """`2a` for a small product or sum, else the operator's name."""
    number = [id(i) in values.numbers for i in node.inputs]
    parts = [
        _number(i) if plain else names.get(id(i), i.label if not i.inputs else "")
        for i, plain in zip(node.inputs, number, strict=True)
    ]
    if len(parts) == 2 and all(parts) and node.op.name in SIGNS:
        if node.op.name == "multiply" and any(number):
            return "".join(parts if number[0] else parts[::-1])
        return f" {SIGNS[node.op.name]} ".join(parts)
    return node.label or node.op.name
