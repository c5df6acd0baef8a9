"""Two tiers of the dynamic panel: what is new runs node by node, what recurs is compiled whole.

Node by node is the reference in numpy, which is there without a compile for every operator and
size, and gives the same bits. So a piece of graph that runs once is never compiled, and a loop goes
on while its step is compiled in the background. Code that is on disk is used at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diptych import compiles, engine, interpret
from diptych.compiler.driver import ENTRY
from diptych.compiler.sizes import NO_HINTS
from diptych.compiler.target import Target
from diptych.dtypes import Shape
from diptych.engine import Array, Executable
from diptych.graph.node import Graph, Node
from diptych.graph.rewrite import specialise
from diptych.runtime import background, call
from diptych.runtime.code import Code, is_stored

# Nanoseconds that the reference takes for an element of a result, as measured; for a contraction,
# for a term of the sum.
USUAL, NODE = 60, 10_000
SLOW = {
    **dict.fromkeys(("exp", "expm1", "log", "log1p", "tanh", "sigmoid"), 300),
    "erf": 600, "sin": 1000, "cos": 1000, "words": 200, "pow": 8000,
}  # fmt: skip
TERM = {4: 20, 8: 200}
KERNEL = 5_000_000  # what compiling takes for a kernel, or less
LONG = 0.2  # seconds of the processor for runs node by node, after which a run waits for its code


class Tier:
    """What the executables of one graph share: the code, once it is there."""

    def __init__(self, target: Target, announced: compiles.Announced) -> None:
        self.target, self.announced = target, announced
        self.runs = 0
        self.seconds = 0.0  # of all runs node by node
        self.job: background.Job | None = None

    def code(self, compiled: Any, make: Any, much: bool) -> Code | None:
        """The code for another run, or None where that is to be node by node."""
        self.runs += 1
        if self.job is None and (much or self.runs > 1):
            text = compiled.llvm  # Python's share of the work: the background has LLVM's alone
            self.job = background.Job(lambda: make(text))
            if not much:
                background.submit(self.job)
        if self.job is None:
            return None
        if not self.job.is_done() and (much or self.seconds > LONG):
            background.hurry(self.job)
        return self.job.result()  # type: ignore[no-any-return]


class TieredExecutable(Executable):
    """An executable that becomes an ordinary one when its code is there."""

    tier: Tier
    plain: tuple[Graph, bool] | None = None  # the graph at these sizes, and whether it is much

    def _finish(self, target: Target, announced: compiles.Announced, start: float) -> None:
        if is_stored(lambda: self.compiled.llvm, target, self.compiled.description):
            super()._finish(target, announced, start)
            self.__class__ = Executable  # type: ignore[assignment]
            return
        self.tier = Tier(target, announced)
        seconds, kernels = time.perf_counter() - start, len(self.compiled.kernels)
        compiles.note(announced, seconds, kernels, False, "runs node by node instead of")

    def _make(self, text: str) -> Code:
        start, known_as = time.perf_counter(), self.compiled.description
        code = Code(text, self.tier.target, [ENTRY], (), known_as, background.between)
        call.trampoline()
        how = "compiled in the background" if self.tier.runs > 1 else "compiled"
        self._note(code, self.tier.announced, time.perf_counter() - start, how)
        return code

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        if self.plain is None:
            graph = specialise(self.compiled.simple, self.sizes)
            most = KERNEL * len(self.compiled.kernels)
            self.plain = graph, sum(map(nanoseconds, graph.nodes)) > most
        graph, much = self.plain
        code = self.tier.code(self.compiled, self._make, much)
        if code is None:
            return self._by_node(graph, inputs)
        self.code, self.trampoline = code, call.trampoline()
        self.__class__ = Executable  # type: ignore[assignment]
        self.plain = None
        return self.run(inputs)

    def _by_node(self, graph: Graph, inputs: Sequence[Array]) -> list[Array]:
        """Donated inputs are written last, when all is computed and every position was checked."""
        start = time.thread_time()
        results = []
        for value, (_, make) in zip(interpret.run(graph, inputs), self.places, strict=True):
            results.append(make())
            results[-1][...] = value
        for output, given in self.donated.items():
            np.copyto(inputs[given], results[output])
            results[output] = inputs[given]
        engine.STATISTICS.calls += 1
        self.tier.seconds += time.thread_time() - start
        return results


def nanoseconds(node: Node) -> float:
    """About how long the reference takes for a node, or more."""
    if not node.inputs:
        return 0
    sizes = [float(n.type.size) for n in (node, *node.inputs)]  # type: ignore[arg-type]
    if node.op.name == "contract":  # m n, m k and k n: every letter is in two of them
        return NODE + TERM[node.type.dtype.bytes] * math.sqrt(math.prod(sizes))
    return NODE + SLOW.get(node.op.name, USUAL) * max(sizes)


def compile(
    graph: Graph,
    device: str,
    strides: Mapping[int, Shape] | None = None,
    donated: dict[int, int] | None = None,
    likely: Mapping[str, int] = NO_HINTS,
) -> Any:
    """`engine.compile` in two tiers."""
    if engine.check_device(device) == "reference":
        return engine.compile(graph, device, strides, donated, likely)
    return TieredExecutable(graph, strides or {}, donated or {}, likely)


def finish_compiling() -> None:
    """Return once everything that is compiled in the background is there. An error of a compile is
    raised by the next run of its piece."""
    background.finish()
