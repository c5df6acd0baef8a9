"""The dynamic panel: calls are recorded, and run as one native call when a value is looked at."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych import config, engine, interpret
from diptych.autodiff import Recurring
from diptych.dtypes import DType, TensorType, as_dtype
from diptych.engine import element_strides
from diptych.errors import StartupError
from diptych.generator import default_generator
from diptych.graph.node import Graph, Input, Node, input_node, walk
from diptych.graph.record import author_line, set_default
from diptych.ops.elementwise import stop_gradient
from diptych.tensor import Parameter, Tensor, TensorRecorder, set_default_panel

Array = np.ndarray[Any, Any]
LIMIT = 5000  # nodes, and bytes of arrays handed over, that may wait without a look
MUCH = 1 << 25
LOOP = 100  # calls without a look after which a loop is looked for
HISTORY = 600  # the same where history is alive: a deep network is not a loop
_INPUT = Input()
_UNCHECKED: set[str] = set()  # operators without positions


class Piece:
    """What one thread has recorded and not yet run."""

    def __init__(self) -> None:
        self.grad_enabled = True
        self.at_boundary = False
        self.clear()

    def clear(self) -> None:
        self.waiting: list[weakref.ref[Tensor]] = []
        self.replaced: list[tuple[Node, Node]] = []  # (new value of a parameter, the old one)
        self.held = 0  # bytes of arrays handed over
        self.in_step = False  # gradients were taken
        self.sites: list[Any] = []  # call sites of what waits


class DynamicRecorder(TensorRecorder):
    """Every thread records a piece of its own; pieces are run one at a time, under the lock."""

    def __init__(self) -> None:
        self.cuts: dict[Any, list[list[Any]]] = {}  # by call site: the calls of a loop before it
        self.recurring = Recurring()
        self.cache: dict[Any, Any] = {}
        self.device = "cpu"
        self.lock = threading.RLock()
        self.local = threading.local()
        self.pieces: weakref.WeakSet[Piece] = weakref.WeakSet()

    @property
    def piece(self) -> Piece:
        """The piece of this thread."""
        try:
            return self.local.piece  # type: ignore[no-any-return]
        except AttributeError:
            with self.lock:
                self.local.piece = piece = Piece()
                self.pieces.add(piece)
            return piece

    @property
    def grad_enabled(self) -> bool:
        return self.piece.grad_enabled

    @grad_enabled.setter
    def grad_enabled(self, on: bool) -> None:
        self.piece.grad_enabled = on

    # ---- recording -------------------------------------------------------------------------

    def made(self, tensor: Tensor) -> Tensor:
        node = tensor.node
        if len(node.inputs) > 1 and node.op.name not in _UNCHECKED:
            self._check(node)
        with self.lock:
            piece = self.piece
            if self._is_cut(piece, tensor.node) or piece.at_boundary:
                piece.at_boundary = False
                self.run(piece)
            self._wait(piece, tensor)
            if config_eager():
                self.run(piece)
        return tensor

    def _check(self, node: Node) -> None:
        """Labels and positions that are there are checked at the call, before anything changes."""
        if node.op.positions(*[i.type for i in node.inputs]):
            values = [i.value for i in node.inputs]
            interpret.check_positions(node.op, node.inputs, values, node.where)
        else:
            _UNCHECKED.add(node.op.name)

    def _wait(self, piece: Piece, tensor: Tensor) -> None:
        tensor.node.pending = piece
        piece.waiting.append(weakref.ref(tensor))

    def _is_cut(self, piece: Piece, node: Node) -> bool:
        """Whether what waits is run before this node.

        A loop that never looks is cut where its calls repeat, from then on always at the same
        place. What follows a backward is a step, and is not cut.
        """
        if len(piece.waiting) >= LIMIT or piece.held >= MUCH:
            return True
        if piece.in_step:
            return False
        site, sites = (node.where, node.op.name), piece.sites
        found = any(sites[-len(c) :] == c for c in self.cuts.get(site, ()))
        enough = HISTORY if node.needs_grad else LOOP
        if not found and len(sites) >= enough:
            period = _period(sites[-enough:])
            if period and sites[-period] == site:
                self.cuts.setdefault(site, []).append(sites[-period:])
                found = True
        if found:
            self.run(piece)
        piece.sites.append(site)
        return False

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
            owner = handle.node.pending
            if owner is not None and owner is not self.piece:  # another thread's: run it first
                with self.lock:
                    self.run(owner)
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
        self.piece.held += own.nbytes
        return self._leaf(own)

    def random_state(self) -> Tensor:
        return self._leaf(np.array(default_generator().take(), np.int64))

    def assign(self, parameter: Parameter, value: Tensor) -> None:
        with self.lock:
            trainable = parameter.node.needs_grad
            old, node = parameter.node, value.node
            if node.value is not None or node.leaf:  # somebody else's value: copy it
                node = stop_gradient(value).node
            parameter.bind(node, trainable)
            self.piece.replaced.append((node, old))
            if node.value is None:
                self._wait(self.piece, parameter)

    def get_grad(self, handle: Tensor) -> Tensor | None:
        return handle._grad

    def set_grad(self, handle: Tensor, grad: Tensor | None) -> None:
        handle._grad = grad
        if grad is not None:
            self.piece.in_step = True

    def gradients(self, order: Sequence[Node], leaves: Sequence[Node]) -> list[Node | None]:
        with self.lock:
            return self.recurring.gradients(order, leaves, author_line())

    def boundary(self) -> None:
        self.piece.at_boundary = True

    # ---- running ---------------------------------------------------------------------------

    def observe(self, tensor: Tensor) -> Array:
        with self.lock:
            if tensor.node.value is None:
                self.node_of(tensor)
                self.piece.at_boundary = False
                self.run()
            assert tensor.node.value is not None
            return tensor.node.value

    def run(self, piece: Piece | None = None) -> None:
        """Run what is waiting; every handle that is alive becomes an output."""
        with self.lock:
            piece = self.piece if piece is None else piece
            outputs, replaced = self._outputs(piece), piece.replaced
            piece.clear()
            if not outputs:
                return
            try:
                self._run(outputs, replaced)
            except BaseException:
                self._restore(replaced)
                raise

    def _outputs(self, piece: Piece) -> list[Node]:
        found: dict[int, Node] = {}
        for reference in piece.waiting:
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
            node.value, node.pending = value, None
            if not node.needs_grad or node.leaf:  # nobody differentiates through it any more
                node.op, node.inputs = _INPUT, ()
        for output in donated:
            old = leaves[donated[output]]
            old.value = None

    def _donated(
        self, outputs: list[Node], leaves: list[Node], replaced: list[tuple[Node, Node]]
    ) -> dict[int, int]:
        """Outputs that may overwrite the old value of their parameter: nobody else holds it."""
        if any(piece.waiting for piece in self.pieces):  # another thread may be about to read it
            return {}
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


def _period(sites: list[Any]) -> int:
    """After how many calls a list repeats itself from end to end, at most half of it; or 0."""
    last = sites[-1]
    for period in range(1, len(sites) // 2 + 1):
        if sites[-1 - period] == last and sites[period:] == sites[:-period]:
            return period
    return 0


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


def _forked() -> None:
    """A child of a fork has one thread, which holds no lock."""
    PANEL.lock = threading.RLock()


PANEL = DynamicRecorder()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
set_default_panel(PANEL)
set_default(PANEL)
