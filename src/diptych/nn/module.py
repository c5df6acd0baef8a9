"""Modules: what has parameters, may contain other modules, and is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from diptych.elsewhere import OfModule
from diptych.errors import DiptychError, DtypeError, ShapeError
from diptych.graph.record import LOCAL, author_line
from diptych.states import need_mapping
from diptych.tensor import Parameter, Tensor

Array = np.ndarray[Any, Any]


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """An attribute, or what is in a list: `layers.0`, `layers.1`."""
    if isinstance(value, list | tuple):
        for n, item in enumerate(value):
            yield f"{name}.{n}", item
    else:
        yield name, value


class Module(OfModule):
    """Parameters and modules assigned as attributes, alone or in a list, are found in the order
    of assignment."""

    training = True
    _own: ClassVar[bool] = True  # of this package: no line of the author is below it
    _direct: ClassVar[bool] = True  # own, and called in the way of this class

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._own = cls.__module__.startswith("diptych.")
        cls._direct = cls._own and cls.__call__ is Module.__call__

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

    def children(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            for place, part in _parts(name, value):
                if isinstance(part, Module):
                    yield place, part

    def modules(self) -> Iterator[Module]:
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for name, value in vars(self).items():
            for place, part in _parts(name, value):
                if isinstance(part, Parameter):
                    yield prefix + place, part
                elif isinstance(part, Module):
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
        arrays = {
            n: np.asarray(v.numpy() if isinstance(v, Tensor) else v) for n, v in state.items()
        }
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
