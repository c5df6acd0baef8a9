"""A call that was recorded before, recorded again by one native function.

In a loop the dynamic panel finds every call on its trail: what the inputs are and where they stand
is a key, under which there is a point with a sample of the new node. Python needs 2 us to make key,
node and handle; here it is one function. It reads and writes slots of objects where `checks.slot`
found them, and asks Python's own functions for all else: dicts, lists, memory for objects.

It answers with the handle, or with None where anything is not as it was, and has changed nothing
then: the recorder's way through Python decides what that means, and is the only one where objects
are laid out in another way.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from diptych.runtime import call, objects, recorded, renewed
from diptych.runtime.call import HEAD, builtin
from diptych.runtime.checks import reads_right, slot
from diptych.runtime.code import Code, host_target
from diptych.runtime.objects import ITEMS, NODE_SLOTS, PIECE_SLOTS

Array = np.ndarray[Any, Any]
NAMES = tuple(f"diptych_{n}" for n in ("recall", "record", "leaf", "renew", "values", "bind"))


@dataclass
class Told:
    """What the functions are told of the recorder."""

    sample: Any  # a handle on a leaf, as new ones are
    parameter: Any  # the class of handles that are parameters
    kind: Any  # the class of kinds
    point: Any  # the class of places on the trail
    piece: Any  # that of this thread
    check: Callable[..., None]  # looks at positions: point, operator, inputs, line
    local: Any  # has the author's line, where it is known, as `line`
    ask: Callable[[], Any]  # finds it
    lock: Any
    record: Callable[..., Any]  # records any call
    run: Callable[..., None]  # runs a piece that is at its end
    most: int  # nodes of a piece, from which on this does


class Native:
    """Functions that record what was recorded before, and run it.

    `recall` takes a piece, an operator, handles and a line: it gives the handle of the new node,
    which then has its place in the piece, or None. `record` takes an operator and handles, and
    gives a handle in any case. `leaf` takes a sample and a value, and gives a handle. `renew` takes
    a piece, parameters, the nodes that they have, samples of those that they get, and a line.

    `values` takes the nodes of a piece and numbers, and gives the values of these. `bind` takes the
    nodes, numbers of those that were computed, their values and kinds, and numbers of those that
    have no value any more.
    """

    def __init__(self, code: Code, told: Told) -> None:
        words, held = _words(told)
        functions = [builtin(code, name)(words, held) for name in NAMES]
        self.recall, self.record, self.leaf, self.renew, self.values, self.bind = functions


def native(told: Told) -> Native | None:
    """The functions, or None where objects are not laid out as they read them."""
    code = _code()
    try:
        return None if code is None else Native(code, told)
    except LookupError:  # a slot is not where slots are looked for
        return None


def _words(told: Told) -> tuple[Array, list[Any]]:
    """What the functions read, and what has to be there as long."""
    classes: Any = (type(told.sample), type(told.sample.node), type(told.piece))
    handle, node, piece = classes
    held: list[Any] = [
        *(None, True, False, tuple, handle, told.parameter, told.kind, told.sample),
        *(told.sample.node.op, told.sample.node.inputs, told.check, told.piece, told.local),
        *("line", told.ask, told.lock.acquire, told.lock.release, told.record, told.run),
    ]
    words = [
        *map(id, held),
        *(threading.get_ident(), told.most),
        *(node.__basicsize__, node.__weakrefoffset__),
        *(handle.__basicsize__, handle.__weakrefoffset__),
        slot(handle, "node"),
        *[slot(told.point, name) for name in ("sample", "checks")],
        *[slot(node, name) for name in NODE_SLOTS],
        *[slot(piece, name) for name in PIECE_SLOTS],
    ]
    return np.array(words, np.int64), [*held, node]


@lru_cache(maxsize=1)
def _code() -> Code | None:
    if not reads_right() or not _laid_out((object(), object())):
        return None
    target = host_target("native")
    text = "\n".join(
        [f'target triple = "{target.triple}"', objects.TEXT, recorded.TEXT, renewed.TEXT]
    )
    return Code(text, target, NAMES)


def _laid_out(two: tuple[object, object]) -> bool:
    """Whether a tuple has its length and its objects where they are looked for."""
    found = [ctypes.c_int64.from_address(id(two) + at).value for at in (HEAD, ITEMS, ITEMS + 8)]
    return found == [2, *map(id, two)] and call.trampoline() is not None
