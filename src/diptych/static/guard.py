"""Whether what a capture depends on is as it was, and that nothing of it changes in the making.

A capture is valid as long as every place (see `reached`) reads as it did. While a capture is made
the same places are watched line by line, with Python's and numpy's random numbers: what changes
there would happen once and never again.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_, itemgetter
from types import CellType
from typing import Any

import numpy as np

from diptych.errors import PACKAGE, FrozenValueError, generated
from diptych.generator import default_generator
from diptych.graph.node import Where
from diptych.runtime.checks import Checks
from diptych.static.reached import (
    CONTAINERS,
    LARGE,
    LIBRARY,
    MANY,
    MISSING,
    PLAIN,
    Place,
    Reached,
    mark,
)


def _watched(value: Any) -> Any:
    """The mark of what a function may change in place; arrays up to a size by their bytes."""
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes() if value.nbytes <= LARGE else b""
    return mark(value) if isinstance(value, (*PLAIN, *CONTAINERS)) else 0


class Guard:
    """Holds places, and arrays that became constants, against what they were at a capture.

    Nearly always every place holds the very object that it held. That is looked at first, a dict
    of places at a time; only where an object is another one are values compared.
    """

    def __init__(self, roots: list[Any], arrays: list[np.ndarray[Any, Any]]) -> None:
        reached = Reached(roots)
        compared = {id(a): a for a in [*arrays, *reached.arrays]}
        self.arrays = [(a, a.tobytes()) for a in compared.values()]
        self.flat: list[tuple[Place, Any]] = []
        self.deep: list[tuple[Place, Any, Any]] = []
        for place in reached.places:
            value = place.read()
            if isinstance(value, CONTAINERS) and not isinstance(value, tuple):
                self.deep.append((place, value, self._deep(place, value)))
            else:
                self.flat.append((place, value))
        self._group([(p, v) for p, v, *_ in [*self.flat, *self.deep]])
        self.inside = [(v, *_inside(v)) for _, v, expected in self.deep if expected]

    def _group(self, places: list[tuple[Place, Any]]) -> None:
        """Places by dict, with one getter for all names that are there; names that are not."""
        self.cells = [p.holder for p, _ in places if isinstance(p.holder, CellType)]
        self.absent: list[tuple[Any, str]] = []
        self.classes: list[tuple[Any, str, Any]] = []  # whose value it is then
        self.getters: list[tuple[Callable[[Any], Any], Any]] = []
        self.expected: list[Any] = [v for p, v in places if isinstance(p.holder, CellType)]
        by_holder: dict[int, tuple[Any, dict[str, Any]]] = {}
        self.holders = by_holder.values()
        for place, value in places:
            if isinstance(place.holder, CellType):
                continue
            if place.name in place.holder:
                by_holder.setdefault(id(place.holder), (place.holder, {}))[1][place.name] = value
            else:
                self.absent.append((place.holder, place.name))
                if place.kind is not None and not place.ours:
                    self.classes.append((place.kind, place.name, value))
        for holder, named in self.holders:
            names = [*named, next(iter(named))]  # at least two, so that a tuple comes back
            self.getters.append((itemgetter(*names), holder))
            self.expected += [named[name] for name in names]

    def _deep(self, place: Place, value: Any) -> Any:
        if place.ours and isinstance(value, dict):  # state that may grow: what is there stays
            return {k: id(v) for k, v in value.items()}
        return mark(value)

    def holds(self) -> bool:
        """Whether everything reads as it did."""
        try:
            now = [cell.cell_contents for cell in self.cells]
            for get, holder in self.getters:
                now += get(holder)
        except (KeyError, ValueError):
            return self._compares()
        if not all(map(is_, now, self.expected)):
            return self._compares()
        for holder, name in self.absent:
            if name in holder:
                return self._compares()
        for kind, name, value in self.classes:
            if getattr(kind, name, MISSING) is not value:
                return self._compares()
        for value, count, keys, inside in self.inside:
            if not _is_inside(value, count, keys):
                return self._compares()
            if inside is not None and not all(map(is_, value.values(), inside)):
                return self._compares()
        return self._same_arrays()

    def add_to(self, checks: Checks) -> None:
        """What `holds` looks at before it compares, as lines of native checks."""
        for cell, value in zip(self.cells, self.expected, strict=False):
            checks.attribute(cell, "cell_contents", value)
        for holder, named in self.holders:
            for name, value in named.items():
                checks.item(holder, name, value)
        for holder, name in self.absent:
            checks.absent(holder, name)
        for kind, name, value in self.classes:
            checks.attribute(kind, name, value)
        for value, count, keys, inside in self.inside:
            if inside is not None:
                checks.entries(value, count, list(zip(keys, inside, strict=True)))
            elif isinstance(value, list):
                checks.elements(value, count, keys)
            else:
                checks.true(partial(_is_inside, value, count, keys))
        if self.arrays:
            checks.true(self._same_arrays)

    def _same_arrays(self) -> bool:
        return all([a.tobytes() == before for a, before in self.arrays])

    def _compares(self) -> bool:
        """The same by values: numbers that are equal are the same number."""
        for place, value in self.flat:
            now = place.read()
            if now is not value and mark(now) != mark(value):
                return False
        for place, value, expected in self.deep:
            now = place.read()
            if now is not value:
                return False
            if isinstance(expected, dict):
                if any(id(now.get(k)) != v for k, v in expected.items()):
                    return False
            elif mark(now) != expected:
                return False
        return self._same_arrays()


def _is_inside(value: Any, count: int, keys: list[Any]) -> bool:
    return len(value) == count and all(map(is_, value, keys))


def _inside(value: Any) -> tuple[int, list[Any], list[Any] | None]:
    """The length of a container, what iterating gives, and the values of a dict."""
    values = list(value.values())[:MANY] if isinstance(value, dict) else None
    return len(value), list(value)[:MANY], values


class Snapshot:
    """Attributes of everything reached, so that a failed capture leaves nothing behind."""

    def __init__(self, objects: list[Any]) -> None:
        self.saved = [
            (o, {n: (v, _copy(v)) for n, v in vars(o).items()})
            for o in objects
            if type(o).__module__.startswith("diptych.")
        ]

    def restore(self) -> None:
        for value, attributes in self.saved:
            now = vars(value)
            for name in [n for n in now if n not in attributes]:
                del now[name]
            for name, (same, copy) in attributes.items():
                now[name] = same
                if isinstance(same, dict):
                    same.clear()
                    same.update(copy)
                elif isinstance(same, list):
                    same[:] = copy


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list) else None


class Watch:
    """Compares places and random numbers before and after every line of the author."""

    def __init__(self, function: Callable[..., Any], reached: Reached, where: Where) -> None:
        self.where, self.last = where, where
        self.places = [p for p in reached.places if not p.ours] + reached.settings
        self.generators = reached.generators
        self.before = self._marks()
        self.drawn = self._random()
        self.seeded = default_generator().resets

    def _marks(self) -> list[Any]:
        return [_watched(p.read()) for p in self.places]

    def _random(self) -> list[Any]:
        import random  # with numpy's, at the first capture: who imports diptych may need neither

        state: Any = np.random.get_state(legacy=False)
        inner = state["state"]
        marks: list[Any] = [hash(random.getstate())]
        marks.append((inner.get("pos"), repr(inner["key"][:4]), state["has_gauss"]))
        for g in self.generators:
            inside = g.getstate() if isinstance(g, random.Random) else None
            bits = getattr(g, "bit_generator", None)
            marks.append(hash(inside) if bits is None else repr(bits.state))
        return marks

    def compare(self) -> None:
        """Raise where something changed since the capture began."""
        if self._random() != self.drawn:
            self._drawn("the state of a random generator changed")
        if default_generator().resets != self.seeded:
            self._error(
                "a seed is set outside of a compiled function",
                "manual_seed would be called once, at the capture",
                "call dp.manual_seed before the compiled function",
            )
        for place, was, now in zip(self.places, self.before, self._marks(), strict=True):
            if was != now:
                dot = place.owner if place.owner.endswith(".") else place.owner + " "
                self._error(
                    "what a compiled function changes in Python is changed once, at its capture",
                    f"{dot}{place.name} changed",
                    "return the value, keep it in a dp.Parameter, or change it outside",
                )

    def _drawn(self, facts: str) -> None:
        self._error(
            "random numbers of Python or numpy drawn in a compiled function are drawn once",
            facts,
            "use dp.uniform, dp.normal, dp.bernoulli, or draw outside and pass them in",
        )

    def _error(self, rule: str, facts: str, cure: str) -> None:
        raise FrozenValueError(rule, f"{facts}    ({self.last})", cure)

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if file.startswith((PACKAGE, *LIBRARY)) or generated(frame):
            return None
        if event == "line" or event == "return":
            self.compare()
        self.last = Where(file, frame.f_lineno)
        return self._trace

    @contextmanager
    def lines(self) -> Iterator[None]:
        """Compare line by line, or only at the end where a debugger has the tracing."""
        free = sys.gettrace() is None
        if free:
            sys.settrace(self._trace)
        try:
            with self._no_new_generators():
                yield
        finally:
            if free:
                sys.settrace(None)
        self.compare()

    @contextmanager
    def _no_new_generators(self) -> Iterator[None]:
        """A generator of numpy that is made here asks `randbits` for a seed: default_rng where none
        is given, the older RandomState always."""
        source: Any = np.random.bit_generator
        draw, own = getattr(source, "randbits", None), threading.get_ident()

        def refuse(bits: int) -> Any:
            if threading.get_ident() == own:
                self._drawn("a new generator draws a seed for itself")
            assert draw is not None
            return draw(bits)

        if draw is not None:
            source.randbits = refuse
        try:
            yield
        finally:
            if draw is not None:
                source.randbits = draw
