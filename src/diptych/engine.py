"""The only meeting point of graphs, compiler and runtime: compile, load, run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diptych import config, interpret
from diptych.compiler.loop import LOOP_ENTRY, Loop, emit_loop
from diptych.compiler.orders import wanted_orders as wanted_orders
from diptych.compiler.pipeline import ENTRY, compile_graph
from diptych.compiler.target import Target
from diptych.errors import DeviceError, InternalError
from diptych.graph.node import Graph
from diptych.runtime import call
from diptych.runtime.call import address
from diptych.runtime.code import Code, assembly, host_target
from diptych.runtime.threads import pool_address

Array = np.ndarray[Any, Any]
ALIGN = 64
SMALL = 1 << 12  # bytes below which alignment is not worth its price


def empty(shape: Sequence[int], dtype: Any) -> Array:
    """Memory for a tensor in row-major order, aligned where it is large."""
    dtype = np.dtype(dtype)
    size = math.prod(shape)
    if size * dtype.itemsize <= SMALL:
        return np.empty(shape, dtype)
    return _aligned(size, dtype).reshape(shape)


def empty_columns(shape: tuple[int, int], dtype: Any) -> Array:
    """Memory for a matrix with its first axis innermost. Each column starts on a cache line, where
    that costs little: loads meet fewer lines, and threads that divide a matrix share none."""
    dtype = np.dtype(dtype)
    line = ALIGN // dtype.itemsize
    pitch = -(-shape[0] // line) * line
    if (pitch - shape[0]) * 8 > shape[0]:
        pitch = shape[0]
    return _aligned(shape[1] * pitch, dtype).reshape(shape[1], pitch)[:, : shape[0]].T


def copied(array: Array) -> Array:
    """A copy with the strides of the original."""
    new = array.copy(order="K")
    if new.strides != array.strides and array.ndim == 2:
        new = empty_columns(array.shape, array.dtype)  # type: ignore[arg-type]
        new[...] = array
    return new


def turned(array: Array, innermost: int) -> Array:
    """The matrix with this axis innermost in memory: itself, or a copy."""
    if array.strides[innermost] == array.itemsize or 1 in array.shape:
        return array
    turn = innermost == 0
    new = empty_columns(array.shape if turn else array.shape[::-1], array.dtype)  # type: ignore[arg-type]
    new = new if turn else new.T
    new[...] = array
    return new


def relaid(array: Array, old: Array | None) -> Array:
    """The array with the strides of the value that it replaces, for which code is there."""
    if old is None or array.strides == old.strides or array.ndim != 2:
        return array
    new = empty_columns(array.shape, array.dtype)  # type: ignore[arg-type]
    if new.strides != old.strides:
        return array
    new[...] = array
    return new


def _aligned(size: int, dtype: np.dtype[Any]) -> Array:
    raw = np.empty(max(size, 1) * dtype.itemsize + ALIGN, np.uint8)
    start = -address(raw) % ALIGN
    return raw[start : start + size * dtype.itemsize].view(dtype)


def _maker(shape: tuple[int, ...], dtype: Any) -> Callable[[], Array]:
    small = math.prod(shape) * dtype.itemsize <= SMALL
    return partial(np.empty if small else empty, shape, dtype)


def element_strides(array: Array) -> tuple[int, ...]:
    return tuple(s // array.itemsize for s in array.strides)


@dataclass
class Statistics:
    """What the engine did, for tests and for `dp.why`."""

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
        self.words = np.zeros(call.TABLE + pool + 1 + 2 * len(compiled.checks), np.int64)
        self.first_check = call.TABLE + pool + 1
        self.arena = empty((max(compiled.arena_bytes, SMALL + 1),), np.uint8)
        self.address = address(self.words)
        arena = address(self.arena)
        self.words[: call.TABLE] = [executable.code.address(ENTRY), ins, outs, arena, pool]
        table = self.words[call.TABLE :]
        table[ins + outs : pool - 1] = [address(a) for a in constants]
        table[pool - 1] = self.address + 8 * self.first_check

    def bad_position(self, check: int) -> int:
        """The position that failed a check, which is forgotten."""
        places = self.words[self.first_check :]
        bad = int(places[2 * check])
        places[:] = 0
        return bad


class Executable:
    """One native function for a graph with known sizes."""

    def __init__(
        self, graph: Graph, strides: dict[int, tuple[int, ...]], donated: dict[int, int]
    ) -> None:
        start = time.perf_counter()
        target = host_target(config.cpu())
        self.compiled = compile_graph(graph, strides, donated, target)
        self.graph, self.donated = graph, donated
        self.constants = self.compiled.constants
        self.code = self._load(target)
        self.frames: list[Frame] = []
        self.trampoline = call.trampoline()
        self.outputs = [
            (tuple(int(d) for d in o.type.shape), o.type.dtype.numpy)  # type: ignore[arg-type]
            for o in graph.outputs
        ]
        # For every output the input that it is written over, or -1, and what makes its memory.
        self.places = [(donated.get(n, -1), _maker(*made)) for n, made in enumerate(self.outputs)]
        STATISTICS.compiles += 1
        STATISTICS.compile_seconds += time.perf_counter() - start
        if config.debug():
            self._report(time.perf_counter() - start)

    def _load(self, target: Target) -> Code:
        return Code(self.compiled.llvm, target, [ENTRY])

    def assembly(self) -> str:
        """The machine code as text."""
        return assembly(self.compiled.llvm, host_target(config.cpu()))

    def _report(self, seconds: float) -> None:
        import sys

        made = "compiled" if self.code.compiled else "loaded"
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
            return self._call(inputs, [], self.code.functions[ENTRY])
        results = [make() if given < 0 else inputs[given] for given, make in self.places]
        STATISTICS.calls += 1
        try:
            frame = self.frames.pop()
        except IndexError:
            frame = Frame(self)
        failed = self.trampoline(frame.address, id(inputs), id(results), pool_address())
        if failed:
            self._raise(failed, frame.bad_position(failed - 1))
        self.frames.append(frame)
        return results

    def _raise(self, failed: int, bad: int) -> None:
        check = self.compiled.checks[failed - 1]
        raise interpret.position_error(check.what, bad, check.size, check.where)

    def _call(
        self, inputs: Sequence[Array], more: list[Array], entry: Callable[[int, int], int]
    ) -> list[Array]:
        """`run` with a table of its own, and further pointers at its end."""
        results = [make() if given < 0 else inputs[given] for given, make in self.places]
        status = np.zeros(2 * len(self.compiled.checks) + 1, np.int64)
        pointers = [address(a) for a in (*inputs, *results, *self.constants, status)]
        table = np.array([*pointers, pool_address(), *map(address, more)], np.int64)
        arena = empty((max(self.compiled.arena_bytes, SMALL + 1),), np.uint8)
        STATISTICS.calls += 1
        failed = entry(address(table), address(arena))
        if failed:
            self._raise(failed, int(status[2 * (failed - 1)]))
        return results


class LoopExecutable(Executable):
    """A step in a native loop: `run` takes the number of steps, and returns stacked outputs."""

    def __init__(
        self,
        graph: Graph,
        strides: dict[int, tuple[int, ...]],
        donated: dict[int, int],
        start: int,
        batch: int,
        random: Sequence[int],
    ) -> None:
        self.place = (start, batch, tuple(random))
        super().__init__(graph, strides, donated)

    def _load(self, target: Target) -> Code:
        start, batch, random = self.place
        outputs = [
            (len(self.graph.inputs) + n, int(o.type.size) * o.type.dtype.bytes)  # type: ignore[arg-type]
            for n, o in enumerate(self.graph.outputs)
            if n not in self.donated
        ]
        stacks = len(self.graph.inputs) + len(self.graph.outputs) + len(self.constants) + 2
        loop = Loop(start, batch, tuple(outputs), stacks, random)
        return Code(self.compiled.llvm + emit_loop(loop), target, [ENTRY], [LOOP_ENTRY])

    def run_steps(self, inputs: Sequence[Array], steps: int) -> list[Array]:
        """Each output that is not donated, stacked over the steps; donated inputs change."""
        stacked = [
            empty((steps, *shape), dtype)
            for n, (shape, dtype) in enumerate(self.outputs)
            if n not in self.donated
        ]
        loop = self.code.functions[LOOP_ENTRY]
        self._call(inputs, stacked, lambda table, arena: loop(table, arena, steps))
        return stacked


class ReferenceExecutable:
    """The same graph on the reference device."""

    def __init__(self, graph: Graph, donated: dict[int, int]) -> None:
        self.graph, self.donated = graph, donated

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        STATISTICS.calls += 1
        results = interpret.run(self.graph, inputs)
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
    strides: dict[int, tuple[int, ...]] | None = None,
    donated: dict[int, int] | None = None,
) -> Executable | ReferenceExecutable:
    """An executable for a graph on a device, `cpu` or `reference`."""
    if check_device(device) == "reference":
        return ReferenceExecutable(graph, donated or {})
    return Executable(graph, strides or {}, donated or {})


def run_once(graph: Graph, values: Sequence[Array], device: str) -> list[Array]:
    """Compile and run, for tools and tests."""
    inputs = [np.ascontiguousarray(v).reshape(np.shape(v)) for v in values]
    for place, value in zip(graph.inputs, inputs, strict=True):
        if place.type.shape != value.shape:
            raise InternalError(f"{place!r} was given {value.shape}")
    return compile(graph, device).run(inputs)
