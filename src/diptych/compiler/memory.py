"""One arena for all temporaries: buffers whose lives do not overlap share its bytes."""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from diptych.compiler.kernels import Buffer, Kernel
from diptych.dtypes import Dimension, bind

ALIGN = 64
WASTE = 16  # the part of an arena that may stay unused where that makes it quickly planned
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
    return buffers, tuple(Life(b.reach, *found[id(b)]) for b in buffers)


def place(temporaries: tuple[Life, ...], sizes: Mapping[str, int]) -> tuple[list[int], int]:
    """The byte of each temporary in the arena, and the bytes of the arena."""
    needs = [-(-max(bind(t.bytes, sizes), 1) // ALIGN) * ALIGN for t in temporaries]
    offsets, total = _alike(temporaries, needs)
    if total <= SMALL:
        return offsets, total
    offsets, total, most = _by_time(temporaries, needs)
    if total <= most + most // WASTE:
        return offsets, total
    return min((offsets, total), _by_size(temporaries, needs), key=lambda plan: plan[1])


def _alike(lives: tuple[Life, ...], needs: list[int]) -> tuple[list[int], int]:
    """Places where only temporaries of one size share bytes."""
    offsets, total = [0] * len(needs), 0
    free: dict[int, list[int]] = {}  # places of a size whose temporaries are gone
    in_use: list[tuple[int, int]] = []  # (last kernel, number) of temporaries
    for n in sorted(range(len(needs)), key=lambda n: lives[n].first):
        while in_use and in_use[0][0] < lives[n].first:
            _, gone = heappop(in_use)
            heappush(free.setdefault(needs[gone], []), offsets[gone])
        places = free.get(needs[n])
        if places:
            offsets[n] = heappop(places)
        else:
            offsets[n], total = total, total + needs[n]
        heappush(in_use, (lives[n].last, n))
    return offsets, total


def _by_time(lives: tuple[Life, ...], needs: list[int]) -> tuple[list[int], int, int]:
    """Places in the order in which temporaries come to life, each in the smallest gap that holds
    it: in linear time. Also the bytes of the arena, and the most that are in use at once."""
    starts = sorted(range(len(needs)), key=lambda n: (lives[n].first, -needs[n]))
    ends = sorted(starts, key=lambda n: lives[n].last)
    offsets, total, used, most, ended = [0] * len(needs), 0, 0, 0, 0
    gaps: list[tuple[int, int]] = []  # (first byte, end) below `total`, by address
    for n in starts:
        while lives[ends[ended]].last < lives[n].first:
            gone = ends[ended]
            _free(gaps, offsets[gone], offsets[gone] + needs[gone])
            used, ended = used - needs[gone], ended + 1
        need, at = needs[n], -1
        for g, (first, end) in enumerate(gaps):
            if end - first >= need and (at < 0 or end - first < gaps[at][1] - gaps[at][0]):
                at = g
        if at >= 0:
            first, end = gaps.pop(at)
            offsets[n] = first
            if end - first > need:
                gaps.insert(at, (first + need, end))
        else:
            start = gaps.pop()[0] if gaps and gaps[-1][1] == total else total
            offsets[n], total = start, start + need
        used += need
        most = max(most, used)
    return offsets, total, most


def _free(gaps: list[tuple[int, int]], first: int, end: int) -> None:
    """Add a gap, as one with its neighbours."""
    at = bisect(gaps, (first, end))
    if at < len(gaps) and gaps[at][0] == end:
        end = gaps.pop(at)[1]
    if at and gaps[at - 1][1] == first:
        at -= 1
        first = gaps.pop(at)[0]
    gaps.insert(at, (first, end))


def _by_size(lives: tuple[Life, ...], needs: list[int]) -> tuple[list[int], int]:
    """Places largest first, for placed late it would split the arena; in quadratic time."""
    offsets = [0] * len(needs)
    placed: list[tuple[int, int, int, int]] = []  # first byte, end, first time, last time
    for n in sorted(range(len(needs)), key=lambda n: (-needs[n], lives[n].first)):
        start, end, at = lives[n].first, lives[n].last, 0
        for first, last, t0, t1 in placed:
            if t0 <= end and start <= t1:
                if at + needs[n] <= first:
                    break
                at = max(at, last)
        offsets[n] = at
        insort(placed, (at, at + needs[n], start, end))
    return offsets, max((last for _, last, _, _ in placed), default=0)
