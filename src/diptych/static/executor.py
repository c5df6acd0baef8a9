"""Running programs: feeds in, fetches out, parameters updated as the program says."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from diptych import engine
from diptych.dtypes import Dim, as_dtype
from diptych.engine import element_strides
from diptych.errors import FeedError
from diptych.graph.node import Graph, Node, Where, input_node, walk
from diptych.graph.rewrite import specialise
from diptych.tensor import Parameter, Tensor, default_panel

if TYPE_CHECKING:
    from diptych.static.program import Program

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Feed:
    """A placeholder of a program."""

    name: str
    node: Node


class Startup:
    """The initial values of the parameters that were made inside a program."""

    def __init__(self) -> None:
        self.initial: list[tuple[Parameter, Callable[[], Array]]] = []

    def run(self) -> None:
        """Give every parameter its initial value."""
        for parameter, make in self.initial:
            _set_value(parameter, make())


class Executor:
    """Runs programs: feeds in, fetches out; parameters are updated as the program says."""

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self.cache: WeakKeyDictionary[Program, dict[Any, Plan]] = WeakKeyDictionary()

    def run(
        self,
        program: Program | Startup,
        feed: Mapping[str, Any] | None = None,
        fetch: Sequence[Tensor | str] = (),
        watch: Callable[[str, Where, Array], None] | None = None,
    ) -> list[Array]:
        """Fetched values as numpy arrays; a fetch is a tensor of the program or a node's name.

        `watch(name, where, value)` is called for every node, in the order of the program.
        """
        if isinstance(program, Startup):
            program.run()
            return []
        if not hasattr(program, "target"):
            raise FeedError("run takes a program", f"{type(program).__name__}", "dp.Program()")
        wanted = [program.target(f) for f in fetch]
        if watch is None:
            return self.run_nodes(program, feed or {}, wanted)
        seen = _visible(program, wanted)
        values = self.run_nodes(program, feed or {}, [*wanted, *seen])
        for node, value in zip(seen, values[len(wanted) :], strict=True):
            watch(node.label or node.op.name, node.where, value)
        return values[: len(wanted)]

    def trace(self, program: Program, feed: Mapping[str, Any] | None = None) -> Trace:
        """Run, and show every value beside the line that made it."""
        rows: list[tuple[str, Where, Array]] = []
        self.run(program, feed, [], lambda *row: rows.append(row))
        return Trace(rows)

    def run_nodes(
        self, program: Program, feed: Mapping[str, Any], wanted: Sequence[Node]
    ) -> list[Array]:
        plans = self.cache.setdefault(program, {})
        key = (program.version, tuple(id(n) for n in wanted))
        plan = plans.get(key)
        if plan is None:
            plan = plans[key] = Plan(program, wanted, self.device)
        return plan.run(feed)


def _visible(program: Program, wanted: Sequence[Node]) -> list[Node]:
    """Every computed node of a program, its gradients and updates included."""
    roots = [*program.recorded, *wanted, *[new for *_, new in program.updates()]]
    return [n for n in walk(roots) if n.inputs]


class Trace:
    """What a run computed: (name, line, value) in order; prints as a table."""

    def __init__(self, rows: list[tuple[str, Where, Array]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[str, Where, Array]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Array:
        """The value of the node called `name`."""
        for have, _, value in self.rows:
            if have == name:
                return value
        raise FeedError("a trace has the nodes of its program", repr(name), "print the trace")

    def __repr__(self) -> str:
        lines, last = [], None
        for name, where, value in self.rows:
            if where != last:
                lines.append(f"{where}  {linecache.getline(where.file, where.line).strip()}")
                last = where
            shown = np.array2string(value, precision=4, threshold=8, edgeitems=2, separator=", ")
            shown = " ".join(shown.split())
            lines.append(f"    {name} {value.dtype}{list(value.shape)} = {shown}")
        return "\n".join(lines)


def _set_value(parameter: Parameter, value: Array) -> None:
    node = parameter.node
    fresh = input_node(node.type, node.label)
    fresh.value = parameter.memory(np.asarray(value, node.type.dtype.numpy))
    parameter.bind(fresh, node.needs_grad)


class Plan:
    """One choice of fetches of a program; an executable for every size it is run with."""

    def __init__(self, program: Program, wanted: Sequence[Node], device: str | None) -> None:
        self.program, self.wanted, self.device = program, list(wanted), device
        self.updates = program.updates()
        roots = [*wanted, *[new for _, _, new in self.updates]]
        used = {id(n) for n in walk(roots)}
        self.feeds = [f for f in program.feeds.values() if id(f.node) in used]
        self.state = [(p, n) for p, n in program.state.values() if id(n) in used]
        self.live = [(n, read) for n, read in program.live if id(n) in used]
        inputs = [f.node for f in self.feeds] + [n for _, n in self.state]
        inputs += [n for n, _ in self.live]
        self.graph = Graph(tuple(inputs), tuple(roots))
        self.executables: dict[Any, Any] = {}

    def run(self, feed: Mapping[str, Any]) -> list[Array]:
        unknown = set(feed) - set(self.program.feeds)
        if unknown:
            raise FeedError(
                "a feed names a placeholder of the program",
                f"unknown {sorted(unknown)}",
                f"the program has {sorted(self.program.feeds)}",
            )
        values, sizes = self._feed_values(feed)
        with default_panel().lock:  # writers of parameters take turns, and readers wait for them  # type: ignore[attr-defined]
            state = [default_panel().observe(p) for p, _ in self.state]
            inputs = values + state + [np.asarray(read()) for _, read in self.live]
            del state
            return self._call(inputs, sizes, len(values))

    def _call(self, inputs: list[Array], sizes: dict[str, int], first: int) -> list[Array]:
        own = {id(p): n for n, (p, _) in enumerate(self.state)}
        donated = {}
        for n, (parameter, _, _) in enumerate(self.updates):
            place = own.get(id(parameter))
            if place is None:
                continue
            node = parameter.node
            # held by the node, by `inputs` and by the call itself: nobody else may see it change
            if node.pinned or sys.getrefcount(inputs[first + place]) > 3:
                continue
            donated[len(self.wanted) + n] = first + place
        device = self.device or default_panel().device
        strides = tuple(element_strides(a) for a in inputs)
        key = (tuple(sorted(sizes.items())), strides, tuple(donated.items()), device)
        found = self.executables.get(key)
        if found is None:
            graph = specialise(self.graph, sizes)
            found = engine.compile(graph, device, dict(enumerate(strides)), donated)
            self.executables[key] = found
        results = found.run(inputs)
        for (parameter, _, _), value in zip(self.updates, results[len(self.wanted) :], strict=True):
            fresh = input_node(parameter.type, parameter.name)
            fresh.value = value
            parameter.bind(fresh, parameter.node.needs_grad)
        return results[: len(self.wanted)]

    def _feed_values(self, feed: Mapping[str, Any]) -> tuple[list[Array], dict[str, int]]:
        values: list[Array] = []
        sizes: dict[str, int] = {}
        for place in self.feeds:
            if place.name not in feed:
                raise FeedError(
                    "a program needs a value for every placeholder it reads",
                    f"{place.name!r} is missing",
                    f"feed={{'{place.name}': array of {place.node.type}}}",
                )
            values.append(self._feed_value(place, feed[place.name], sizes))
        return values, sizes

    def _feed_value(self, place: Feed, given: Any, sizes: dict[str, int]) -> Array:
        want = place.node.type
        value = given.numpy() if isinstance(given, Tensor) else np.asarray(given)
        if as_dtype(value.dtype) != want.dtype:
            raise FeedError(
                "a feed has the dtype of its placeholder",
                f"{place.name!r} is {want.dtype}, fed {value.dtype}",
                f"array.astype({want.dtype.numpy.name!r})",
            )
        fits = len(value.shape) == want.rank
        for have, dim in zip(value.shape, want.shape, strict=False):
            if isinstance(dim, Dim) and len(dim.terms) == 1 and len(dim.terms[0][0]) == 1:
                fits &= sizes.setdefault(dim.terms[0][0][0], have) == have
            elif isinstance(dim, int):
                fits &= dim == have
        if not fits:
            raise FeedError(
                "a feed has the shape of its placeholder",
                f"{place.name!r} is {want}, fed {list(value.shape)}",
                "reshape the array; None sizes must agree where they share a name",
            )
        return np.asarray(value, order="C")
