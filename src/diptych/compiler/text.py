"""Building the text of one LLVM function: fresh names, blocks, and value numbering.

The same right-hand side gives the same name as long as its scope is open, so common
subexpressions cost nothing. Scopes follow the loops: what a loop's body made is forgotten after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FunctionText:
    """Lines of a function under construction."""

    def __init__(self) -> None:
        self.lines: list[str] = ["entry:"]
        self.block = "entry"
        self._serial = 0
        self._scopes: list[dict[str, str]] = [{}]

    def fresh(self, stem: str = "v") -> str:
        self._serial += 1
        return f"%{stem}{self._serial}"

    def known(self, key: str) -> str | None:
        for scope in reversed(self._scopes):
            if key in scope:
                return scope[key]
        return None

    def remember(self, key: str, name: str) -> None:
        self._scopes[-1][key] = name

    def value(self, right: str) -> str:
        """The name of `right`, computed once a scope."""
        found = self.known(right)
        if found is None:
            found = self.fresh()
            self.lines.append(f"  {found} = {right}")
            self.remember(right, found)
        return found

    def do(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    @contextmanager
    def scope(self) -> Iterator[None]:
        self._scopes.append({})
        try:
            yield
        finally:
            self._scopes.pop()

    @contextmanager
    def branch(self, flag: str) -> Iterator[None]:
        """What is written inside happens where an i1 is true."""
        self._serial += 1
        tag = f"B{self._serial}"
        self.do(f"br i1 {flag}, label %{tag}.then, label %{tag}.end")
        self.label(f"{tag}.then")
        with self.scope():
            yield
        self.do(f"br label %{tag}.end")
        self.label(f"{tag}.end")

    @contextmanager
    def loop(
        self, start: str, stop: str, step: int, carried: list[tuple[str, str]]
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """A counted loop that runs while index < stop.

        `carried` lists (type, initial value). Yields the index, the carried values, and an empty
        list that the body fills with their next values; afterwards that list holds the finals.
        The condition stands behind the body, and before it only where it may fail at once.
        """
        self._serial += 1
        tag = f"L{self._serial}"
        before, index = self.block, f"%{tag}.i"
        names = [f"%{tag}.c{n}" for n in range(len(carried))]
        runs = start.isdigit() and stop.isdigit() and int(start) < int(stop)
        if runs:
            self.do(f"br label %{tag}.body")
        else:
            self.do(f"%{tag}.some = icmp slt i64 {start}, {stop}")
            self.do(f"br i1 %{tag}.some, label %{tag}.body, label %{tag}.exit")
        self.label(f"{tag}.body")
        at = len(self.lines)
        following: list[str] = []
        with self.scope():
            yield index, names, following
        end = self.block
        self.do(f"%{tag}.n = add nsw i64 {index}, {step}")
        self.do(f"%{tag}.go = icmp slt i64 %{tag}.n, {stop}")
        self.do(f"br i1 %{tag}.go, label %{tag}.body, label %{tag}.exit")
        self.label(f"{tag}.exit")
        head = [f"  {index} = phi i64 [ {start}, %{before} ], [ %{tag}.n, %{end} ]"]
        for n, (name, (type, initial), new) in enumerate(
            zip(names, carried, following, strict=True)
        ):
            head.append(f"  {name} = phi {type} [ {initial}, %{before} ], [ {new}, %{end} ]")
            if not runs:
                self.do(f"%{tag}.f{n} = phi {type} [ {initial}, %{before} ], [ {new}, %{end} ]")
                following[n] = f"%{tag}.f{n}"
        self.lines[at:at] = head
