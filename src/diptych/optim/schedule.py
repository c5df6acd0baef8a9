"""Learning-rate schedules: `step()` after an epoch sets the optimizer's lr."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from diptych.errors import FrozenValueError
from diptych.ops.base import whole
from diptych.optim.optimizer import Optimizer
from diptych.states import numbers
from diptych.tensor import current_panel, default_panel

Array = np.ndarray[Any, Any]


class Schedule(ABC):
    """lr = rate(count), count being the number of steps so far."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.base, self.count = optimizer, optimizer.lr, 0
        optimizer.lr = self.rate(0)

    def state_dict(self) -> dict[str, Array]:
        """The learning rate that all others are of, and the number of steps so far."""
        return {"base": np.asarray(self.base, np.float64), "count": np.asarray(self.count)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict: the optimizer has the learning rate of that step."""
        base, count = numbers(state, "a schedule", base=float, count=int)
        before, self.base = self.base, base
        try:
            self.optimizer.lr = self.rate(count)
        except BaseException:
            self.base = before
            raise
        self.count = count

    @abstractmethod
    def rate(self, count: int) -> float:
        """The learning rate after `count` steps."""

    def step(self) -> None:
        if current_panel() is not default_panel():
            raise FrozenValueError(
                "a schedule steps outside of a compiled function",
                f"{type(self).__name__}.step() during capture",
                "call it after the compiled step; the learning rate is read anew at every call",
            )
        self.count += 1
        self.optimizer.lr = self.rate(self.count)


class StepLR(Schedule):
    """base * gamma ** (count // every)."""

    def __init__(self, optimizer: Optimizer, every: int, gamma: float = 0.1) -> None:
        self.every, self.gamma = whole(every, "the number of steps", 1), gamma
        super().__init__(optimizer)

    def rate(self, count: int) -> float:
        return float(self.base * self.gamma ** (count // self.every))


class CosineLR(Schedule):
    """low + (base - low) * (1 + cos(pi * min(count, total) / total)) / 2."""

    def __init__(self, optimizer: Optimizer, total: int, low: float = 0.0) -> None:
        self.total, self.low = whole(total, "the number of steps", 1), low
        super().__init__(optimizer)

    def rate(self, count: int) -> float:
        turn = math.cos(math.pi * min(count, self.total) / self.total)
        return self.low + (self.base - self.low) * (1.0 + turn) / 2.0
