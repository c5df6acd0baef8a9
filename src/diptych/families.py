"""Executables by structure: graphs that differ only in sizes share one.

The first graph of a structure is compiled for its sizes. When a second one comes, the sizes that
differ become symbols: the graph is inferred anew with them, and attributes that differ (the shape
of a reshape, the divisor of a mean) are derived from them, or the sizes stay special. A later graph
is run by the general executable where its every size and attribute is what the symbols say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diptych import engine
from diptych.compiler.simplify import simplify
from diptych.dtypes import Dim, Dimension, Shape, TensorType, bind, row_major
from diptych.errors import DiptychError, InternalError
from diptych.graph.node import Constant, Graph, Input, Node
from diptych.ops.reduce import Extent

SIZES = ("shape", "sizes", "starts", "size")  # attributes that hold sizes
Compiler = Callable[..., Any]  # as `engine.compile`
MOST = 4  # special graphs of one structure that are compared with a new one


class Outline:
    """A graph in primitives as a structure, and the numbers that its sizes are."""

    def __init__(
        self, graph: Graph, strides: Mapping[int, Shape], lines: Mapping[int, int]
    ) -> None:
        self.graph = graph
        self.nodes = list(dict.fromkeys([*graph.inputs, *graph.nodes]))
        self.numbers: list[int] = []
        number = {id(n): at for at, n in enumerate(self.nodes)}
        self.straight = [row_major(n.type.shape) == strides[s] for s, n in enumerate(graph.inputs)]
        parts: list[Any] = [None if s else strides[n] for n, s in enumerate(self.straight)]
        for node in self.nodes:
            inputs = [number[id(i)] for i in node.inputs]
            types = [i.type for i in node.inputs]
            line = lines.get(id(node.where)) if node.op.positions(*types) else None
            parts.append((type(node.op), node.type.dtype, node.type.rank, line, *inputs))
            self.numbers += node.type.shape  # type: ignore[arg-type]
            parts += self._attributes(node)
        parts.append(tuple([number[id(o)] for o in graph.outputs]))
        self.key = tuple(parts)

    def _attributes(self, node: Node) -> list[Any]:
        if isinstance(node.op, Constant):
            value = whole_number(node)
            self.numbers += [] if value is None else [value]
            return [node.op.data if value is None else "a number"]
        others: list[Any] = []
        for name, value in node.op.attributes().items():
            if name in SIZES:
                self.numbers += value if isinstance(value, tuple) else [value]
            else:
                others.append(value)
        return others


def whole_number(node: Node) -> int | None:
    """The value of a scalar constant that could be a size."""
    if node.type.size != 1 or node.type.dtype.kind == "bool":
        return None
    value = node.op.array(node.type).reshape(-1)[0]  # type: ignore[attr-defined]
    return int(value) if 2 <= value < 1 << 40 and value == int(value) else None


@dataclass
class General:
    """An executable for all sizes: `dims` are what the numbers of a graph must be."""

    executable: Any
    dims: list[Dimension]
    defined: dict[str, int]  # where the size of each symbol stands among the numbers

    def sizes(self, numbers: Sequence[int]) -> dict[str, int] | None:
        sizes = {name: numbers[n] for name, n in self.defined.items()}
        fits = min(sizes.values()) >= 2 and [bind(d, sizes) for d in self.dims] == numbers
        return sizes if fits and self._is_general(numbers) else None

    def _is_general(self, numbers: Sequence[int]) -> bool:
        """Whether no size that follows from a symbol is 0: code for all sizes has terms to fold."""
        return all(n > 0 for n, d in zip(numbers, self.dims, strict=True) if isinstance(d, Dim))


@dataclass
class Group:
    """What was seen of one structure."""

    special: list[Outline] = field(default_factory=list)
    general: list[General] = field(default_factory=list)


class Families:
    """All executables of a panel."""

    def __init__(self, compile: Compiler = engine.compile) -> None:
        self.compile = compile
        self.groups: dict[Any, Group] = {}

    def find(
        self,
        graph: Graph,
        device: str,
        strides: Mapping[int, tuple[int, ...]],
        donated: dict[int, int],
        lines: dict[int, int],
    ) -> Any:
        """An executable for a graph; `lines` says which call a source line stands for."""
        outline = None
        if device != "reference" and graph.inputs:
            outline = Outline(simplify(graph), strides, lines)
            key = (outline.key, tuple(donated.items()))
            group = self.groups.setdefault(key, Group())
            for general in group.general:
                sizes = general.sizes(outline.numbers)
                if sizes is not None:
                    return general.executable.at(sizes)
            for before in group.special:
                made = generalised(before, outline, strides, donated, lines, self.compile)
                if made is not None:
                    group.general.append(made)
                    return made.executable.at(made.sizes(outline.numbers))
            group.special = [*group.special[1 - MOST :], outline]
        executable = self.compile(graph, device, strides, donated)
        executable.lines = lines
        return executable


def generalised(
    before: Outline,
    now: Outline,
    strides: Mapping[int, tuple[int, ...]],
    donated: dict[int, int],
    lines: dict[int, int],
    compile: Compiler = engine.compile,
) -> General | None:
    """The executable for two graphs of one structure, and others like them."""
    rewriter = Rewriter(before, now)
    try:
        graph = rewriter.graph()
    except InternalError:
        raise
    except (Special, DiptychError):  # a rule that needs the number, or sizes that differ in it
        return None
    if not rewriter.defined:
        return None
    orders: dict[int, Shape] = dict(strides)
    for slot, node in enumerate(graph.inputs):
        if now.straight[slot]:
            orders[slot] = row_major(node.type.shape)
    made = General(None, rewriter.dims, rewriter.defined)
    sizes = made.sizes(now.numbers)
    if sizes is None or made.sizes(before.numbers) is None:
        return None
    made.executable = compile(graph, "cpu", orders, donated, engine.hints(sizes))
    made.executable.lines = lines
    return made


class Special(Exception):
    """Sizes that cannot be symbols."""


class Rewriter:
    """The graph of an outline with symbols for the numbers that differ from another's."""

    def __init__(self, before: Outline, now: Outline) -> None:
        self.outline = now
        self.pairs = list(zip(before.numbers, now.numbers, strict=True))
        self.dims: list[Dimension] = []  # for every number
        self.defined: dict[str, int] = {}
        self.symbols: dict[tuple[int, int], Dim] = {}

    def graph(self) -> Graph:
        new: dict[int, Node] = {}
        for node in self.outline.nodes:
            inputs = tuple(new[id(i)] for i in node.inputs)
            new[id(node)] = self._node(node, inputs)
        graph = self.outline.graph
        return Graph(
            tuple(new[id(i)] for i in graph.inputs), tuple(new[id(o)] for o in graph.outputs)
        )

    def _node(self, node: Node, inputs: tuple[Node, ...]) -> Node:
        op: Any = node.op
        first = len(self.dims)
        if isinstance(op, Input):
            last = node.type.rank - 1
            shape = tuple(self._size(last == 0 or n < last) for n in range(node.type.rank))
            type = node.type.with_shape(shape)
            return node if type == node.type else Node(op, (), type, node.where, label=node.label)
        self.dims += [0] * node.type.rank  # filled in once the type is inferred anew
        if isinstance(op, Constant):
            if whole_number(node) is not None:
                value = self._derived()
                if isinstance(value, Dim):
                    op = Extent(value, node.type.dtype.name)
        else:
            op = self._operator(op)
        type = node.type if isinstance(op, Constant) else op.infer(*[i.type for i in inputs])
        if isinstance(op, Extent):
            type = self._scalar(node, type)
        self._compare(first, type)
        if op is node.op and all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            return node
        return Node(op, inputs, type, node.where, label=node.label)

    def _scalar(self, node: Node, type: TensorType) -> TensorType:
        if node.type.rank:
            raise Special
        return type

    def _operator(self, op: Any) -> Any:
        given = op.attributes()
        changed = {}
        for name, value in given.items():
            if name in SIZES:
                many = isinstance(value, tuple)
                made = tuple(self._derived() for _ in value) if many else self._derived()
                if made != value:
                    changed[name] = made
        return type(op)(**{**given, **changed}) if changed else op

    def _compare(self, first: int, type: TensorType) -> None:
        """The inferred sizes are those of both graphs."""
        for n, d in enumerate(type.shape, first):
            if any(self._at(d, side) != self.pairs[n][side] for side in (0, 1)):
                raise Special
            self.dims[n] = d

    def _at(self, d: Dimension, side: int) -> int:
        values = {str(s): pair[side] for pair, s in self.symbols.items()}
        return bind(d, values)

    def _size(self, may_change: bool) -> Dimension:
        """The next number, a size of an input: itself, or a symbol where it changed."""
        a, b = self.pairs[len(self.dims)]
        made: Dimension = b
        if a != b:
            if min(a, b) < 2 or not may_change:
                raise Special
            name = f"N{len(self.symbols)}" if self.symbols else "N"
            if (a, b) not in self.symbols:
                self.symbols[a, b] = Dim.symbol(name)
                self.defined[name] = len(self.dims)
            made = self.symbols[a, b]
        self.dims.append(made)
        return made

    def _derived(self) -> Dimension:
        """The next number, an attribute: itself, or what follows from the symbols."""
        a, b = self.pairs[len(self.dims)]
        found: Dimension | None = b if a == b else self._expression(a, b)
        if found is None:
            raise Special
        self.dims.append(found)
        return found

    def _expression(self, a: int, b: int) -> Dimension | None:
        singles = list(self.symbols.items())
        products = [
            ((x * u, y * v), s * t) for (x, y), s in singles for (u, v), t in singles
        ]  # fmt: skip
        rules: list[Callable[[int, int, Any], Dimension | None]] = [_times, _plus]
        for rule in rules:
            for (x, y), dim in [*singles, *products]:
                found = rule(x, y, (a, b, dim))
                if found is not None:
                    return found
        return None


def _times(x: int, y: int, wanted: tuple[int, int, Dim]) -> Dimension | None:
    a, b, dim = wanted
    whole = a % x == 0 and b % y == 0 and a // x == b // y
    return dim * (a // x) if whole else None


def _plus(x: int, y: int, wanted: tuple[int, int, Dim]) -> Dimension | None:
    a, b, dim = wanted
    return dim + (a - x) if a - x == b - y else None
