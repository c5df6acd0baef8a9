"""Where boxes and arrows lie: Sugiyama's layered layout, by igraph."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.errors import MissingExtraError
from diptych.view.picture import Box, Picture

CHARACTER, TITLE_CHARACTER = 7.0, 8.3  # widths in pixels at the sizes of svg.py, on the safe side
LINE, PADDING = 16, 12
GAP, LAYER = 40, 74  # between boxes of one layer, and between layers


@dataclass(frozen=True)
class Place:
    """The middle of a box, and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    places: list[Place]
    routes: list[list[tuple[float, float]]]  # from the foot of a box to the head of the next
    width: float
    height: float


def size(box: Box) -> tuple[float, float]:
    lines = [*box.lines, *([box.partial] if box.partial else [])]
    longest = max((len(text) * CHARACTER for text in lines), default=0)
    width = max(len(box.title) * TITLE_CHARACTER, longest, 40) + 2 * PADDING
    return width, LINE * (1 + len(lines)) + PADDING


def place(picture: Picture) -> Layout:
    """Layers from the inputs down; raises MissingExtraError where igraph is not installed."""
    try:
        import igraph  # type: ignore[import-untyped]
    except ImportError as problem:
        raise MissingExtraError(
            "drawings are laid out by igraph", "it is not installed", "pip install diptych[view]"
        ) from problem
    sizes = [size(box) for box in picture.boxes]
    widest = max(width for width, _ in sizes)
    pairs = [(a.source, a.target) for a in picture.arrows]
    graph = igraph.Graph(n=len(sizes), edges=pairs, directed=True)
    layers = _layers(len(sizes), pairs)
    found = graph.layout_sugiyama(layers=layers, hgap=widest + GAP, vgap=1)
    bends = found.edge_routing
    rows: dict[int, float] = {}
    y = 20.0
    for layer in range(max(layers) + 1):
        tallest = max(h for (_, h), own in zip(sizes, layers, strict=True) if own == layer)
        rows[layer] = y + tallest / 2
        y += tallest + LAYER
    left = min(p[0] for p in [*found, *[q for bend in bends for q in bend]])
    right = max(p[0] for p in [*found, *[q for bend in bends for q in bend]])
    shift = 20 + widest / 2 - left
    places = [Place(found[n][0] + shift, rows[layers[n]], *sizes[n]) for n in range(len(sizes))]
    routes = []
    for (source, target), bend in zip(pairs, bends, strict=True):
        a, b = places[source], places[target]
        middle = [(p[0] + shift, rows[round(p[1])]) for p in bend]
        routes.append([(a.x, a.y + a.height / 2), *middle, (b.x, b.y - b.height / 2)])
    return Layout(places, routes, right + shift + widest / 2 + 20, y - LAYER + 20)


def _layers(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The longest way from an input; an input lies just above what first uses it."""
    depth = [0] * count
    for source, target in pairs:  # in the order of the graph: sources are settled first
        depth[target] = max(depth[target], depth[source] + 1)
    targets = {t for _, t in pairs}
    for n in range(count):
        uses = [depth[t] for s, t in pairs if s == n]
        if n not in targets and uses:
            depth[n] = min(uses) - 1
    return depth
