"""A check of gradients against differences, for functions and operators of users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych.derivatives import partials
from diptych.dtypes import f64
from diptych.errors import DtypeError, GradientError, GraphError
from diptych.generator import default_generator
from diptych.ops.base import host_array
from diptych.tensor import Tensor, tensor

Array = np.ndarray[Any, Any]
STEP = 1e-6
TOLERANCE = 2e-5


def gradcheck(
    function: Callable[..., Any],
    inputs: Any,
    *,
    order: int = 2,
    directions: int = 1,
    step: float = STEP,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> None:
    """Compare the gradients of a function, to second order, with central differences in f64.

    `inputs` are the function's arguments, or its only one: arrays, tensors or numbers. Floats are
    taken as f64 and varied together; all others are handed on. Weights of a model are inputs as
    well, for its own are f32. The result is a tensor, or several. With fixed normal weights w and
    u, and a normal direction v, each with one number for each element,

        s(x) = sum(w * function(x))       first order:   sum(grad s(x) * v)
        t(x) = sum(grad s(x) * u)         second order:  sum(grad t(x) * v)

    are held against (s(x + step*v) - s(x - step*v)) / (2*step), and t's difference. They agree
    where they are at most tolerance * max(1, |difference|) apart. `step` is in the units of the
    inputs, which should be of size 1 or so and away from kinks; `order=1` leaves the second order
    out. Random operators draw the same numbers at every call. Raises GradientError where a gradient
    is wrong.
    """
    if order not in (1, 2) or directions < 1:
        raise GraphError(
            "gradcheck is of order 1 or 2, along at least one direction",
            f"order={order}, directions={directions}",
            "leave them out",
        )
    inputs = inputs if isinstance(inputs, list | tuple) else (inputs,)
    check = Check(function, inputs, step, tolerance, seed)
    for n in range(directions):
        check.along(n, "first", check.weighted)
        if order == 2:
            check.along(n, "second", check.sloped)


class Check:
    """A function at a point, whose derivatives along directions are computed in two ways."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        step: float,
        tolerance: float,
        seed: int,
    ) -> None:
        self.function, self.step, self.tolerance, self.seed = function, step, tolerance, seed
        arrays = [i.numpy() if isinstance(i, Tensor) else host_array(i) for i in inputs]
        self.point = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
        self.floats = [n for n, a in enumerate(self.point) if a.dtype.kind == "f"]
        self.generator = default_generator()
        self.stream = self.generator.stream
        if not self.floats:
            raise GraphError(
                "gradcheck differentiates in floats",
                f"inputs of {', '.join(str(a.dtype) for a in arrays) or 'no values'}",
                "make one of them a float array",
            )

    def drawn(self, what: str, shapes: Sequence[tuple[int, ...]], n: int = 0) -> list[Array]:
        """Normal numbers, the same ones whenever asked for."""
        rng = np.random.default_rng([self.seed, n, *what.encode()])
        return [rng.standard_normal(shape) for shape in shapes]

    def weighted(self, given: Sequence[Tensor]) -> Tensor:
        """s: one number made of the result."""
        self.generator.stream = self.stream
        result = self.function(*given)
        results = result if isinstance(result, tuple | list) else [result]
        for out in results:
            if not isinstance(out, Tensor) or out.dtype != f64:
                kind = out.type if isinstance(out, Tensor) else f"a {type(out).__name__}"
                raise DtypeError(
                    "gradcheck needs the digits of f64: the function gives f64 for f64",
                    f"{kind} from {self.name}",
                    "compute in the dtype of the inputs, and return tensors of floats",
                )
        weights = self.drawn("weights", [out.shape for out in results])
        return _total(results, weights)

    def sloped(self, given: Sequence[Tensor]) -> Tensor:
        """t: the derivative of s along a fixed direction."""
        slopes = partials(self.weighted(given), [given[n] for n in self.floats])
        return _total(slopes, self.drawn("slopes", [s.shape for s in slopes]))

    def along(self, n: int, order: str, of: Callable[[Sequence[Tensor]], Tensor]) -> None:
        """Compare along direction n."""
        directions = self.drawn(order, [self.point[i].shape for i in self.floats], n)
        given = self.at(0.0, directions)
        slopes = partials(of(given), [given[i] for i in self.floats])
        slope = _total(slopes, directions).item()
        up, down = (of(self.at(e, directions)).item() for e in (self.step, -self.step))
        difference = (up - down) / (2 * self.step)
        apart, limit = abs(difference - slope), self.tolerance * max(1.0, abs(difference))
        if not apart <= limit:
            raise GradientError(
                f"the {order} gradient of {self.name} is what central differences give",
                f"{slope!r} along a direction, where they give {difference!r}",
                "check the rules of its operators, then the inputs: kinks, sizes far from 1",
            )

    def at(self, distance: float, directions: Sequence[Array]) -> list[Tensor]:
        """The inputs, moved along a direction."""
        moved = dict(zip(self.floats, directions, strict=True))
        return [
            tensor(a + distance * moved[n], requires_grad=True) if n in moved else tensor(a)
            for n, a in enumerate(self.point)
        ]

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))


def _total(values: Sequence[Tensor], weights: Sequence[Array]) -> Tensor:
    """sum(values * weights), over all elements of all."""
    total = tensor(np.float64(0.0))
    for value, weight in zip(values, weights, strict=True):
        total = total + (value * weight).sum()
    return total
