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
    picks = ((words * (tops + np.uint64(1))) >> np.uint64(32)).tolist()
    order = list(range(n))
    for i, j in zip(range(n - 1, 0, -1), picks, strict=True):
        order[i], order[j] = order[j], order[i]
    return np.array(order, np.int64)
