"""Whether short kernels are divided over threads: tried from time to time, and timed.

What a second thread gains at a kernel of some microseconds depends on how far the two cores are
from each other, which a virtual machine does not tell and may change at any time. So of every
PERIOD runs of a plan a few run all short kernels on one thread, some divide them, and the rest do
what was faster. Long kernels, a call that is in flight, and where there is one thread nothing is
tried. No choice here can change a bit: a thread computes whole elements.

The state is four words of the plan: a count of runs, the best time of a run on one thread and of
one that is divided, and the choice.
"""

from __future__ import annotations

from diptych.compiler import TAKEN, TASK

PERIOD = 4096  # runs; a power of two
SINGLE, SHARED = 4, 64  # runs on one thread; divided ones, during which a worker wakes up
FIRST = 128  # runs before the first trial
GAIN = 4  # what division must gain: a 2^4th of the time
STATE = [PERIOD - FIRST, 0, 0, 1]


def declarations(triple: str) -> list[str]:
    return ["declare i64 @llvm.readcyclecounter()"] if _tries(triple) else []


def begin(triple: str, to: str) -> list[str]:
    """Decide, before the first kernel: `%share` whether short kernels are divided, `%rouse` whether
    workers are woken for one."""
    if not _tries(triple):
        return ["  br label %begin", "begin:", "  %share = or i1 true, true",
                "  %rouse = and i1 false, false", f"  br label %{to}"]  # fmt: skip
    return f"""  br i1 %threads, label %pooled, label %begin
pooled:
  %task.at = getelementptr i64, ptr %pool, i64 {TASK}
  %task = load atomic i64, ptr %task.at monotonic, align 8
  %flying = icmp eq i64 %task, {TAKEN}
  br i1 %flying, label %begin, label %usual
usual:
  %runs = load i64, ptr %state
  %runs1 = add i64 %runs, 1
  store i64 %runs1, ptr %state
  %phase.now = and i64 %runs, {PERIOD - 1}
  %choice.at = getelementptr i64, ptr %state, i64 3
  %choice = load i64, ptr %choice.at
  %chosen = icmp ne i64 %choice, 0
  %trial = icmp ult i64 %phase.now, {SINGLE + SHARED}
  br i1 %trial, label %clock, label %begin
clock:
  %divides = icmp uge i64 %phase.now, {SINGLE}
  %first.one = icmp eq i64 %phase.now, {SINGLE}
  %since.now = call i64 @llvm.readcyclecounter()
  br label %begin
begin:
  %share = phi i1 [ true, %start ], [ true, %pooled ], [ %chosen, %usual ], [ %divides, %clock ]
  %rouse = phi i1 [ false, %start ], [ false, %pooled ], [ false, %usual ], [ %first.one, %clock ]
  %since = phi i64 [ 0, %start ], [ 0, %pooled ], [ 0, %usual ], [ %since.now, %clock ]
  %phase = phi i64 [ -1, %start ], [ -1, %pooled ], [ -1, %usual ], [ %phase.now, %clock ]
  br label %{to}""".splitlines()


def end(triple: str, to: str) -> list[str]:
    """Note how long a run of a trial took; after the last one choose."""
    if not _tries(triple):
        return [f"  br label %{to}"]
    return f"""  %timed = icmp sge i64 %phase, 0
  br i1 %timed, label %note, label %{to}
note:
  %now = call i64 @llvm.readcyclecounter()
  %took = sub i64 %now, %since
  %was.single = icmp ult i64 %phase, {SINGLE}
  %kind = select i1 %was.single, i64 1, i64 2
  %first = select i1 %was.single, i64 0, i64 {SINGLE}
  %is.first = icmp eq i64 %phase, %first
  %best.at = getelementptr i64, ptr %state, i64 %kind
  %known = load i64, ptr %best.at
  %less = icmp ult i64 %took, %known
  %better = or i1 %is.first, %less
  %best = select i1 %better, i64 %took, i64 %known
  store i64 %best, ptr %best.at
  %is.last = icmp eq i64 %phase, {SINGLE + SHARED - 1}
  br i1 %is.last, label %choose, label %{to}
choose:
  %single.at = getelementptr i64, ptr %state, i64 1
  %single = load i64, ptr %single.at
  %gain = lshr i64 %single, {GAIN}
  %limit = sub i64 %single, %gain
  %pays = icmp ult i64 %best, %limit
  %new.choice = zext i1 %pays to i64
  %chosen.at = getelementptr i64, ptr %state, i64 3
  store i64 %new.choice, ptr %chosen.at
  br label %{to}""".splitlines()


def _tries(triple: str) -> bool:
    """Whether programs may read a clock of the processor there."""
    return triple.startswith("x86_64")
