"""One arena for all temporaries: buffers whose lives do not overlap share its bytes."""

from __future__ import annotations

from diptych.compiler.kernels import Buffer, Kernel

ALIGN = 64


def plan_memory(kernels: list[Kernel]) -> int:
    """Give every temporary its offset; returns the size of the arena in bytes."""
    lives: dict[int, list[int]] = {}
    buffers: dict[int, Buffer] = {}
    for time, kernel in enumerate(kernels):
        for buffer in (kernel.out, *kernel.reads):
            root = buffer.root
            if root.kind == "temporary":
                buffers[id(root)] = root
                lives.setdefault(id(root), [time, time])[1] = time
    placed: list[tuple[int, int, int, int]] = []  # first byte, end, first time, last time
    size = 0
    # Largest first: placed late it would split the arena.
    for key in sorted(buffers, key=lambda b: (-buffers[b].bytes, lives[b][0])):
        buffer, (start, end) = buffers[key], lives[key]
        need = -(-max(buffer.bytes, 1) // ALIGN) * ALIGN
        at = 0
        for first, last, t0, t1 in sorted(placed):
            if t0 <= end and start <= t1:
                if at + need <= first:
                    break
                at = max(at, last)
        buffer.offset = at
        placed.append((at, at + need, start, end))
        size = max(size, at + need)
    return size
