"""Two tiers: code that would take LLVM long is first made in haste, and anew once it recurs.

Code made in haste is the same text, translated without optimising: it is there in about a third of
the time, takes up to ten times as long to run (docs/performance.md), and gives the same bits. So
nothing waits long for the first run of a program, and a loop goes on while its step is optimised in
the background.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from diptych import compiles, config, engine
from diptych.compiler import ENTRY
from diptych.compiler.sizes import NO_HINTS
from diptych.compiler.target import Target
from diptych.dtypes import Shape
from diptych.engine import Array, Executable, Flight
from diptych.graph.node import Graph
from diptych.runtime import background
from diptych.runtime.code import Code
from diptych.runtime.llvm import HASTE, USUAL
from diptych.runtime.threads import threads

LONG = 0.4  # seconds of waiting for LLVM that are worth a first tier
SPEED = 1_400_000  # characters of text that LLVM optimises and translates in a second
RATE = 1 << 30  # scalar operations a second, or more, of code made in haste
MOST = 1 << 16  # parts, so that the end of a process need not wait long for one
PATIENCE = 1.0  # times an optimising compile that may be spent in code made in haste


class Tier:
    """What the executables of one graph share: the optimised code, once it is there."""

    def __init__(self, target: Target, announced: compiles.Announced) -> None:
        self.target, self.announced = target, announced
        self.runs = 0
        self.seconds = 0.0  # of the processor in code made in haste, since the job was asked for
        self.job: background.Job | None = None


class TieredExecutable(Executable):
    """An executable whose code was made in haste, which becomes an ordinary one when the other code
    is there."""

    tier: Tier
    much: bool | None = None  # whether a run at these sizes is worth waiting for the other code

    def _finish(self, target: Target, announced: compiles.Announced, start: float) -> None:
        if self._source(target).is_stored() or not self._takes_long():
            super()._finish(target, announced, start)
            self.__class__ = Executable  # type: ignore[assignment]
            return
        self.tier = Tier(target, announced)
        source = self._source(target, HASTE)
        self.code = Code(source, target, [ENTRY], (), threads())
        how = "compiled in haste" if self.code.compiled else "loaded"
        self._note(self.code, announced, time.perf_counter() - start, how)

    def _takes_long(self) -> bool:
        return config.tiers() == "all" or self._seconds() > LONG

    def _seconds(self) -> float:
        """How long optimising takes, about."""
        return sum(map(len, self.compiled.module.functions)) / SPEED / threads()

    def _optimise(self) -> Code:
        start, target = time.perf_counter(), self.tier.target
        source = self._source(target, USUAL, MOST)
        code = Code(source, target, [ENTRY], (), threads(), background.between)
        seconds, kernels = time.perf_counter() - start, len(self.compiled.kernels)
        how = "compiled in the background"
        compiles.note(self.tier.announced, seconds, kernels, not code.compiled, how)
        return code

    def _look(self) -> None:
        """Before a run: ask for the optimised code, or take it where it is there."""
        tier = self.tier
        tier.runs += 1
        if self.much is None:
            self.much = self.compiled.module.work(self.sizes) / RATE > self._seconds()
        if tier.job is None and (self.much or tier.runs > 1):
            tier.job = background.Job(self._optimise)
            background.submit(tier.job)
        if tier.job is None:
            return
        if self.much or tier.seconds > PATIENCE * self._seconds():
            background.hurry(tier.job)
        code = tier.job.result()
        if code is not None:
            self.code, self.frames = code, []
            self.__class__ = Executable  # type: ignore[assignment]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        if type(self) is Executable:  # who holds this method has held it since before the swap
            return Executable.run(self, inputs)
        self._look()
        start, tier = time.thread_time(), self.tier
        results = Executable.run(self, inputs)
        if tier.job is not None:
            tier.seconds += time.thread_time() - start
        return results

    def prepared(self, inputs: list[Array]) -> Flight | None:
        return None  # a run looks for the optimised code first


def compile(
    graph: Graph,
    device: str,
    strides: Mapping[int, Shape] | None = None,
    donated: dict[int, int] | None = None,
    likely: Mapping[str, int] = NO_HINTS,
) -> Any:
    """`engine.compile` in two tiers, as far as DIPTYCH_TIERS says."""
    if engine.check_device(device) == "reference" or config.tiers() == "none":
        return engine.compile(graph, device, strides, donated, likely)
    return TieredExecutable(graph, strides or {}, donated or {}, likely)


def finish_compiling() -> None:
    """Return once everything that is compiled in the background is there. An error of a compile is
    raised by the next run of its program."""
    background.finish()
