"""A size in the hands of the author of a captured function.

Where a capture is to hold for all sizes, a shape shows `Size`s: arithmetic keeps their symbols, and
what asks for a number (a comparison, `range`, a float) gets that of this call, and leaves a note
that the capture holds for this size alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from diptych.dtypes import DIMENSIONS, Dim, Dimension, bind, exact_quotient, symbols


class Looked:
    """The sizes that symbols have in a capture, and the symbols that were read as numbers."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.names: set[str] = set()

    def shown(self, dim: Dimension) -> Dimension:
        """A dimension as the author sees it."""
        return Size(dim.terms, self) if isinstance(dim, Dim) else dim


class Size(Dim):
    """A dimension that notes when it is read as a number."""

    looked: Looked

    def __init__(self, terms: Any, looked: Looked) -> None:
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "looked", looked)

    def number(self) -> int:
        """The number, and a note that it was asked for."""
        self.looked.names |= symbols([self])
        return bind(self, self.looked.sizes)

    def _least(self) -> int:
        """A number that no size is below: symbols stand for 2 and more."""
        if any(count < 0 for _, count in self.terms):
            return -(1 << 62)
        return bind(self, dict.fromkeys(symbols([self]), 2))

    def _kept(self, other: Any, rule: Callable[[Dim, Any], Any], plain: Callable[..., Any]) -> Any:
        """An operation that keeps symbols, or on the number where the other is no dimension."""
        if not isinstance(other, DIMENSIONS):
            return plain(self.number(), other)
        result = rule(Dim(self.terms), _as_dimension(other))
        return self.looked.shown(result)

    def __add__(self, other: Any) -> Any:
        return self._kept(other, Dim.__add__, operator.add)

    def __radd__(self, other: Any) -> Any:
        return self._kept(other, Dim.__add__, lambda a, b: b + a)

    def __mul__(self, other: Any) -> Any:
        return self._kept(other, Dim.__mul__, operator.mul)

    def __rmul__(self, other: Any) -> Any:
        return self._kept(other, Dim.__mul__, lambda a, b: b * a)

    def __sub__(self, other: Any) -> Any:
        return self._kept(other, Dim.__sub__, operator.sub)

    def __rsub__(self, other: Any) -> Any:
        return self._kept(other, Dim.__rsub__, lambda a, b: b - a)

    def __neg__(self) -> Any:
        return -1 * self

    def __floordiv__(self, other: Any) -> Any:
        exact = self._quotient(other)
        return self.number() // _plain(other) if exact is None else exact

    def __mod__(self, other: Any) -> Any:
        exact = self._quotient(other)
        return self.number() % _plain(other) if exact is None else 0

    def _quotient(self, other: Any) -> Dimension | None:
        if not isinstance(other, DIMENSIONS) or (not isinstance(other, Dim) and other <= 0):
            return None
        exact = exact_quotient(Dim(self.terms), _as_dimension(other))
        return None if exact is None else self.looked.shown(exact)

    def __rfloordiv__(self, other: Any) -> Any:
        return other // self.number()

    def __rmod__(self, other: Any) -> Any:
        return other % self.number()

    def __truediv__(self, other: Any) -> Any:
        return self.number() / _plain(other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.number()

    def __pow__(self, other: Any) -> Any:
        return self.number() ** _plain(other)

    def __rpow__(self, other: Any) -> Any:
        return other ** self.number()

    def __divmod__(self, other: Any) -> Any:
        return divmod(self.number(), _plain(other))

    def __index__(self) -> int:
        return self.number()

    __int__ = __trunc__ = __index__

    def __float__(self) -> float:
        return float(self.number())

    def __bool__(self) -> bool:
        return self._least() > 0 or self.number() != 0

    def __hash__(self) -> int:
        return hash(self.number())

    def __repr__(self) -> str:
        return repr(self.number())

    def __format__(self, spec: str) -> str:
        return format(self.number(), spec)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dim) and self.terms == other.terms:
            return True
        if isinstance(other, Dim) and not isinstance(other, Size):
            return False  # a rule of ours, which holds for symbols
        if isinstance(other, int) and other < self._least():
            return False
        return bool(self.number() == _plain(other))

    def __lt__(self, other: Any) -> bool:
        return False if self._decided(other, 0) else bool(self.number() < _plain(other))

    def __le__(self, other: Any) -> bool:
        return False if self._decided(other, 1) else bool(self.number() <= _plain(other))

    def __gt__(self, other: Any) -> bool:
        return True if self._decided(other, 1) else bool(self.number() > _plain(other))

    def __ge__(self, other: Any) -> bool:
        return True if self._decided(other, 0) else bool(self.number() >= _plain(other))

    def _decided(self, other: Any, beyond: int) -> bool:
        """Whether every size is at least the other number (and `beyond` more)."""
        return isinstance(other, int) and other + beyond <= self._least()


def _as_dimension(value: Any) -> Dimension:
    return Dim(value.terms) if isinstance(value, Dim) else int(value)


def _plain(value: Any) -> Any:
    return value.number() if isinstance(value, Size) else value


def has_size(value: Any) -> bool:
    if type(value) in (tuple, list):
        return any(has_size(v) for v in value)
    return isinstance(value, Size)


def without_notes(value: Any) -> Any:
    """The same with plain dimensions in place of sizes, in nested tuples and lists too."""
    if isinstance(value, Size):
        return Dim(value.terms)
    if type(value) in (tuple, list):
        return type(value)([without_notes(v) for v in value])
    return value
