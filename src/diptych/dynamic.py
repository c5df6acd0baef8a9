"""The dynamic panel: calls are recorded, and run as one native call when a value is looked at."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from sys import getrefcount
from typing import Any

import numpy as np

from diptych import config, engine, interpret
from diptych.autodiff import Recurring, history_of
from diptych.dtypes import DType, TensorType
from diptych.engine import element_strides
from diptych.errors import StartupError
from diptych.generator import default_generator
from diptych.graph.node import Graph, Input, Node, Operator, Where, input_node, walk
from diptych.graph.record import author_line, set_default
from diptych.ops.elementwise import Add, Fma, stop_gradient
from diptych.tensor import Parameter, Tensor, TensorRecorder, set_default_panel
from diptych.trail import (
    ASSIGN,
    BACKWARD,
    DEAD,
    DESCEND,
    Backward,
    Kind,
    Made,
    Plan,
    Point,
    Trail,
    alive,
)

Array = np.ndarray[Any, Any]
LIMIT = 5000  # nodes, and bytes of arrays handed over, that may wait without a look
MUCH = 1 << 25
LOOP = 100  # calls without a look after which a loop is looked for
HISTORY = 600  # the same where history is alive: a deep network is not a loop
_INPUT = Input()
_UNCHECKED: set[str] = set()  # operators without positions
_FMA, _ADD = Fma(), Add()
SOLE = DEAD + 1  # references to what a list and its node hold
FEW = 64  # positions that are compared as Python numbers


class Piece:
    """What one thread has recorded and not yet run."""

    def __init__(self, root: Point) -> None:
        self.root = root
        self.grad_enabled = True
        self.at_boundary = False
        self.clear()

    def clear(self) -> None:
        self.waiting: list[Tensor] = []  # handles, also those that nobody else holds any more
        self.replaced: list[tuple[Node, Node]] = []  # (new value of a parameter, the old one)
        self.held = 0  # bytes of arrays handed over
        self.in_step = False  # gradients were taken
        self.sites: list[Any] = []  # call sites of what waits
        self.point: Point | None = self.root  # where on the trail, or None off it
        self.slots: dict[Node, int] = {}  # the numbers of what was made and read, on the trail


class DynamicRecorder(TensorRecorder):
    """Every thread records a piece of its own; pieces are run one at a time, under the lock."""

    def __init__(self) -> None:
        self.cuts: dict[Any, list[list[Any]]] = {}  # by call site: the calls of a loop before it
        self.recurring = Recurring()
        self.trail = Trail()
        self.cache: dict[Any, Any] = {}
        self.device = "cpu"
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
                self.local.piece = piece = Piece(self.trail.root)
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
        self.lock.acquire()  # `with` costs twice as much
        try:
            if piece.at_boundary or len(piece.waiting) >= LIMIT:
                self.run(piece)
            slots, inputs, key = piece.slots, [], [op]
            for operand in operands:
                node = operand.node
                place: Any = slots.get(node)
                if place is None:
                    place = node.kind or self._kind(piece, operand)
                    slots[node] = len(slots)
                key.append(place)
                inputs.append(node)
            if not piece.grad_enabled:
                key.append(False)  # type: ignore[arg-type]
            if piece.point is None:
                return super().record(op, operands)
            point, where = piece.point.get(tuple(key)), author_line()
            if point is None or point.checks:
                point = self._examined(piece, point, op, inputs, tuple(key), where)
            if not piece.in_step:
                if self.cuts or len(piece.sites) >= LOOP:
                    if self._is_cut(piece, where, op, point.needs_grad):
                        return self.record(op, operands)
                else:
                    piece.sites.append((where, op.name))
            node = Node(op, tuple(inputs), point.type, where)
            if point.needs_grad:
                node.needs_grad = True
            tensor = Tensor(node, self)
            piece.point, node.pending = point, piece
            slots[node] = len(slots)
            piece.waiting.append(tensor)
            if _eager:
                self.run(piece)
            return tensor
        finally:
            self.lock.release()

    def _examined(
        self,
        piece: Piece,
        point: Point | None,
        op: Operator,
        inputs: list[Node],
        key: Any,
        where: Where,
    ) -> Point:
        """The point after a call, and its positions checked; a call that fails was not made."""
        try:
            if point is None:
                point = self._explore(piece, op, inputs, key)
            _check_few(point, op, inputs, where)
        except BaseException:
            new = sum(isinstance(place, Kind) for place in key)
            for node in list(piece.slots)[len(piece.slots) - new :]:
                del piece.slots[node]
            raise
        return point

    def _kind(self, piece: Piece, handle: Any) -> Kind | None:
        """The kind of a value that the piece reads for the first time. What was recorded elsewhere,
        or has history there, has none: it takes the piece off the trail."""
        node = self.node_of(handle)
        if node.value is None or (node.needs_grad and not node.leaf):
            piece.point = None
            return None
        return self.trail.kind_of(node)

    def _explore(self, piece: Piece, op: Operator, inputs: list[Node], key: Any) -> Point:
        """The point after a call that was not made from here before."""
        types = [i.type for i in inputs]
        type = op.infer(*types)
        needs = (
            type.dtype.is_float
            and any([i.needs_grad for i in inputs])
            and piece.grad_enabled
            and op.flows(*types)
        )
        point = Point(type, needs)
        point.checks = [(n, size) for n, size, _ in op.positions(*types) if isinstance(size, int)]
        return piece.point.setdefault(key, point)  # type: ignore[union-attr]

    def changed(self, node: Node) -> None:
        if node in self.piece.slots:
            self.piece.point = None

    def made(self, tensor: Tensor) -> Tensor:
        """A tensor that was recorded off the trail."""
        node = tensor.node
        if len(node.inputs) > 1 and node.op.name not in _UNCHECKED:
            self._check(node)
        with self.lock:
            piece = self.piece
            if piece.at_boundary:
                self.run(piece)
            if not piece.in_step:
                self._is_cut(piece, node.where, node.op, node.needs_grad)
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
            interpret.check_positions(node.op, node.inputs, values, node.where)
        else:
            _UNCHECKED.add(node.op.name)

    def _is_cut(self, piece: Piece, where: Where, op: Operator, needs_grad: bool) -> bool:
        """Run what waits before this call, where a loop is cut.

        A loop that never looks is cut where its calls repeat, from then on always at the same
        place. What follows a backward is a step, and is not cut.
        """
        site, sites = (where, op.name), piece.sites
        found = bool(self.cuts) and any(sites[-len(c) :] == c for c in self.cuts.get(site, ()))
        enough = HISTORY if needs_grad else LOOP
        if not found and len(sites) >= enough:
            period = _period(sites[-enough:])
            if period and sites[-period] == site:
                self.cuts.setdefault(site, []).append(sites[-period:])
                found = True
        if found:
            self.run(piece)
        else:
            sites.append(site)
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
            if owner is not None and owner is not self.piece:  # another thread's: run it first
                with self.lock:
                    self.run(owner)
            return handle.node
        if isinstance(handle, Node):
            return handle
        raise TypeError(f"not a tensor: {handle!r}")

    def _leaf(self, value: Array, type: TensorType, kind: Kind) -> Tensor:
        node = Node(_INPUT, (), type)
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
        if form.small:
            return self._leaf(np.array(value, order="C"), form.type, form.kind)
        with self.lock:
            return self._leaf(form.copy(value), form.type, form.kind)

    def random_state(self) -> Tensor:
        state = np.array(default_generator().take(), np.int64)
        form = self.trail.form(state)
        return self._leaf(state, form.type, form.kind)

    def assign(self, parameter: Parameter, value: Tensor) -> None:
        with self.lock:
            old, node, piece = parameter.node, value.node, self.piece
            if node.value is not None or node.leaf:  # somebody else's value: copy it
                node = stop_gradient(value).node
            trainable = old.needs_grad
            if piece.point is not None:
                places = (piece.slots.get(node), piece.slots.get(old))
                if places[1] is None and old.value is not None:
                    piece.slots[old] = len(piece.slots)
                    places = (places[0], self.trail.kind_of(old))  # type: ignore[assignment]
                key = (ASSIGN, *places, trainable)
                piece.point = None if None in places else piece.point.setdefault(key, Point())
            parameter.bind(node, trainable)
            piece.replaced.append((node, old))
            if node.value is None:
                node.pending = piece
                piece.waiting.append(parameter)

    def descend(self, parameters: Sequence[Parameter], read: Callable[[], float]) -> None:
        piece = self.piece
        with self.lock:
            point, get = piece.point, piece.slots.get
            places: list[Any] = []
            for p in parameters:
                places += (get(p._grad.node), get(p.node))  # type: ignore[union-attr]
            if point is None or not places or None in places or piece.at_boundary or _eager:
                super().descend(parameters, read)
                return
            rate = self.live_scalar(read, parameters[0].node.type.dtype).node
            key = (DESCEND, rate.kind, *places)
            following = point.get(key)
            if following is None:
                if len({p.dtype for p in parameters}) > 1 or len(set(places)) < len(places):
                    super().descend(parameters, read)
                    return
                following = point.setdefault(key, Point())
            piece.slots[rate] = len(piece.slots)
            piece.point = following
            self._updated(piece, parameters, rate)

    def _updated(self, piece: Piece, parameters: Sequence[Parameter], rate: Node) -> None:
        slots, replaced, where = piece.slots, piece.replaced, author_line()
        for p in parameters:
            old = p.node
            node = Node(_FMA, (rate, p._grad.node, old), old.type, where)  # type: ignore[union-attr]
            node.leaf, node.needs_grad, node.owner = True, old.needs_grad, old.owner
            node.pending = piece
            slots[node] = len(slots)
            p.node = node
            replaced.append((node, old))
        piece.waiting += parameters

    def with_gradients(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        return [p for p in parameters if p._grad is not None]

    def get_grad(self, handle: Tensor) -> Tensor | None:
        return handle._grad

    def set_grad(self, handle: Tensor, grad: Tensor | None) -> None:
        handle._grad = grad
        if grad is not None:
            self.piece.in_step = True

    def forget(self, parameters: Sequence[Parameter]) -> None:
        for p in parameters:
            p._grad = None

    def gradients(
        self, order: Sequence[Node], leaves: Sequence[Node], grad: Any
    ) -> list[Node | None]:
        if grad is not None or order[-1].type.size != 1:
            return super().gradients(order, leaves, grad)
        with self.lock:
            return self.recurring.gradients(order, leaves, author_line())

    def backward(self, tensor: Tensor, grad: Any, retain_graph: bool) -> None:
        piece = self.piece
        with self.lock:
            if piece.at_boundary:
                self.run(piece)
            root = piece.slots.get(tensor.node)
            if piece.point is None or root is None or grad is not None or _eager:
                piece.point = None
                super().backward(tensor, grad, retain_graph)
                return
            key = (BACKWARD, root, retain_graph)
            point = piece.point.get(key)
            if point is None:
                point = piece.point.setdefault(key, Point())
                point.backward = self._differentiated(piece, tensor.node, retain_graph)
            if point.backward is None:  # it starts from more than one number: an error, by rule
                super().backward(tensor, grad, retain_graph)
            else:
                self._add_gradients(piece, point, point.backward)

    def _differentiated(self, piece: Piece, root: Node, retain_graph: bool) -> Backward | None:
        order, history, leaves = history_of(root)
        if root.type.size != 1:
            return None
        found = self.recurring.gradients(order, leaves, root.where)
        slots, made = piece.slots, [g for g in found if g is not None]
        gradients = [
            (slots[leaf], g.op, leaf.type) for leaf, g in zip(leaves, found) if g is not None
        ]
        reads = [slots[n] for n in made[0].inputs] if made else []
        released = [] if retain_graph else [slots[n] for n in history if not n.leaf]
        return Backward(gradients, reads, released)

    def _add_gradients(self, piece: Piece, point: Point, found: Backward) -> None:
        """What the tree knows of a backward, for the nodes of this piece."""
        slots, where = piece.slots, author_line()
        nodes = list(slots)
        inputs = tuple([nodes[n] for n in found.reads])
        made = []
        for _, op, type in found.gradients:
            node = Node(op, inputs, type, where)
            node.pending = piece
            slots[node] = len(slots)
            made.append(Tensor(node, self))
        piece.waiting += made
        piece.point, piece.in_step = point, True
        for n in found.released:
            node = nodes[n]
            node.needs_grad, node.released = False, True
        for (n, *_), grad in zip(found.gradients, made):
            owner = nodes[n].owner
            handle = None if owner is None else owner()
            if handle is not None:
                before = handle._grad
                handle._grad = grad if before is None else self.record(_ADD, (before, grad))

    def boundary(self) -> None:
        self.piece.at_boundary = True

    # ---- running ---------------------------------------------------------------------------

    def observe(self, tensor: Tensor) -> Array:
        with self.lock:
            if tensor.node.value is None:
                self.node_of(tensor)
                self.run()
            assert tensor.node.value is not None
            return tensor.node.value

    def run(self, piece: Piece | None = None) -> None:
        """Run what is waiting; every handle that is alive becomes an output."""
        with self.lock:
            piece = self.piece if piece is None else piece
            piece.at_boundary = False
            point, slots, waiting = piece.point, piece.slots, piece.waiting
            replaced = piece.replaced
            if not waiting:
                piece.clear()
                return
            counts = list(map(getrefcount, waiting))
            try:
                if point is None:
                    outputs = self._outputs(waiting)
                    piece.clear()
                    self._run(outputs, replaced)
                    return
                if counts == point.counts:
                    plan = point.plan
                else:
                    plan = self._plan(point, slots, waiting, replaced)
                    point.counts, point.plan = counts, plan
                piece.clear()
                if plan.outputs:  # type: ignore[union-attr]
                    self._run_plan(plan, list(slots))  # type: ignore[arg-type]
            except BaseException:
                piece.clear()
                self._restore(replaced)
                raise

    def _outputs(self, waiting: list[Tensor]) -> list[Node]:
        """Values that somebody may still ask for, by a look or by a backward."""
        found: dict[int, Node] = {}
        for tensor, held in zip(waiting, alive(waiting)):
            if held and tensor.node.value is None:
                found[id(tensor.node)] = tensor.node
        roots = list(found.values())
        history = [n for n in roots if n.needs_grad and not n.leaf]
        if history:  # what a later backward reads stays
            for node in walk(history, stop=lambda n: n.value is not None or not n.needs_grad):
                if node.value is None and node.needs_grad:
                    found[id(node)] = node
        return list(found.values())

    # ---- on the trail ----------------------------------------------------------------------

    def _plan(
        self,
        point: Point,
        slots: dict[Node, int],
        waiting: list[Tensor],
        replaced: list[tuple[Node, Node]],
    ) -> Plan:
        """How a piece that ends at this point is run, where these handles are alive."""
        held = alive(waiting)
        found = point.plans.get(held)
        if found is None:
            outputs = self._outputs(waiting)
            leaves = [n for n in _order(outputs) if n.value is not None]
            found = point.plans[held] = Plan(
                [slots[n] for n in outputs],
                [slots[n] for n in leaves],
                _donors(outputs, leaves, replaced),
                [not n.needs_grad or n.leaf for n in outputs],
            )
        return found

    def _run_plan(self, plan: Plan, nodes: list[Node]) -> None:
        inputs: list[Any] = [nodes[n].value for n in plan.inputs]
        held = list(map(getrefcount, inputs))
        if not self.alone and self._others_wait():
            held = []
        made = plan.last
        if made is None or held != plan.held or plan.device != self.device:
            made = plan.last = self._made(plan, nodes, inputs, held)
            plan.held, plan.device = held, self.device
        results = made.executable.run(inputs)
        if len(made.overwritten) < len(plan.donors):
            _keep_order(results, inputs, plan.donors)
        if not made.kinds:
            made.kinds = [None] * len(results)
        for n, value, ended, kind in zip(plan.outputs, results, plan.ended, made.kinds):
            node = nodes[n]
            node.value, node.pending, node.kind = value, None, kind
            if ended:
                node.op, node.inputs = _INPUT, ()
        for n in made.overwritten:
            nodes[n].value = None
        if made.kinds[0] is None and plan.ended[0]:
            made.kinds = [
                self.trail.kind_of(nodes[n]) if ended else None
                for n, ended in zip(plan.outputs, plan.ended)
            ]

    def _made(self, plan: Plan, nodes: list[Node], inputs: list[Array], held: list[int]) -> Made:
        """The executable of a plan where the inputs have these counts of references."""
        donated = {o: n for o, n in plan.donors if held and held[n] == SOLE}
        key = (tuple(donated.items()), self.device)
        found = plan.made.get(key)
        if found is None:
            outputs = [nodes[n] for n in plan.outputs]
            executable = self._executable(_order(outputs), outputs, donated)
            overwritten = [plan.inputs[n] for n in donated.values()]
            found = plan.made[key] = Made(executable, overwritten)
        return found

    def _others_wait(self) -> bool:
        """Whether another thread may be about to read a parameter. (This one's piece is clear.)"""
        return any(any(alive(piece.waiting)) for piece in list(self.pieces))

    # ---- off the trail, and compiling ------------------------------------------------------

    def _run(self, outputs: list[Node], replaced: list[tuple[Node, Node]]) -> None:
        if not outputs:
            return
        order = _order(outputs)
        leaves = [n for n in order if n.value is not None]
        inputs: list[Any] = [leaf.value for leaf in leaves]
        held = [] if self._others_wait() else list(map(getrefcount, inputs))
        donors = _donors(outputs, leaves, replaced)
        donated = {o: n for o, n in donors if held and held[n] == SOLE}
        results = self._executable(order, outputs, donated).run(inputs)
        _keep_order(results, inputs, donors)
        for node, value in zip(outputs, results, strict=True):
            node.value, node.pending = value, None
            if not node.needs_grad or node.leaf:  # nobody differentiates through it any more
                node.op, node.inputs = _INPUT, ()
        for n in donated.values():
            leaves[n].value = None

    def _executable(self, order: list[Node], outputs: list[Node], donated: dict[int, int]) -> Any:
        """The native call for a piece, by its structure."""
        number: dict[int, int] = {}
        key: list[Any] = []
        for n, node in enumerate(order):
            number[id(node)] = n
            if node.value is not None:
                key.append((node.type, element_strides(node.value)))
            else:
                key.append((node.op, node.type, *[number[id(i)] for i in node.inputs]))
        places = tuple([number[id(o)] for o in outputs])
        full = (tuple(key), places, tuple(donated.items()), self.device)
        found = self.cache.get(full)
        if found is None:
            found = self.cache[full] = self._compile(order, outputs, donated)
        return found

    def _compile(self, order: list[Node], outputs: list[Node], donated: dict[int, int]) -> Any:
        """The piece as a graph with inputs of its own."""
        new: dict[int, Node] = {}
        leaves = [n for n in order if n.value is not None]
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


def _order(outputs: list[Node]) -> list[Node]:
    """What outputs are computed from, down to what has a value."""
    return walk(outputs, stop=lambda n: n.value is not None)


def _donors(
    outputs: list[Node], leaves: list[Node], replaced: list[tuple[Node, Node]]
) -> list[tuple[int, int]]:
    """Outputs that may overwrite the old value of their parameter, and its place among the leaves;
    not what a history that is alive reads."""
    place = {id(leaf): n for n, leaf in enumerate(leaves)}
    out = {id(o): n for n, o in enumerate(outputs)}
    kept = set(map(id, _order([o for o in outputs if o.needs_grad and not o.leaf])))
    return [
        (out[id(new)], place[id(old)])
        for new, old in replaced
        if id(new) in out and id(old) in place and id(old) not in kept
    ]


def _keep_order(results: list[Any], inputs: list[Any], donors: list[tuple[int, int]]) -> None:
    """New values of parameters lie in memory as the old ones do."""
    for output, place in donors:
        results[output] = engine.relaid(results[output], inputs[place])


def _check_few(point: Point, op: Operator, inputs: list[Node], where: Where) -> None:
    """Labels and positions that are there lie inside; a few are compared without numpy."""
    for n, size in point.checks:
        value = inputs[n].value
        if value is None or not value.size:
            continue
        few = value.ravel().tolist() if value.size <= FEW else (value.min(), value.max())
        if min(few) < 0 or max(few) >= size:
            interpret.check_positions(op, inputs, [i.value for i in inputs], where)


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
