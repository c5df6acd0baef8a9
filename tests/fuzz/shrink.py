"""Make a failing case small: as few lines as possible, small sizes, plain settings."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from diptych.errors import DiptychError
from fuzz.case import NAME, Case
from fuzz.draw import recorded

NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")  # a whole number that is no part of a name
LEAF = re.compile(r"[xw]\d+ = |optimizer = ")


def shrunk(case: Case, fails: Callable[[Case], bool], seconds: float = 120.0) -> Case:
    """The smallest case found in this time that still fails."""
    return Shrink(case, fails, seconds).run()


class Shrink:
    """Changes a case for as long as it fails, until no change makes it smaller."""

    def __init__(self, case: Case, fails: Callable[[Case], bool], seconds: float) -> None:
        self.case, self.fails = case, fails
        self.end = time.monotonic() + seconds
        self.known = {str(case)}  # cases that were tried

    def run(self) -> Case:
        before = None
        while before != self.case and time.monotonic() < self.end:
            before = self.case
            self.one_result()
            self.fewer_lines()
            self.settings()
            self.fewer_results()
            self.leaves()
            self.aliases()
            self.smaller_sizes()
        return renamed(self.case)

    def tried(self, lines: Iterable[str] | None = None, **settings: Any) -> bool:
        """Whether a changed case fails, which it then takes the place of."""
        if lines is not None:
            settings["lines"] = tuple(needed(tuple(lines)))
        candidate = dataclasses.replace(self.case, **settings)
        if str(candidate) in self.known or time.monotonic() > self.end:
            return False
        self.known.add(str(candidate))
        if not is_sound(candidate) or not self.fails(candidate):
            return False
        self.case = candidate
        return True

    def one_result(self) -> None:
        """With one result and no gradients, or with one backward and no results."""
        lines = self.case.lines
        after = ("return", "optimizer")
        plain = [line for line in lines if not line.startswith(after) and ".backward" not in line]
        for name in self.case.results():
            if self.tried([*plain, returning([name])]):
                return
        for line in lines:
            if ".backward" in line and self.tried([*plain, line]):
                return
        self.tried([line for line in lines if not line.startswith(after)])

    def settings(self) -> None:
        """Plainer settings."""
        while len(self.case.rounds) > 1:
            rounds = self.case.rounds
            if not self.tried(rounds=rounds[:1]) and not self.tried(rounds=rounds[1:]):
                break
        for mode in ("dynamic", "eager", "compiled"):
            if self.case.mode not in ("dynamic", "eager"):
                self.tried(mode=mode)
        self.tried(threads=1)
        self.tried(tiers=0)
        self.tried(target="native")
        for fact in self.case.target.split()[1:]:
            self.tried(target=" ".join(f for f in self.case.target.split() if f != fact))
        self.tried([line.replace("retain_graph=True", "") for line in self.case.lines])

    def fewer_lines(self) -> None:
        """Without half of the lines, a quarter, ..., one; with what follows from them."""
        size = len(self.case.lines) // 2
        while size:
            start = len(self.case.lines) - size
            while start > -size:
                self.tried(without(self.case.lines, range(max(start, 0), start + size)))
                start = min(start, len(self.case.lines)) - size
            size //= 2

    def fewer_results(self) -> None:
        for gone in self.case.results():
            kept = [name for name in self.case.results() if name != gone]
            if kept:
                self.tried([*self.case.lines[:-1], returning(kept)])

    def leaves(self) -> None:
        """An input or a parameter in the place of a computed value; an input for a parameter."""
        for line in self.case.lines[::-1]:
            name, equals, expression = line.partition(" = ")
            if not equals or line not in self.case.lines or name == "optimizer":
                continue
            for letter, kind in (("x", "normal"), ("w", "parameter")):
                leaf = self.leaf_like(name, kind)
                new = f"{letter}{900 + len(self.known)}"
                if leaf and not (name[0] == letter and expression == leaf):
                    lines = self.with_name(name, new)
                    lines[self.case.lines.index(line)] = f"{new} = {leaf}"
                    if self.tried(sorted(lines, key=lambda line: not LEAF.match(line))):
                        break
                if name[0] == letter:  # a parameter is plainer than an input
                    break

    def leaf_like(self, name: str, kind: str) -> str:
        """The expression of a leaf with the type of a value; nothing where there is none."""
        value = recorded(self.case).values.get(name)
        if value is None or not value.dtype.is_float:
            return ""
        sizes = [str(d) for d in value.type.shape]
        if any("+" in s or "*" in s for s in sizes) or (kind == "parameter" and "N" in sizes):
            return ""
        dtype = [] if value.dtype.name == "f32" else [f'dtype="{value.dtype.name}"']
        return f"{kind}({', '.join([*sizes, *dtype])})"

    def aliases(self) -> None:
        """A value's operand, or another leaf, of the same type in its place."""
        for line in self.case.lines[::-1]:
            name, _, expression = line.partition(" = ")
            values = recorded(self.case).values
            if name not in values or line not in self.case.lines:
                continue
            others = NAME.findall(expression)
            if name[0] in "xw":
                others = [m for m in values if m[0] == name[0] and m != name]
            for other in dict.fromkeys(others):
                if other in values and values[other].type == values[name].type:
                    lines = self.with_name(name, other)
                    del lines[self.case.lines.index(line)]
                    if self.tried(lines):
                        break

    def with_name(self, old: str, new: str) -> list[str]:
        return [re.sub(rf"\b{old}\b", new, line) for line in self.case.lines]

    def smaller_sizes(self) -> None:
        """Every whole number smaller, wherever it stands."""
        found = {int(number) for number in NUMBER.findall("\n".join(self.case.lines))}
        for old in sorted({*found, *self.case.rounds}, reverse=True):
            any(self.with_size(old, new) for new in smaller(old))

    def with_size(self, old: int, new: int) -> bool:
        lines = [
            NUMBER.sub(lambda m: str(new) if int(m[0]) == old else m[0], line)
            for line in self.case.lines
        ]
        return self.tried(lines, rounds=tuple([new if n == old else n for n in self.case.rounds]))


def is_sound(case: Case) -> bool:
    """Whether every name is there and every type fits. The inputs of a scan have a row for every
    row of the batches, and no gradients stay behind."""
    try:
        recording = recorded(case)
    except (DiptychError, NameError, AttributeError, TypeError, SyntaxError, ValueError):
        return False
    if case.mode != "scan":
        return bool(case.body())
    stays = any(".backward" in line for line in case.lines)
    inputs = [recording.values[name].shape for name, _ in case.leaves("x")]
    rows = {recording.bound(shape[0]) if shape else 0 for shape in inputs}
    if stays and "optimizer.zero_grad()" not in case.lines:
        return False
    return {*rows, *case.rounds} == {case.rounds[0]}


def returning(names: list[str]) -> str:
    return f"return ({', '.join(names)},)"


def without(lines: tuple[str, ...], gone: range) -> list[str]:
    """The lines without some, and without those that need them."""
    lost: set[str] = set()
    kept = []
    for n, line in enumerate(lines):
        target = line.partition(" = ")[0]
        if line.startswith("return") and n not in gone:
            left = [name for name in NAME.findall(line) if name not in lost]
            kept += [returning(left)] if left else []
        elif n in gone or lost & set(NAME.findall(line)):
            lost.add(target)
        elif not (line.startswith("optimizer.") and "optimizer" in lost):
            kept.append(line)
    return kept


def needed(lines: tuple[str, ...]) -> list[str]:
    """The lines without values, but x0, that no other line names. Parameters are seen anyway."""
    kept: list[str] = []
    named = {"x0"}
    for line in lines[::-1]:
        target, equals, _ = line.partition(" = ")
        if not equals or target in named or not NAME.fullmatch(target):
            kept.append(line)
            named |= set(NAME.findall(line))
    return kept[::-1]


def smaller(size: int) -> list[int]:
    """Numbers to try in the place of a size."""
    parts = [
        1,
        2,
        16,
        size // 4,
        size // 2,
        size * 3 // 4,
        size * 7 // 8,
        size // 16 * 16,
        size - 1,
    ]
    return sorted({n for n in parts if 0 < n < size})


def renamed(case: Case) -> Case:
    """With names counted from 0."""
    text, new = "\n".join(case.lines), dict[str, str]()
    for name in dict.fromkeys(["x0"] * ("x0" in text) + NAME.findall(text)):
        new[name] = f"{name[0]}{sum(n[0] == name[0] for n in new)}"
    lines = NAME.sub(lambda m: new[m[0]], text).split("\n")
    return dataclasses.replace(case, lines=tuple(lines))
