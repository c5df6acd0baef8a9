"""The order of kernels, and which outputs may overwrite a donated input."""

from __future__ import annotations

import heapq

from diptych.compiler.fuse import Fusion
from diptych.compiler.kernels import Buffer, Form, Kernel
from diptych.kernel import expr as k


def schedule(fusion: Fusion) -> list[Kernel]:
    """Kernels in an order where every read of an old value precedes its overwriting.

    An output that can be written in place takes the slot of its input. One that cannot (a kernel
    that needs its new value also needs the old one elsewhere, or a check needs the new one) is
    written to a temporary and copied at the end.
    """
    kernels = list(fusion.kernels)
    flow = Flow(kernels)
    checked = flow.before_checks()
    writer = {id(kernel.out): kernel for kernel in kernels if kernel.limit is None}
    wanted: dict[int, Buffer] = {}
    copied: list[tuple[Kernel, Buffer, Buffer]] = []
    for output, given in fusion.donated.items():
        buffer, old = fusion.output_buffers[output], fusion.buffers[id(fusion.graph.inputs[given])]
        kernel = writer[id(buffer)]
        if id(kernel) not in checked and _reads_only_own_place(kernel, old):
            wanted[id(kernel)] = old
        else:
            copied.append((kernel, buffer, old))
    order = flow.ordered(wanted)
    if order is None:  # not all at once: one after the other, those that still can
        found: dict[int, Buffer] = {}
        for kernel in [n for n in kernels if id(n) in wanted]:
            more = {**found, id(kernel): wanted[id(kernel)]}
            if flow.ordered(more) is not None:
                found = more
            else:
                copied.append((kernel, kernel.out, wanted[id(kernel)]))
        wanted, order = found, flow.ordered(found)
    assert order is not None
    copies = [_through_temporary(*copy) for copy in copied]
    for kernel in kernels:
        if id(kernel) in wanted:
            kernel.out.slot = wanted[id(kernel)].slot
            kernel.out.kind = "input"
    return order + copies


def _through_temporary(kernel: Kernel, buffer: Buffer, old: Buffer) -> Kernel:
    target = Buffer(buffer.type, old.strides, "input", old.slot)
    buffer.kind, buffer.slot = "temporary", -1
    indices = [k.index(n) for n in kernel.indices]
    form = Form(k.load(buffer, indices, buffer.dtype), [buffer])
    return Kernel(target, form, [buffer], kernel.node, kernel.shape)


def _reads_only_own_place(kernel: Kernel, old: Buffer) -> bool:
    """Every read of the old value in the kernel is of the element about to be written."""
    for n, buffer in enumerate(kernel.reads):
        if buffer.root is old.root and not (
            buffer is old and kernel.form.reads_only_own_place(n, kernel.shape)
        ):
            return False
    return True


class Flow:
    """Which kernels come before which."""

    def __init__(self, kernels: list[Kernel]) -> None:
        self.kernels = kernels
        writers: dict[int, list[int]] = {}
        self.readers: dict[int, list[int]] = {}
        for n, kernel in enumerate(kernels):
            writers.setdefault(id(kernel.out.root), []).append(n)
            for root in {id(buffer.root) for buffer in kernel.reads}:
                self.readers.setdefault(root, []).append(n)
        self.before: list[set[int]] = []
        for n, kernel in enumerate(kernels):
            sources = {w for b in kernel.reads for w in writers.get(id(b.root), ())}
            self.before.append(sources - {n})

    def before_checks(self) -> set[int]:
        """The kernels whose results a check reads: a check comes before all that lasts."""
        found: set[int] = set()
        stack = [n for n, kernel in enumerate(self.kernels) if kernel.limit is not None]
        while stack:
            n = stack.pop()
            if n not in found:
                found.add(n)
                stack.extend(self.before[n])
        return {id(self.kernels[n]) for n in found}

    def ordered(self, in_place: dict[int, Buffer]) -> list[Kernel] | None:
        """Topological, writers in place after all readers of the old value and as late as their
        users allow; None on a cycle."""
        waits = [set(sources) for sources in self.before]
        late = [id(kernel) in in_place for kernel in self.kernels]
        for n, kernel in enumerate(self.kernels):
            if late[n]:
                old = id(in_place[id(kernel)].root)
                waits[n].update(r for r in self.readers.get(old, ()) if r != n)
        users: list[list[int]] = [[] for _ in self.kernels]
        for n, sources in enumerate(waits):
            for source in sources:
                users[source].append(n)
        left = [len(sources) for sources in waits]
        ready = [(late[n], n) for n, count in enumerate(left) if count == 0]
        heapq.heapify(ready)
        order = []
        while ready:
            _, n = heapq.heappop(ready)
            order.append(self.kernels[n])
            for user in users[n]:
                left[user] -= 1
                if left[user] == 0:
                    heapq.heappush(ready, (late[user], user))
        return order if len(order) == len(self.kernels) else None
