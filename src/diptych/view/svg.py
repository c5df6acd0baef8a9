"""A laid-out picture as SVG."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from html import escape

from diptych.view.layout import CHARACTER, LINE, PADDING, Layout, Place
from diptych.view.picture import Arrow, Box, Picture

FILL = {"input": "#e6f4ea", "parameter": "#fff4d6", "operator": "#e4ecfb", "data": "#f1f1f4"}
EDGE = {"input": "#2f8f4e", "parameter": "#b58a1b", "operator": "#3564b8", "data": "#77777f"}
STYLE = """
text { font-family: "DejaVu Sans", Verdana, sans-serif; font-size: 11px; fill: #222; }
.title { font-size: 12.5px; font-weight: bold; }
.value { fill: #1d4fa8; } .partial { fill: #b3261e; }
.forward { fill: none; stroke: #55555c; stroke-width: 1.4; }
.back { fill: none; stroke: #b3261e; stroke-width: 1.1; stroke-dasharray: 4 3; }
.halo { stroke: white; stroke-width: 4; paint-order: stroke; stroke-linejoin: round; }
"""
ARROWS = """
<marker id="to" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8"
 orient="auto"><path d="M0 0L8 4L0 8z" fill="#55555c"/></marker>
<marker id="from" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7"
 orient="auto"><path d="M0 0L8 4L0 8z" fill="#b3261e"/></marker>
"""
OFFSET = 7.0  # between an arrow and the one that flows back
STEPS = 24  # straight pieces of a stretch of an arrow
CLEAR, HALF_LINE = 5.0, 6.0  # between a label and its arrow; half the height of a label

Point = tuple[float, float]


def render(picture: Picture, layout: Layout) -> str:
    """A whole SVG document."""
    routes = _apart(picture, layout)
    labels = [_labels(a, r) for a, r in zip(picture.arrows, routes, strict=True)]
    left, right = 0.0, layout.width
    for label in (one for some in labels for one in some):  # no label is cut
        left, right = min(left, label.x - label.reach - 8), max(right, label.x + label.reach + 8)
    width, height = f"{right - left:.0f}", f"{layout.height:.0f}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{left:.0f} 0 {width} {height}">',
        f"<style>{STYLE}</style><defs>{ARROWS}</defs>",
        f'<rect x="{left:.0f}" width="{width}" height="{height}" fill="white"/>',
    ]
    for arrow, route in zip(picture.arrows, routes, strict=True):
        parts += _lines(arrow, route)
    for box, place in zip(picture.boxes, layout.places, strict=True):
        parts += _box(box, place)
    parts += [_text(label.text, label.x, label.y + 4, f"{label.kind} halo")
              for some in labels for label in some]  # fmt: skip
    return "\n".join([*parts, "</svg>\n"])


def _apart(picture: Picture, layout: Layout) -> list[list[Point]]:
    """Arrows that share a box meet it side by side, in the order of their other ends."""
    routes = [list(route) for route in layout.routes]
    for end, own in ((-1, "target"), (0, "source")):
        groups: dict[int, list[int]] = {}
        for n, arrow in enumerate(picture.arrows):
            groups.setdefault(getattr(arrow, own), []).append(n)
        for box, members in groups.items():
            inner = 1 if end == 0 else -2
            members.sort(key=lambda n, inner=inner: layout.routes[n][inner][0])  # type: ignore[misc]
            room = min(layout.places[box].width - 2 * PADDING, 46.0 * (len(members) - 1))
            for rank, n in enumerate(members):
                x, y = routes[n][end]
                if len(members) > 1:
                    routes[n][end] = (x - room / 2 + room * rank / (len(members) - 1), y)
    return routes


def _points(route: list[Point], shift: float) -> list[Point]:
    """A smooth way through a route, moved to its left by `shift`: it leaves and meets boxes
    upright, and two ways that are moved apart stay so where they are flat."""
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise(route):
        for n in range(STEPS + 1):
            t = n / STEPS
            mix = t * t * (3 - 2 * t)  # a cubic with upright ends
            x, y = x0 + (x1 - x0) * mix, y0 + (y1 - y0) * (1.5 * t - 1.5 * t * t + t**3)
            left = _left(6 * t * (1 - t) * (x1 - x0), (1.5 - 3 * t + 3 * t * t) * (y1 - y0))
            found.append((x + shift * left[0], y + shift * left[1]))
    return found


def _left(dx: float, dy: float) -> Point:
    """The unit vector to the left of a way down."""
    length = math.hypot(dx, dy)
    return -dy / length, dx / length


def _path(points: list[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _lines(arrow: Arrow, route: list[Point]) -> list[str]:
    shift = OFFSET / 2 if arrow.partial else 0.0
    way = _path(_points(route, shift))
    lines = [f'<path class="forward" d="{way}" marker-end="url(#to)"/>']
    if arrow.partial:
        back = _path(_points(route, -shift)[::-1])
        lines.append(f'<path class="back" d="{back}" marker-end="url(#from)"/>')
    return lines


@dataclass(frozen=True)
class Label:
    """Text with its middle, and half its width."""

    text: str
    kind: str
    x: float
    y: float

    @property
    def reach(self) -> float:
        return CHARACTER * len(self.text) / 2


def _labels(arrow: Arrow, route: list[Point]) -> list[Label]:
    """Beside the middle of the last stretch, off the arrows: what flows forward on the left, what
    flows back on the right."""
    (x0, y0), (x1, y1) = route[-2], route[-1]
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    normal = _left(2 * (x1 - x0), y1 - y0)
    forward = " ".join(t for t in (arrow.label, arrow.value) if t)
    back = "" if arrow.shape else arrow.partial  # the box says the shape
    made = []
    for text, kind, side in ((forward, "value", 1 if arrow.partial else -1),
                             (back, "partial", -1)):  # fmt: skip
        if text:
            half = CHARACTER * len(text) / 2
            away = half * abs(normal[0]) + HALF_LINE * abs(normal[1]) + CLEAR
            away = side * (away + (OFFSET / 2 if arrow.partial else 0.0))
            made.append(Label(text, kind, x + away * normal[0], y + away * normal[1]))
    return made


def _box(box: Box, place: Place) -> list[str]:
    left, top = place.x - place.width / 2, place.y - place.height / 2
    round_corner = place.height / 2 if box.kind == "input" else 6
    parts = [
        f'<g><rect x="{left:.1f}" y="{top:.1f}" width="{place.width:.1f}" '
        f'height="{place.height:.1f}" rx="{round_corner:.0f}" fill="{FILL[box.kind]}" '
        f'stroke="{EDGE[box.kind]}"/>'
    ]
    if box.where:
        parts.append(f"<title>{escape(box.where)}</title>")
    y = top + LINE
    parts.append(_text(box.title, place.x, y, "title"))
    for line in box.lines:
        y += LINE
        parts.append(_text(line, place.x, y, "value"))
    if box.partial:
        parts.append(_text(box.partial, place.x, y + LINE, "partial"))
    return [*parts, "</g>"]


def _text(text: str, x: float, y: float, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'
    )
