"""`compile`: an ordinary function, a whole training step included, captured as a program."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, overload

import numpy as np

from diptych.dtypes import Dim, TensorType, as_dtype
from diptych.errors import DiptychError, FrozenValueError
from diptych.graph.node import Graph, Input, Node, Where, input_node
from diptych.graph.record import LOCAL, author_line, current
from diptych.graph.text import print_graph
from diptych.runtime.checks import Checks
from diptych.size import Looked
from diptych.static.executor import STREAK, Executor, Feed, Plan, Steady
from diptych.static.guard import Guard, Snapshot, Watch
from diptych.static.program import Program
from diptych.static.promote import Structure, Symbols
from diptych.static.reached import PLAIN, Reached
from diptych.tensor import Number, Tensor, current_panel, default_panel

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]
INPUT = Input()
NO_SYMBOLS: Symbols = {}


class Captured:
    """One capture: a program, the structure of its result, the gradients it leaves, its guard."""

    def __init__(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        symbols: Symbols = NO_SYMBOLS,
    ) -> None:
        """`symbols` are sizes of arguments that the capture holds for all values of. Where the
        function asks for one of them as a number, SizeRead is raised and nothing changed."""
        self.symbols = symbols
        self.program = Program(captured=True)
        if symbols:
            self.program.looked = Looked(
                self._sizes([a for a in leaves((args, kwargs)) if is_array(a)])
            )
        self.mode = self.program.grad_enabled = default_panel().grad_enabled
        code = getattr(function, "__code__", None)
        self.where = Where(code.co_filename, code.co_firstlineno) if code else author_line()
        roots = [function, *leaves((args, kwargs))]
        reached = Reached(roots)
        snapshot = Snapshot(reached.objects)
        try:
            self.results: list[Node] = []
            self.structure = self._record(
                function, args, kwargs, Watch(function, reached, self.where)
            )
            self.kept = self._gradients()
            self._nothing_left()
            if self.program.looked is not None and self.program.looked.names:
                raise SizeRead
        except BaseException:
            snapshot.restore()
            raise
        self.wanted = [*self.results, *[g for _, g in self.kept if g is not None]]
        self.guard = Guard(roots, self.program.shared_arrays())
        had = self.program.had_grad
        self.with_grad = [handle for handle, there in had if there is not None]
        self.without = [handle for handle, there in had if there is None]
        without = set(map(id, self.without))
        self.changed = [(h, g) for h, g in self.kept if g is not None or id(h) not in without]
        self.plans: dict[Any, Plan] = {}
        self.steady: Steady | None = None

    def _record(
        self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], watch: Watch
    ) -> Any:
        places: list[Tensor] = []
        given, named = replace((args, kwargs), lambda a: self._place(places, a))
        self.handles = [weakref.ref(p) for p in places]
        places.clear()
        recorders = LOCAL.stack
        depth = len(recorders)
        try:
            with self.program, watch.lines():
                result = function(*given, **named)
        finally:
            del recorders[depth:]  # where Ctrl-C came at the end of the `with`
        return self._structure(result)

    def _place(self, places: list[Tensor], value: Any) -> Tensor:
        array = value if isinstance(value, Tensor) else np.asarray(value)
        dtype = array.dtype if isinstance(array, Tensor) else as_dtype(array.dtype)
        name = f"argument_{len(places)}"
        n = len(places)
        shape = [
            Dim.symbol(self.symbols[n, axis]) if (n, axis) in self.symbols else d
            for axis, d in enumerate(array.shape)
        ]
        node = input_node(TensorType(tuple(shape), dtype), name, self.where)
        node.needs_grad = isinstance(array, Tensor) and array.requires_grad
        self.program.feeds[name] = Feed(name, node)
        self.program.names[name] = node
        kind = Number if isinstance(value, np.generic) else Tensor
        places.append(kind(node, self.program))
        return places[-1]

    def _sizes(self, arrays: Sequence[Any]) -> dict[str, int]:
        return {name: arrays[n].shape[axis] for (n, axis), name in self.symbols.items()}

    def _structure(self, result: Any) -> Any:
        """The result with every tensor replaced by its number."""
        if isinstance(result, Tensor):
            self.results.append(self.program.node_of(result))
            return len(self.results) - 1
        if isinstance(result, tuple | list):
            return type(result)([self._structure(r) for r in result])
        if isinstance(result, dict):
            return {key: self._structure(r) for key, r in result.items()}
        if result is None:
            return None
        raise FrozenValueError(
            "a compiled function returns tensors, or tuples, lists and dicts of them",
            f"{type(result).__name__}    ({self.where})",
            "return the tensor it came from",
        )

    def _gradients(self) -> list[tuple[Tensor, Node | None]]:
        """What `.grad` is after the function, for every handle whose gradient it touched."""
        kept = [
            (handle, None if grad is None else self.program.node_of(grad))
            for handle, grad in self.program.grads.values()
        ]
        self.program.grads = {}
        return kept

    def _nothing_left(self) -> None:
        """No tensor of the capture may outlive it: it would have no value."""
        handles = [*self.handles, *self.program.handles]
        if any(h() is not None for h in handles):
            gc.collect()
        for reference in handles:
            handle = reference()
            if handle is not None:
                raise FrozenValueError(
                    "a tensor of a compiled function lives on only where it is returned",
                    f"{handle.type} is kept by something outside    ({handle.node.where})",
                    "return it, and keep what the call gives back",
                )
        self.handles = self.program.handles = []

    def valid(self) -> bool:
        """Whether everything that the capture depends on is as it was."""
        panel = default_panel()
        if panel.with_gradients(self.without):
            return False
        if len(panel.with_gradients(self.with_grad)) < len(self.with_grad):
            return False
        return self.guard.holds()

    def graph(self) -> Graph:
        """The whole step as a graph."""
        inputs = [f.node for f in self.program.feeds.values()]
        inputs += [n for _, n in self.program.state.values()]
        inputs += [n for n, _ in self.program.live]
        return Graph(tuple(inputs), (*self.wanted, *[new for *_, new in self.program.updates()]))

    def run(self, executor: Executor, arrays: Sequence[Any]) -> Any:
        device = executor.device
        plan = self.plans.get(device)
        if plan is None:
            plan = Plan(self.program, self.wanted, device)
            used = {f.name for f in plan.feeds}
            self.read = [n for n in range(len(arrays)) if f"argument_{n}" in used]
            self.plans[device] = plan
        sizes = self._sizes(arrays) if self.symbols else NO_SIZES
        values = plan.call([_host(arrays[n]) for n in self.read], sizes)
        if plan.streak == STREAK and all([type(a) is np.ndarray for a in arrays]):
            self.steady = self._steady(plan, arrays)
        return self.handed_out(values)

    def _steady(self, plan: Plan, arrays: Sequence[Any]) -> Steady | None:
        """How a call that finds everything as it was is made from here on."""
        if self.with_grad:  # whose layout may be another every time
            return None
        checks = Checks()
        checks.attribute(default_panel(), "grad_enabled", self.mode)
        for handle in self.without:
            checks.attribute(handle, "_grad", None)
        self.guard.add_to(checks)
        for n, array in enumerate(arrays):
            checks.argument(array, n in self.read)
        return plan.as_steady(checks, [arrays[n] for n in self.read])

    def handed_out(self, values: list[Array]) -> Any:
        """The result of the function, of what a plan computed."""
        panel = default_panel()
        if self.structure == 0 and len(values) == 1:  # one tensor, as most steps return
            result: Any = _wrap(panel, values[0], self.wanted[0])
            handles = [result]
        else:
            handles = [_wrap(panel, v, n) for v, n in zip(values, self.wanted, strict=True)]
            result = _build(self.structure, handles)
        if self.changed:
            grads = iter(handles[len(self.results) :])
            for handle, grad in self.changed:
                panel.set_grad(handle, None if grad is None else next(grads))
        return result


NO_SIZES: dict[str, int] = {}  # of a capture that knows all sizes


class SizeRead(Exception):
    """A function needed as a number what was to be any size."""


def _wrap(panel: Any, value: Array, made: Node) -> Tensor:
    type = made.type if made.type.shape == value.shape else made.type.with_shape(value.shape)
    node = Node(INPUT, (), type, made.where)
    node.value = value
    # A value that depends on parameters has no history here: backward from it is an error.
    if made.needs_grad and not made.leaf:
        node.needs_grad = node.released = True
    return Tensor(node, panel)


def _build(structure: Any, handles: list[Tensor]) -> Any:
    if isinstance(structure, int):
        return handles[structure]
    if isinstance(structure, tuple | list):
        return type(structure)([_build(s, handles) for s in structure])
    if isinstance(structure, dict):
        return {key: _build(s, handles) for key, s in structure.items()}
    return None


def is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray | np.generic)


def _host(value: Any) -> Array:
    if type(value) is np.ndarray:
        return value
    return current_panel(value).observe(value) if isinstance(value, Tensor) else np.asarray(value)


def replace(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with every array changed."""
    if is_array(value):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)([replace(v, change) for v in value])
    if type(value) is dict:
        return {k: replace(v, change) for k, v in value.items()}
    return value


def leaves(value: Any) -> list[Any]:
    """What is in nested tuples, lists and dicts, in order."""
    if type(value) in (tuple, list):
        return [leaf for v in value for leaf in leaves(v)]
    if type(value) is dict:
        return [leaf for v in value.values() for leaf in leaves(v)]
    return [value]


def _key(value: Any, any_size: bool = False) -> Any:
    """What a capture needs to know of an argument: types of arrays, plain values, identities;
    of sizes only how many there are where it holds for all."""
    if isinstance(value, Tensor):
        shape = value.ndim if any_size else value.shape
        return shape, value.dtype, value.requires_grad
    if is_array(value):
        number = isinstance(value, np.generic)
        return number, value.ndim if any_size else value.shape, value.dtype
    if type(value) in (tuple, list):
        return type(value), tuple([_key(v, any_size) for v in value])
    if type(value) is dict:
        return dict, tuple([(k, _key(v, any_size)) for k, v in value.items()])
    if isinstance(value, PLAIN):
        return type(value), repr(value)
    return Same(value)


class Same:
    """An object by its identity, which is kept: no later object is taken for it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: Any) -> bool:
        return type(other) is Same and other.value is self.value


def _form(args: tuple[Any, ...]) -> Any:
    """What `_same` holds arguments against, where all are plain arrays or tensors."""
    form = []
    for a in args:
        if type(a) is np.ndarray:
            form.append((np.ndarray, a.shape, a.dtype))
        elif type(a) is Tensor:
            form.append((Tensor, a.node.type, a.node.needs_grad))  # type: ignore[arg-type]
        else:
            return None
    return form


def _same(args: tuple[Any, ...], form: Any) -> bool:
    """Whether the arguments have the types of those of the last call; `_key` decides where not."""
    if form is None or len(args) != len(form):
        return False
    for a, (kind, first, second) in zip(args, form):
        if type(a) is not kind:
            return False
        if kind is np.ndarray:
            if a.shape != first or a.dtype is not second:
                return False
        elif a.node.type != first or a.node.needs_grad is not second:
            return False
    return True


METHODS = "_diptych_compiled"  # the attribute with the compiled methods of an object


class Methods:
    """The compiled methods of one object, which has them itself, so that they end with it. A copy
    of the object makes its own."""

    __slots__ = ("made", "of")

    def __init__(self, of: Any = None) -> None:
        self.of = of
        self.made: dict[Compiled, Compiled] = {}  # by what stands in the class

    def __reduce__(self) -> tuple[Any, ...]:
        return Methods, ()


class Compiled:
    """A function whose captures are kept, and chosen by its arguments and their guards."""

    def __init__(self, function: Function, check: int) -> None:
        functools.update_wrapper(self, function)
        self.function, self.check, self.calls = function, check, 0
        self.executor = Executor()
        self.captures: dict[Any, list[Captured]] = {}
        self.structures: dict[Any, Structure] = {}
        self.scans: dict[Any, Any] = {}
        # The last call, which the next one is held against: types of arguments, mode, capture.
        self.form: Any = None
        self.mode: bool | None = None
        self.last: Captured | None = None

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """The compiled method of one object, with captures of its own."""
        bind = getattr(type(self.function), "__get__", None)
        if instance is None or bind is None:
            return self
        if isinstance(instance, type):  # of a class method
            return MethodType(self, instance)
        attributes = getattr(instance, "__dict__", None)
        if attributes is None:
            raise FrozenValueError(
                "a compiled method keeps its captures with the object",
                f"a {type(instance).__name__} has __slots__, and no __dict__",
                "put '__dict__' among the slots, or call dp.compile(instance.method) once",
            )
        methods = attributes.get(METHODS)
        if methods is None or methods.of is not instance:
            methods = attributes[METHODS] = Methods(instance)
        found: Compiled | None = methods.made.get(self)
        if found is None:
            found = methods.made[self] = Compiled(bind(self.function, instance, owner), self.check)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if LOCAL.stack and current().is_program:
            return self.function(*args, **kwargs)
        self.calls += 1
        last = self.last
        if last is not None and last.steady is not None and not kwargs and not self.check:
            values = last.steady(*args)
            if values is not None:
                return last.handed_out(values)
        if not kwargs and _same(args, self.form) and self.mode is default_panel().grad_enabled:
            found, arrays = self.last, args
            if found is None or not found.valid():
                found = self._capture(args, kwargs)
        else:
            found = self._capture(args, kwargs)
            arrays = tuple([a for a in leaves((args, kwargs)) if is_array(a)])
            self.form = _form(args) if not kwargs and len(arrays) == len(args) else None
        if self.check and self.calls % self.check == 0:
            self._compare(found, args, kwargs)
        return found.run(self.executor, arrays)

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
        self.mode = default_panel().grad_enabled
        key = (_key(args), _key(kwargs), self.mode)
        known = self.captures.setdefault(key, [])
        for capture in known:
            if capture.valid():
                self.last = capture
                return capture
        self.last = self._for_all_sizes(args, kwargs) or Captured(self.function, args, kwargs)
        known.append(self.last)
        return self.last

    def _for_all_sizes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured | None:
        """A capture with symbols for the sizes that were seen to change."""
        shapes = tuple([tuple(a.shape) for a in leaves((args, kwargs)) if is_array(a)])
        key = (_key(args, True), _key(kwargs, True), self.mode)
        structure = self.structures.setdefault(key, Structure())
        return structure.find(
            shapes, lambda symbols: Captured(self.function, args, kwargs, symbols)
        )

    def _compare(self, found: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the function anew, and hold the result against the capture in use."""
        fresh = Captured(self.function, args, kwargs, found.symbols)
        old, new = (print_graph(c.graph()).splitlines() for c in (found, fresh))
        for a, b in zip([*old, ""], [*new, ""], strict=False):
            if a != b:
                line = (b or a).rpartition("  # ")[2]
                raise FrozenValueError(
                    "a compiled function records the same graph every time",
                    f"{a.strip()!r} is now {b.strip()!r}    ({line})",
                    "pass what changes as an argument, or leave the function dynamic",
                )


@overload
def compile(function: Function, *, check: int = 0) -> Function: ...


@overload
def compile(*, check: int = 0) -> Callable[[Function], Function]: ...


def compile(function: Function | None = None, *, check: int = 0) -> Any:
    """Capture a function, a whole training step if you like, as a program of the static panel.

    The first call with arguments of given types records it; later calls are one native call. The
    parameters and optimizer state that it reads or assigns are found by the recorder. Arrays may
    stand in nested tuples, lists and dicts; other arguments are part of the capture: a number that
    changes from call to call is passed as `np.float32(0.5)`, which is an array.

    A capture is guarded by the numbers among the globals, closure variables, defaults and
    attributes that the function, or one that it calls, names, by the identity of modules,
    optimizers and parameters, by the modes (train, no_grad) and by which gradients are there:
    where one differs, the function is captured anew.
    A method is captured once for each object, whose attributes are held like closure variables.
    Once a size of an argument was seen to change, the next capture holds for all sizes of 2 and
    more, unless the function needs the size as a number (to branch on it, to loop so often).
    What would be frozen silently is a FrozenValueError that names the line. Guards do not see what
    a function reads from elsewhere (a file, the clock, a C library); `check=n` records every n-th
    call anew and raises where the graph differs.
    """
    if function is None:
        return lambda f: Compiled(f, check)
    if not callable(function):
        raise DiptychError(
            "compile takes a function", f"{type(function).__name__}", "@dp.compile above a def"
        )
    return Compiled(function, check)
