"""Kernels to one module: each different kernel is a function, and one loop calls them by a plan.

The plan is data, words behind those of the symbols: for every call the number of a function, its
units, how it is divided, the check that it is, and its buffers as slots of the table and bytes
behind them. So the text, and LLVM's work, are those of the kernels that differ in more than where
their buffers are: a network of 200 equal layers compiles like one of two.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

from diptych.compiler import ENTRY, modes, trials
from diptych.compiler.chains import chained
from diptych.compiler.contraction import ContractionEmitter
from diptych.compiler.emit_llvm import KernelEmitter
from diptych.compiler.kernels import Buffer, Kernel, structure
from diptych.compiler.sizes import SizeTable
from diptych.compiler.target import Target
from diptych.compiler.transpose import TransposeEmitter, turned_axes
from diptych.dtypes import bind
from diptych.lazy import lazy

LONG = 64  # times the work that is worth a second thread: worth waking one for
IN_ARENA = -1  # instead of a slot
ALONE, SHARED, WAKING = range(3)  # how a kernel is divided: not, over who is awake, over all
HEAD = 5  # words of a call before its buffers: function, units, how, check, number of buffers
END = [-1]  # after the last call
PART = 400  # lines of text that are worth a module of their own


class Module:
    """The calls of a module, and its text."""

    def __init__(
        self, kernels: Sequence[Kernel], target: Target, pool_slot: int, table: SizeTable
    ) -> None:
        self.target, self.pool_slot, self.table = target, pool_slot, table
        self.numbers: dict[int, int] = {}  # of the functions of kernels
        self.emitters: list[KernelEmitter] = []
        self.declare: set[str] = set()
        self.most = 1  # buffers of a call
        known: dict[Hashable, int] = {}
        seen: dict[int, int] = {}  # the same by id, for they are long; `Form.known` keeps them
        for kernel in kernels:
            form = structure(kernel)
            number = seen.get(id(form))
            if number is None:
                number = seen[id(form)] = known.setdefault(form, len(known))
            if number == len(self.emitters):
                given = (kernel, target, self.declare, number, table)
                self.emitters.append(_emitter(kernel)(*given))
                self.most = max(self.most, len(kernel.buffers))
            self.numbers[id(kernel)] = number
        self.forms = list(known)
        self.groups = chained(kernels, [self.emitter(kernel) for kernel in kernels])
        for group in self.groups:
            if len(group.kernels) > 1:
                self.most = max(self.most, 1 + sum(len(n.buffers) for n in group.kernels))

    def emitter(self, kernel: Kernel) -> KernelEmitter:
        """Of the function that a kernel calls; it may be another kernel's."""
        return self.emitters[self.numbers[id(kernel)]]

    @lazy
    def description(self) -> str:
        """What the text depends on: equal ones have equal text, from the same compiler."""
        hints = sorted(self.table.hints.items())
        return repr((self.forms, self.most, self.pool_slot, self.table.symbols, hints))

    @lazy
    def functions(self) -> list[str]:
        """The text of each different kernel."""
        return [emitter.emit() for emitter in self.emitters]

    @property
    def text(self) -> str:
        """LLVM text with one entry, which runs the kernels in order."""
        return self._joined(self.functions)

    def parts(self, most: int) -> list[str]:
        """The text as up to so many modules, which threads may translate beside each other; the
        first has the entry."""
        lines = [function.count("\n") for function in self.functions]  # LLVM's time follows these
        count = min(most, len(lines), 1 + sum(lines) // PART)
        if count <= 1:
            return [self.text]
        parts: list[list[int]] = [[] for _ in range(count)]
        for number in sorted(range(len(lines)), key=lines.__getitem__, reverse=True):
            min(parts, key=lambda part: sum([lines[n] for n in part])).append(number)
        first, *others = parts
        public = [f.replace("define internal ", "define ", 1) for f in self.functions]
        elsewhere = [f"declare void @k{n}(ptr, ptr, i64, i64)" for part in others for n in part]
        return [
            self._joined([*[public[n] for n in first], *elsewhere]),
            *["\n".join([*self._head(), *[public[n] for n in part]]) for part in others],
        ]

    def _joined(self, functions: list[str]) -> str:
        count = len(self.emitters)
        names = ", ".join([*(f"ptr @k{n}" for n in range(count)), "ptr @chain"])
        table = f"@functions = internal constant [{count + 1} x ptr] [{names}]"
        return "\n".join([*self._head(), *functions, table, *_CHAIN, self._entry()])

    def _head(self) -> list[str]:
        triple = self.target.triple
        head = [f'target triple = "{triple}"', modes.declarations(triple)]
        return [*head, *trials.declarations(triple), *sorted(self.declare)]

    def work(self, sizes: Mapping[str, int]) -> int:
        """About how many scalar operations a run takes."""
        each = [bind(emitter.work()[0], sizes) for emitter in self.emitters]
        kernels = [kernel for group in self.groups for kernel in group.kernels]
        return sum(each[self.numbers[id(kernel)]] for kernel in kernels)

    def words(self, sizes: Mapping[str, int], offsets: Sequence[int]) -> list[int]:
        """What the last slot of the table points to where symbols have these sizes and temporaries
        of symbolic size these places in the arena."""
        words = [sizes[name] for name in self.table.symbols] + trials.STATE
        divided = [_divided(emitter, sizes) for emitter in self.emitters]
        members: list[list[int]] = []  # of chains, behind the plan
        open_places: list[int] = []  # where the plan is to say where these are
        buffers = {b for group in self.groups for n in group.kernels for b in n.buffers}
        place = {b: _place(b, sizes, offsets) for b in buffers}
        for group in self.groups:
            numbers = [self.numbers[id(kernel)] for kernel in group.kernels]
            places = [place[b] for n in group.kernels for b in n.buffers]
            if len(numbers) == 1:
                (kernel,) = group.kernels
                check = 0 if kernel.limit is None else bind(kernel.out.first, {}) // 2 + 1
                words += [numbers[0], *divided[numbers[0]], check, len(places)]
            else:
                slabs = -(-group.rows[0].extent // group.slab)
                how = max(divided[number][1] for number in numbers)
                words += [len(self.emitters), slabs, how, 0, len(places) + 1]
                open_places.append(len(words) + 1)
                words += [self.pool_slot + 1, 0]
                members.append([len(numbers)])
                for number, kernel, rows in zip(numbers, group.kernels, group.rows, strict=True):
                    units = group.slab // rows.step * rows.units
                    members[-1] += [number, units, divided[number][0], len(kernel.buffers)]
            words += [word for place in places for word in place]
        words += END
        for at, chain in zip(open_places, members, strict=True):
            words[at] = 8 * len(words)
            words += chain
        return words

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
            f"  %state = getelementptr i64, ptr %words, i64 {len(self.table.symbols)}",
            f"  %plan = getelementptr i64, ptr %state, i64 {len(trials.STATE)}",
            "  %threads = icmp ne ptr %pool, null",
            *trials.begin(triple, "kernel"),
            *_DRIVER,
            *trials.end(triple, "leave"),
            "leave:",
            *modes.leave(triple),
            "  ret i64 %code",
            "}",
            "",
        ])  # fmt: skip


_DRIVER = f"""kernel:
  %at = phi ptr [ %plan, %begin ], [ %following, %ran ]
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
  %places = getelementptr i64, ptr %at, i64 {HEAD}
  %function.at = getelementptr ptr, ptr @functions, i64 %number
  %function = load ptr, ptr %function.at
  br label %buffer
buffer:
  %n = phi i64 [ 0, %read ], [ %n1, %buffer ]
  %place = phi ptr [ %places, %read ], [ %following, %buffer ]
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
  %long = icmp eq i64 %how, {WAKING}
  %worth = or i1 %long, %share
  %wanted = and i1 %divided, %worth
  %both = and i1 %wanted, %threads
  br i1 %both, label %many, label %one
one:
  call void %function(ptr %buffers, ptr %words, i64 0, i64 %units)
  br label %done
many:
  %run = load ptr, ptr %pool
  %wake = or i1 %long, %rouse
  call void %run(ptr %pool, ptr %function, ptr %buffers, ptr %words, i64 %units, i1 %wake)
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


# A range of slabs, each with all kernels. The first buffer is the list of these: how many, and for
# each its function, its units in a slab and in all, and the number of its buffers. These follow.
_CHAIN = """define internal void @chain(ptr %buffers, ptr %words, i64 %begin, i64 %end) {
start:
  %list = load ptr, ptr %buffers
  %count = load i64, ptr %list
  %first = getelementptr i64, ptr %list, i64 1
  %own = getelementptr ptr, ptr %buffers, i64 1
  br label %slab
slab:
  %s = phi i64 [ %begin, %start ], [ %s1, %next ]
  %some = icmp slt i64 %s, %end
  br i1 %some, label %kernel, label %done
kernel:
  %n = phi i64 [ 0, %slab ], [ %n1, %kernel ]
  %at = phi ptr [ %first, %slab ], [ %at1, %kernel ]
  %given = phi ptr [ %own, %slab ], [ %given1, %kernel ]
  %number = load i64, ptr %at
  %units.at = getelementptr i64, ptr %at, i64 1
  %units = load i64, ptr %units.at
  %all.at = getelementptr i64, ptr %at, i64 2
  %all = load i64, ptr %all.at
  %buffers.at = getelementptr i64, ptr %at, i64 3
  %its = load i64, ptr %buffers.at
  %low = mul i64 %s, %units
  %after = add i64 %low, %units
  %beyond = icmp sgt i64 %after, %all
  %high = select i1 %beyond, i64 %all, i64 %after
  %function.at = getelementptr ptr, ptr @functions, i64 %number
  %function = load ptr, ptr %function.at
  call void %function(ptr %given, ptr %words, i64 %low, i64 %high)
  %at1 = getelementptr i64, ptr %at, i64 4
  %given1 = getelementptr ptr, ptr %given, i64 %its
  %n1 = add i64 %n, 1
  %more = icmp slt i64 %n1, %count
  br i1 %more, label %kernel, label %next
next:
  %s1 = add i64 %s, 1
  br label %slab
done:
  ret void
}
""".splitlines()


def _emitter(kernel: Kernel) -> type[KernelEmitter]:
    if kernel.choice is not None:
        return ContractionEmitter
    return KernelEmitter if turned_axes(kernel) is None else TransposeEmitter


def _divided(emitter: KernelEmitter, sizes: Mapping[str, int]) -> tuple[int, int]:
    """The units of a kernel, and how they are divided: over the pool where there is work."""
    units = math.prod(-(-bind(size, sizes) // step) for size, step in emitter.units())
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
