"""The shape of a contraction's register tile: rows x columns of vectors, each its own chain.

A tile loads `columns` vectors of one side and broadcasts `rows` scalars of the other at every term.
The cost below counts cycles a term over all tiles of the result, ends included; it only ranks
tiles, and no choice here can change a bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from diptych.compiler.target import Target

LATENCY = 4  # cycles until a multiply-add may be continued
MOST_ROWS = 8  # more need more address registers than there are
MOST_OF_ONE = 10  # the same of tiles of one vector, which have registers left
SHORT = 64  # terms up to which stores cost more than loads, and narrow tiles are best
NEAREST = 3 << 13  # bytes of a tile's columns, all terms, that stay in any first cache
FARTHER = 0.2  # cycles that a vector costs where its columns do not, though it is asked for ahead


@dataclass(frozen=True)
class Piece:
    """Columns of the result from `start` on: `vectors` of `lanes`, the last with `masked` lanes
    in use where that is not 0."""

    start: int
    vectors: int
    lanes: int
    masked: int = 0


@dataclass(frozen=True)
class Tile:
    """Whole tiles have `rows` x `columns` vectors; `ends` are the columns after the last one."""

    rows: int
    columns: int
    ends: tuple[Piece, ...]


@lru_cache(maxsize=4096)
def choose_tile(
    rows: int,
    columns: int,
    target: Target,
    width: int = 0,
    thrift: float = 0.0,
    column: int = 0,
) -> Tile:
    """The tile for a result of rows x columns elements; `width` fixes its columns (of elements).
    `thrift` is what a further form of the tile, at an end, adds to the cost for being compiled.
    `column` are the bytes of a vector's columns, all terms, where tile after tile reads them."""
    vectors = -(-columns // target.lanes)
    # One row is as fast as its matrix is read: two threads read a half each.
    most = min(vectors, 8) if rows > 1 else min(max(4, -(-vectors // 2)), 8)
    widths = [width // target.lanes] if width else range(1, min(vectors, most) + 1)
    best: tuple[float, Tile] | None = None
    for across in widths:
        tail = columns % (across * target.lanes)
        most_rows = MOST_ROWS if across > 1 else MOST_OF_ONE
        for down in range(1, min(rows, most_rows) + 1):
            if down * across + across + 1 > target.registers:
                break
            ends, end_cost = _ends(columns - tail, tail, down, target)
            whole = columns // (across * target.lanes)
            a_row = whole * _cycles(down, across, target) + end_cost
            left = rows % down
            cost = (rows // down) * a_row
            if left:
                cost += whole * _cycles(left, across, target)
                cost += _ends(columns - tail, tail, left, target)[1]
            forms = (bool(whole) + len(ends)) * (1 + bool(left))
            cost *= 1.0 + thrift * forms
            if column * across > NEAREST:
                cost += FARTHER * (rows / down) * vectors
            if best is None or cost < best[0]:
                best = cost, Tile(down, across, ends)
    assert best is not None
    return best[1]


def _cycles(rows: int, vectors: int, target: Target, narrow: bool = False) -> float:
    """Cycles a term of one tile; `narrow` vectors pass two at a time on every machine."""
    issued = rows * vectors / (2 if narrow else target.fma_per_cycle)
    loads = vectors + rows * (0.5 if narrow else target.broadcast)
    ports = 2 if narrow else target.loads_per_cycle
    return max(issued, loads / ports, LATENCY) + 0.05 * loads + 0.25


def _ends(start: int, tail: int, rows: int, target: Target) -> tuple[tuple[Piece, ...], float]:
    """How the columns after the whole tiles are covered, and what that costs a term."""
    if not tail:
        return (), 0.0
    lanes = target.lanes
    vectors, rest = divmod(tail, lanes)
    choices: list[tuple[Piece, ...]] = []
    first = (Piece(start, vectors, lanes),) if vectors else ()
    if not rest:
        return first, _cycles(rows, vectors, target)
    if target.has_masks:
        choices.append((Piece(start, vectors + 1, lanes, rest),))
        narrow = 1 << (rest - 1).bit_length()
        if narrow < lanes:
            masked = 0 if narrow == rest else rest
            choices.append((*first, Piece(start + vectors * lanes, 1, narrow, masked)))
    else:
        pieces, at = list(first), start + vectors * lanes
        while rest:
            narrow = 1 << (rest.bit_length() - 1)
            pieces.append(Piece(at, 1, narrow))
            at, rest = at + narrow, rest - narrow
        choices.append(tuple(pieces))
    costs = [
        sum(_cycles(rows, p.vectors, target, p.lanes * 2 <= lanes) for p in pieces)
        for pieces in choices
    ]
    cost = min(costs)
    return choices[costs.index(cost)], cost
