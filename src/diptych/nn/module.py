"""Modules: what has parameters, may contain other modules, and is called."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from diptych.elsewhere import OfModule
from diptych.errors import DiptychError, DtypeError, ShapeError
from diptych.graph.record import LOCAL, author_line
from diptych.ops.base import host_array
from diptych.states import need_mapping
from diptych.tensor import Parameter

Array = np.ndarray[Any, Any]
NAMED = (list, tuple, dict)  # containers whose places are names
NAMELESS: tuple[Any, ...] = (
    set,
    frozenset,
    deque,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


def parts(name: str, value: Any, inside: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the parameters and modules of an attribute: itself, or what is in lists, tuples and
    dicts, at any depth, as `layers.0` or `heads.left`. An empty name is left out.

    Raises DiptychError where there is one whose name or place in the order would be in doubt.
    """
    if isinstance(value, Parameter | Module):
        yield name, value
    elif isinstance(value, NAMED) and id(value) not in inside:
        inside = (*inside, id(value))
        found: Iterable[Any] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in found:
            if isinstance(item, (Parameter, Module, *NAMED, *NAMELESS)):
                place = f"{name}.{key}" if name else f"{key}"
                for part in parts(place, item, inside):
                    if isinstance(value, dict):
                        _check_key(name, key)
                    yield part
    elif isinstance(value, NAMELESS) and any(isinstance(v, Parameter | Module) for v in value):
        raise DiptychError(
            "parameters and modules of a module stand in an order, under names",
            f".{name} is a {type(value).__name__}",
            "a list, a dict, nn.ModuleList or nn.ModuleDict",
        )


def _check_key(name: str, key: Any) -> None:
    """Raise unless a key of a dict is fit for a name such as `heads.left.weight`."""
    if not isinstance(key, str) or not key or "." in key:
        raise DiptychError(
            "keys of parameters and modules in a dict are their names: strings without dots",
            f"{name}[{key!r}]" if name else repr(key),
            "e.g. {'left': nn.Linear(3, 2)}",
        )


class Module(OfModule):
    """Parameters and modules assigned as attributes, alone or in lists and dicts, are found in the
    order of assignment, each time they are asked for."""

    training = True
    _own: ClassVar[bool] = True  # of this package: no line of the author is below it
    _direct: ClassVar[bool] = True  # own, and called in the way of this class
    _walks: ClassVar[bool] = False  # calls, or hands out, whatever its attributes hold

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._own = cls.__module__.startswith("diptych.")
        cls._direct = cls._own and cls.__call__ is Module.__call__

    def __new__(cls, *inputs: Any, **named: Any) -> Self:
        made = super().__new__(cls)
        vars(made)["training"] = cls.training  # from the start, so that a mode adds no attribute
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        """A parameter is replaced by another, or by None where a layer does without."""
        before = vars(self).get(name)
        if isinstance(before, Parameter) and not isinstance(value, Parameter | None):
            raise DiptychError(
                "a parameter of a module is replaced by a parameter",
                f"{type(self).__name__}.{name} = a {type(value).__name__}",
                f".{name}.assign(...) gives it a value, dp.Parameter(...) makes another, del first",
            )
        super().__setattr__(name, value)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        raise DiptychError(
            "a module says what it computes in forward",
            f"{type(self).__name__} has none",
            "def forward(self, x): ...",
        )

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        before = LOCAL.line
        try:
            LOCAL.line = author_line() if self._own else None  # below it all lines are one
            return self.forward(*inputs, **named)
        finally:
            LOCAL.line = before

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield the parameters and modules that this one holds, and their names."""
        for name, value in vars(self).items():
            yield from parts(name, value)

    def children(self) -> Iterator[tuple[str, Module]]:
        for place, part in self.members():
            if isinstance(part, Module):
                yield place, part

    def modules(self) -> Iterator[Module]:
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for place, part in self.members():
            if isinstance(part, Parameter):
                yield prefix + place, part
            else:
                yield from part.named_parameters(f"{prefix}{place}.")

    def parameters(self) -> list[Parameter]:
        return list(dict.fromkeys(p for _, p in self.named_parameters()))

    def state_dict(self) -> dict[str, Array]:
        """A snapshot of all parameters as numpy arrays, by name."""
        return {name: np.array(p.numpy(), order="C") for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the values of a state_dict; names and shapes must agree."""
        need_mapping(state)
        own = dict(self.named_parameters())
        if set(own) != set(state):
            raise ShapeError(
                "a state_dict has a value for every parameter, and no other",
                f"missing {sorted(set(own) - set(state))}, unknown {sorted(set(state) - set(own))}",
                "check that the model is built the same way",
            )
        arrays = {n: _values(v) for n, v in state.items()}
        for name, parameter in own.items():
            if arrays[name].shape != parameter.shape:
                raise ShapeError(
                    f"{name} keeps its shape",
                    f"{list(parameter.shape)} given {list(arrays[name].shape)}",
                    "check that the model is built the same way",
                )
            if arrays[name].dtype != parameter.dtype.numpy:
                raise DtypeError(
                    f"{name} keeps its dtype",
                    f"{parameter.dtype} given {arrays[name].dtype}",
                    f"convert it with .astype({parameter.dtype.numpy.name!r})",
                )
        for name, parameter in own.items():
            parameter.assign(arrays[name])

    def train(self, mode: bool = True) -> Module:
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        return self.train(False)

    def describe(self) -> str:
        """What stands in the brackets of the repr."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()
        ]
        if not lines:
            return f"{type(self).__name__}({self.describe()})"
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def _values(value: Any) -> Array:
    """Return what a state_dict has under a name as an array."""
    return value if isinstance(value, np.ndarray) else host_array(value)
