"""What a state_dict is: arrays by name. Those of a schedule, a loader and the random generator are
numbers, kept as arrays, so that all that a run goes on from lies in one file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from diptych.errors import DtypeError

Array = np.ndarray[Any, Any]
KINDS = {int: "iu", float: "fiu"}  # of numpy's dtypes


def need_mapping(state: Any) -> None:
    """Raise where a state_dict is anything else."""
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        path = isinstance(state, str | PathLike)
        cure = f"dp.load_state({str(state)!r}) reads one" if path else "that of .state_dict()"
        raise DtypeError("a state_dict has arrays by name", f"a {kind}", cure)


def numbers(state: Mapping[str, Any], whose: str, **kinds: type) -> list[Any]:
    """Read the numbers of a state_dict, in the order of `kinds`: int or float, by name."""
    need_mapping(state)
    arrays = {name: np.asarray(value) for name, value in state.items()}
    wrong = sorted(set(kinds) ^ set(arrays))
    wrong += [
        name
        for name, kind in kinds.items()
        if name in arrays and (arrays[name].shape or arrays[name].dtype.kind not in KINDS[kind])
    ]
    if wrong:
        raise DtypeError(
            f"the state of {whose} is {' and '.join(kinds)}, one number each",
            f"{', '.join(map(str, wrong[:4]))} is missing, unknown or no such number",
            f"pass the state_dict() of {whose}",
        )
    return [kind(arrays[name]) for name, kind in kinds.items()]
