"""One arena for all temporaries: buffers whose lives do not overlap share its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diptych.compiler.kernels import Buffer, Kernel
from diptych.dtypes import Dimension, bind

ALIGN = 64
# Bytes of an arena in which only buffers of one size share bytes. Threads divide these alike, so
# that a thread writes over what it wrote, and the lines need not come from another's caches.
SMALL = 1 << 21


@dataclass(frozen=True)
class Life:
    """The bytes of a temporary, and the first and last group of kernels that has to do with it."""

    bytes: Dimension
    first: int
    last: int


def plan_memory(
    groups: Sequence[Sequence[Kernel]], symbolic: bool = False
) -> tuple[tuple[Life, ...], int]:
    """Give every temporary of kernels, groups of which run together, its offset and return the
    bytes of the arena; or, where sizes are symbols, give it a number among the temporaries, which
    `place` puts somewhere for each size."""
    buffers, temporaries = _lives(groups)
    if symbolic:
        for n, buffer in enumerate(buffers):
            buffer.word = n
        return temporaries, 0
    offsets, arena = place(temporaries, {})
    for buffer, offset in zip(buffers, offsets, strict=True):
        buffer.offset = offset
    return temporaries, arena


def _lives(groups: Sequence[Sequence[Kernel]]) -> tuple[list[Buffer], tuple[Life, ...]]:
    """The temporaries and, beside them, when they are in use."""
    found: dict[int, list[int]] = {}
    buffers: list[Buffer] = []
    for time, kernels in enumerate(groups):
        for buffer in [b for kernel in kernels for b in (kernel.out, *kernel.reads)]:
            root = buffer.root
            if root.kind == "temporary":
                if id(root) not in found:
                    found[id(root)] = [time, time]
                    buffers.append(root)
                found[id(root)][1] = time
    return buffers, tuple(Life(b.bytes, *found[id(b)]) for b in buffers)


def place(temporaries: tuple[Life, ...], sizes: Mapping[str, int]) -> tuple[list[int], int]:
    """The byte of each temporary in the arena, and the bytes of the arena."""
    needs = [-(-max(bind(t.bytes, sizes), 1) // ALIGN) * ALIGN for t in temporaries]
    offsets, total = _placed(temporaries, needs, alike=True)
    if total > SMALL:
        offsets, total = _placed(temporaries, needs, alike=False)
    return offsets, total


def _placed(temporaries: tuple[Life, ...], needs: list[int], alike: bool) -> tuple[list[int], int]:
    """Offsets and bytes of the arena. `alike` lets only buffers of one size share bytes."""
    offsets = [0] * len(needs)
    placed: list[tuple[int, int, int, int]] = []  # first byte, end, first time, last time
    total = 0
    # Largest first: placed late it would split the arena.
    for n in sorted(range(len(needs)), key=lambda n: (-needs[n], temporaries[n].first)):
        start, end, at = temporaries[n].first, temporaries[n].last, 0
        for first, last, t0, t1 in sorted(placed):
            together = t0 <= end and start <= t1
            if together or (alike and last - first != needs[n]):
                if at + needs[n] <= first:
                    break
                at = max(at, last)
        offsets[n] = at
        placed.append((at, at + needs[n], start, end))
        total = max(total, at + needs[n])
    return offsets, total
