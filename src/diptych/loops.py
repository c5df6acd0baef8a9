"""Loops of the dynamic panel that never look at a value: where what waits is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diptych.graph.node import Node
from diptych.trail import Piece

LIMIT = 5000  # nodes that may wait without a look
LOOP = 100  # calls without a look after which a loop is looked for
HISTORY = 600  # the same where history is alive: a deep network is not a loop


class Loops:
    """Where loops are cut: by call site, the calls of a round before it."""

    def __init__(self) -> None:
        self.cuts: dict[Any, list[list[Any]]] = {}

    def is_cut(
        self, piece: Piece, site: tuple[Any, str], inputs: Sequence[Node], needs_grad: bool
    ) -> bool:
        """Whether what waits is run before a call at this line, of this operator.

        A loop that never looks is cut where its calls repeat, from then on always at the same
        place: if there is one, at a call that reads nothing that waits, so that a round is whole.
        What follows a backward is a step, and is not cut.
        """
        if len(piece.waiting) >= LIMIT:
            return True
        if piece.in_step:
            return False
        sites = piece.sites()
        if any(sites[-len(c) :] == c for c in self.cuts.get(site, ())):
            return True
        enough = HISTORY if needs_grad else LOOP
        if len(sites) >= enough and any([i.value is None for i in inputs]):
            enough *= 2
        if len(sites) >= enough:
            period = period_of(sites[-enough:])
            if period and sites[-period] == site:
                self.cuts.setdefault(site, []).append(sites[-period:])
                return True
        return False


def period_of(sites: list[Any]) -> int:
    """After how many calls a list repeats itself from end to end, at most half of it; or 0."""
    last = sites[-1]
    for period in range(1, len(sites) // 2 + 1):
        if sites[-1 - period] == last and sites[period:] == sites[:-period]:
            return period
    return 0
