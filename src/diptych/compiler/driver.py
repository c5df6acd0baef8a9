"""Kernels to one module: each different kernel is a function, and one loop calls them by a plan.

The plan is data, words behind those of the symbols: for every call the number of a function, its
units, how it is divided, the check that it is, and its buffers as slots of the table and bytes
behind them. So the text, and LLVM's work, are those of the kernels that differ in more than where
their buffers are: a network of 200 equal layers compiles like one of two.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property

from diptych.compiler import modes
from diptych.compiler.contraction import ContractionEmitter, is_contraction
from diptych.compiler.emit_llvm import KernelEmitter
from diptych.compiler.kernels import Buffer, Kernel, structure
from diptych.compiler.sizes import SizeTable
from diptych.compiler.target import Target
from diptych.compiler.transpose import TransposeEmitter, turned_axes
from diptych.dtypes import bind

ENTRY = "diptych_run"
LONG = 64  # times the work that is worth a second thread: worth waking one for
IN_ARENA = -1  # instead of a slot
ALONE, SHARED, WAKING = range(3)  # how a kernel is divided: not, over who is awake, over all
HEAD = 5  # words of a call before its buffers: function, units, how, check, number of buffers
END = [-1]  # after the last call


class Module:
    """The calls of a module, and its text."""

    def __init__(
        self, kernels: Sequence[Kernel], target: Target, pool_slot: int, table: SizeTable
    ) -> None:
        self.target, self.pool_slot, self.table = target, pool_slot, table
        self.calls: list[tuple[Kernel, int]] = []  # and the numbers of their functions
        self.emitters: list[KernelEmitter] = []
        self.declare: set[str] = set()
        self.most = 1  # buffers of a call
        known: dict[Hashable, int] = {}
        for kernel in kernels:
            form = structure(kernel)
            number = known.setdefault(form, len(known))
            if number == len(self.emitters):
                given = (kernel, target, self.declare, number, table)
                self.emitters.append(_emitter(kernel)(*given))
                self.most = max(self.most, len(kernel.buffers))
            self.calls.append((kernel, number))
        self.forms = list(known)

    @property
    def description(self) -> str:
        """What the text depends on: equal ones have equal text, from the same compiler."""
        hints = sorted(self.table.hints.items())
        return repr((self.forms, self.most, self.pool_slot, self.table.symbols, hints))

    @cached_property
    def text(self) -> str:
        """LLVM text with one entry, which runs the kernels in order."""
        functions = [emitter.emit() for emitter in self.emitters]
        names = ", ".join(f"ptr @k{n}" for n in range(len(functions)))
        head = [
            f'target triple = "{self.target.triple}"',
            modes.declarations(self.target.triple),
            *sorted(self.declare),
            f"@functions = internal constant [{len(functions)} x ptr] [{names}]",
        ]
        return "\n".join([*head, *functions, self._entry()])

    def words(self, sizes: Mapping[str, int], offsets: Sequence[int]) -> list[int]:
        """What the last slot of the table points to where symbols have these sizes and temporaries
        of symbolic size these places in the arena."""
        words = [sizes[name] for name in self.table.symbols]
        divided = [_divided(emitter, sizes) for emitter in self.emitters]
        for kernel, number in self.calls:
            check = 0 if kernel.limit is None else bind(kernel.out.first, {}) // 2 + 1
            buffers = kernel.buffers
            words += [number, *divided[number], check, len(buffers)]
            for buffer in buffers:
                words += _place(buffer, sizes, offsets)
        return words + END

    def _entry(self) -> str:
        """Run the plan, in the floating-point modes of the contract, until a check fails."""
        triple = self.target.triple
        return "\n".join([
            f"define i64 @{ENTRY}(ptr %table, ptr %arena) {{",
            "start:",
            *modes.enter(triple),
            f"  %buffers = alloca [{self.most} x ptr]",
            f"  %pool.slot = getelementptr ptr, ptr %table, i64 {self.pool_slot}",
            "  %pool = load ptr, ptr %pool.slot",
            f"  %words.slot = getelementptr ptr, ptr %table, i64 {self.pool_slot + 1}",
            "  %words = load ptr, ptr %words.slot",
            f"  %plan = getelementptr i64, ptr %words, i64 {len(self.table.symbols)}",
            *_DRIVER,
            *modes.leave(triple),
            "  ret i64 %code",
            "}",
            "",
        ])  # fmt: skip


_DRIVER = f"""  br label %kernel
kernel:
  %at = phi ptr [ %plan, %start ], [ %following, %ran ]
  %number = load i64, ptr %at
  %some = icmp sge i64 %number, 0
  br i1 %some, label %read, label %end
read:
  %units.at = getelementptr i64, ptr %at, i64 1
  %units = load i64, ptr %units.at
  %how.at = getelementptr i64, ptr %at, i64 2
  %how = load i64, ptr %how.at
  %check.at = getelementptr i64, ptr %at, i64 3
  %check = load i64, ptr %check.at
  %count.at = getelementptr i64, ptr %at, i64 4
  %count = load i64, ptr %count.at
  %first = getelementptr i64, ptr %at, i64 {HEAD}
  %function.at = getelementptr ptr, ptr @functions, i64 %number
  %function = load ptr, ptr %function.at
  br label %buffer
buffer:
  %n = phi i64 [ 0, %read ], [ %n1, %buffer ]
  %place = phi ptr [ %first, %read ], [ %following, %buffer ]
  %slot = load i64, ptr %place
  %byte.at = getelementptr i64, ptr %place, i64 1
  %byte = load i64, ptr %byte.at
  %inside = icmp slt i64 %slot, 0
  %safe = select i1 %inside, i64 0, i64 %slot
  %base.at = getelementptr ptr, ptr %table, i64 %safe
  %given = load ptr, ptr %base.at
  %base = select i1 %inside, ptr %arena, ptr %given
  %address = getelementptr i8, ptr %base, i64 %byte
  %to = getelementptr ptr, ptr %buffers, i64 %n
  store ptr %address, ptr %to
  %following = getelementptr i64, ptr %place, i64 2
  %n1 = add i64 %n, 1
  %more = icmp slt i64 %n1, %count
  br i1 %more, label %buffer, label %call
call:
  %divided = icmp ne i64 %how, {ALONE}
  %threads = icmp ne ptr %pool, null
  %both = and i1 %divided, %threads
  br i1 %both, label %many, label %one
one:
  call void %function(ptr %buffers, ptr %words, i64 0, i64 %units)
  br label %done
many:
  %run = load ptr, ptr %pool
  %long = icmp eq i64 %how, {WAKING}
  call void %run(ptr %pool, ptr %function, ptr %buffers, ptr %words, i64 %units, i1 %long)
  br label %done
done:
  %checks = icmp ne i64 %check, 0
  br i1 %checks, label %look, label %ran
look:
  %flag.at = getelementptr i64, ptr %address, i64 1
  %flag = load i64, ptr %flag.at
  %bad = icmp ne i64 %flag, 0
  br i1 %bad, label %end, label %ran
ran:
  br label %kernel
end:
  %code = phi i64 [ 0, %kernel ], [ %check, %look ]""".splitlines()


def _emitter(kernel: Kernel) -> type[KernelEmitter]:
    if is_contraction(kernel):
        return ContractionEmitter
    return KernelEmitter if turned_axes(kernel) is None else TransposeEmitter


def _divided(emitter: KernelEmitter, sizes: Mapping[str, int]) -> tuple[int, int]:
    """The units of a kernel, and how they are divided: over the pool where there is work."""
    units = math.prod(-(-bind(size, sizes) // step) for size, step in emitter.units)
    needed, enough = emitter.work()
    work = bind(needed, sizes)
    if units == 1 or work < enough:
        return units, ALONE
    return units, WAKING if work >= LONG * enough else SHARED


def _place(buffer: Buffer, sizes: Mapping[str, int], offsets: Sequence[int]) -> tuple[int, int]:
    """The slot that a buffer lies behind, and how many bytes."""
    root, first = buffer.root, bind(buffer.first, sizes) * buffer.dtype.bytes
    if root.kind != "temporary":
        return root.slot, first
    return IN_ARENA, first + (root.offset if root.word < 0 else offsets[root.word])
