"""The dynamic panel: calls are recorded, and run as one native call when a value is looked at."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from diptych import config, engine
from diptych.dtypes import DType, TensorType, as_dtype
from diptych.engine import element_strides
from diptych.errors import StartupError
from diptych.generator import default_generator
from diptych.graph.node import Graph, Input, Node, input_node, walk
from diptych.graph.record import author_line, set_default
from diptych.tensor import Parameter, Tensor, TensorRecorder, set_default_panel

Array = np.ndarray[Any, Any]
LIMIT = 5000  # nodes that may wait before a piece is run without a look
_INPUT = Input()


class DynamicRecorder(TensorRecorder):
    """One per process; a lock keeps threads from recording into each other's piece."""

    def __init__(self) -> None:
        self.waiting: list[weakref.ref[Tensor]] = []
        self.replaced: list[tuple[Node, Node]] = []  # (new value of a parameter, the old one)
        self.at_boundary = False
        self.cache: dict[Any, Any] = {}
        self.device = "cpu"
        self.lock = threading.RLock()

    # ---- recording -------------------------------------------------------------------------

    def made(self, tensor: Tensor) -> Tensor:
        with self.lock:
            if self.at_boundary:
                self.at_boundary = False
                self.run()
            self.waiting.append(weakref.ref(tensor))
            if config_eager() or len(self.waiting) > LIMIT:
                self.run()
        return tensor

    def node_of(self, handle: Any) -> Node:
        if isinstance(handle, Tensor):
            if handle.node.value is None and handle.recorder is not self:
                raise StartupError(
                    "a tensor of a static program has no value outside of it",
                    f"{handle.type} made at {handle.node.where}",
                    "fetch it: executor.run(program, feed={...}, fetch=[...])",
                )
            if handle.node.value is None and isinstance(handle.node.op, Input):
                raise StartupError(
                    "a parameter has no value before the startup program ran",
                    f"{getattr(handle, 'name', '') or handle.type}",
                    "executor.run(program.startup)",
                )
            return handle.node
        if isinstance(handle, Node):
            return handle
        raise TypeError(f"not a tensor: {handle!r}")

    def _leaf(self, value: Array) -> Tensor:
        node = input_node(TensorType(value.shape, as_dtype(value.dtype)), "", author_line())
        node.value = value
        return Tensor(node, self)

    def scalar(self, value: float, dtype: DType) -> Tensor:
        return self._leaf(np.asarray(value, dtype.numpy))

    def live_scalar(self, read: Callable[[], float], dtype: DType) -> Tensor:
        return self.scalar(read(), dtype)

    def array(self, value: Array) -> Tensor:
        dtype = as_dtype(value.dtype)
        own = engine.empty(value.shape, dtype.numpy)
        own[...] = value
        return self._leaf(own)

    def random_state(self) -> Tensor:
        return self._leaf(np.array(default_generator().take(), np.int64))

    def assign(self, parameter: Parameter, value: Tensor) -> None:
        with self.lock:
            trainable = parameter.node.needs_grad
            old, node = parameter.node, value.node
            if node.value is not None or node.leaf:  # somebody else's value: copy it
                from diptych.ops.elementwise import stop_gradient

                node = stop_gradient(value).node
            parameter.bind(node, trainable)
            self.replaced.append((node, old))
            self.waiting.append(weakref.ref(parameter))

    def get_grad(self, handle: Tensor) -> Tensor | None:
        return handle._grad

    def set_grad(self, handle: Tensor, grad: Tensor | None) -> None:
        handle._grad = grad

    def boundary(self) -> None:
        self.at_boundary = True

    # ---- running ---------------------------------------------------------------------------

    def observe(self, tensor: Tensor) -> Array:
        if tensor.node.value is None:
            self.node_of(tensor)
            with self.lock:
                self.at_boundary = False
                self.run()
        assert tensor.node.value is not None
        return tensor.node.value

    def run(self) -> None:
        """Run what is waiting; every handle that is alive becomes an output."""
        outputs = self._outputs()
        replaced, self.replaced, self.waiting = self.replaced, [], []
        if not outputs:
            return
        try:
            self._run(outputs, replaced)
        except BaseException:
            self._restore(replaced)
            raise

    def _outputs(self) -> list[Node]:
        found: dict[int, Node] = {}
        for reference in self.waiting:
            tensor = reference()
            if tensor is not None and tensor.node.value is None:
                found[id(tensor.node)] = tensor.node
        roots = list(found.values())
        history = [n for n in roots if n.needs_grad and not n.leaf]
        if history:  # what a later backward reads stays
            for node in walk(history, stop=lambda n: n.value is not None or not n.needs_grad):
                if node.value is None and node.needs_grad:
                    found[id(node)] = node
        return list(found.values())

    def _run(self, outputs: list[Node], replaced: list[tuple[Node, Node]]) -> None:
        order = walk(outputs, stop=lambda n: n.value is not None)
        number: dict[int, int] = {}
        leaves: list[Node] = []
        key: list[Any] = []
        for n, node in enumerate(order):
            number[id(node)] = n
            if node.value is not None:
                leaves.append(node)
                key.append((node.type, element_strides(node.value)))
            else:
                key.append((node.op, node.type, *[number[id(i)] for i in node.inputs]))
        donated = self._donated(outputs, leaves, replaced)
        full = (
            tuple(key),
            tuple(number[id(o)] for o in outputs),
            tuple(donated.items()),
            self.device,
        )
        found = self.cache.get(full)
        if found is None:
            found = self.cache[full] = self._compile(order, leaves, outputs, donated)
        results = found.run([leaf.value for leaf in leaves])
        for node, value in zip(outputs, results, strict=True):
            node.value = value
            if not node.needs_grad or node.leaf:  # nobody differentiates through it any more
                node.op, node.inputs = _INPUT, ()
        for output in donated:
            old = leaves[donated[output]]
            old.value = None

    def _donated(
        self, outputs: list[Node], leaves: list[Node], replaced: list[tuple[Node, Node]]
    ) -> dict[int, int]:
        """Outputs that may overwrite the old value of their parameter: nobody else holds it."""
        place = {id(leaf): n for n, leaf in enumerate(leaves)}
        out = {id(o): n for n, o in enumerate(outputs)}
        alive = {
            id(n)
            for n in walk(
                [o for o in outputs if o.needs_grad and not o.leaf],
                stop=lambda n: n.value is not None,
            )
        }
        donated = {}
        for new, old in replaced:
            if id(new) not in out or id(old) not in place or old.pinned or id(old) in alive:
                continue
            if sys.getrefcount(old.value) > 2:
                continue
            donated[out[id(new)]] = place[id(old)]
        return donated

    def _compile(
        self, order: list[Node], leaves: list[Node], outputs: list[Node], donated: dict[int, int]
    ) -> Any:
        """The piece as a graph with inputs of its own."""
        new: dict[int, Node] = {}
        for node in order:
            if node.value is not None:
                new[id(node)] = input_node(node.type, node.label, node.where)
            else:
                inputs = tuple(new[id(i)] for i in node.inputs)
                new[id(node)] = Node(node.op, inputs, node.type, node.where, label=node.label)
        graph = Graph(tuple(new[id(leaf)] for leaf in leaves), tuple(new[id(o)] for o in outputs))
        strides = {n: element_strides(leaf.value) for n, leaf in enumerate(leaves)}  # type: ignore[arg-type]
        return engine.compile(graph, self.device, strides, donated)

    def _restore(self, replaced: list[tuple[Node, Node]]) -> None:
        """After a failed run parameters have the values from before it."""
        for new, old in reversed(replaced):
            owner = None if new.owner is None else new.owner()
            if owner is not None and owner.node is new and old.value is not None:
                owner.bind(old, new.needs_grad)


def config_eager() -> bool:
    return _eager


_eager = config.eager()


def set_eager(on: bool) -> None:
    """Run every call at once (also DIPTYCH_EAGER=1)."""
    global _eager
    PANEL.run()
    _eager = on


def use_device(name: str) -> None:
    """Run the dynamic panel, and by default programs, on `cpu` or on `reference`."""
    engine.check_device(name)
    PANEL.run()
    PANEL.device = name


PANEL = DynamicRecorder()
set_default_panel(PANEL)
set_default(PANEL)
