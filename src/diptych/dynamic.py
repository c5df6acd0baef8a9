"""The dynamic panel: calls are recorded, and run as one native call when a value is looked at."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import is_
from typing import Any

import numpy as np

from diptych import compiles, config, engine, interpret
from diptych.autodiff import Recurring
from diptych.derivatives import gradients_of
from diptych.dtypes import DType, TensorType, f32
from diptych.errors import GraphError, RecompileError, StartupError
from diptych.generator import default_generator
from diptych.graph.node import Input, Node, Operator, Where
from diptych.graph.record import LOCAL, author_line, set_default
from diptych.loops import LOOP, Loops
from diptych.ops.elementwise import Add, stop_gradient
from diptych.rehearsal import Step, Structures
from diptych.running import INPUT, Runner
from diptych.tensor import Parameter, Tensor, TensorRecorder, set_default_panel
from diptych.trail import (
    ADVANCE,
    ASSIGN,
    BACKWARD,
    NO_HISTORY,
    Backward,
    Bundle,
    Kind,
    Piece,
    Point,
    Trail,
    alive,
    check_few,
    differentiated,
)

Array = np.ndarray[Any, Any]
MUCH = 1 << 25  # bytes of arrays handed over that may wait without a look
OFTEN = 500  # calls that recur before native code is made for them
_UNCHECKED: set[str] = set()  # operators without positions
_ADD = Add()


def _unknown(*call: Any) -> None:
    """No call is recorded without a look."""


class DynamicRecorder(TensorRecorder):
    """Every thread records a piece of its own; pieces are run one at a time, under the lock."""

    def __init__(self) -> None:
        self.loops = Loops()
        self.recurring = Recurring()
        self.structures = Structures()
        self.trail = Trail()
        self.runner = Runner(self.trail, self._others_wait)
        self.lock = threading.RLock()
        self.local = threading.local()
        self.pieces: weakref.WeakSet[Piece] = weakref.WeakSet()
        self.alone = True  # whether one thread has recorded
        self.known = 0  # calls that were on the trail before
        # In native code from `OFTEN` on, as `record`, `leaf` and what the runner does:
        self.recall: Callable[..., Tensor | None] = _unknown
        self.renew: Callable[..., None] = Piece.renew

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
        with self.lock:  # where no Ctrl-C comes between taking it and what gives it back
            try:
                tensor, where = None, LOCAL.line or author_line()
                if len(piece.nodes) < LOOP and not self.loops.cuts:
                    tensor = self.recall(piece, op, operands, where)
                if tensor is None:
                    tensor = self._recorded(piece, op, operands, where)
            except Exception:  # nothing was noted
                raise
            except BaseException:
                piece.point = None
                raise
        if _eager:
            self.run(piece)
        return tensor

    def _recorded(
        self, piece: Piece, op: Operator, operands: Sequence[Any], where: Where
    ) -> Tensor:
        """Any call."""
        nodes, slots = piece.nodes, piece.slots
        inputs = tuple([operand.node for operand in operands])
        point = None if piece.point is None else self._point(piece, op, operands, inputs)
        if point is None:  # a loop that left the trail is back on it where it is cut
            history = any([n.needs_grad for n in inputs])
            if self._is_cut(piece, where, op.name, inputs, history):
                return self.record(op, operands)
            return super().record(op, operands)
        if point.checks is not None:
            self._check_few(point, op, inputs, where)
        if (len(nodes) >= LOOP or self.loops.cuts) and self._is_cut(
            piece, where, op.name, inputs, point.needs_grad
        ):
            return self.record(op, operands)
        for n in point.reads:
            slots[inputs[n]] = len(nodes)
            nodes.append(inputs[n])
        node = Node(op, inputs, point.type, where)  # type: ignore[arg-type]
        node.needs_grad, node.released, node.pending = point.needs_grad, point.released, piece
        tensor = Tensor(node, self)
        slots[node] = len(nodes)
        nodes.append(node)
        piece.waiting.append(tensor)
        piece.point = point
        return tensor

    def _check_few(
        self, point: Point, op: Operator, inputs: tuple[Node, ...], where: Where
    ) -> None:
        if self.runner.flight is not None:
            self.runner.finish_values([inputs[n] for n, _ in point.checks])  # type: ignore[union-attr]
        check_few(point, op, inputs, where)

    def _point(
        self, piece: Piece, op: Operator, operands: Sequence[Any], inputs: tuple[Node, ...]
    ) -> Point | None:
        """The point after a call, or None off the trail."""
        key: list[Any] = [op]
        new: list[Node] = []
        for operand, node in zip(operands, inputs):
            place: Any = piece.slots.get(node)
            if place is None and node in new:
                place = len(piece.nodes) + new.index(node)
            elif place is None:
                place = node.kind or self._kind(piece, operand)
                new.append(node)
            key.append(place)
        if piece.point is None:
            return None
        if not piece.grad_enabled:
            key.append(NO_HISTORY)
        found = piece.point.get(tuple(key))
        if found is None:
            return self.trail.explore(piece, op, inputs, tuple(key))
        self.known += 1
        if self.known == OFTEN:
            self.learn()
        return found

    def learn(self) -> None:
        """From here on, what recurs is recorded in native code."""
        from diptych.runtime.recall import Told, native  # most programs end before

        sample = Tensor(Node(INPUT, (), TensorType((), f32)), self)
        method = partial(DynamicRecorder.record, self)
        line = partial(author_line, 1)  # native code has no frame
        made = native(
            Told(
                sample, Parameter, Kind, Point, self.piece, self._check_few, LOCAL, line,
                self.lock, method, self.run, LOOP,
            )
        )  # fmt: skip
        if made is not None:
            self.recall, self.renew, vars(self)["leaf"] = made.recall, made.renew, made.leaf
            self.runner.values, self.runner.bind = made.values, made.bind
            # Any other thread may end, and leave its number to a new one.
            main = threading.current_thread() is threading.main_thread()
            if main and not self.loops.cuts and not _eager:
                vars(self)["record"] = made.record

    def look_again(self) -> None:
        """Have every call recorded by Python, which sees where a loop is cut, or a piece run."""
        vars(self).pop("record", None)

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
        """Run what waits before this call, where there is much or a loop is cut."""
        found = self.loops.is_cut(piece, (where, name), inputs, needs_grad)
        if found:
            self.look_again()
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

    def scalar(self, value: float, dtype: DType) -> Tensor:
        return self.leaf(self.trail.scalar(dtype), np.array(value, dtype.numpy))

    def live_scalar(self, read: Callable[[], float], dtype: DType) -> Tensor:
        return self.scalar(read(), dtype)

    def array(self, value: Array) -> Tensor:
        form = self.trail.forms.get((value.dtype, value.shape)) or self.trail.form(value)
        piece = self.piece
        piece.held += form.nbytes
        if piece.held >= MUCH:
            piece.at_boundary = True
        if form.small:
            return self.leaf(form.sample, np.array(value, order="C"))
        with self.lock:
            return self.leaf(form.sample, form.copy(value))

    def leaf(self, sample: Node, value: Array) -> Tensor:
        """A handle on a value, whose node is otherwise like the sample."""
        node = Node(INPUT, (), sample.type)
        node.value, node.kind = value, sample.kind
        return Tensor(node, self)

    def random_state(self) -> Tensor:
        state = np.array(default_generator().take(), np.int64)
        return self.leaf(self.trail.form(state).sample, state)

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
            if piece.undo is not None:
                piece.undo.append((parameter, old, old.value))
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

    def with_gradients(self, handles: Sequence[Tensor]) -> list[Any]:
        return [h for h in handles if h._grad is not None]

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
                point.backward = differentiated(piece, tensor.node, self.recurring, retain_graph)
            if point.backward is None:  # more than one number has no gradient: an error, by rule
                super().backward(tensor, grad, retain_graph)
            else:
                self._add_gradients(piece, point, point.backward, author_line())

    def _add_gradients(self, piece: Piece, point: Point, found: Backward, where: Where) -> None:
        """Gradients as the trail knows them; where there were some already they are added."""
        nodes = piece.nodes
        for n in found.released:
            node = nodes[n]
            node.needs_grad, node.released = False, True
        piece.point, piece.in_step = point, True
        if not found.leaves:
            return
        bundle = Bundle(piece, found, [nodes[n] for n in found.leaves], where)
        owners = bundle.owners
        piece.bundles.append(bundle)
        for owner in owners:
            if owner is None or owner._grad is not None:
                break
        else:
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
                self._advance_by_calls(optimizer, parameters)

    def _advance_by_calls(self, optimizer: Any, parameters: list[Parameter]) -> None:
        """Record a step call by call; where Ctrl-C or an error comes in between, no part of it is
        made. Until it is whole the old values are held, so that no run in between, where a rule
        looks or much waits, writes over them."""
        piece = self.piece
        held = (*parameters, *optimizer.state())
        if any([p.node.value is None for p in held]):  # it would not be there after such a run
            self.run(piece, looked=False)
            piece.in_step = True
        replaced = list(piece.replaced)
        piece.undo = undo = [(p, p.node, p.node.value) for p in held]
        try:
            super().advance(optimizer, parameters)
        except BaseException:
            for parameter, node, _ in reversed(undo):
                parameter.node = node
            kept = set(map(id, replaced))
            piece.replaced[:] = [known for known in piece.replaced if id(known) in kept]
            piece.point = None  # what else waits, gradients among it, waits on
            raise
        finally:
            piece.undo = None

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
        bundle: Any = step.parameters[0]._grad
        whole = type(bundle) is Bundle and bundle.is_all_of(piece, step.parameters)
        handles = step.state if whole else [*step.state, *gradients_of(self, step.parameters)]
        given: list[Any] = [h.node for h in handles]
        key = self._read(piece, step, handles, given, bundle if whole else None)
        if key is None:
            return False
        structure, nodes = step.structure, piece.nodes
        first, waiting = len(piece.replaced), len(piece.waiting)
        try:
            at = len(nodes)
            piece.point = piece.point.then(key)  # type: ignore[union-attr]
            if whole:
                bundle.step = (given, len(handles), structure, at)
            olds = [given[n] for n in structure.changed]
            self.renew(piece, step.assigned, olds, structure.samples, where)
            if not whole:  # else `Bundle.complete` does this
                for n, (_, _, take) in enumerate(structure.updates, at):
                    nodes[n].inputs = take(given)
            return True
        except BaseException:  # Ctrl-C came in between: no part of the step was made
            for owner, (_, old) in zip(step.assigned, piece.replaced[first:]):
                owner.node = old
            del piece.replaced[first:], piece.waiting[waiting:]
            if whole:
                bundle.step = None
            raise

    def _read(
        self, piece: Piece, step: Step, handles: list[Any], given: list[Any], bundle: Bundle | None
    ) -> tuple[Any, ...] | None:
        """What a step reads, as the trail has it, or None off the trail. `given` are the nodes of
        the handles, to which this adds what else there is. A bundle has all the gradients."""
        key: list[Any] = [ADVANCE, step.structure, None]
        known = 0
        if bundle is not None:  # the gradients say which values of the parameters they are of
            key[2] = bundle.first
            given += [None] * len(bundle.owners)  # until `Bundle.complete`; a cycle waits for gc
            if all(map(is_, given, bundle.leaves)):
                known = len(bundle.owners)
        for n, handle in enumerate(handles[known:], known):
            key.append(self._place(piece, given[n], handle))
        if piece.point is None:
            return None
        for node in step.numbers():
            key.append(self._place(piece, node, None))
            given.append(node)
        return tuple(key)

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
    PANEL.look_again()
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
    PANEL.look_again()


PANEL = DynamicRecorder()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=PANEL.finish, after_in_child=_forked)
set_default_panel(PANEL)
set_default(PANEL)
