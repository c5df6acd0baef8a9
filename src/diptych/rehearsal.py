"""An optimizer's step, recorded once by itself: what it reads, and each new value as one operator.

A training loop makes the same step over and over, and a step of Adam is fifty calls for every
weight and bias. So the dynamic panel has the optimizer record it once, on stand-ins for what it
reads: parameters and state, gradients, Python numbers. From then on it records a step as one call
on its trail, with one node for each new value (`Part`), which the compiler takes apart when it sees
it for the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_, itemgetter
from typing import Any

import numpy as np

from diptych.autodiff import Part
from diptych.dtypes import DType, TensorType, as_dtype
from diptych.errors import GraphError
from diptych.graph.node import Graph, Input, Node, input_node, walk
from diptych.graph.record import LOCAL
from diptych.graph.rewrite import rebuilt
from diptych.ops.elementwise import stop_gradient
from diptych.tensor import Parameter, Tensor, TensorRecorder

Array = np.ndarray[Any, Any]
Read = Callable[[], float]
INPUT = Input()


class Rehearsal(TensorRecorder):
    """Records a step on stand-ins."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.state: dict[int, tuple[Parameter, Node]] = {}
        self.present: dict[int, Node] = {}  # the value of a parameter at this point
        self.grads: dict[int, Tensor] = {}
        self.numbers: dict[Any, tuple[Array, Node]] = {}
        self.live: list[tuple[Read, Node]] = []

    def node_of(self, handle: Any) -> Node:
        if isinstance(handle, Node):
            return handle
        if isinstance(handle, Parameter):
            known = self.present.get(id(handle))
            if known is None:
                known = self.present[id(handle)] = input_node(handle.node.type)
                self.state[id(handle)] = (handle, known)
            return known
        if handle.recorder is not self:
            raise GraphError(
                "a step of an optimizer reads parameters, gradients and numbers",
                f"a tensor {handle.type} made before    ({handle.node.where})",
                "keep it in a dp.Parameter",
            )
        return handle.node  # type: ignore[no-any-return]

    def observe(self, tensor: Tensor) -> Array:
        raise GraphError(
            "a step of an optimizer is recorded once and does not look at values",
            f"{tensor.type} made at {tensor.node.where}",
            "use where(...) instead of if",
        )

    def scalar(self, value: float, dtype: DType) -> Tensor:
        return self.array(np.array(value, dtype.numpy))

    def array(self, value: Array) -> Tensor:
        """A constant; equal ones are one."""
        type = TensorType(value.shape, as_dtype(value.dtype))
        key = (type, value.tobytes())
        if key not in self.numbers:
            self.numbers[key] = (value, input_node(type))
        return Tensor(self.numbers[key][1], self)

    def live_scalar(self, read: Read, dtype: DType) -> Tensor:
        node = input_node(TensorType((), dtype))
        self.live.append((read, node))
        return Tensor(node, self)

    def random_state(self) -> Tensor:
        raise GraphError(
            "a step of an optimizer draws no random numbers", "it did", "draw before the step"
        )

    def assign(self, parameter: Parameter, value: Tensor) -> None:
        self.node_of(parameter)
        node = self.node_of(value)
        if isinstance(node.op, Input) or node.leaf:  # somebody else's value: copy it
            node = stop_gradient(value).node
        node.leaf = True
        self.present[id(parameter)] = node

    def get_grad(self, handle: Tensor) -> Tensor | None:
        if id(handle) not in self.grads:
            self.grads[id(handle)] = Tensor(input_node(handle.type), self)
        return self.grads[id(handle)]

    def set_grad(self, handle: Tensor, grad: Tensor | None) -> None:
        raise GraphError("a step leaves gradients as they are", "one was set", "set it before")


class Step:
    """A step as it was rehearsed. What it reads has an order: state (parameters among it),
    gradients, live numbers, constants. `changed` are the places of what it assigns."""

    def __init__(
        self, optimizer: Any, parameters: list[Parameter], known: Structures, lock: Any
    ) -> None:
        self.optimizer, self.settings = optimizer, optimizer.settings()
        optimizer.make_slots()
        self.parameters, self.slots = parameters, optimizer.state()
        made = Rehearsal(lock)
        for parameter in parameters:  # they are the first of the state
            made.node_of(parameter)
        stack, depth = LOCAL.stack, len(LOCAL.stack)
        try:  # not `with recording`, which Ctrl-C may leave late: this is the author's thread
            stack.append(made)
            optimizer.record_step(made, parameters)
        finally:
            del stack[depth:]
        pairs = list(made.state.values())
        self.state = [p for p, _ in pairs]
        self.live = [(read, n.type.dtype) for read, n in made.live]
        self.latest: list[tuple[Any, Any]] = [(None, None)] * len(self.live)  # numbers, their nodes
        self.constants = [leaf(value, n.type) for value, n in made.numbers.values()]
        self.inputs = [n for _, n in pairs]
        self.inputs += [made.grads[id(p)].node for p in parameters]
        self.inputs += [n for _, n in made.live] + [n for _, n in made.numbers.values()]
        self.changed = [n for n, (p, old) in enumerate(pairs) if made.present[id(p)] is not old]
        self.results = [made.present[id(self.state[n])] for n in self.changed]
        self.assigned = [self.state[n] for n in self.changed]
        self.structure = known.of(self)

    def numbers(self) -> list[Node]:
        """Live numbers as they are now and constants. What is the same number as at the last step
        is the same node."""
        for n, (read, dtype) in enumerate(self.live):
            value = read()
            if value != self.latest[n][0] or not value:  # zeros have signs
                node = leaf(np.array(value, dtype.numpy), TensorType((), dtype))
                self.latest[n] = value, node  # at once: Ctrl-C comes before or after
        return [*[node for _, node in self.latest], *self.constants]

    def fits(self, optimizer: Any, parameters: list[Parameter]) -> bool:
        """Whether the step is that of an optimizer as it is now."""
        state = optimizer.state()
        return (
            self.optimizer is optimizer
            and self.settings == optimizer.settings()
            and len(parameters) == len(self.parameters)
            and all(map(is_, parameters, self.parameters))
            and len(state) == len(self.slots)
            and all(map(is_, state, self.slots))
        )


def leaf(value: Array, type: TensorType) -> Node:
    """A node with a value."""
    node = Node(INPUT, (), type)
    node.value = value
    return node


class Structure:
    """New values of a step: for each its place in the state, its operator, and what takes from all
    that the step reads what this does. Steps that differ in numbers alone have the same structure.
    """

    def __init__(self, step: Step) -> None:
        self.updates = [
            (n, *_part(result, step.inputs)) for n, result in zip(step.changed, step.results)
        ]
        self.changed = step.changed
        self.samples = [Node(op, (), step.inputs[n].type) for n, op, _ in self.updates]
        for sample in self.samples:
            sample.leaf = True


class Structures:
    """Structures of steps, one object for equal ones."""

    def __init__(self) -> None:
        self.known: dict[Any, Structure] = {}

    def of(self, step: Step) -> Structure:
        number = {id(n): k for k, n in enumerate(step.inputs)}
        parts: list[Any] = [n.type for n in step.inputs]
        for node in walk(step.results):
            if id(node) not in number:
                number[id(node)] = len(parts)
                parts.append((node.op, node.type, *[number[id(i)] for i in node.inputs]))
        key = (*parts, tuple(step.changed), tuple([number[id(r)] for r in step.results]))
        found = self.known.get(key)
        return self.known.setdefault(key, Structure(step)) if found is None else found


def _part(result: Node, inputs: list[Node]) -> tuple[Part, Callable[[Sequence[Any]], Any]]:
    read = {id(n) for n in walk([result])}
    places = list({id(n): k for k, n in enumerate(inputs) if id(n) in read}.values())
    new = {id(inputs[k]): input_node(inputs[k].type) for k in places}
    (out,) = rebuilt([result], new)
    part = Part(Graph(tuple(new.values()), (out,)), "update")
    if len(places) > 1:
        return part, itemgetter(*places)
    return part, lambda given: tuple([given[k] for k in places])
