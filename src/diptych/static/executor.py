"""Running programs: feeds in, fetches out, parameters updated as the program says."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from diptych import engine, tiers
from diptych.dtypes import Dim, as_dtype
from diptych.errors import FeedError
from diptych.graph.node import Graph, Node, Where, input_node, walk
from diptych.runtime.checks import Checks
from diptych.runtime.holders import SOLE, holders
from diptych.runtime.memory import element_strides, relaid, turned
from diptych.runtime.threads import pool_address
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
        self.cache: WeakKeyDictionary[Program, dict[Any, Any]] = WeakKeyDictionary()
        self.steady: Steady | None = None  # of what was run last

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
        if self.steady is not None and watch is None:
            values = self.steady(program, feed, fetch)
            if values is not None:
                return values
        if isinstance(program, Startup):
            program.run()
            return []
        if not hasattr(program, "target"):
            raise FeedError("run takes a program", f"{type(program).__name__}", "dp.Program()")
        if isinstance(fetch, str | Tensor) or not isinstance(feed or {}, Mapping):
            raise FeedError(
                "run takes a dict of arrays by name, and a list of what to fetch",
                f"feed is a {type(feed).__name__}, fetch a {type(fetch).__name__}",
                "executor.run(program, feed={'x': array}, fetch=[loss])",
            )
        if watch is None:
            return self._run_plan(program, {} if feed is None else feed, fetch)
        wanted = [program.target(f) for f in fetch]
        seen = _visible(program, wanted)
        values = self.run_nodes(program, feed or {}, [*wanted, *seen])
        for node, value in zip(seen, values[len(wanted) :], strict=True):
            watch(node.label or node.op.name, node.where, value)
        return values[: len(wanted)]

    def _run_plan(
        self, program: Program, feed: Mapping[str, Any], fetch: Sequence[Tensor | str]
    ) -> list[Array]:
        """By the plan for a choice of fetches, which is found by their identity."""
        plans = self.cache.setdefault(program, {})
        key = (program.version, "fetch", *map(id, fetch))
        found = plans.get(key)
        if found is None:  # the fetches are kept, so that nothing else gets their ids
            plan = self._plan_of_nodes(program, [program.target(f) for f in fetch])
            found = plans[key] = (plan, tuple(fetch))
        plan = found[0]
        if plan.steady is not None and plan.steady is not self.steady:
            self.steady = plan.steady
            values = self.steady(program, feed, fetch)
            if values is not None:
                return values
        values = plan.run(feed)
        if plan.streak == STREAK and type(feed) is dict and type(fetch) is list:
            self.steady = plan.steady = plan.as_steady_run(program, feed, fetch)
        return values

    def trace(self, program: Program, feed: Mapping[str, Any] | None = None) -> Trace:
        """Run, and show every value beside the line that made it."""
        rows: list[tuple[str, Where, Array]] = []
        self.run(program, feed, [], lambda *row: rows.append(row))
        return Trace(rows)

    def run_nodes(
        self, program: Program, feed: Mapping[str, Any], wanted: Sequence[Node]
    ) -> list[Array]:
        return self._plan_of_nodes(program, wanted).run(feed)

    def _plan_of_nodes(self, program: Program, wanted: Sequence[Node]) -> Plan:
        plans = self.cache.setdefault(program, {})
        key = (program.version, *map(id, wanted))
        found = plans.get(key)
        if found is None:
            found = plans[key] = (Plan(program, wanted, self.device), ())
        return found[0]


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


STREAK = 3  # equal calls after which the next is expected to be like them


class Ready:
    """An executable of a plan, and what it fits: strides of feeds and state, sizes, device, and
    how many hold what is updated."""

    def __init__(
        self,
        executable: Any,
        strides: list[Any],
        sizes: dict[str, int],
        device: str,
        in_place: bool,
    ) -> None:
        self.executable, self.strides, self.sizes = executable, strides, sizes
        self.device, self.in_place = device, in_place
        self.held: list[int] = []


Steady = Callable[..., list[Array] | None]


def steady(
    checks: Checks, executable: engine.Executable, live: list[Callable[[], Any]], wanted: int
) -> Steady | None:
    """The call of a plan that is like the one before it: native code sees that it is, reads what is
    read anew at every run, and makes the call (see `runtime.steady`). None where it cannot."""
    made, panel = executable.steady(checks, live, wanted), default_panel()
    if made is None:
        return None
    call, frame = made

    def run(*args: Any) -> list[Array] | None:
        """What was fetched; None where anything is different."""
        with panel.lock:  # where no Ctrl-C comes between taking it and what gives it back
            panel.finish()
            results = call(pool_address(), *args)
        if type(results) is int:
            executable.raise_failed(results, frame)
        engine.STATISTICS.calls += 1
        return results  # type: ignore[return-value]

    return run


class Plan:
    """One choice of fetches of a program."""

    def __init__(self, program: Program, wanted: Sequence[Node], device: str | None) -> None:
        self.program, self.wanted, self.device = program, list(wanted), device
        self.updates = program.updates()
        roots = [*wanted, *[new for _, _, new in self.updates]]
        used = {id(n) for n in walk([*roots, *program.random_calls])}
        self.feeds = [f for f in program.feeds.values() if id(f.node) in used]
        self.state = [p for p, n in program.state.values() if id(n) in used]
        self.live = [read for n, read in program.live if id(n) in used]
        inputs = [f.node for f in self.feeds]
        inputs += [n for _, n in program.state.values() if id(n) in used]
        inputs += [n for n, _ in program.live if id(n) in used]
        self.graph = Graph(tuple(inputs), tuple(roots))
        own = {id(p): len(self.feeds) + n for n, p in enumerate(self.state)}
        self.slots = [own.get(id(p)) for p, *_ in self.updates]  # the input that an update replaces
        self.family = engine.Family(self.graph, tiers.compile)
        self.assigned = [p for p, *_ in self.updates]
        self.names = [f.name for f in self.feeds]
        # Of the last feed that was checked: what is like it needs no check.
        self.shapes: list[Any] = []
        self.dtypes: list[Any] = []
        self.sizes: dict[str, int] = {}
        self.executables: dict[Any, Ready] = {}
        self.last: Ready | None = None
        self.streak = 0  # calls that were like the one before them
        self.steady: Steady | None = None

    def run(self, feed: Mapping[str, Any]) -> list[Array]:
        """Fetched values for values by the names of placeholders."""
        if len(feed) == len(self.names):
            given: list[Any] = [feed.get(name) for name in self.names]
            arrays = all([type(a) is np.ndarray for a in given])
            same = arrays and [a.shape for a in given] == self.shapes
            if same and all(map(is_, [a.dtype for a in given], self.dtypes)):
                return self.call(given, self.sizes)
        unknown = set(feed) - set(self.program.feeds)
        if unknown:
            raise FeedError(
                "a feed names a placeholder of the program",
                f"unknown {sorted(map(str, unknown))}",
                f"the program has {sorted(self.program.feeds)}",
            )
        values, sizes = self._feed_values(feed)
        if all(type(feed[name]) is np.ndarray for name in self.names):
            self.shapes, self.dtypes = [v.shape for v in values], [v.dtype for v in values]
            self.sizes = sizes
        return self.call(values, sizes)

    def call(self, values: list[Array], sizes: dict[str, int]) -> list[Array]:
        """Fetched values for arrays in the order of the feeds, in C order.

        Writers of parameters take turns, and readers wait for them.
        """
        panel = default_panel()
        with panel.lock:
            panel.finish()
            held, state = self._held()
            inputs: list[Any] = values + state
            del state
            try:
                strides = [v.strides for v in inputs]
            except AttributeError:  # a parameter whose value waits has none yet
                for parameter in self.state:
                    panel.observe(parameter)
                del inputs
                return self.call(values, sizes)
            if self.live:
                live = [read() for read in self.live]
                inputs += live
                strides += [v.strides for v in live]
            ready = self.last
            if (
                ready is None
                or ready.held != held
                or ready.strides != strides
                or ready.sizes != sizes
                or ready.device != (self.device or panel.device)
            ):
                first, last = len(values), len(values) + len(self.state)
                inputs[:first] = [np.asarray(v, order="C") for v in values]
                if self._turn(sizes):  # what was turned is read anew
                    del inputs[first:last]
                    held, state = self._held()
                    inputs[first:first] = state
                    del state
                ready = self._ready(inputs, held, sizes, self.device or panel.device)
                self.streak = 0
            self.streak += type(ready.executable) is engine.Executable  # whose code is the last one
            results: list[Array] = ready.executable.run(inputs)
            if not ready.in_place:
                self._bind(results)
            del inputs, results[len(self.wanted) :]
        return results

    def as_steady_run(
        self, program: Program, feed: dict[str, Any], fetch: list[Tensor | str]
    ) -> Steady | None:
        """How `Executor.run` makes a call like this one: of a program, a dict and a list."""
        if feed.keys() != set(self.names) or not all(type(a) is np.ndarray for a in feed.values()):
            return None
        checks = Checks()
        checks.same_argument(program)
        checks.dict_argument({name: feed[name] for name in self.names})
        checks.list_argument(fetch)
        checks.attribute(program, "version", program.version)
        return self.as_steady(checks, [feed[name] for name in self.names])

    def as_steady(self, checks: Checks, given: Sequence[Array]) -> Steady | None:
        """How a call is made that finds everything as the last one did and as the checks say, which
        find inputs like those given; None where Python has to look."""
        panel, ready = default_panel(), self.last
        with panel.lock:
            if ready is None or not ready.in_place:
                return None
            own = all([type(p).node is Parameter.node for p in self.state])  # type: ignore[misc]
            if not own or any([p.node.value is None for p in self.state]):
                return None
            strides = [a.strides for a in given]
            strides += [p.node.value.strides for p in self.state]  # type: ignore[union-attr]
            if strides != ready.strides[: len(strides)]:
                return None
            for slot, parameter in enumerate(self.state, len(self.feeds)):
                checks.value(parameter, slot in self.slots)
            if self.device is None:
                checks.attribute(panel, "device", ready.device)
            return steady(checks, ready.executable, self.live, len(self.wanted))

    def _held(self) -> tuple[list[int], list[Any]]:
        """How many hold the nodes that are updated and the values of the state, and the state."""
        state: list[Any] = [p.node.value for p in self.state]
        held = holders([p.node for p in self.assigned])
        if held:
            held += holders(state)
        return held, state

    def _turn(self, sizes: dict[str, int]) -> bool:
        """Turn weights round that this plan only reads, where they lie badly for it."""
        some, first = False, len(self.feeds)
        for slot, axis in self.family.wanted(sizes).items():
            if not first <= slot < first + len(self.state) or slot in self.slots:
                continue
            node = self.state[slot - first].node
            assert node.value is not None
            new = turned(node.value, axis)
            if new is not node.value:
                node.value, some = new, True
                default_panel().changed(node)  # whoever has read it has read another layout
        return some

    def _ready(
        self, inputs: list[Array], held: list[int], sizes: dict[str, int], device: str
    ) -> Ready:
        """The executable for this layout of feeds and state. What nobody else holds is updated in
        place: a node that others hold is the past of a value that may still be asked for, and a
        held array is somebody's view."""
        count, donated = len(self.updates), {}
        for n, slot in enumerate(self.slots):
            if slot is not None and held[n] == held[count + slot - len(self.feeds)] == SOLE:
                donated[len(self.wanted) + n] = slot
        strides = [v.strides for v in inputs]
        key = (tuple(strides), tuple(sorted(sizes.items())), device, tuple(donated.items()))
        found = self.executables.get(key)
        if found is None:
            layout = [element_strides(a) for a in inputs]
            made = self.family.find(device, layout, donated, sizes)
            found = Ready(made, strides, dict(sizes), device, len(donated) == count)
            self.executables[key] = found
        found.held = held
        self.last = found
        return found

    def _bind(self, results: list[Array]) -> None:
        """Parameters take their new values; what was updated in place has it already."""
        for (parameter, *_), value in zip(self.updates, results[len(self.wanted) :], strict=True):
            old = parameter.node.value
            if old is not value:
                fresh = input_node(parameter.type, parameter.name)
                fresh.value = relaid(value, old)
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
        return value
