"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from diptych.errors import DiptychError
from diptych.ops.elementwise import add, fma
from diptych.optim.optimizer import Optimizer
from diptych.tensor import Parameter, Tensor

Array = np.ndarray[Any, Any]


class SGD(Optimizer):
    """p <- fma(-lr, d, p).

    d = g, with weight decay fma(weight_decay, p, g). With momentum v <- fma(momentum, v, d), from
    v = d at the first step, and d = v, or with nesterov fma(momentum, v, d).
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 0.001,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        self._check(momentum=momentum, weight_decay=weight_decay)
        if nesterov and not momentum:
            raise DiptychError(
                "nesterov is a kind of momentum", f"momentum={momentum}", "e.g. momentum=0.9"
            )
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self.velocity: dict[Parameter, Parameter] = {}

    def settings(self) -> tuple[Any, ...]:
        return (self.momentum, self.weight_decay, self.nesterov)

    def state(self) -> list[Parameter]:
        return list(self.velocity.values())

    def update(self, parameter: Parameter, grad: Tensor) -> None:
        d = grad
        if self.weight_decay:
            d = fma(self.weight_decay, parameter, d)
        if self.momentum:
            d = self._with_momentum(parameter, d)
        parameter.assign(fma(self.rate(parameter), d, parameter))

    def _with_momentum(self, parameter: Parameter, d: Tensor) -> Tensor:
        """v starts from zero: fma(momentum, 0, d) is d."""
        v = self._velocity(parameter)
        new = fma(self.momentum, v, d)
        v.assign(new)
        return fma(self.momentum, new, d) if self.nesterov else add(new, 0.0)  # type: ignore[no-any-return]

    def _velocity(self, parameter: Parameter) -> Parameter:
        v = self.velocity.get(parameter)
        if v is None:
            v = self.velocity[parameter] = self.zeros(parameter)
        return v

    def slots(self) -> dict[str, Parameter]:
        return {
            f"velocity.{n}": self.velocity[p]
            for n, p in enumerate(self.parameters)
            if p in self.velocity
        }

    def make_slots(self) -> None:
        for parameter in self.parameters if self.momentum else []:
            self._velocity(parameter)

    def starts(self) -> tuple[dict[str, Array], list[dict[str, Array]]]:
        return {}, [
            {f"velocity.{n}": np.zeros(p.shape, p.dtype.numpy)}
            for n, p in enumerate(self.parameters if self.momentum else [])
        ]
