"""Running a piece of the dynamic panel: which values it has to give, which memory it may use again,
and the native call that does it, by the piece's place on the trail or by a walk.

Where nobody looks, a worker of the pool makes the call while Python records on: it is in flight.
Its outputs are bound at once; whoever reads a value, or writes one, finishes the flight first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import ref

import numpy as np

from diptych import engine, interpret, tiers
from diptych.errors import RecompileError, ValueRangeError
from diptych.families import Families
from diptych.graph.node import Graph, Input, Node, Where, input_node, walk
from diptych.runtime.holders import SOLE, holders
from diptych.runtime.memory import element_strides, relaid
from diptych.trail import Bundle, Made, Piece, Plan, Point, Trail, alive

Array = np.ndarray[Any, Any]
Replaced = list[tuple[Node, Node]]  # (new value of a parameter, the old one)
INPUT = Input()


class Runner:
    """Executables by structure; the caller holds the panel's lock."""

    def __init__(self, trail: Trail, others_wait: Callable[[Piece], bool]) -> None:
        self.trail, self.others_wait = trail, others_wait
        self.cache: dict[Any, Any] = {}
        self.families = Families(tiers.compile)
        self.device = "cpu"
        self.flight: engine.Flight | None = None
        self.values: Callable[[list[Node], list[int]], list[Any]] = _values
        self.bind: Callable[..., None] = _bind

    def finish(self) -> None:
        """Wait for what is in flight."""
        if self.flight is not None:
            self.flight.finish()
            self.flight = None

    def finish_values(self, nodes: Sequence[Node]) -> None:
        """Wait for what is in flight, where it computes the value of one of these."""
        if self.flight is not None and any([self.flight.gives(n.value) for n in nodes]):
            self.finish()

    def run(self, piece: Piece, looked: bool = True) -> None:
        """Run what is waiting; every handle that is alive becomes an output. Where a value is not
        `looked` at now, the native call may be in flight afterwards."""
        self.looked = looked
        if not piece.waiting:
            piece.clear()
            return
        replaced = piece.replaced
        try:
            if piece.bundles:
                piece.settle_alive()
            run = self._prepared(piece)
            piece.clear()
            run()
        except RecompileError:  # it waits on, for a run that may compile
            raise
        except BaseException:
            piece.clear()
            _restore(replaced)
            raise

    def _prepared(self, piece: Piece) -> Callable[[], None]:
        """What runs a piece, compiled."""
        point, waiting = piece.point, piece.waiting
        if point is None:
            return self._by_walk(self._outputs(piece), piece)
        counts = holders(waiting)
        if counts == point.counts:
            plan = point.plan
        else:
            plan = self._plan(piece, point)
            point.counts, point.plan = counts, plan
        return self._by_plan(plan, piece)  # type: ignore[arg-type]

    def _outputs(self, piece: Piece) -> list[Node]:
        """Values that somebody may still ask for, by a look or by a backward."""
        piece.complete()
        found: dict[int, Node] = {}
        for tensor, held in zip(piece.waiting, alive(piece.waiting)):
            if held and tensor.node.value is None:
                found[id(tensor.node)] = tensor.node
        roots = list(found.values())
        history = [n for n in roots if n.needs_grad and not n.leaf]
        if history:  # what a later backward reads stays
            for node in walk(history, stop=lambda n: n.value is not None or not n.needs_grad):
                if node.value is None and node.needs_grad:
                    found[id(node)] = node
        return list(found.values())

    # ---- by the place on the trail ---------------------------------------------------------

    def _plan(self, piece: Piece, point: Point) -> Plan:
        """How a piece that ends at this point is run, where these handles are alive."""
        held = alive(piece.waiting)
        found = point.plans.get(held)
        if found is None:
            outputs = self._outputs(piece)
            leaves = [n for n in _order(outputs) if n.value is not None]
            donors = _donors(outputs, leaves, piece.replaced)
            ended = [not n.needs_grad or n.leaf for n in outputs]
            found = point.plans[held] = Plan(
                [piece.slots[n] for n in outputs],
                [piece.slots[n] for n in leaves],
                donors,
                ended,
                all(ended),
                [n for _, n in donors if leaves[n].readers is not None],
            )
        return found

    def _by_plan(self, plan: Plan, piece: Piece) -> Callable[[], None]:
        nodes, bundles = piece.nodes, piece.bundles
        self.finish()  # which holds what it reads
        inputs = self.values(nodes, plan.inputs)
        held = [] if self.others_wait(piece) else holders(inputs)
        for n in plan.watched:
            if held and _is_read(nodes[plan.inputs[n]]):
                held[n] = 0
        made = plan.last
        if made is None or held != plan.held or plan.device != self.device:
            made = plan.last = self._made(plan, nodes, bundles, held)
            plan.held, plan.device = held, self.device
        return partial(self._run_plan, plan, made, inputs, nodes, bundles)

    def _run_plan(
        self,
        plan: Plan,
        made: Made,
        inputs: list[Any],
        nodes: list[Node],
        bundles: list[Bundle],
    ) -> None:
        try:
            results = self._started(made, inputs)
            if results is None:
                results = made.executable.run(inputs) if plan.outputs else []
        except ValueRangeError as problem:
            order = _order(_completed(plan, nodes, bundles))
            raise _with_line(problem, made.executable, order) from None
        if len(made.overwritten) < len(plan.donors):
            _keep_order(results, inputs, plan.donors)
        if plan.all_ended:
            self.bind(nodes, plan.outputs, results, made.kinds, made.overwritten)
        else:
            _bind_with_history(nodes, plan, results, made)
        if made.new:  # from now on the kinds of the outputs are known
            made.new = False
            for k, (n, ended) in enumerate(zip(plan.outputs, plan.ended)):
                made.kinds[k] = self.trail.kind_of(nodes[n]) if ended else None

    def _started(self, made: Made, inputs: list[Any]) -> list[Array] | None:
        """The outputs of a call that is in flight, or was run at once; None where it may not be."""
        flight = made.executable.prepared(inputs) if made.safe and not self.looked else None
        if flight is None:
            return None
        self.flight = flight  # before the start: an interrupt may come right after it
        if not flight.start():
            self.flight = None
        return flight.results  # type: ignore[no-any-return]

    def _made(self, plan: Plan, nodes: list[Node], bundles: list[Bundle], held: list[int]) -> Made:
        """The executable of a plan where the inputs have these counts of references."""
        donated = {o: n for o, n in plan.donors if held and held[n] == SOLE}
        key = (tuple(donated.items()), self.device)
        found = plan.made.get(key)
        if found is None:
            outputs = _completed(plan, nodes, bundles)
            order = _order(outputs)
            executable = self._executable(order, outputs, donated) if outputs else None
            overwritten = [plan.inputs[n] for n in donated.values()]
            safe = len(donated) == len(plan.donors) and _cannot_fail(order)
            safe = safe and isinstance(executable, engine.Executable)
            found = plan.made[key] = Made(executable, overwritten, [None] * len(outputs), safe)
        return found

    # ---- by a walk, and compiling ----------------------------------------------------------

    def _by_walk(self, outputs: list[Node], piece: Piece) -> Callable[[], None]:
        self.finish()
        if not outputs:
            return lambda: None
        order = _order(outputs)
        leaves = [n for n in order if n.value is not None]
        inputs: list[Any] = [leaf.value for leaf in leaves]
        held = [] if self.others_wait(piece) else holders(inputs)
        donors = _donors(outputs, leaves, piece.replaced)
        donated = {o: n for o, n in donors if held and held[n] == SOLE and not _is_read(leaves[n])}
        executable = self._executable(order, outputs, donated)

        def run() -> None:
            try:
                results = executable.run(inputs)
            except ValueRangeError as problem:
                raise _with_line(problem, executable, order) from None
            _keep_order(results, inputs, donors)
            for node, value in zip(outputs, results, strict=True):
                node.value, node.pending = value, None
                if not node.needs_grad or node.leaf:  # nobody differentiates through it any more
                    node.op, node.inputs = INPUT, ()
                else:
                    _keep_inputs(node)
            for n in donated.values():
                leaves[n].value = None

        return run

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
        lines: dict[int, int] = {}  # which call a line of the graph stands for
        leaves = [n for n in order if n.value is not None]
        for n, node in enumerate(order):
            where = Where(*node.where)
            lines[id(where)] = n
            if node.value is not None:
                new[id(node)] = input_node(node.type, node.label, where)
            else:
                inputs = tuple(new[id(i)] for i in node.inputs)
                new[id(node)] = Node(node.op, inputs, node.type, where, label=node.label)
        graph = Graph(tuple(new[id(leaf)] for leaf in leaves), tuple(new[id(o)] for o in outputs))
        strides = {n: element_strides(leaf.value) for n, leaf in enumerate(leaves)}  # type: ignore[arg-type]
        return self.families.find(graph, self.device, strides, donated, lines)


def _values(nodes: list[Node], places: list[int]) -> list[Any]:
    return [nodes[n].value for n in places]


def _bind(
    nodes: list[Node], outputs: list[int], values: list[Array], kinds: list[Any], gone: list[int]
) -> None:
    """Give nodes their values and kinds; what they were computed from is not asked for any more.
    Those that are `gone` have none."""
    for n, value, kind in zip(outputs, values, kinds):
        node = nodes[n]
        node.value, node.pending, node.kind = value, None, kind
        node.op, node.inputs = INPUT, ()
    for n in gone:
        nodes[n].value = None


def _bind_with_history(nodes: list[Node], plan: Plan, values: list[Array], made: Made) -> None:
    """The same where somebody may differentiate through some of the values."""
    for n, value, ended, kind in zip(plan.outputs, values, plan.ended, made.kinds):
        node = nodes[n]
        node.value, node.pending, node.kind = value, None, kind
        if ended:
            node.op, node.inputs = INPUT, ()
        else:
            _keep_inputs(node)
    for n in made.overwritten:
        nodes[n].value = None


def _cannot_fail(order: list[Node]) -> bool:
    """Whether all positions were there, and so were checked, when they were recorded."""
    for node in order:
        if node.value is None:
            places = node.op.positions(*[i.type for i in node.inputs])
            if any([node.inputs[n].value is None for n, *_ in places]):
                return False
    return True


def _completed(plan: Plan, nodes: list[Node], bundles: list[Bundle]) -> list[Node]:
    """The outputs of a plan, with all that they come from as nodes."""
    for bundle in bundles:
        bundle.complete()
    return [nodes[n] for n in plan.outputs]


def _with_line(problem: ValueRangeError, executable: Any, order: list[Node]) -> ValueRangeError:
    """An error of a position that names the line of this run, not of the run that compiled."""
    call = executable.lines.get(id(getattr(problem, "at", None)))
    if call is None:
        return problem
    what, bad, size = problem.position  # type: ignore[attr-defined]
    return interpret.position_error(what, bad, size, order[call].where)


def _keep_inputs(node: Node) -> None:
    """The gradient of a computed node reads its inputs, as long as it is there."""
    for given in node.inputs:
        if given.value is not None:
            given.readers = [r for r in given.readers or () if r() is not None] + [ref(node)]
            given.kind = None


def _is_read(node: Node) -> bool:
    """Whether a gradient may still read a value."""
    readers = [reader() for reader in node.readers or ()]
    return any(r is not None and r.needs_grad for r in readers)


def _restore(replaced: Replaced) -> None:
    """After a failed run parameters have the values from before it."""
    before = {id(new): old for new, old in replaced}
    for new, old in reversed(replaced):
        while old.value is None and id(old) in before:  # assigned several times in a piece
            old = before[id(old)]
        owner = None if new.owner is None else new.owner()
        if owner is not None and owner.node is new and old.value is not None:
            owner.bind(old, new.needs_grad)


def _order(outputs: list[Node]) -> list[Node]:
    """What outputs are computed from, down to what has a value."""
    return walk(outputs, stop=lambda n: n.value is not None)


def _keep_order(results: list[Any], inputs: list[Any], donors: list[tuple[int, int]]) -> None:
    """New values of parameters lie in memory as the old ones do."""
    for output, place in donors:
        results[output] = relaid(results[output], inputs[place])


def _donors(outputs: list[Node], leaves: list[Node], replaced: Replaced) -> list[tuple[int, int]]:
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
