"""The generator's state: a seed, and a stream counter that every random call takes from."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from diptych.states import numbers


def drawn_seed(what: str) -> int:
    """A seed for something that was given none, said on the error stream so that the run can be
    repeated."""
    seed = int.from_bytes(os.urandom(4)) >> 1
    print(f"diptych: {what} got the seed {seed}; give it to repeat this run", file=sys.stderr)
    return seed


class Generator:
    """Philox key and stream; the stream is taken when a call is recorded (rule 8)."""

    def __init__(self, seed: int | None = None) -> None:
        self.lock = threading.Lock()
        self.stream = 0
        self.resets = 0
        self._seed = seed

    @property
    def seed(self) -> int:
        """The seed; an unseeded generator draws one and says which."""
        if self._seed is None:
            self._seed = drawn_seed("random numbers")
        return self._seed

    def take(self) -> tuple[int, int]:
        """Seed and the next stream."""
        with self.lock:
            stream = self.stream
            self.stream += 1
        return self.seed, stream

    def skip(self, count: int) -> None:
        """Streams that a native loop took by itself."""
        with self.lock:
            self.stream += count

    def reset(self, seed: int, stream: int = 0) -> None:
        self._seed, self.stream = int(seed), stream
        self.resets += 1

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """The seed, and the number of calls that drew."""
        return {"seed": np.asarray(self.seed), "stream": np.asarray(self.stream)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict: what is drawn next is what was to be drawn then."""
        self.reset(*numbers(state, "a generator", seed=int, stream=int))


_default = Generator()


def default_generator() -> Generator:
    """The generator that all random operators draw from."""
    return _default


def manual_seed(seed: int) -> None:
    """Seed everything that is drawn from here on."""
    _default.reset(seed)
