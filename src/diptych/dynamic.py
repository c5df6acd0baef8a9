"""The dynamic panel: calls are recorded, and run as one native call when a value is looked at."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np

from diptych import compiles, config, engine, interpret
from diptych.autodiff import Recurring, history_of
from diptych.derivatives import gradients_of
from diptych.dtypes import DType, TensorType
from diptych.errors import GraphError, RecompileError, StartupError
from diptych.generator import default_generator
from diptych.graph.node import Input, Node, Operator, Where
from diptych.graph.record import LOCAL, author_line, set_default
from diptych.ops.elementwise import Add, stop_gradient
from diptych.rehearsal import Step, Structures
from diptych.running import INPUT, Runner
from diptych.tensor import Parameter, Tensor, TensorRecorder, set_default_panel
from diptych.trail import (
    ADVANCE,
    ASSIGN,
    BACKWARD,
    Backward,
    Bundle,
    Kind,
    Piece,
    Point,
    Trail,
    alive,
    check_few,
    period_of,
)

Array = np.ndarray[Any, Any]
LIMIT = 5000  # nodes, and bytes of arrays handed over, that may wait without a look
MUCH = 1 << 25
LOOP = 100  # calls without a look after which a loop is looked for
HISTORY = 600  # the same where history is alive: a deep network is not a loop
_UNCHECKED: set[str] = set()  # operators without positions
_ADD = Add()


class DynamicRecorder(TensorRecorder):
    """Every thread records a piece of its own; pieces are run one at a time, under the lock."""

    def __init__(self) -> None:
        self.cuts: dict[Any, list[list[Any]]] = {}  # by call site: the calls of a loop before it
        self.recurring = Recurring()
        self.structures = Structures()
        self.trail = Trail()
        self.runner = Runner(self.trail, self._others_wait)
        self.lock = threading.RLock()
        self.local = threading.local()
        self.pieces: weakref.WeakSet[Piece] = weakref.WeakSet()
        self.alone = True  # whether one thread has recorded

    @property
    def piece(self) -> Piece:
        """The piece of this thread."""
        try:
            return self.local.piece  # type: ignore[no-any-return]
        except AttributeError:
            with self.lock:
                self.local.piece = piece = Piece(self.trail, self._handle)
                self.pieces.add(piece)
                self.alone = len(self.pieces) == 1
            return piece

    @property
    def grad_enabled(self) -> bool:
        return self.piece.grad_enabled

    @grad_enabled.setter
    def grad_enabled(self, on: bool) -> None:
        self.piece.grad_enabled = on

    # ---- recording -------------------------------------------------------------------------

    def record(self, op: Operator, operands: Sequence[Any]) -> Tensor:
        """The steady state of a loop is here, a call at a time: a lookup on the trail."""
        try:
            piece = self.local.piece
        except AttributeError:
            piece = self.piece
        if piece.at_boundary:
            self.run(piece, looked=False)
        self.lock.acquire()  # `with` costs twice as much
        try:
            slots, nodes, inputs, key = piece.slots, piece.nodes, [], [op]
            for operand in operands:
                node = operand.node
                place: Any = slots.get(node)
                if place is None:
                    place = node.kind or self._kind(piece, operand)
                    slots[node] = len(nodes)
                    nodes.append(node)
                key.append(place)
                inputs.append(node)
            if not piece.grad_enabled:
                key.append(False)  # type: ignore[arg-type]
            if piece.point is None:  # a loop that left the trail is back on it where it is cut
                history = any([n.needs_grad for n in inputs])
                if self._is_cut(piece, author_line(), op.name, inputs, history):
                    return self.record(op, operands)
                return super().record(op, operands)
            point, where = piece.point.get(tuple(key)), LOCAL.line or author_line()
            if point is None or point.checks:
                point = self._examined(piece, point, op, inputs, tuple(key), where)
            if (len(nodes) >= LOOP or self.cuts) and self._is_cut(
                piece, where, op.name, inputs, point.needs_grad
            ):
                return self.record(op, operands)
            node = Node(op, tuple(inputs), point.type, where)
            node.needs_grad = point.needs_grad
            tensor = Tensor(node, self)
            piece.point, node.pending = point, piece
            slots[node] = len(nodes)
            nodes.append(node)
            piece.waiting.append(tensor)
        except Exception:
            piece.not_made(nodes, key)
            raise
        except BaseException:
            piece.point = None
            raise
        finally:
            self.lock.release()
        if _eager:
            self.run(piece)
        return tensor

    def _examined(
        self,
        piece: Piece,
        point: Point | None,
        op: Operator,
        inputs: list[Node],
        key: Any,
        where: Where,
    ) -> Point:
        """The point after a call, and its positions checked."""
        if point is None:
            point = self.trail.explore(piece, op, inputs, key)
        if self.runner.flight is not None:
            self.runner.finish_values([inputs[n] for n, _ in point.checks])
        check_few(point, op, inputs, where)
        return point

    def _kind(self, piece: Piece, handle: Any) -> Kind | None:
        """The kind of a value that the piece reads for the first time. What was recorded elsewhere,
        or has history there, has none: it takes the piece off the trail."""
        node = self.node_of(handle)
        if node.value is None or (node.needs_grad and not node.leaf):
            piece.point = None
            return None
        return self.trail.kind_of(node)

    def changed(self, node: Node) -> None:
        super().changed(node)
        with self.lock:
            for piece in list(self.pieces):
                if node in piece.slots:
                    piece.point = None

    def made(self, tensor: Tensor) -> Tensor:
        """A tensor that was recorded off the trail."""
        node = tensor.node
        if len(node.inputs) > 1 and node.op.name not in _UNCHECKED:
            self._check(node)
        with self.lock:
            piece = self.piece
            if piece.at_boundary:
                self.run(piece, looked=False)
            self._is_cut(piece, node.where, node.op.name, node.inputs, node.needs_grad)
            if not piece.in_step:
                piece.sites().append((node.where, node.op.name))
            piece.point = None
            node.pending = piece
            piece.waiting.append(tensor)
            if _eager:
                self.run(piece)
        return tensor

    def _check(self, node: Node) -> None:
        """Labels and positions that are there are checked at the call, before anything changes."""
        if node.op.positions(*[i.type for i in node.inputs]):
            values = [i.value for i in node.inputs]
            self.runner.finish_values(node.inputs)
            interpret.check_positions(node.op, node.inputs, values, node.where)
        else:
            _UNCHECKED.add(node.op.name)

    def _is_cut(
        self, piece: Piece, where: Where, name: str, inputs: Sequence[Node], needs_grad: bool
    ) -> bool:
        """Run what waits before this call, where there is much or a loop is cut.

        A loop that never looks is cut where its calls repeat, from then on always at the same
        place: if there is one, at a call that reads nothing that waits, so that a round is whole.
        What follows a backward is a step, and is not cut.
        """
        found = len(piece.waiting) >= LIMIT
        if not found and not piece.in_step:
            site, sites = (where, name), piece.sites()
            found = any(sites[-len(c) :] == c for c in self.cuts.get(site, ()))
            enough = HISTORY if needs_grad else LOOP
            if not found and len(sites) >= enough and any([i.value is None for i in inputs]):
                enough *= 2
            if not found and len(sites) >= enough:
                period = period_of(sites[-enough:])
                if period and sites[-period] == site:
                    self.cuts.setdefault(site, []).append(sites[-period:])
                    found = True
        if found:
            self.run(piece, looked=False)
        return found

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
            if owner is not None:
                with self.lock:
                    owner.complete()
                    if owner is not self.piece:  # another thread's: run it first
                        self.run(owner)
            return handle.node
        if isinstance(handle, Node):
            return handle
        raise TypeError(f"not a tensor: {handle!r}")

    def _handle(self, node: Node) -> Tensor:
        return Tensor(node, self)

    def _leaf(self, value: Array, type: TensorType, kind: Kind) -> Tensor:
        node = Node(INPUT, (), type)
        node.value, node.kind = value, kind
        return Tensor(node, self)

    def scalar(self, value: float, dtype: DType) -> Tensor:
        type, kind, numpy = self.trail.scalar(dtype)
        return self._leaf(np.array(value, numpy), type, kind)

    def live_scalar(self, read: Callable[[], float], dtype: DType) -> Tensor:
        return self.scalar(read(), dtype)

    def array(self, value: Array) -> Tensor:
        form = self.trail.forms.get((value.dtype, value.shape)) or self.trail.form(value)
        piece = self.piece
        piece.held += form.nbytes
        if piece.held >= MUCH:
            piece.at_boundary = True
        node = Node(INPUT, (), form.type)
        node.kind = form.kind
        if form.small:
            node.value = np.array(value, order="C")
        else:
            with self.lock:
                node.value = form.copy(value)
        return Tensor(node, self)

    def random_state(self) -> Tensor:
        state = np.array(default_generator().take(), np.int64)
        form = self.trail.form(state)
        return self._leaf(state, form.type, form.kind)

    def assign(self, parameter: Parameter, value: Tensor) -> None:
        piece = self.piece
        with self.lock, piece:
            old, node = parameter.node, value.node
            if node.value is not None or node.leaf:  # somebody else's value: copy it
                node = stop_gradient(value).node
            trainable = old.needs_grad
            if piece.point is not None:
                place: Any = piece.slots.get(old)
                if place is None and old.value is not None:
                    place = self.trail.kind_of(old)
                    piece.slots[old] = len(piece.nodes)
                    piece.nodes.append(old)
                key = (ASSIGN, piece.slots.get(node), place, trainable)
                piece.point = None if None in key else piece.point.then(key)
            piece.replaced.append((node, old))
            if node.value is None:
                node.pending = piece
                piece.waiting.append(parameter)
            parameter.bind(node, trainable)  # last, for from here on it has no value without a run

    # ---- gradients -------------------------------------------------------------------------

    def get_grad(self, handle: Tensor) -> Tensor | None:
        grad: Any = handle._grad
        if type(grad) is Bundle:
            with self.lock, grad.piece:
                if handle._grad is grad:  # else another thread was faster
                    grad.piece.settle(grad)
        return handle._grad

    def set_grad(self, handle: Tensor, grad: Tensor | None) -> None:
        handle._grad = grad
        if grad is not None:
            self.piece.in_step = True

    def forget(self, parameters: Sequence[Parameter]) -> None:
        for p in parameters:
            p._grad = None

    def with_gradients(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        return [p for p in parameters if p._grad is not None]

    def gradients(
        self, order: Sequence[Node], leaves: Sequence[Node], grad: Any
    ) -> list[Node | None]:
        if grad is not None or order[-1].type.size != 1:
            return super().gradients(order, leaves, grad)
        with self.lock:
            return self.recurring.gradients(order, leaves, author_line())

    def backward(self, tensor: Tensor, grad: Any, retain_graph: bool) -> None:
        piece = self.piece
        if piece.at_boundary:
            self.run(piece, looked=False)
        with self.lock, piece:
            root = piece.slots.get(tensor.node)
            if piece.point is None or root is None or grad is not None or _eager:
                piece.point = None
                super().backward(tensor, grad, retain_graph)
                return
            key = (BACKWARD, root, retain_graph)
            point = piece.point.then(key)
            if point.backward is None:
                point.backward = self._differentiated(piece, tensor.node, retain_graph)
            if point.backward is None:  # more than one number has no gradient: an error, by rule
                super().backward(tensor, grad, retain_graph)
            else:
                self._add_gradients(piece, point, point.backward, author_line())

    def _differentiated(self, piece: Piece, root: Node, retain_graph: bool) -> Backward | None:
        order, history, leaves = history_of(root)
        found = self.recurring.gradients(order, leaves, root.where)
        if root.type.size != 1 or any(leaf.owner is None for leaf in leaves):
            return None
        slots, made = piece.slots, [(slot, g) for slot, g in zip(leaves, found) if g is not None]
        return Backward(
            [slots[leaf] for leaf, _ in made],
            [g.op for _, g in made],
            [slots[n] for n in made[0][1].inputs] if made else [],
            [] if retain_graph else [slots[n] for n in history if not n.leaf],
        )

    def _add_gradients(self, piece: Piece, point: Point, found: Backward, where: Where) -> None:
        """Gradients as the trail knows them; where there were some already they are added."""
        nodes = piece.nodes
        owners: list[Any] = [nodes[n].owner() for n in found.leaves]
        for n in found.released:
            node = nodes[n]
            node.needs_grad, node.released = False, True
        piece.point, piece.in_step = point, True
        if not owners:
            return
        bundle = Bundle(piece, found, owners, where)
        piece.bundles.append(bundle)
        if all([owner is not None and owner._grad is None for owner in owners]):
            for owner in owners:
                owner._grad = bundle
            return
        for owner, gradient in zip(owners, piece.settle(bundle)):
            if owner is not None:
                old = self.get_grad(owner)
                owner._grad = gradient if old is None else self.record(_ADD, (old, gradient))

    def advance(self, optimizer: Any, parameters: list[Parameter]) -> None:
        piece = self.piece
        if piece.at_boundary:
            self.run(piece, looked=False)
        with self.lock, piece:
            step = self._rehearsed(optimizer, parameters)
            if (
                step is None
                or piece.point is None
                or not self._is_advanced(piece, step, author_line())
            ):
                super().advance(optimizer, parameters)

    def _rehearsed(self, optimizer: Any, parameters: list[Parameter]) -> Step | None:
        """The step of an optimizer that can be recorded once."""
        if _eager or not optimizer._own or len(parameters) < len(optimizer.parameters):
            return None
        step: Step | None = optimizer.rehearsed
        if step is None or not step.fits(optimizer, parameters):
            if optimizer.settings() is None:
                return None
            step = Step(optimizer, parameters, self.structures, self.lock)
            optimizer.rehearsed = step
        return step

    def _is_advanced(self, piece: Piece, step: Step, where: Where) -> bool:
        """Record a step as one call; False where it reads what is not on the trail."""
        nodes, parameters, structure = piece.nodes, step.parameters, step.structure
        bundle: Any = parameters[0]._grad
        whole = type(bundle) is Bundle and bundle.is_all_of(piece, parameters)
        handles = step.state if whole else [*step.state, *gradients_of(self, parameters)]
        given: list[Any] = [h.node for h in handles]
        key: list[Any] = [ADVANCE, structure, None]
        known = 0
        if whole:  # the gradients say which values of the parameters they are of
            key[2] = bundle.first
            given += [None] * len(parameters)  # until `Bundle.complete`; a cycle would wait for gc
            if all(map(is_, given, [nodes[n] for n in bundle.backward.leaves])):
                known = len(parameters)
        for n, handle in enumerate(handles[known:], known):
            key.append(self._place(piece, given[n], handle))
        if piece.point is None:
            return False
        for read, dtype in step.live:
            type_, kind, numpy = self.trail.scalar(dtype)
            node = Node(INPUT, (), type_)
            node.value, node.kind = np.array(read(), numpy), kind
            piece.slots[node] = len(nodes)
            nodes.append(node)
            given.append(node)
        for node in step.constants:
            key.append(self._place(piece, node, None))
            given.append(node)
        first, waiting = len(piece.replaced), len(piece.waiting)
        try:
            piece.point = piece.point.then(tuple(key))
            if whole:
                bundle.step = (given, len(handles), structure, len(nodes))
            self._assign_all(piece, step, given, where)
            return True
        except BaseException:  # Ctrl-C came in between: no part of the step was made
            for owner, (_, old) in zip(step.assigned, piece.replaced[first:]):
                owner.node = old
            del piece.replaced[first:], piece.waiting[waiting:]
            if whole:
                bundle.step = None
            raise

    def _assign_all(self, piece: Piece, step: Step, given: list[Any], where: Where) -> None:
        """The new values of a step, made of what it reads."""
        slots, nodes, replaced = piece.slots, piece.nodes, piece.replaced
        for owner, (at, op, take) in zip(step.assigned, step.structure.updates):
            old = given[at]
            node = Node(op, take(given), old.type, where)
            node.leaf, node.needs_grad, node.owner = True, old.needs_grad, old.owner
            replaced.append((node, old))
            node.pending, owner.node = piece, node
            slots[node] = len(nodes)
            nodes.append(node)
        piece.waiting += step.assigned

    def _place(self, piece: Piece, node: Node, handle: Any) -> Any:
        """Where a node stands in a piece; what is read for the first time has a kind."""
        place: Any = piece.slots.get(node)
        if place is None:
            place = node.kind
            if place is None:
                place = self.trail.kind_of(node) if handle is None else self._kind(piece, handle)
            piece.slots[node] = len(piece.nodes)
            piece.nodes.append(node)
        return place

    def boundary(self) -> None:
        self.piece.at_boundary = True

    # ---- running ---------------------------------------------------------------------------

    def observe(self, tensor: Tensor) -> Array:
        with self.lock:
            if tensor.node.value is None:
                self.node_of(tensor)
                self.run()
            self.runner.finish()
            if tensor.node.value is None:
                raise GraphError(
                    "a value is there once the call that computes it succeeded",
                    f"{tensor.type} is of a call that failed    ({tensor.node.where})",
                    "compute it again after the error",
                )
            return tensor.node.value

    def finish(self) -> None:
        if self.runner.flight is not None:
            with self.lock:
                self.runner.finish()

    def run(self, piece: Piece | None = None, looked: bool = True) -> None:
        """Run what is waiting; `looked` as in `Runner.run`."""
        with self.lock:
            piece = self.piece if piece is None else piece
            at_boundary, piece.at_boundary = piece.at_boundary, False
            try:
                self.runner.run(piece, looked)
            except RecompileError:
                piece.at_boundary = at_boundary
                raise

    def _others_wait(self, own: Piece) -> bool:
        """Whether another thread may be about to read a parameter."""
        if self.alone:
            return False
        return any(any(alive(p.waiting)) for p in list(self.pieces) if p is not own)

    @property
    def cache(self) -> dict[Any, Any]:
        """Executables by structure."""
        return self.runner.cache

    @property
    def device(self) -> str:
        return self.runner.device

    @device.setter
    def device(self, name: str) -> None:
        self.runner.device = name


def config_eager() -> bool:
    return _eager


_eager = config.eager()


def set_eager(on: bool) -> None:
    """Run every call at once (also DIPTYCH_EAGER=1)."""
    global _eager
    PANEL.run()
    _eager = on


@contextmanager
def no_recompile() -> Iterator[None]:
    """Inside, a new compile is a RecompileError that names the line and what was new.

    It holds for the thread that entered it. What was recorded before is run first, so that no error
    is about it. What the error stopped was not run: parameters and optimizers are as before.
    """
    PANEL.run()
    with compiles.forbidden():
        yield


def use_device(name: str) -> None:
    """Run the dynamic panel, and by default programs, on `cpu` or on `reference`."""
    engine.check_device(name)
    PANEL.run()
    PANEL.device = name


def _forked() -> None:
    """A child of a fork has one thread, which holds no lock, and none of the pool's."""
    PANEL.lock = threading.RLock()


PANEL = DynamicRecorder()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=PANEL.finish, after_in_child=_forked)
set_default_panel(PANEL)
set_default(PANEL)
