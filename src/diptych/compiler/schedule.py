"""The order of kernels, and which outputs may overwrite a donated input."""

from __future__ import annotations

from diptych.compiler.fuse import Fusion
from diptych.compiler.kernels import Buffer, Kernel
from diptych.kernel import expr as k


def schedule(fusion: Fusion) -> list[Kernel]:
    """Kernels in an order where every read of an old value precedes its overwriting.

    An output that can be written in place takes the slot of its input. One that cannot (a kernel
    that needs its new value also needs the old one elsewhere) is written to a temporary and
    copied at the end.
    """
    kernels = list(fusion.kernels)
    writer = {id(kernel.out): kernel for kernel in kernels if kernel.limit is None}
    in_place: dict[int, Buffer] = {}
    copies: list[Kernel] = []
    for output, given in fusion.donated.items():
        buffer, old = fusion.output_buffers[output], fusion.buffers[id(fusion.graph.inputs[given])]
        kernel = writer[id(buffer)]
        if _reads_only_own_place(kernel, old) and _orderable(
            kernels, {**in_place, id(kernel): old}
        ):
            in_place[id(kernel)] = old
        else:
            copies.append(_through_temporary(kernel, buffer, old))
    order = _ordered(kernels, in_place)
    assert order is not None
    for kernel in kernels:
        if id(kernel) in in_place:
            kernel.out.slot = in_place[id(kernel)].slot
            kernel.out.kind = "input"
    return order + copies


def _through_temporary(kernel: Kernel, buffer: Buffer, old: Buffer) -> Kernel:
    target = Buffer(buffer.type, old.strides, "input", old.slot)
    buffer.kind, buffer.slot = "temporary", -1
    indices = [k.index(n) for n in kernel.indices]
    value = k.load(buffer, indices, buffer.dtype)
    return Kernel(target, kernel.indices, value, kernel.node, kernel.shape, [buffer])


def _reads_only_own_place(kernel: Kernel, old: Buffer) -> bool:
    """Every read of the old value in the kernel is of the element about to be written."""
    for e in k.walk([kernel.value]):
        if e.op == "load" and e.attr.root is old.root:
            own = [
                (a.op == "index" and a.attr == n) or (d == 1)
                for a, n, d in zip(e.args, kernel.indices, kernel.shape, strict=False)
            ]
            if e.attr is not old or len(e.args) != len(kernel.indices) or not all(own):
                return False
        if e.op == "fold" and _fold_reads(e, old):
            return False
    return True


def _fold_reads(fold: k.Expr, old: Buffer) -> bool:
    return any(e.op == "load" and e.attr.root is old.root for e in k.walk(fold.args))


def _orderable(kernels: list[Kernel], in_place: dict[int, Buffer]) -> bool:
    return _ordered(kernels, in_place) is not None


def _ordered(kernels: list[Kernel], in_place: dict[int, Buffer]) -> list[Kernel] | None:
    """Topological, in-place writers as late as their users allow; None on a cycle."""
    writers: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        writers.setdefault(id(kernel.out.root), []).append(kernel)
    before: dict[int, set[int]] = {id(kernel): set() for kernel in kernels}
    for kernel in kernels:
        for buffer in kernel.reads:
            for source in writers.get(id(buffer.root), ()):
                if source is not kernel:
                    before[id(kernel)].add(id(source))
    for kernel in kernels:
        old = in_place.get(id(kernel))
        if old is not None:
            for reader in kernels:
                if reader is not kernel and any(b.root is old.root for b in reader.reads):
                    before[id(kernel)].add(id(reader))
    done: set[int] = set()
    waiting, order = list(kernels), []
    while waiting:
        ready = [n for n in waiting if before[id(n)] <= done]
        if not ready:
            return None
        pick = next((n for n in ready if id(n) not in in_place), ready[0])
        order.append(pick)
        done.add(id(pick))
        waiting.remove(pick)
    return order
