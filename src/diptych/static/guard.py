"""What a capture depends on besides its arguments, and what may not change while it is made.

A function names globals, closure cells and attributes. Their numbers, and the identity of the
modules, optimizers, parameters and functions among them, are places; a capture is valid as long as
every place reads as it did. While a capture is made the same places are watched line by line, with
Python's and numpy's random numbers: what changes there would happen once and never again.
"""

from __future__ import annotations

import builtins
import dis
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import is_, itemgetter
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from diptych.errors import PACKAGE, FrozenValueError, generated
from diptych.generator import default_generator
from diptych.graph.node import Where
from diptych.runtime.checks import Checks
from diptych.tensor import Tensor

MISSING = object()
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
CONTAINERS = (list, tuple, dict, set)
OPAQUE = (*PLAIN, ModuleType, Tensor, np.ndarray)  # what nothing is reached through
# Python's own modules, and the folder of installed ones, which in an environment is another.
LIBRARY = ("<frozen ", os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(np.__file__)))
MANY = 256  # elements of a container that are looked at
METHODS = ("training", "forward", "step", "update")  # of modules and optimizers
LARGE = 1 << 20  # bytes of an array that are compared line by line


@dataclass(frozen=True)
class Place:
    """A name in a dict (globals, attributes) or a closure cell, and whose it is."""

    holder: Any
    name: str
    owner: str
    ours: bool  # an attribute of a class of diptych, which keeps its own state
    kind: Any = None  # the class, which has the attribute where the object does not

    def read(self) -> Any:
        if isinstance(self.holder, CellType):
            try:
                return self.holder.cell_contents
            except ValueError:
                return MISSING
        value = self.holder.get(self.name, MISSING)
        return getattr(self.kind, self.name, MISSING) if value is MISSING else value


def mark(value: Any) -> Any:
    """What is compared: plain values, what is in a container, the identity of others."""
    if isinstance(value, PLAIN):
        return type(value), repr(value) if isinstance(value, float | np.generic) else value
    if isinstance(value, list | tuple):
        inside = tuple(_short(v) for v in value[:MANY])
        return id(value) if isinstance(value, list) else 0, len(value), inside
    if isinstance(value, dict):
        return id(value), tuple((_short(k), _short(v)) for k, v in list(value.items())[:MANY])
    if isinstance(value, set):
        return id(value), len(value)
    return id(value)


def _watched(value: Any) -> Any:
    """The mark of what a function may change in place; arrays up to a size by their bytes."""
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes() if value.nbytes <= LARGE else b""
    return mark(value) if isinstance(value, (*PLAIN, *CONTAINERS)) else 0


def _is_generator(value: Any) -> bool:
    """Of Python or numpy; where their modules are not imported yet there is none."""
    python, numpys = (sys.modules.get(name) for name in ("random", "numpy.random"))
    return (python is not None and isinstance(value, python.Random)) or (
        numpys is not None and isinstance(value, numpys.Generator | numpys.RandomState)
    )


def _short(value: Any) -> Any:
    return (type(value), repr(value)) if isinstance(value, PLAIN) else id(value)


class Reached:
    """Everything that functions and objects name, found by walking from them."""

    def __init__(self, roots: list[Any]) -> None:
        self.places: list[Place] = []
        self.settings: list[Place] = []  # attributes that every run reads anew
        self.objects: list[Any] = []
        self.generators: list[Any] = []
        self.names: set[str] = set()
        self._seen: set[int] = set()
        self._queue = list(roots)
        while self._queue:
            self._visit(self._queue.pop())

    def _visit(self, value: Any) -> None:
        if id(value) in self._seen or isinstance(value, OPAQUE):
            return
        self._seen.add(id(value))
        if isinstance(value, MethodType):
            self._queue += [value.__func__, value.__self__]
        elif isinstance(value, FunctionType):
            self._function(value)
        elif _is_generator(value):
            self.generators.append(value)
        elif isinstance(value, list | tuple | set):
            self._queue.extend(list(value)[:MANY])
        elif isinstance(value, dict):
            self._queue.extend(list(value.values())[:MANY])
        elif not isinstance(value, type) and hasattr(value, "__dict__"):
            wrapped = vars(value).get("__wrapped__")
            if wrapped is not None and type(value).__module__.startswith("diptych."):
                self._queue.append(wrapped)  # a compiled function: what it counts is its own
            else:
                self._object(value)

    def _function(self, function: FunctionType) -> None:
        if function.__code__.co_filename.startswith(PACKAGE):
            return
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            self._queue.append(wrapped)
        self.names |= set(_names(function.__code__))
        for name in _globals(function.__code__):
            if name in function.__globals__ and not hasattr(builtins, name):
                self._place(Place(function.__globals__, name, "global", False))
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            self._place(Place(cell, name, "variable", False))

    def _object(self, value: Any) -> None:
        kind = type(value)
        ours = kind.__module__.startswith("diptych.")
        known = any(c.__module__.startswith("diptych.") for c in kind.__mro__)
        self.objects.append(value)
        for c in kind.__mro__:
            if not c.__module__.startswith("diptych.") and c is not object and known:
                self._queue += [f for f in vars(c).values() if isinstance(f, FunctionType)]
        read_anew = getattr(kind, "live", ())
        names = set(vars(value)) if known else self.names & vars(value).keys()
        for name in names | self._class_values(kind, known):
            if name in read_anew:
                self.settings.append(Place(vars(value), name, f"{kind.__name__}.", False))
            else:
                self._place(Place(vars(value), name, f"{kind.__name__}.", ours, kind))

    def _class_values(self, kind: type, known: bool) -> set[str]:
        """Values of a class that its objects may be asked for, and may have of their own: plain
        ones, and the methods that a step calls."""
        asked = METHODS if known else ("training",)
        found = {name for name in asked if hasattr(kind, name)}
        for c in kind.__mro__:
            own = known and not c.__module__.startswith("diptych.")
            for name, value in vars(c).items():
                plain = isinstance(value, (*PLAIN, *CONTAINERS, np.ndarray))
                if plain and name[:2] != "__" and (own or name in self.names):
                    found.add(name)
        return found

    def _place(self, place: Place) -> None:
        self.places.append(place)
        self._queue.append(place.read())


def _names(code: CodeType) -> Iterator[str]:
    """Names that a function and the functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@functools.lru_cache(maxsize=1024)
def _globals(code: CodeType) -> tuple[str, ...]:
    """Names that it looks up among the globals: `step` of `optimizer.step()` is none of them."""
    own = [i.argval for i in dis.get_instructions(code) if i.opname.endswith(("_GLOBAL", "_NAME"))]
    inner = [_globals(c) for c in code.co_consts if isinstance(c, CodeType)]
    return tuple(dict.fromkeys([*own, *(name for names in inner for name in names)]))


class Guard:
    """Holds places, and arrays that became constants, against what they were at a capture.

    Nearly always every place holds the very object that it held. That is looked at first, a dict
    of places at a time; only where an object is another one are values compared.
    """

    def __init__(self, roots: list[Any], arrays: list[np.ndarray[Any, Any]]) -> None:
        reached = Reached(roots)
        self.arrays = [(a, a.tobytes()) for a in arrays]
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
