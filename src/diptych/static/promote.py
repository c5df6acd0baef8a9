"""Which sizes of a captured function's arguments become symbols: those that were seen to change.

Sizes that changed in step share a symbol (the rows of images and of their labels). 0 and 1 are
never promoted from, for shapes that have them broadcast or are empty; nor is the innermost size of
a matrix, for code that knows it is much faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych.errors import InternalError

Shapes = tuple[tuple[int, ...], ...]  # of the arrays among the arguments
Place = tuple[int, int]  # an array and an axis
Symbols = Mapping[Place, str]
MOST = 8  # shapes that are remembered


def places(shapes: Shapes) -> dict[Place, int]:
    return {(n, axis): d for n, shape in enumerate(shapes) for axis, d in enumerate(shape)}


def changing(seen: Sequence[Shapes], now: Shapes) -> dict[Place, str]:
    """A symbol for every size that differs between shapes seen and these; none where nothing
    does, or where a size that differs is 0, 1 or innermost in a matrix."""
    present = places(now)
    before = [
        was for was in map(places, seen)
        if was != present
        and all(was[p] == d or _may_change(p, now, was[p]) for p, d in present.items())
    ]  # fmt: skip
    names: dict[tuple[int, ...], str] = {}
    symbols: dict[Place, str] = {}
    for p, d in present.items():
        values = (d, *[was[p] for was in before])
        if len(set(values)) > 1:
            symbols[p] = names.setdefault(values, f"N{len(names)}" if names else "N")
    return symbols


def _may_change(place: Place, now: Shapes, was: int) -> bool:
    """Whether a size may become a symbol: inner loops run over numbers."""
    n, axis = place
    inner = axis > 0 and axis == len(now[n]) - 1
    return not inner and min(was, now[n][axis]) >= 2


def bound(symbols: Symbols, sample: Shapes, now: Shapes) -> dict[str, int] | None:
    """The sizes of the symbols, or None where shapes do not fit those of a sample."""
    sizes: dict[str, int] = {}
    there = places(sample)
    for p, d in places(now).items():
        name = symbols.get(p)
        if name is None:
            if d != there[p]:
                return None
        elif d < 2 or sizes.setdefault(name, d) != d:
            return None
    return sizes


class Structure:
    """Arguments of one structure but for sizes: what was seen, and what holds for all sizes."""

    def __init__(self) -> None:
        self.seen: list[Shapes] = []
        self.symbols: Symbols = {}
        self.sample: Shapes = ()
        self.captures: list[Any] = []
        self.failed: list[Symbols] = []

    def find(self, now: Shapes, capture: Callable[[Symbols], Any]) -> Any | None:
        """A capture for these shapes with symbols for what changes, if there can be one.

        `capture` makes one, and raises where the function needs a size as a number.
        """
        if not self.symbols or bound(self.symbols, self.sample, now) is None:
            symbols = changing(self.seen, now)
            self.seen = [*[s for s in self.seen if s != now][-MOST:], now]
            if not symbols or symbols in self.failed:
                return None
            self.symbols, self.sample, self.captures = symbols, now, []
        for made in self.captures:
            if made.valid():
                return made
        try:
            self.captures.append(capture(self.symbols))
        except InternalError:
            raise
        except Exception:  # the capture without symbols says what is wrong, if anything is
            self.failed.append(self.symbols)
            self.symbols, self.captures = {}, []
            return None
        return self.captures[-1]
