"""Running programs: feeds in, fetches out, parameters updated as the program says."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from sys import getrefcount
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from diptych import engine
from diptych.dtypes import Dim, as_dtype
from diptych.engine import element_strides
from diptych.errors import FeedError
from diptych.graph.node import Graph, Node, Where, input_node, walk
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
            parameter.place(np.asarray(make(), parameter.node.type.dtype.numpy))


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


SOLE = next(map(getrefcount, [object()])) + 1  # what a list and one other hold


class Ready:
    """An executable of a plan, and what it fits: strides of the inputs, sizes and device, and how
    many hold what is updated."""

    def __init__(self, executable: Any, form: Any, in_place: bool) -> None:
        self.executable, self.form, self.in_place = executable, form, in_place
        self.held: list[int] = []


class Plan:
    """One choice of fetches of a program."""

    def __init__(self, program: Program, wanted: Sequence[Node], device: str | None) -> None:
        self.program, self.wanted, self.device = program, list(wanted), device
        self.updates = program.updates()
        roots = [*wanted, *[new for _, _, new in self.updates]]
        used = {id(n) for n in walk(roots)}
        self.feeds = [f for f in program.feeds.values() if id(f.node) in used]
        self.state = [p for p, n in program.state.values() if id(n) in used]
        self.live = [read for n, read in program.live if id(n) in used]
        inputs = [f.node for f in self.feeds]
        inputs += [n for _, n in program.state.values() if id(n) in used]
        inputs += [n for n, _ in program.live if id(n) in used]
        self.graph = Graph(tuple(inputs), tuple(roots))
        own = {id(p): len(self.feeds) + n for n, p in enumerate(self.state)}
        self.slots = [own.get(id(p)) for p, *_ in self.updates]  # the input that an update replaces
        self.family = engine.Family(self.graph)
        self.executables: dict[Any, Ready] = {}  # by sizes
        self.orders: dict[Any, dict[int, int]] = {}
        self.last: Ready | None = None

    def run(self, feed: Mapping[str, Any]) -> list[Array]:
        """Fetched values for values by the names of placeholders."""
        unknown = set(feed) - set(self.program.feeds)
        if unknown:
            raise FeedError(
                "a feed names a placeholder of the program",
                f"unknown {sorted(unknown)}",
                f"the program has {sorted(self.program.feeds)}",
            )
        return self.call(*self._feed_values(feed))

    def call(self, values: list[Array], sizes: dict[str, int]) -> list[Array]:
        """Fetched values for arrays in the order of the feeds, in C order.

        Writers of parameters take turns, and readers wait for them.
        """
        panel = default_panel()
        with panel.lock:
            held, state = self._held(), [p.node.value for p in self.state]
            for n, value in enumerate(state):
                if value is None:
                    state[n] = panel.observe(self.state[n])
                    held = []
            inputs: list[Any] = values + state + [read() for read in self.live]
            del state
            form = ([v.strides for v in inputs], sizes, self.device or panel.device)
            ready = self.last
            if ready is None or ready.held != held or ready.form != form:
                if self._turn(sizes):  # what was turned is read anew
                    first, last = len(values), len(values) + len(self.state)
                    del inputs[first:last]
                    held = self._held()
                    inputs[first:first] = [p.node.value for p in self.state]
                    form = ([v.strides for v in inputs], *form[1:])
                ready = self._ready(inputs, held or self._held(), form)
            results: list[Array] = ready.executable.run(inputs)
            if not ready.in_place:
                self._bind(results)
        return results[: len(self.wanted)]

    def _turn(self, sizes: dict[str, int]) -> bool:
        """Turn weights round that this plan only reads, where they lie badly for it."""
        key = tuple(sorted(sizes.items()))
        if key not in self.orders:
            self.orders[key] = engine.orders_for(self.graph, sizes)
        some, first = False, len(self.feeds)
        for slot, axis in self.orders[key].items():
            if not first <= slot < first + len(self.state) or slot in self.slots:
                continue
            node = self.state[slot - first].node
            assert node.value is not None
            new = engine.turned(node.value, axis)
            if new is not node.value:
                node.value, node.kind, some = new, None, True
        return some

    def _held(self) -> list[int]:
        """How many hold the nodes and the values of the parameters that are updated."""
        nodes = [p.node for p, *_ in self.updates]
        values = [n.value for n in nodes]
        return [*map(getrefcount, nodes), *map(getrefcount, values)]

    def _ready(self, inputs: list[Array], held: list[int], form: Any) -> Ready:
        """The executable for this layout of the inputs. What nobody else holds is updated in place:
        a node that others hold is the past of a value that may still be asked for, and a held
        array is somebody's view."""
        count, donated = len(self.updates), {}
        for n, slot in enumerate(self.slots):
            if slot is not None and held[n] == held[count + n] == SOLE:
                donated[len(self.wanted) + n] = slot
        strides, sizes, device = form
        key = (tuple(strides), tuple(sorted(sizes.items())), device, tuple(donated.items()))
        found = self.executables.get(key)
        if found is None:
            layout = [element_strides(a) for a in inputs]
            made = self.family.find(device, layout, donated, sizes)
            found = self.executables[key] = Ready(made, form, len(donated) == count)
        found.held = held
        self.last = found
        return found

    def _bind(self, results: list[Array]) -> None:
        """Parameters take their new values; what was updated in place has it already."""
        for (parameter, *_), value in zip(self.updates, results[len(self.wanted) :], strict=True):
            old = parameter.node.value
            if old is not value:
                fresh = input_node(parameter.type, parameter.name)
                fresh.value = engine.relaid(value, old)
                parameter.bind(fresh, parameter.node.needs_grad)

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
