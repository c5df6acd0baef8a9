"""Programs: a graph recorded once, with the state it reads and assigns, and their executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych import engine
from diptych.dtypes import Dim, DType, TensorType, as_dtype, bind
from diptych.engine import element_strides
from diptych.errors import FeedError, ObservedWhileRecording, StartupError
from diptych.generator import default_generator
from diptych.graph.node import Graph, Input, Node, constant_node, input_node, walk
from diptych.graph.record import author_line, recording
from diptych.tensor import Parameter, Tensor, TensorRecorder, default_panel

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


class Program(TensorRecorder):
    """Calls inside `with Program() as program:` are recorded here instead of being run.

    `startup` initialises the parameters that were made inside; `clone(for_test=True)` is the
    program without its updates.
    """

    def __init__(self, captured: bool = False) -> None:
        self.captured = captured
        self.feeds: dict[str, Feed] = {}
        self.state: dict[int, tuple[Parameter, Node]] = {}
        self.present: dict[int, Node] = {}  # the value of a parameter at this point
        self.live: list[tuple[Node, Callable[[], Any]]] = []
        self.random_calls: list[Node] = []
        self.names: dict[str, Node] = {}
        self.recorded: list[Node] = []
        self.grads: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.startup = Startup()
        self.version = 0
        self._entered: list[Any] = []

    def __enter__(self) -> Program:
        context = recording(self)
        context.__enter__()
        self._entered.append(context)
        return self

    def __exit__(self, *problem: Any) -> None:
        self._entered.pop().__exit__(*problem)

    # ---- recording -------------------------------------------------------------------------

    def made(self, tensor: Tensor) -> Tensor:
        node = tensor.node
        self.version += 1
        node.label = node.label or self._unique(node.op.name)
        self.names[node.label] = node
        self.recorded.append(node)
        return tensor

    def _unique(self, stem: str) -> str:
        if stem not in self.names:
            return stem
        n = 1
        while f"{stem}_{n}" in self.names:
            n += 1
        return f"{stem}_{n}"

    def node_of(self, handle: Any) -> Node:
        if isinstance(handle, Node):
            return handle
        if isinstance(handle, Parameter):
            return self._parameter(handle)
        if handle.recorder is self:
            return handle.node  # type: ignore[no-any-return]
        if handle.recorder is default_panel():
            return constant_node(handle.recorder.observe(handle), handle.dtype, author_line())
        raise FeedError(
            "a program uses its own tensors and parameters",
            f"{handle.type} belongs to another program",
            "feed its value",
        )

    def _parameter(self, parameter: Parameter) -> Node:
        if id(parameter) not in self.state:
            node = input_node(parameter.type, parameter.name, author_line())
            node.leaf, node.needs_grad = True, parameter.node.needs_grad
            node.owner = parameter.node.owner
            self.state[id(parameter)] = (parameter, node)
            self.present[id(parameter)] = node
            if parameter.name:
                self.names.setdefault(parameter.name, node)
        return self.present[id(parameter)]

    def scalar(self, value: float, dtype: DType) -> Tensor:
        return Tensor(constant_node(value, dtype, author_line()), self)

    def array(self, value: Array) -> Tensor:
        return Tensor(constant_node(value, as_dtype(value.dtype), author_line()), self)

    def live_scalar(self, read: Callable[[], float], dtype: DType) -> Tensor:
        node = input_node(TensorType((), dtype), "", author_line())
        self.live.append((node, lambda: np.asarray(read(), dtype.numpy)))
        return Tensor(node, self)

    def random_state(self) -> Tensor:
        node = input_node(TensorType((2,), as_dtype("i64")), "", author_line())
        self.live.append((node, lambda: np.array(default_generator().take(), np.int64)))
        return Tensor(node, self)

    def observe(self, tensor: Tensor) -> Array:
        if tensor.recorder is default_panel() and not isinstance(tensor, Parameter):
            return tensor.recorder.observe(tensor)
        raise ObservedWhileRecording(
            "a value inside a program does not exist until the program runs",
            f"{tensor.type} recorded at {tensor.node.where} is looked at",
            "use where(...) instead of if, return the tensor and look at it outside, or leave "
            "the function dynamic",
        )

    def created(self, parameter: Parameter) -> None:
        """Inside an explicit program the startup gives a parameter its value."""
        if not self.captured:
            value = parameter.node.value
            assert value is not None
            parameter.node.value = None
            self.startup.initial.append((parameter, lambda: value))

    def assign(self, parameter: Parameter, value: Tensor) -> None:
        old = self._parameter(parameter)
        node = self.node_of(value)
        if isinstance(node.op, Input) or node.leaf:
            from diptych.ops.elementwise import stop_gradient

            node = stop_gradient(value).node
        node.leaf, node.needs_grad, node.owner = True, old.needs_grad, old.owner
        self.present[id(parameter)] = node
        self.version += 1

    def get_grad(self, handle: Tensor) -> Tensor | None:
        if id(handle) in self.grads:
            return self.grads[id(handle)][1]
        if handle._grad is not None and handle.recorder is not self:
            raise StartupError(
                "a gradient from outside the program would be frozen into it",
                f"{handle.type} has a gradient already",
                "call optimizer.zero_grad() before the program is recorded",
            )
        return None

    def set_grad(self, handle: Tensor, grad: Tensor | None) -> None:
        self.grads[id(handle)] = (handle, grad)

    # ---- what it is made of ----------------------------------------------------------------

    def updates(self) -> list[tuple[Parameter, Node, Node]]:
        """(parameter, its value before, its value after) where they differ."""
        return [
            (p, node, self.present[key])
            for key, (p, node) in self.state.items()
            if self.present[key] is not node
        ]

    def clone(self, for_test: bool = False) -> Program:
        """A copy that shares the parameters; for_test leaves out the updates."""
        copy = Program()
        copy.feeds, copy.state = dict(self.feeds), dict(self.state)
        copy.live, copy.names = list(self.live), dict(self.names)
        copy.recorded, copy.startup = list(self.recorded), self.startup
        copy.present = (
            {key: node for key, (_, node) in self.state.items()} if for_test else dict(self.present)
        )
        return copy

    def parameters(self) -> list[Parameter]:
        return [p for p, _ in self.state.values()]


def data(name: str, shape: Sequence[int | str | None], dtype: Any = "f32") -> Tensor:
    """A placeholder of the program being recorded; None or a name is a size known at run time."""
    from diptych.graph.record import current

    program = current()
    if not isinstance(program, Program):
        raise FeedError(
            "data makes a placeholder inside a program",
            f"{name!r} outside of one",
            "with dp.Program() as program: ...",
        )
    if name in program.feeds:
        raise FeedError("a placeholder has a name of its own", f"{name!r} twice", "rename one")
    dims = tuple(
        d if isinstance(d, int) and d >= 0 else Dim.symbol(d if isinstance(d, str) else f"N{n}")
        for n, d in enumerate(shape)
    )
    dims = tuple(Dim.symbol("N") if d == Dim.symbol("N0") else d for d in dims)
    node = input_node(TensorType(dims, as_dtype(dtype)), name, author_line())
    program.feeds[name] = Feed(name, node)
    program.names[name] = node
    return Tensor(node, program)


class Executor:
    """Runs programs: feeds in, fetches out; parameters are updated as the program says."""

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self.cache: dict[Any, Any] = {}

    def run(
        self,
        program: Program | Startup,
        feed: Mapping[str, Any] | None = None,
        fetch: Sequence[Tensor | str] = (),
    ) -> list[Array]:
        """Fetched values as numpy arrays; a fetch is a tensor of the program or a node's name."""
        if isinstance(program, Startup):
            for parameter, make in program.initial:
                _set_value(parameter, make())
            return []
        if not isinstance(program, Program):
            raise FeedError("run takes a program", f"{type(program).__name__}", "dp.Program()")
        wanted = [_fetched(program, f) for f in fetch]
        return self.run_nodes(program, feed or {}, wanted)

    def run_nodes(
        self, program: Program, feed: Mapping[str, Any], wanted: Sequence[Node]
    ) -> list[Array]:
        key = (id(program), program.version, tuple(id(n) for n in wanted))
        plan = self.cache.get(key)
        if plan is None:
            plan = self.cache[key] = Plan(program, wanted, self.device)
        return plan.run(feed)


def _set_value(parameter: Parameter, value: Array) -> None:
    node = parameter.node
    array = engine.empty(value.shape, node.type.dtype.numpy, _axes(value))
    array[...] = value
    fresh = input_node(node.type, node.label)
    fresh.value = array
    parameter.bind(fresh, node.needs_grad)


def _axes(value: Array) -> tuple[int, ...] | None:
    return tuple(range(value.ndim))[::-1] if value.ndim == 2 else None


def _fetched(program: Program, item: Tensor | str | Node) -> Node:
    if isinstance(item, Node):
        return item
    if isinstance(item, str):
        if item not in program.names:
            raise FeedError(
                "a fetch by name takes the name of a node",
                repr(item),
                "one of " + ", ".join(list(program.names)[:12]),
            )
        return program.names[item]
    if isinstance(item, Tensor):
        shared = program.names.get(item.node.label) is item.node  # recorded before a clone
        return item.node if shared else program.node_of(item)
    raise FeedError("a fetch is a tensor or a name", f"{type(item).__name__}", "")


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
        for parameter, _ in self.state:
            if parameter.node.value is None:
                default_panel().observe(parameter)
        state = []
        for parameter, _ in self.state:
            if parameter.node.value is None:
                raise StartupError(
                    "a parameter has no value before the startup program ran",
                    f"{parameter.name or parameter.type}",
                    "executor.run(program.startup)",
                )
            state.append(parameter.node.value)
        inputs = values + state + [np.asarray(read()) for _, read in self.live]
        return self._call(inputs, sizes, len(values))

    def _call(self, inputs: list[Array], sizes: dict[str, int], first: int) -> list[Array]:
        import sys

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
        device = self.device or default_panel().device  # type: ignore[attr-defined]
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
        return np.ascontiguousarray(value)


def rebuilt(roots: Sequence[Node], replaced: Mapping[int, Node]) -> list[Node]:
    """The roots with some nodes, by id, replaced by others."""
    new: dict[int, Node] = dict(replaced)
    for node in walk(roots, stop=lambda n: id(n) in replaced):
        if id(node) in new:
            continue
        inputs = tuple(new[id(i)] for i in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        new[id(node)] = (
            node if same else Node(node.op, inputs, node.type, node.where, label=node.label)
        )
    return [new[id(r)] for r in roots]


def specialise(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The graph with its symbolic sizes replaced by ints."""
    if not sizes:
        return graph
    new: dict[int, Node] = {}
    for node in walk([*graph.outputs, *graph.inputs]):
        inputs = tuple(new[id(i)] for i in node.inputs)
        op = node.op
        changed = {
            name: _bound(value, sizes)
            for name, value in op.attributes().items()
            if _has_symbol(value)
        }
        if changed:
            op = type(op)(**{**op.attributes(), **changed})
        new[id(node)] = Node(op, inputs, node.type.bound(sizes), node.where, label=node.label)
    return Graph(tuple(new[id(i)] for i in graph.inputs), tuple(new[id(o)] for o in graph.outputs))


def _has_symbol(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_has_symbol(v) for v in value)
    return isinstance(value, Dim)


def _bound(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_bound(v, sizes) for v in value)
    return bind(value, sizes) if isinstance(value, Dim) else value
