"""Symbolic sizes in the text of one function: values read at its entry from i64 words, which begin
with the symbols by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from diptych.dtypes import Dimension, bind
from diptych.dtypes import symbols as symbols_of

Units = tuple[tuple[Dimension, int], ...]  # sizes and the steps that cover them
TYPICAL = 32  # what a symbol is taken for where nobody has seen its size
NO_HINTS: Mapping[str, int] = {}


def typical(dim: Dimension, hints: Mapping[str, int] = NO_HINTS) -> int:
    """A size to choose tiles and orders by, which never change a bit; `hints` are sizes that
    symbols had when the code was written."""
    if isinstance(dim, int):
        return dim
    return bind(dim, typical_sizes(symbols_of([dim]), hints))


def typical_sizes(names: Iterable[str], hints: Mapping[str, int]) -> dict[str, int]:
    """Sizes of symbols to choose by."""
    return {name: hints.get(name, TYPICAL) for name in names}


@dataclass(frozen=True)
class SizeTable:
    """The symbols in the order of their words."""

    symbols: tuple[str, ...]
    hints: Mapping[str, int] = field(default_factory=dict)


FIXED = SizeTable(())


class Sizes:
    """Lines that belong at the entry of a function, and the names of what they compute."""

    def __init__(self, table: SizeTable) -> None:
        self.table = table
        self.lines: list[str] = []
        self._known: dict[str, str] = {}

    def _line(self, right: str) -> str:
        found = self._known.get(right)
        if found is None:
            found = self._known[right] = f"%size{len(self._known)}"
            self.lines.append(f"  {found} = {right}")
        return found

    def word(self, n: int) -> str:
        """The n-th word."""
        at = self._line(f"getelementptr i64, ptr %words, i64 {n}")
        return self._line(f"load i64, ptr {at}")

    def scratch(self, bytes: int) -> str:
        """Memory of the call's own."""
        return self._line(f"alloca [{bytes} x i8], align 64")

    def typical(self, dim: Dimension) -> int:
        return typical(dim, self.table.hints)

    def size(self, dim: Dimension) -> str:
        """The literal, or the name of the value."""
        if isinstance(dim, int):
            return str(dim)
        return self._total(self._term(names, count) for names, count in dim.terms)

    def _term(self, names: Iterable[str], count: int) -> str:
        factors = [self.word(self.table.symbols.index(name)) for name in names]
        if count != 1 or not factors:
            factors.append(str(count))
        value, *rest = factors
        for factor in rest:
            value = self._line(f"mul nsw i64 {value}, {factor}")
        return value

    def _total(self, terms: Iterable[str]) -> str:
        total, *rest = terms
        for term in rest:
            total = self._line(f"add nsw i64 {total}, {term}")
        return total

    def whole(self, dim: Dimension, step: int) -> str:
        """The greatest multiple of a step up to a size."""
        if isinstance(dim, int):
            return str(dim - dim % step)
        size = self.size(dim)
        if step & (step - 1) == 0:
            return size if step == 1 else self._line(f"and i64 {size}, {-step}")
        rest = self._line(f"urem i64 {size}, {step}")
        return self._line(f"sub nsw i64 {size}, {rest}")

    def tiles(self, dim: Dimension, step: int) -> str:
        """How many whole steps are in a size."""
        if isinstance(dim, int):
            return str(dim // step)
        return self._line(f"udiv i64 {self.size(dim)}, {step}")

    def covering(self, dim: Dimension, step: int) -> str:
        """How many steps cover a size."""
        if isinstance(dim, int):
            return str(-(-dim // step))
        if step == 1:
            return self.size(dim)
        more = self._line(f"add nsw i64 {self.size(dim)}, {step - 1}")
        return self._line(f"udiv i64 {more}, {step}")
