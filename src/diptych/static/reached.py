"""What a capture depends on besides its arguments: all that functions and objects name.

A function names globals, closure cells, attributes and values by default. Their numbers, and the
identity of the modules, optimizers, parameters and functions among them, are places. They are found
by walking from the function: into what it calls, into objects it names attributes of, and into
containers inside of containers.
"""

from __future__ import annotations

import dis
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np

from diptych.errors import PACKAGE
from diptych.tensor import Tensor

MISSING = object()
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
CONTAINERS = (list, tuple, dict, set)
OPAQUE = (*PLAIN, Tensor)  # what nothing is reached through
# Python's own modules, and the folder of installed ones, which in an environment is another.
LIBRARY = ("<frozen ", os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(np.__file__)))
FOREIGN = {"diptych", "numpy"} | sys.stdlib_module_names  # whose classes and modules do not change
MANY = 256  # elements of a container that are looked at, and containers inside of others
METHODS = ("training", "forward", "step", "update")  # of modules and optimizers
CALLED = {  # methods of a class that are called without being named
    "__call__", "__getitem__", "__getattr__", "__iter__", "__next__", "__len__", "__contains__",
    "__enter__", "__exit__", "__bool__", "__float__", "__int__", "__index__",
}  # fmt: skip
IGNORED = ("__dict__", "__doc__", "__module__", "__weakref__")  # of every class
LARGE = 1 << 20  # bytes of an array that are compared


@dataclass(frozen=True)
class Place:
    """A name in a dict (globals, attributes) or a closure cell, and whose it is."""

    holder: Any
    name: str
    owner: str
    ours: bool  # an attribute of a class of diptych, which keeps its own state
    kind: Any = None  # what has the attribute where the dict does not: the class, or the object

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
        inside = tuple((_short(k), _short(v)) for k, v in list(value.items())[:MANY])
        return id(value), len(value), inside
    if isinstance(value, set):
        return id(value), len(value), frozenset(_short(v) for v in list(value)[:MANY])
    return id(value)


def _short(value: Any) -> Any:
    return (type(value), repr(value)) if isinstance(value, PLAIN) else id(value)


def _is_generator(value: Any) -> bool:
    """Of Python or numpy; where their modules are not imported yet there is none."""
    python, numpys = (sys.modules.get(name) for name in ("random", "numpy.random"))
    return (python is not None and isinstance(value, python.Random)) or (
        numpys is not None and isinstance(value, numpys.Generator | numpys.RandomState)
    )


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("diptych.")


def _is_authors(value: Any) -> bool:
    """Whether a class or module may change: it is none of Python, numpy or an installed package."""
    module = sys.modules.get(value.__module__) if isinstance(value, type) else value
    name = value.__module__ if isinstance(value, type) else value.__name__
    file = getattr(module, "__file__", None) or ""
    return name.partition(".")[0] not in FOREIGN and not file.startswith(LIBRARY)


class Reached:
    """Everything that functions and objects name, found by walking from them."""

    def __init__(self, roots: list[Any]) -> None:
        self.places: list[Place] = []
        self.settings: list[Place] = []  # attributes that every run reads anew
        self.objects: list[Any] = []
        self.generators: list[Any] = []
        self.arrays: list[np.ndarray[Any, Any]] = []  # small ones, that Python may have read
        self.names: set[str] = set(CALLED)
        self._seen: dict[int, Any] = {}  # kept, so that nothing else gets their ids
        self._named: list[tuple[Any, set[str]]] = []  # who has attributes, and those found
        self._inside = 0  # containers found inside of others
        self._queue = [r for r in roots if not isinstance(r, np.ndarray)]
        while self._queue:
            self._visit(self._queue.pop())
            if not self._queue:
                self._find_named()

    def _visit(self, value: Any) -> None:
        if id(value) in self._seen or isinstance(value, OPAQUE):
            return
        self._seen[id(value)] = value
        if isinstance(value, np.ndarray):
            if value.nbytes <= LARGE:
                self.arrays.append(value)
        elif isinstance(value, MethodType):
            self._queue += [value.__func__, value.__self__]
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, functools.partial):
            self._queue += [value.func, value.args, value.keywords]
            self._contents(value.keywords)
        elif _is_generator(value):
            self.generators.append(value)
        elif isinstance(value, list | tuple | set | dict):
            inside = list(value.values() if isinstance(value, dict) else value)[:MANY]
            self._queue += inside
            for part in inside:
                self._contents(part)
        elif isinstance(value, ModuleType | type):
            if _is_authors(value):
                self._named.append((value, set()))
                self._queue.append(_function_of(vars(value).get("__init__")))
        elif hasattr(value, "__dict__"):
            wrapped = _compiled(value)
            if wrapped is not None:
                self._queue.append(wrapped)  # what the compiled one counts is its own
            else:
                self._object(value)
        elif _is_authors(type(value)):  # it has slots
            self._named.append((value, set()))

    def _contents(self, value: Any) -> None:
        """A container that stands in another one is a place too: what is in it may change."""
        if isinstance(value, list | dict | set) and id(value) not in self._seen:
            self._inside += 1
            if self._inside <= MANY:
                name = f"inside of a {type(value).__name__}"
                self.places.append(Place({name: value}, name, "what is", False))

    def _function(self, function: FunctionType) -> None:
        if function.__code__.co_filename.startswith(PACKAGE):
            return
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            self._queue.append(wrapped)
        self.names |= set(_names(function.__code__))
        for name in _globals(function.__code__):
            if name in function.__globals__:
                self._place(Place(function.__globals__, name, "global", False))
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            self._place(Place(cell, name, "variable", False))
        for name in ("__defaults__", "__kwdefaults__"):
            if getattr(function, name):
                self._place(Place(vars(function), name, f"{function.__name__}.", False, function))
        self._named.append((function, set()))

    def _object(self, value: Any) -> None:
        """An object with a dict; one of a class of diptych's is looked at as a whole."""
        kind, found = type(value), set[str]()
        self.objects.append(value)
        self._named.append((value, found))
        if not any(map(_is_ours, kind.__mro__)):
            return
        if getattr(kind, "_walks", False):
            own_attributes = {"attributes": vars(value)}
            self._place(Place(own_attributes, "attributes", f"{kind.__name__}.", False))
            self._visit(self._queue.pop())  # before places that let a dict of ours grow
        found |= vars(value).keys() | {name for name in METHODS if hasattr(kind, name)}
        for c in kind.__mro__:
            if not _is_ours(c) and c is not object:
                own = vars(c).items()
                self._queue += [f for _, raw in own if (f := _function_of(raw)) is not None]
                found |= {name for name, raw in own if name[:2] != "__" and _is_value(raw)}
        for name in found:
            self._attribute(value, name)

    def _find_named(self) -> None:
        """Attributes that any function names, of all that was reached."""
        classes: dict[type, set[str]] = {}
        for value, found in self._named:
            kind = value if isinstance(value, type) else type(value)
            if kind not in classes:
                classes[kind] = {n for c in kind.__mro__ for n in self._asked_of(c)}
            names = classes[kind] | (self.names & getattr(value, "__dict__", {}).keys())
            for name in names - found:
                found.add(name)
                self._attribute(value, name)

    def _asked_of(self, kind: type) -> Iterator[str]:
        """What functions name of a class: of one of diptych's only its values."""
        if _is_ours(kind) or _is_authors(kind):
            for name in self.names & vars(kind).keys():
                if _is_value(vars(kind)[name]) if _is_ours(kind) else name not in IGNORED:
                    yield name

    def _attribute(self, value: Any, name: str) -> None:
        """A place for an attribute; of a method or a property its code."""
        if isinstance(value, ModuleType | FunctionType):
            self._place(Place(vars(value), name, f"{value.__name__}.", False))
            return
        kind = value if isinstance(value, type) else type(value)
        holder = {} if kind is value else getattr(value, "__dict__", {})
        if name in getattr(kind, "live", ()):
            self.settings.append(Place(holder, name, f"{kind.__name__}.", False))
            return
        if name not in holder:
            having = [c for c in kind.__mro__ if name in vars(c)]
            raw = vars(having[0])[name] if having else None
            for c in having:  # the later ones by super()
                function = _function_of(vars(c)[name])
                if function is not None:
                    self._queue.append(function)
                elif c is not having[0] and _is_value(vars(c)[name]):
                    self._place(Place({}, name, f"{c.__name__}.", _is_ours(c), c))
            if isinstance(raw, MemberDescriptorType) and kind is not value:
                self._place(Place({}, name, f"{kind.__name__}.", False, value))
                return
            plain = isinstance(raw, FunctionType) or _compiled(raw) is not None
            if hasattr(type(raw), "__get__") and not plain:
                return
        self._place(Place(holder, name, f"{kind.__name__}.", _is_ours(kind), kind))

    def _place(self, place: Place) -> None:
        self.places.append(place)
        self._queue.append(place.read())


def _is_value(raw: Any) -> bool:
    return isinstance(raw, (*PLAIN, *CONTAINERS, np.ndarray))


def _compiled(value: Any) -> Any:
    """The function behind a compiled one, or None."""
    return getattr(value, "__dict__", {}).get("__wrapped__") if _is_ours(type(value)) else None


def _function_of(raw: Any) -> Any:
    """The function behind what a class has: a method, compiled or not, a property, or None."""
    raw = _compiled(raw) or raw
    for name in ("fget", "__func__", "func"):
        raw = getattr(raw, name, raw)
    return raw if isinstance(raw, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    """Names that a function and the functions inside it use, those it hands to getattr too."""
    yield from code.co_names
    if "getattr" in code.co_names:
        yield from (c for c in code.co_consts if isinstance(c, str) and c.isidentifier())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@functools.lru_cache(maxsize=1024)
def _globals(code: CodeType) -> tuple[str, ...]:
    """Names that it looks up among the globals: `step` of `optimizer.step()` is none of them."""
    own = [i.argval for i in dis.get_instructions(code) if i.opname.endswith(("_GLOBAL", "_NAME"))]
    inner = [_globals(c) for c in code.co_consts if isinstance(c, CodeType)]
    return tuple(dict.fromkeys([*own, *(name for names in inner for name in names)]))
