"""Adam and AdamW (Kingma and Ba, 2015; Loshchilov and Hutter, 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from diptych.dtypes import DType, f64
from diptych.graph.record import current
from diptych.ops.elementwise import cast, divide, fma, less, multiply, negative, subtract, where
from diptych.ops.functions import abs, sqrt
from diptych.optim.optimizer import Optimizer
from diptych.tensor import Parameter, Tensor

Array = np.ndarray[Any, Any]
TINY = 2.0**-100  # subnormal moments of dead units would run 30 times slower


class Adam(Optimizer):
    """With t counting steps from 1, and all moments from 0:

    d = g, with weight decay fma(weight_decay, p, g)
    m <- fma(b1, m, (1 - b1) * d)           |m| < 2^-100 becomes 0
    v <- fma(b2, v, (1 - b2) * (d * d))     v < 2^-100 becomes 0
    p <- fma(-lr / (1 - b1^t), m / fma(sqrt(v), 1 / sqrt(1 - b2^t), eps), p)

    The powers b^t are running products in f64; each scalar is computed in f64 and rounded once.
    """

    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        self._check(eps=eps, weight_decay=weight_decay)
        self._check(0.0, 1.0, beta1=betas[0], beta2=betas[1])
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.powers: list[Parameter] = []
        self.moments: dict[Parameter, tuple[Parameter, Parameter]] = {}
        self._scalars: tuple[Tensor, Tensor] | None = None

    def before_step(self) -> None:
        """b1^t and b2^t of this step, and the two scalars made of them."""
        self._make_powers()
        powers = []
        for power, beta in zip(self.powers, self.betas, strict=True):
            powers.append(multiply(power, beta))
            power.assign(powers[-1])
        rate = current().live_scalar(lambda: self.lr, f64)
        step = negative(divide(rate, subtract(1.0, powers[0])))
        scale = divide(1.0, sqrt(subtract(1.0, powers[1])))
        self._scalars = (step, scale)

    def _make_powers(self) -> None:
        if not self.powers:
            self.powers = [Parameter(np.ones((), np.float64), trainable=False) for _ in range(2)]

    def slots(self) -> dict[str, Parameter]:
        slots = {f"power.{n}": power for n, power in enumerate(self.powers)}
        for n, parameter in enumerate(self.parameters):
            for kind, moment in zip("mv", self.moments.get(parameter, ()), strict=False):
                slots[f"{kind}.{n}"] = moment
        return slots

    def make_slots(self) -> None:
        self._make_powers()
        for parameter in self.parameters:
            self._moments(parameter)

    def starts(self) -> tuple[dict[str, Array], list[dict[str, Array]]]:
        shared = {f"power.{n}": np.ones((), np.float64) for n in range(2)}
        return shared, [
            {f"{kind}.{n}": np.zeros(p.shape, p.dtype.numpy) for kind in "mv"}
            for n, p in enumerate(self.parameters)
        ]

    def after_step(self) -> None:
        self._scalars = None

    def settings(self) -> tuple[Any, ...]:
        return (*self.betas, self.eps, self.weight_decay)

    def state(self) -> list[Parameter]:
        return [*self.powers, *chain.from_iterable(self.moments.values())]

    def update(self, parameter: Parameter, grad: Tensor) -> None:
        assert self._scalars is not None
        step, scale = (self._rounded(s, parameter.dtype) for s in self._scalars)
        d, p = grad, parameter
        if self.weight_decay and not self.decoupled:
            d = fma(self.weight_decay, p, d)
        m, v = self._moments(parameter)
        new_m = fma(self.betas[0], m, multiply(d, 1.0 - self.betas[0]))
        new_m = where(less(abs(new_m), TINY), 0.0, new_m)
        new_v = fma(self.betas[1], v, multiply(multiply(d, d), 1.0 - self.betas[1]))
        new_v = where(less(new_v, TINY), 0.0, new_v)
        m.assign(new_m)
        v.assign(new_v)
        start = self._decayed(parameter)
        parameter.assign(fma(step, divide(new_m, fma(sqrt(new_v), scale, self.eps)), start))

    def _decayed(self, parameter: Parameter) -> Tensor:
        return parameter

    def _rounded(self, scalar: Tensor, dtype: DType) -> Tensor:
        rounded: Tensor = cast(scalar, dtype)
        return rounded

    def _moments(self, parameter: Parameter) -> tuple[Parameter, Parameter]:
        found = self.moments.get(parameter)
        if found is None:
            found = (self.zeros(parameter), self.zeros(parameter))
            self.moments[parameter] = found
        return found


class AdamW(Adam):
    """Adam whose weight decay does not pass through the moments:

    p <- fma(-lr * weight_decay, p, p), then Adam's update.
    """

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def _decayed(self, parameter: Parameter) -> Tensor:
        shrink = current().live_scalar(lambda: -self.lr * self.weight_decay, parameter.dtype)
        decayed: Tensor = fma(shrink, parameter, parameter)
        return decayed
