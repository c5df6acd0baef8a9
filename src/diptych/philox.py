"""Philox 4x32-10 in numpy (Salmon, Moraes, Dror and Shaw, 2011)."""

from __future__ import annotations

from typing import Any

import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = np.uint64(0xFFFFFFFF)


def philox(seed: int, stream: int, count: int) -> np.ndarray[Any, Any]:
    """`count` words: element i is word i mod 4 of counter i div 4, key = seed."""
    blocks = -(-count // 4)
    n = np.arange(blocks, dtype=np.uint64)
    low = np.uint64(stream & 0xFFFFFFFF)
    high = np.uint64((stream >> 32) & 0xFFFFFFFF)
    c = [n & MASK, n >> np.uint64(32), np.full(blocks, low), np.full(blocks, high)]
    key0, key1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = M0 * c[0], M1 * c[2]
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(key0),
            p1 & MASK,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(key1),
            p0 & MASK,
        ]
        key0, key1 = (key0 + W0) & 0xFFFFFFFF, (key1 + W1) & 0xFFFFFFFF
    return np.stack(c, 1).astype(np.uint32).reshape(-1)[:count]


def permutation(n: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """Fisher and Yates from the top: for i = n-1 .. 1 swap i with (word * (i+1)) >> 32, word
    n-1-i of stream `epoch`."""
    words = philox(seed, epoch, max(n - 1, 0)).astype(np.uint64)
    tops = np.arange(n - 1, 0, -1, dtype=np.uint64)
    picks = (words * (tops + np.uint64(1))) >> np.uint64(32)
    return swapped(picks.astype(np.int64)[::-1])[:n]


def swapped(picks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0 .. n-1 after swapping i with picks[i-1] <= i for i = n-1 .. 1, without a loop over i.

    What i gets is what its pick holds then. A place holds its own number until a step picks it;
    from then on it holds what the last such step's own place held at that step, and so on.
    """
    n = len(picks) + 1
    keys = np.sort((picks << 32) | np.arange(1, n))
    place, step = keys >> 32, keys & 0xFFFFFFFF
    again = place[1:] == place[:-1]
    before = np.full(n, -1)  # of a step: the one before it in time that had the same pick
    before[step[:-1][again]] = step[1:][again]
    last = np.append(True, ~again)[: n - 1]
    held = np.arange(n)  # of a place: the last step that picked it before its own
    held[place[last]] = step[last]
    own = place[last & (place == step)]
    held[own] = np.where(before[own] < 0, own, before[own])
    while not np.array_equal(further := held[held], held):
        held = further
    got = np.where(before < 0, np.append(0, picks), held[before])
    got[:1] = held[:1]
    return got
