"""Programs: a graph recorded once, with the state it reads and assigns."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diptych.autodiff import seen
from diptych.dtypes import Dim, DType, TensorType, as_dtype
from diptych.errors import (
    FeedError,
    FrozenValueError,
    GraphError,
    ObservedWhileRecording,
    StartupError,
)
from diptych.generator import default_generator
from diptych.graph.node import Constant, Input, Node, Operator, constant_node, input_node, walk
from diptych.graph.record import LOCAL, author_line, current
from diptych.ops.base import Composite, whole, with_dims
from diptych.ops.elementwise import stop_gradient
from diptych.runtime.holders import ALONE, holders
from diptych.size import Looked
from diptych.static.executor import Executor, Feed, Startup, Trace
from diptych.tensor import (
    Number,
    Parameter,
    PlainNumber,
    Tensor,
    TensorRecorder,
    default_panel,
)

Array = np.ndarray[Any, Any]


class Program(TensorRecorder):
    """Calls inside `with Program() as program:` are recorded here instead of being run.

    `startup` initialises the parameters that were made inside; `clone(for_test=True)` is the
    program without its updates.
    """

    is_program = True

    def __init__(self, captured: bool = False) -> None:
        self.captured, self.keeps_history = captured, not captured
        self.feeds: dict[str, Feed] = {}
        self.state: dict[int, tuple[Parameter, Node]] = {}
        self.present: dict[int, Node] = {}  # the value of a parameter at this point
        self.live: list[tuple[Node, Callable[[], Any]]] = []
        self.random_calls: list[Node] = []  # each takes a stream in every run, used or not
        self.names: dict[str, Node] = {}
        self.recorded: list[Node] = []
        self.grads: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.startup = Startup()
        # Whose gradient a capture asked for, and the node of that gradient where there was one.
        self.had_grad: list[tuple[Tensor, Node | None]] = []
        self.handles: list[weakref.ref[Tensor]] = []  # every tensor of a capture
        self.arrays: list[Array] = []  # of numpy, that became constants of a capture
        self.outputs: list[Tensor] = []  # what a loaded program computes
        self.parent: Program | None = None
        self.moved: dict[int, Node] = {}  # nodes of the parent that were replaced
        self.looked: Looked | None = None  # how the author of a capture meets its symbols
        self.version = 0
        self._executor = Executor()
        self._entered: list[int] = []  # how many recorders there were

    def __enter__(self) -> Program:
        # Not `recording`: an interrupted `with` would leave its generator to end at any time.
        self._entered.append(len(LOCAL.stack))
        LOCAL.stack.append(self)
        return self

    def __exit__(self, *problem: Any) -> None:
        del LOCAL.stack[self._entered.pop() :]

    # ---- recording -------------------------------------------------------------------------

    def record(self, op: Operator, operands: Sequence[Any]) -> Tensor:
        if self.looked is not None:
            op = with_dims(op)
        return super().record(op, operands)

    def form_of(self, operands: Sequence[Any]) -> type[Tensor]:
        numbers = all([isinstance(o, Number | PlainNumber) for o in operands])
        return Number if numbers and any([o.weak for o in operands]) else Tensor

    def made(self, tensor: Tensor) -> Tensor:
        node = tensor.node
        self.version += 1
        if self.captured:
            self.handles.append(weakref.ref(tensor))
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
            node = constant_node(handle.recorder.observe(handle), handle.dtype, author_line())
            node.needs_grad = self.grad_enabled and handle.requires_grad
            return node
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
        return PlainNumber(constant_node(value, dtype, author_line()), self)

    def array(self, value: Array) -> Tensor:
        if self.captured:
            self.arrays.append(value)
        return Tensor(constant_node(value, as_dtype(value.dtype), author_line()), self)

    def live_scalar(self, read: Callable[[], float], dtype: DType) -> Tensor:
        node = input_node(TensorType((), dtype), "", author_line())
        self.live.append((node, _number(read, dtype)))
        return Tensor(node, self)

    def random_state(self) -> Tensor:
        node = input_node(TensorType((2,), as_dtype("i64")), "", author_line())
        self.live.append((node, lambda: np.array(default_generator().take(), np.int64)))
        self.random_calls.append(node)
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
        elif parameter.trainable:
            raise FrozenValueError(
                "a parameter made inside a compiled function would be made once",
                f"{parameter.type}",
                "make the model outside, and compile the step",
            )

    def assign(self, parameter: Parameter, value: Tensor) -> None:
        old = self._parameter(parameter)
        node = self.node_of(value)
        if isinstance(node.op, Input) or node.leaf:
            node = stop_gradient(value).node
        node.leaf, node.needs_grad, node.owner = True, old.needs_grad, old.owner
        self.present[id(parameter)] = node
        self.version += 1

    def backward(self, tensor: Tensor, grad: Any, retain_graph: bool) -> None:
        """Add gradients to the parameters. A value from outside cannot receive one: refuse it."""
        for node in seen(self.node_of(tensor)):
            given = isinstance(node.op, Constant) or (self.captured and isinstance(node.op, Input))
            if given and node.needs_grad and not node.leaf:
                raise GraphError(
                    "backward in a program gives gradients to the parameters that it reads, alone",
                    f"{node.type} has requires_grad, and is an argument or a value from outside",
                    "dp.partials(loss, [x]) gives its gradient, .detach() leaves it out; read a "
                    "Parameter through its layer or a variable",
                )
        super().backward(tensor, grad, retain_graph)

    def get_grad(self, handle: Tensor) -> Tensor | None:
        if id(handle) in self.grads:
            return self.grads[id(handle)][1]
        there = handle.recorder is not self and bool(default_panel().with_gradients([handle]))
        if there and not self.captured:
            raise StartupError(
                "a gradient from outside a program is not part of it",
                f"{handle.type} has a gradient already",
                "call optimizer.zero_grad() before the program is recorded",
            )
        node = input_node(handle.type, "", author_line()) if there else None
        if self.captured:
            self.had_grad.append((handle, node))
        if node is None:
            return None
        self.live.append((node, lambda: _present_grad(handle)))
        grad = Tensor(node, self)
        self.grads[id(handle)] = (handle, grad)
        return grad

    def set_grad(self, handle: Tensor, grad: Tensor | None) -> None:
        if id(handle) not in self.grads:
            self.get_grad(handle)
        self.grads[id(handle)] = (handle, grad)

    def shared_arrays(self) -> list[Array]:
        """The arrays among the constants of a capture that somebody else has, and may change."""
        arrays, self.arrays = self.arrays, []
        return [a for a, n in zip(arrays, holders(arrays)) if n > ALONE or a.base is not None]

    # ---- what it is made of ----------------------------------------------------------------

    def updates(self) -> list[tuple[Parameter, Node, Node]]:
        """(parameter, its value before, its value after) where they differ."""
        return [
            (p, node, self.present[key])
            for key, (p, node) in self.state.items()
            if self.present[key] is not node
        ]

    def clone(self, for_test: bool = False) -> Program:
        """A copy that shares the parameters; for_test leaves out updates and dropout."""
        copy = Program()
        copy.parent, copy.moved = self, dict(self.moved)
        copy.feeds, copy.state = dict(self.feeds), dict(self.state)
        copy.live, copy.names = list(self.live), dict(self.names)
        copy.recorded, copy.startup = list(self.recorded), self.startup
        copy.random_calls = list(self.random_calls)
        copy.present = dict(self.present)
        if for_test:
            copy.present = {key: node for key, (_, node) in self.state.items()}
            moved = without_dropout(self.recorded)
            copy.moved.update(moved)
            copy.names = {name: moved.get(id(n), n) for name, n in self.names.items()}
            copy.recorded = [moved.get(id(n), n) for n in self.recorded]
            left = {id(n) for n in walk(copy.recorded)}
            copy.random_calls = [n for n in self.random_calls if id(n) in left]
        return copy

    def parameters(self) -> list[Parameter]:
        return [p for p, _ in self.state.values()]

    # ---- running ---------------------------------------------------------------------------

    def run(
        self,
        feed: Mapping[str, Any] | None = None,
        fetch: Sequence[Tensor | str] | None = None,
        watch: Callable[[str, Any, Array], None] | None = None,
    ) -> list[Array]:
        """Run with an executor of the program's own; `fetch` is by default its `outputs`."""
        return self._executor.run(self, feed, self.outputs if fetch is None else fetch, watch)

    def trace(self, feed: Mapping[str, Any] | None = None) -> Trace:
        """Run, and show every value beside the line that made it."""
        return self._executor.trace(self, feed)

    def target(self, item: Tensor | str | Node) -> Node:
        """The node that a fetch asks for."""
        if isinstance(item, str):
            if item not in self.names:
                raise FeedError(
                    "a fetch by name takes the name of a node",
                    repr(item),
                    "one of " + ", ".join(list(self.names)[:12]),
                )
            return self.names[item]
        if isinstance(item, Tensor | Node):
            node = self.node_of(item) if self._mine(item) else item.node  # type: ignore[union-attr]
            return self.moved.get(id(node), node)
        raise FeedError(
            "a fetch is a tensor or a name", f"{type(item).__name__}", "fetch=[loss, 'linear']"
        )

    def _mine(self, item: Tensor | Node) -> bool:
        """Whether `node_of` answers for a handle: not one recorded before this was cloned."""
        program = self.parent
        while program is not None:
            if isinstance(item, Tensor) and item.recorder is program:
                return False
            program = program.parent
        return True


def _number(read: Callable[[], float], dtype: DType) -> Callable[[], Array]:
    """Reads a number as an array: that of the last run, where it is the same number."""
    last: tuple[Any, Any] = (None, None)  # replaced whole, for other threads read it too

    def array() -> Array:
        nonlocal last
        value, known = read(), last
        if value != known[0] or not value:  # zeros have signs
            known = last = (value, np.array(value, dtype.numpy))
        return known[1]  # type: ignore[no-any-return]

    return array


def data(name: str, shape: Sequence[int | str | None], dtype: Any = "f32") -> Tensor:
    """A placeholder of the program being recorded; None or a name is a size known at run time."""
    program = current()
    if not isinstance(program, Program):
        raise FeedError(
            "data makes a placeholder inside a program",
            f"{name!r} outside of one",
            "with dp.Program() as program: ...",
        )
    if name in program.feeds:
        raise FeedError("a placeholder has a name of its own", f"{name!r} twice", "rename one")
    if not isinstance(name, str):
        raise FeedError(
            "a placeholder is called by a text", repr(name), "data('image', [None, 784])"
        )
    listed = shape if isinstance(shape, list | tuple) else [shape]
    dims = tuple(_dimension(d, n) for n, d in enumerate(listed))
    node = input_node(TensorType(dims, as_dtype(dtype)), name, author_line())
    node.needs_grad = node.type.dtype.is_float  # partials may be asked of any node
    program.feeds[name] = Feed(name, node)
    program.names[name] = node
    return Tensor(node, program)


def _dimension(size: Any, axis: int) -> Any:
    """A size, or a symbol where it is None, -1 or a name."""
    if isinstance(size, str):
        return Dim.symbol(size)
    number = None if size is None else whole(size, "a size", -1)
    if number in (None, -1):
        return Dim.symbol(f"N{axis}" if axis else "N")
    return number


def _present_grad(handle: Tensor) -> Array:
    panel = default_panel()
    grad = panel.get_grad(handle)
    assert grad is not None
    return panel.observe(grad)


def without_dropout(nodes: Sequence[Node]) -> dict[int, Node]:
    """Nodes, by id, as they are where dropout hands its input on."""
    new: dict[int, Node] = {}
    for node in walk(nodes):
        inputs = tuple(new.get(id(i), i) for i in node.inputs)
        if isinstance(node.op, Composite) and node.op.name == "dropout_with":
            new[id(node)] = inputs[0]
        elif any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
            new[id(node)] = Node(node.op, inputs, node.type, node.where, label=node.label)
    return new
