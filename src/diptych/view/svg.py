"""A laid-out picture as SVG."""

from __future__ import annotations

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
OFFSET = 5.0  # between an arrow and the one that flows back


def render(picture: Picture, layout: Layout) -> str:
    """A whole SVG document."""
    routes = _apart(picture, layout)
    left, right = 0.0, layout.width
    for arrow, route in zip(picture.arrows, routes, strict=True):  # no label is cut
        middle = (route[-2][0] + route[-1][0]) / 2
        room = 20 + CHARACTER * len(f"{arrow.label} {arrow.value}")
        left, right = min(left, middle - room), max(right, middle + room)
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
    for arrow, route in zip(picture.arrows, routes, strict=True):
        parts += _labels(arrow, route)
    return "\n".join([*parts, "</svg>\n"])


def _apart(picture: Picture, layout: Layout) -> list[list[tuple[float, float]]]:
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


def _path(points: list[tuple[float, float]], shift: float = 0.0) -> str:
    """A smooth way down through the points."""
    x, y = points[0]
    out = f"M{x + shift:.1f} {y:.1f}"
    for a, b in zip(points[1:], points[:-1], strict=True):
        middle = (a[1] + b[1]) / 2
        out += (
            f"C{b[0] + shift:.1f} {middle:.1f} {a[0] + shift:.1f} {middle:.1f} "
            f"{a[0] + shift:.1f} {a[1]:.1f}"
        )
    return out


def _lines(arrow: Arrow, route: list[tuple[float, float]]) -> list[str]:
    shift = -OFFSET / 2 if arrow.partial else 0.0
    lines = [f'<path class="forward" d="{_path(route, shift)}" marker-end="url(#to)"/>']
    if arrow.partial:
        back = _path(route[::-1], OFFSET / 2 + 1)
        lines.append(f'<path class="back" d="{back}" marker-end="url(#from)"/>')
    return lines


def _labels(arrow: Arrow, route: list[tuple[float, float]]) -> list[str]:
    """Beside the middle of the last stretch: forward on the left, back on the right."""
    (x0, y0), (x1, y1) = route[-2], route[-1]
    x, y = (x0 + x1) / 2, (y0 + y1) / 2 + 4
    forward = " ".join(t for t in (arrow.label, arrow.value) if t)
    parts = []
    if forward:
        anchor, at = ("end", x - OFFSET - 2) if arrow.partial else ("start", x + OFFSET)
        parts.append(
            f'<text class="value halo" x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(forward)}</text>"
        )
    if arrow.partial and not arrow.shape:  # the box says the shape
        parts.append(
            f'<text class="partial halo" x="{x + OFFSET + 3:.1f}" y="{y:.1f}">'
            f"{escape(arrow.partial)}</text>"
        )
    return parts


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
