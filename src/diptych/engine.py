"""The only meeting point of graphs, compiler and runtime: compile, load, run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar, Self

import numpy as np

from diptych import compiles, config, interpret
from diptych.compiler import ENTRY
from diptych.compiler.loop import LOOP_ENTRY, Loop, emit_loop
from diptych.compiler.sizes import NO_HINTS
from diptych.compiler.target import Target
from diptych.dtypes import Dim, Dimension, Shape, bind, row_major, symbols
from diptych.errors import DeviceError, InternalError
from diptych.graph.node import Graph
from diptych.graph.rewrite import specialise
from diptych.lazy import lazy
from diptych.runtime import call, memory, steady
from diptych.runtime.call import address
from diptych.runtime.checks import Checks
from diptych.runtime.code import Code, Source, assembly, host_target
from diptych.runtime.llvm import USUAL
from diptych.runtime.threads import Pool, pool_address, prepare_pool, running_pool, threads

Array = np.ndarray[Any, Any]
SMALL_BATCH = 16  # a first size below this says little about the others
KEPT = 16  # sizes of a symbolic executable that keep their memory between calls
MOST_SIZES = 1024  # that are remembered, at 2 KB each


def _picker(places: list[int]) -> Callable[[list[Array]], Sequence[Array]]:
    """What gives the arrays at these places of a list."""
    if len(places) > 1:  # of one place it would give no tuple
        return itemgetter(*places)
    return lambda arrays: [arrays[n] for n in places]


@dataclass
class Statistics:
    """What the engine did, for tests; `dp.why` tells of every compile."""

    calls: int = 0
    compiles: int = 0
    compile_seconds: float = 0.0


STATISTICS = Statistics()


class Frame:
    """The memory of one call: the words that the trampoline reads, the table of pointers, the
    places of the checks, and the arena. It belongs to a call while that lasts, then to the next."""

    def __init__(self, executable: Executable) -> None:
        graph, compiled = executable.graph, executable.compiled
        constants = executable.constants
        ins, outs = len(graph.inputs), len(graph.outputs)
        pool = ins + outs + len(constants) + 1
        self.code = executable.code  # which the words call, whatever the executable has by then
        self.words = np.zeros(call.TABLE + pool + 2 + 2 * len(compiled.checks), np.int64)
        self.first_check = call.TABLE + pool + 2
        self.arena = memory.empty((max(executable.arena_bytes, memory.SMALL + 1),), np.uint8)
        self.address = address(self.words)
        arena = address(self.arena)
        self.words[: call.TABLE] = [self.code.address(ENTRY), ins, outs, arena, pool]
        table = self.words[call.TABLE :]
        table[ins + outs : pool - 1] = [address(a) for a in constants]
        table[pool - 1] = self.address + 8 * self.first_check
        table[pool + 1] = address(executable.words)

    def bad_position(self, check: int) -> int:
        """The position that failed a check, which is forgotten here."""
        bad = int(self.words[self.first_check + 2 * check])
        self.words[self.first_check :] = 0
        return bad


class Flight:
    """A call that a worker of the pool runs while the caller goes on. What it reads and writes is
    kept here until `finish`."""

    def __init__(
        self,
        executable: Executable,
        frame: Frame,
        pool: Pool,
        later: call.Trampoline,
        inputs: list[Array],
        results: list[Array],
    ) -> None:
        self.executable, self.pool, self.later = executable, pool, later
        self.inputs, self.results = inputs, results
        self.frame: Frame | None = frame

    def start(self) -> bool:
        """Hand the call over; False where it was run at once."""
        assert self.frame is not None
        STATISTICS.calls += 1
        code = self.later(self.frame.address, self.inputs, self.results, self.pool.address)
        if code == -1:
            return True
        self._end(code)
        return False

    def finish(self) -> None:
        """Wait for the call, and help with it; a second time it is nothing."""
        self._end(self.pool.finish())

    def _end(self, failed: int) -> None:
        if failed:
            raise InternalError(f"check {failed} of a call that cannot fail")
        frame, self.frame = self.frame, None
        if frame is not None:
            self.executable.frames.append(frame)

    def gives(self, value: Array | None) -> bool:
        """Whether the call computes this array."""
        return any([value is result for result in self.results])


class Executable:
    """One native function for a graph. Where sizes of the graph are symbols, `at` gives the
    executable for sizes: the same code with other memory."""

    lines: dict[int, int]  # what a caller knows of the lines of the graph, by id
    code: Code
    loop: ClassVar[bool] = False

    def __init__(
        self,
        graph: Graph,
        strides: Mapping[int, Shape],
        donated: dict[int, int],
        hints: Mapping[str, int] = NO_HINTS,
    ) -> None:
        announced = compiles.announce(graph, strides, donated, self.loop)
        start = time.perf_counter()
        target = host_target(config.cpu())
        prepare_pool()
        from diptych.compiler.pipeline import compile_graph  # a sixth of importing diptych

        self.compiled = compile_graph(graph, strides, donated, target, hints)
        self.graph, self.donated = graph, donated
        self.constants = self.compiled.constants
        self.bound: dict[tuple[int, ...], Self] = {}
        self.recent: list[Executable] = []  # those of `bound` that hold memory
        if not self.compiled.symbols:
            self._bind({})
        self._finish(target, announced, start)

    def _finish(self, target: Target, announced: compiles.Announced, start: float) -> None:
        """Get the code, and note what it took since `start`."""
        self.code = self._load(target)
        self._note(self.code, announced, time.perf_counter() - start)

    def _note(
        self, code: Code, announced: compiles.Announced, seconds: float, how: str = ""
    ) -> None:
        kernels = len(self.compiled.kernels)
        made = how or ("compiled" if code.compiled else "loaded")
        compiles.note(announced, seconds, kernels, not code.compiled, made)
        STATISTICS.compiles += 1
        STATISTICS.compile_seconds += seconds
        if config.debug():
            self._report(made, seconds)

    @lazy
    def trampoline(self) -> call.Trampoline | None:
        """What calls the code; a loop is called without."""
        return call.trampoline()

    def _load(self, target: Target) -> Code:
        return Code(self._source(target), target, [ENTRY], (), threads())

    def _source(self, target: Target, level: int = USUAL, parts: int = 0) -> Source:
        """Modules of this code: so many, or as threads can divide between them."""
        texts = partial(self._texts, parts)
        return Source(texts, target, self.compiled.description, level)

    def _texts(self, parts: int = 0) -> list[str]:
        module = self.compiled.module
        alone = not parts and threads() == 1
        return [module.text] if alone else module.parts(parts or 2 * threads())

    def at(self, sizes: Mapping[str, int]) -> Self:
        """The executable for these sizes of the symbols, all of them at least 2."""
        if not self.compiled.symbols:
            return self
        key = tuple(sizes[name] for name in self.compiled.symbols)
        found = self.bound.get(key)
        if found is None:
            found = copy.copy(self)
            found._bind(dict(zip(self.compiled.symbols, key, strict=True)))
            if len(self.bound) >= MOST_SIZES:
                self.bound.clear()
            self.bound[key] = found
        return found

    def _bind(self, sizes: Mapping[str, int]) -> None:
        """What the code reads and writes at these sizes."""
        words, self.arena_bytes = self.compiled.words(sizes)
        self.sizes, self.words = sizes, np.array(words, np.int64)
        self.frames: list[Frame] = []
        self.outputs = [
            (tuple(bind(d, sizes) for d in o.type.shape), o.type.dtype.numpy)
            for o in self.graph.outputs
        ]
        # For every output the input that it is written over, or -1, and what makes its memory.
        self.places = [
            (self.donated.get(n, -1), memory.maker(*made, again=not sizes))
            for n, made in enumerate(self.outputs)
        ]
        # The same for a faster way to it: where each is among the inputs and what is made.
        self.makers = [make for given, make in self.places if given < 0]
        made = iter(range(len(self.graph.inputs), len(self.graph.inputs) + len(self.makers)))
        order = [next(made) if given < 0 else given for given, _ in self.places]
        self.pick = _picker(order)

    def _frame(self) -> Frame:
        """Memory for a call; of the sizes of a symbol, a few keep theirs."""
        if self.sizes and self not in self.recent:
            self.recent.append(self)
            if len(self.recent) > KEPT:
                self.recent.pop(0).frames.clear()
        return Frame(self)

    def assembly(self) -> str:
        """The machine code as text."""
        return assembly(self.compiled.llvm, host_target(config.cpu()))

    def _report(self, made: str, seconds: float) -> None:
        import sys

        lines = [f"diptych: {made} {len(self.compiled.kernels)} kernels in {seconds * 1e3:.1f} ms"]
        if config.debug() >= 2:
            lines += [f"  k{n}: {kernel.node!r}" for n, kernel in enumerate(self.compiled.kernels)]
        if config.debug() >= 4:
            lines.append(self.compiled.llvm)
        print("\n".join(lines), file=sys.stderr)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs for inputs whose layout is the one compiled for; donated inputs are
        overwritten, and are themselves the outputs."""
        if type(inputs) is not list or self.trampoline is None:
            code = self.code  # which lives as long as the call, whatever another thread swaps
            return self._call(inputs, [], code.functions[ENTRY])
        results = self._outputs(inputs)
        STATISTICS.calls += 1
        try:
            frame = self.frames.pop()
        except IndexError:
            frame = self._frame()
        failed = self.trampoline(frame.address, inputs, results, pool_address())
        if failed:
            self.raise_failed(failed, frame)
        self.frames.append(frame)
        return results

    def _outputs(self, inputs: list[Array]) -> list[Array]:
        """Memory for the outputs: new, or that of donated inputs."""
        made: list[Array] = []
        for make in self.makers:  # a comprehension takes longer, up to Python 3.11
            made.append(make())
        return [*self.pick(inputs + made)] if self.donated else made

    def prepared(self, inputs: list[Array]) -> Flight | None:
        """A call of this where nothing can fail, to be started; None where there is no pool."""
        pool = running_pool()
        later = None if pool is None else call.later()
        if pool is None or later is None:
            return None
        frame = self.frames.pop() if self.frames else self._frame()
        return Flight(self, frame, pool, later, inputs, self._outputs(inputs))

    def steady(
        self, checks: Checks, live: Sequence[Callable[[], Array]], wanted: int
    ) -> tuple[steady.Call, Frame] | None:
        """A call of this for arguments for which `checks` hold, as `runtime.steady` says, and the
        frame that it uses, which is to be kept as long."""
        frame = self._frame()
        made = steady.steady_call(checks, frame.address, live, self.places, wanted)
        return None if made is None else (made, frame)

    def raise_failed(self, check: int, frame: Frame) -> None:
        """The error of a check, which was the first of a call that failed."""
        self._raise(check, frame.bad_position(check - 1))

    def _raise(self, failed: int, bad: int) -> None:
        check = self.compiled.checks[failed - 1]
        size = bind(check.size, self.sizes)
        raise interpret.position_error(check.what, bad, size, check.where)

    def _call(
        self, inputs: Sequence[Array], more: list[Array], entry: Callable[[int, int], int]
    ) -> list[Array]:
        """`run` with a table of its own, and further pointers at its end."""
        results = [make() if given < 0 else inputs[given] for given, make in self.places]
        status = np.zeros(2 * len(self.compiled.checks) + 1, np.int64)
        pointers = [address(a) for a in (*inputs, *results, *self.constants, status)]
        last = [pool_address(), address(self.words), *map(address, more)]
        table = np.array([*pointers, *last], np.int64)
        arena = memory.empty((max(self.arena_bytes, memory.SMALL + 1),), np.uint8)
        STATISTICS.calls += 1
        failed = entry(address(table), address(arena))
        if failed:
            self._raise(failed, int(status[2 * (failed - 1)]))
        return results


class LoopExecutable(Executable):
    """A step in a native loop: `run` takes the number of steps, and returns stacked outputs."""

    loop = True

    def __init__(
        self,
        graph: Graph,
        strides: Mapping[int, Shape],
        donated: dict[int, int],
        start: int,
        batch: Dimension,
        random: Sequence[int],
        hints: Mapping[str, int] = NO_HINTS,
    ) -> None:
        self.place = (start, batch, tuple(random))
        super().__init__(graph, strides, donated, hints)

    def _load(self, target: Target) -> Code:
        start, batch, random = self.place
        outputs = [
            (len(self.graph.inputs) + n, o.type.size * o.type.dtype.bytes)
            for n, o in enumerate(self.graph.outputs)
            if n not in self.donated
        ]
        stacks = len(self.graph.inputs) + len(self.graph.outputs) + len(self.constants) + 3
        loop = Loop(start, batch, tuple(outputs), stacks, random, self.compiled.table)
        more, known_as = emit_loop(loop), self.compiled.description

        def texts() -> list[str]:
            first, *others = self._texts()
            return [first + more, *others]

        source = Source(texts, target, known_as + more)
        return Code(source, target, [ENTRY], [LOOP_ENTRY], threads())

    def run_steps(self, inputs: Sequence[Array], steps: int) -> list[Array]:
        """Each output that is not donated, stacked over the steps; donated inputs change."""
        stacked = [
            memory.empty((steps, *shape), dtype)
            for n, (shape, dtype) in enumerate(self.outputs)
            if n not in self.donated
        ]
        loop = self.code.functions[LOOP_ENTRY]
        self._call(inputs, stacked, lambda table, arena: loop(table, arena, steps))
        return stacked


class ReferenceExecutable:
    """The same graph on the reference device."""

    lines: dict[int, int]

    def __init__(self, graph: Graph, donated: dict[int, int]) -> None:
        self.graph, self.donated = graph, donated

    def at(self, sizes: Mapping[str, int]) -> Self:
        return self

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        STATISTICS.calls += 1
        results = [r.copy() for r in interpret.run(self.graph, inputs)]  # one may be an input
        for output, given in self.donated.items():
            np.copyto(inputs[given], results[output])
            results[output] = inputs[given]
        return results


class ReferenceLoop(ReferenceExecutable):
    """A step in a loop on the reference device, as `LoopExecutable` runs it natively."""

    def __init__(
        self,
        graph: Graph,
        donated: dict[int, int],
        start: int,
        batch: int,
        random: Sequence[int],
    ) -> None:
        super().__init__(graph, donated)
        self.place = (start, batch, tuple(random))

    def run_steps(self, inputs: Sequence[Array], steps: int) -> list[Array]:
        start, batch, random = self.place
        stacked: list[list[Array]] = []
        for step in range(steps):
            inputs[start][...] = step * batch
            results = self.run(inputs)
            stacked.append([r for n, r in enumerate(results) if n not in self.donated])
            for slot in random:
                inputs[slot][1] += len(random)
        return [np.stack(rows) for rows in zip(*stacked, strict=True)]


DEVICES = ("cpu", "reference")


def check_device(name: str) -> str:
    """The name of a device that is there."""
    if name not in DEVICES:
        raise DeviceError(
            "diptych runs on the devices " + " and ".join(DEVICES), repr(name), "device 'cpu'"
        )
    return name


def compile(
    graph: Graph,
    device: str,
    strides: Mapping[int, Shape] | None = None,
    donated: dict[int, int] | None = None,
    likely: Mapping[str, int] = NO_HINTS,
) -> Executable | ReferenceExecutable:
    """An executable for a graph on a device, `cpu` or `reference`; `likely` are sizes that its
    symbols will have."""
    if check_device(device) == "reference":
        return ReferenceExecutable(graph, donated or {})
    return Executable(graph, strides or {}, donated or {}, likely)


def hints(sizes: Mapping[str, int]) -> dict[str, int]:
    """What these sizes say about others."""
    return {name: max(size, SMALL_BATCH) for name, size in sizes.items()}


Compiler = Callable[..., Executable | ReferenceExecutable]  # as `compile`


class Family:
    """The executables of a graph some of whose sizes are symbols: one for all sizes.

    A symbol stands for 2 and more: graphs with a size of 0 or 1 have executables of their own, as
    have inputs that are not row-major along an axis of symbolic size.
    """

    def __init__(self, graph: Graph, compile: Compiler = compile) -> None:
        self.graph, self.compile = graph, compile
        self.dims = {d for n in graph.nodes for d in n.type.shape if isinstance(d, Dim)}
        self.made: dict[Any, Executable | ReferenceExecutable] = {}
        self.wants: dict[Any, dict[int, int]] = {}

    def find(
        self,
        device: str,
        strides: Sequence[tuple[int, ...]],
        donated: dict[int, int],
        sizes: Mapping[str, int],
    ) -> Executable | ReferenceExecutable:
        """The executable for inputs with these strides and sizes; a caller keeps it."""
        special = specialise(self.graph, sizes)  # which says where sizes do not fit
        orders = None
        if device != "reference" and not self.is_special(sizes):
            orders = self._orders(strides, sizes)
        known = () if orders else tuple(sizes.items())
        key = (device, tuple(donated.items()), orders or tuple(strides), known)
        found = self.made.get(key)
        if found is None:
            graph = special if orders is None else self.graph
            order = dict(enumerate(strides if orders is None else orders))
            found = self.made[key] = self.compile(graph, device, order, donated, hints(sizes))
        return found.at(sizes)

    def is_special(self, sizes: Mapping[str, int]) -> bool:
        """Whether these sizes have an executable of their own."""
        few = min(sizes.values(), default=2) < 2
        return few or any(bind(d, sizes) < 1 for d in self.dims)

    def wanted(self, sizes: Mapping[str, int]) -> dict[int, int]:
        """Inputs, by their places, that are read fastest with this axis innermost."""
        key = tuple(sizes.items()) if self.is_special(sizes) else ()
        found = self.wants.get(key)
        if found is None:
            graph = specialise(self.graph, dict(key))
            from diptych.compiler.orders import wanted_orders

            found = self.wants[key] = wanted_orders(graph)
        return found

    def _orders(
        self, strides: Sequence[tuple[int, ...]], sizes: Mapping[str, int]
    ) -> tuple[Shape, ...] | None:
        """The strides with symbols, or None where they hold for these sizes alone."""
        orders: list[Shape] = []
        for node, have in zip(self.graph.inputs, strides, strict=True):
            shape = node.type.shape
            order: Shape = have
            if symbols(shape):
                order = row_major(shape)
                for d, want, step in zip(shape, order, have, strict=True):
                    if bind(want, sizes) != step and d != 1:
                        return None
            orders.append(order)
        return tuple(orders)


def run_once(graph: Graph, values: Sequence[Array], device: str) -> list[Array]:
    """Compile and run a graph that is needed once, for tools and tests."""
    inputs = [np.ascontiguousarray(v).reshape(np.shape(v)) for v in values]
    for place, value in zip(graph.inputs, inputs, strict=True):
        if place.type.shape != value.shape:
            raise InternalError(f"{place!r} was given {value.shape}")
    return compile(graph, device).run(inputs)
