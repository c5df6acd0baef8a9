"""Modules and parameters in lists and dicts, under the names that PyTorch gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

from diptych.errors import DiptychError
from diptych.nn.module import Module, parts
from diptych.tensor import Parameter


class _Container(Module):
    """Hold items of one kind; what uses them calls them one by one."""

    _walks = True
    kind: ClassVar[type] = Module
    needs: ClassVar[str] = "modules"
    cure: ClassVar[str] = "nn.Linear(3, 2), or another instance of a Module"

    def _item(self, value: Any) -> Any:
        """Return an item of this container, or raise."""
        if not isinstance(value, self.kind):
            name = type(self).__name__
            shown = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
            raise DiptychError(f"a {name} holds {self.needs}", f"{shown:.60}", self.cure)
        return value

    def forward(self, *inputs: Any, **named: Any) -> Any:
        name = type(self).__name__
        raise DiptychError(
            f"a {name} holds {self.needs}, and is not called itself",
            f"{name}(...)(...)",
            "call the items in the forward of your module; nn.Sequential is called",
        )


class _List(_Container):
    """Items in an order, named 0, 1, 2, ..."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items: list[Any] = []
        self.extend(items)

    def members(self) -> Iterator[tuple[str, Any]]:
        for n, item in enumerate(self._items):
            yield str(n), item
        for name, value in vars(self).items():
            if name != "_items":
                yield from parts(name, value)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __contains__(self, item: object) -> bool:
        return any(item is own for own in self._items)

    def __getitem__(self, n: Any) -> Any:
        return type(self)(self._items[n]) if isinstance(n, slice) else self._items[n]

    def __setitem__(self, n: int, item: Any) -> None:
        self._items[n] = self._item(item)

    def __delitem__(self, n: Any) -> None:
        del self._items[n]

    def __add__(self, items: Iterable[Any]) -> Self:
        return type(self)([*self._items, *items])

    def __iadd__(self, items: Iterable[Any]) -> Self:
        return self.extend(items)

    def append(self, item: Any) -> Self:
        """Add an item at the end."""
        self._items.append(self._item(item))
        return self

    def extend(self, items: Iterable[Any]) -> Self:
        """Add items at the end."""
        if not isinstance(items, Iterable) or isinstance(items, Parameter):
            name, shown = type(self).__name__, f"{items!r:.60}".partition("\n")[0]
            raise DiptychError(f"a {name} is made of a list", shown, f"nn.{name}([...])")
        self._items += [self._item(item) for item in items]
        return self

    def insert(self, n: int, item: Any) -> None:
        """Add an item before the n-th."""
        self._items.insert(n, self._item(item))

    def pop(self, n: int = -1) -> Any:
        """Remove an item and return it."""
        return self._items.pop(n)


class _Dict(_Container):
    """Items by name, in the order in which they were added."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self._items: dict[str, Any] = {}
        self.update(items)

    def members(self) -> Iterator[tuple[str, Any]]:
        yield from parts("", self._items)
        for name, value in vars(self).items():
            if name != "_items":
                yield from parts(name, value)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __setitem__(self, name: str, item: Any) -> None:
        self.update({name: item})

    def __delitem__(self, name: str) -> None:
        del self._items[name]

    def keys(self) -> Iterable[str]:
        return self._items.keys()

    def values(self) -> Iterable[Any]:
        return self._items.values()

    def items(self) -> Iterable[tuple[str, Any]]:
        return self._items.items()

    def get(self, name: str, default: Any = None) -> Any:
        return self._items.get(name, default)

    def update(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Add items, in place of those of the same name."""
        added = dict(items)
        for item in added.values():
            self._item(item)
        list(parts("", added))  # which checks the names
        self._items |= added

    def pop(self, name: str) -> Any:
        """Remove an item and return it."""
        return self._items.pop(name)

    def clear(self) -> None:
        self._items.clear()


class ModuleList(_List):
    """Modules in an order; their parameters are named 0.weight, 1.weight, ..."""


class ModuleDict(_Dict):
    """Modules by name; their parameters are named name.weight, ..."""


class ParameterList(_List):
    """Parameters in an order, named 0, 1, ..."""

    kind, needs, cure = Parameter, "parameters", "dp.Parameter(value) makes one"


class ParameterDict(_Dict):
    """Parameters by name."""

    kind, needs, cure = Parameter, "parameters", "dp.Parameter(value) makes one"
