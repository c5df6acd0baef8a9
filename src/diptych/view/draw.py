"""`draw`: a graph as a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import GraphError
from diptych.graph.node import Node, walk
from diptych.runtime.files import write_whole
from diptych.static.program import Program
from diptych.tensor import Tensor, default_panel
from diptych.view import layout, svg
from diptych.view.picture import Values, data_as_boxes, operators_as_boxes

STYLES = {"operators": operators_as_boxes, "data": data_as_boxes}


class Drawing:
    """A picture as SVG; Jupyter shows it, `save` writes it."""

    def __init__(self, text: str) -> None:
        self.svg = text

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the SVG, whole or not at all."""
        write_whole(Path(path), self.svg.encode())


def draw(
    what: Tensor | Program | Sequence[Tensor],
    feed: Mapping[str, Any] | None = None,
    style: str = "operators",
    names: Mapping[str, Tensor] | None = None,
) -> Drawing:
    """The graph of a tensor, of several, or of a loaded program.

    Arrows carry what flows forward (blue) and, where the result is one number, what flows back
    (red): an arrow its own part of the partial derivative, a box the sum. Of a tensor of the
    dynamic panel they are there at once, of a program where it is given a feed. `style` is
    "operators" (a box is an operator, an arrow is data) or "data" (the article's: a box is data,
    an arrow is the operation). `names` are names of tensors; otherwise they are those of the
    caller's variables. Needs the extra `view`.
    """
    if style not in STYLES:
        raise GraphError("a style is operators or data", repr(style), "style='operators'")
    tensors = what.outputs if isinstance(what, Program) else what
    tensors = [tensors] if not isinstance(tensors, Sequence) else list(tensors)
    if not tensors or not all(isinstance(t, Tensor) for t in tensors):
        raise GraphError(
            "draw takes a tensor, tensors, or a loaded program",
            f"{type(what).__name__}",
            "draw(loss, feed={...})",
        )
    panel = tensors[0].recorder
    roots = [panel.node_of(t) for t in tensors]
    for root in roots:
        if root.released:
            raise GraphError(
                "a drawing shows where a value came from, which backward releases",
                f"{root.type}: a backward went through it, or a compiled function returned it",
                "draw before backward, or pass it retain_graph=True; call the plain function",
            )
    nodes = walk(roots)
    found = dict(names) if names is not None else dict(sys._getframe(1).f_locals)
    known = _known(nodes, panel, feed)
    values = Values(nodes, roots, known)
    picture = STYLES[style](nodes, roots, _names(nodes, panel, found), values)
    return Drawing(svg.render(picture, layout.place(picture)))


def _names(nodes: Sequence[Node], panel: Any, variables: Mapping[str, Any]) -> dict[int, str]:
    """The nodes that variables stand for."""
    state = {id(n): id(n) for n in nodes}
    if isinstance(panel, Program):
        state.update({id(p.node): id(node) for p, node in panel.state.values()})
    names: dict[int, str] = {}
    for name, value in variables.items():
        if isinstance(value, Tensor) and name[0] != "_" and id(value.node) in state:
            names.setdefault(state[id(value.node)], name)
    if isinstance(panel, Program):
        for parameter, node in panel.state.values():
            if parameter.name:
                names.setdefault(id(node), parameter.name)
    for value in variables.values():  # modules name their parameters
        listed = getattr(value, "named_parameters", None)
        if callable(listed) and not isinstance(value, type):
            for name, parameter in listed():
                if isinstance(parameter, Tensor) and id(parameter.node) in state:
                    names.setdefault(state[id(parameter.node)], name)
    return names


def _known(
    nodes: Sequence[Node], panel: Any, feed: Mapping[str, Any] | None
) -> dict[int, np.ndarray[Any, Any]]:
    """Values of leaves: of the dynamic panel, of parameters, and of what is fed."""
    own = {id(n) for n in nodes}
    default_panel().finish()
    known = {id(n): np.asarray(n.value) for n in nodes if not n.inputs and n.value is not None}
    if not isinstance(panel, Program):
        return known
    for parameter, node in panel.state.values():
        if id(node) in own and parameter.node.value is not None:
            known[id(node)] = default_panel().observe(parameter)
    for name, value in (feed or {}).items():
        place = panel.feeds.get(name)
        if place is None:
            raise GraphError(
                "a feed names a placeholder", repr(name), f"one of {sorted(panel.feeds)}"
            )
        known[id(place.node)] = np.asarray(value, place.node.type.dtype.numpy)
    return known


__all__ = ["Drawing", "draw"]
