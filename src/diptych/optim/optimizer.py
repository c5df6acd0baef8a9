"""What optimizers share: parameters, zero_grad, step, minimize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from diptych.derivatives import gradients_of
from diptych.dtypes import DType
from diptych.elsewhere import OfOptimizer
from diptych.errors import DiptychError, ShapeError
from diptych.graph.record import LOCAL, author_line, current
from diptych.states import need_mapping
from diptych.tensor import Parameter, Tensor, TensorRecorder, current_panel

Array = np.ndarray[Any, Any]


def _listed(parameters: Any) -> list[Any]:
    """What is given as parameters; a model or one tensor are no list of them."""
    one = isinstance(parameters, Tensor) or hasattr(parameters, "named_parameters")
    return [] if one or not isinstance(parameters, Iterable) else list(parameters)


_INSTEAD: dict[Any, str] = {
    dict: "an optimizer for each group, with its own lr",
    tuple: "model.parameters()",
}


class Rate:
    """`lr`: a number that is checked where it is set, and read as any attribute."""

    def __set__(self, optimizer: Any, value: Any) -> None:
        if not isinstance(value, Real) or not value >= 0:  # type: ignore[operator]
            given = f"{value.type}" if isinstance(value, Tensor) else repr(value)
            raise DiptychError(
                "a learning rate is a number, and not negative", given, "e.g. lr=0.1, or float(lr)"
            )
        vars(optimizer)["lr"] = float(value)


class Optimizer(ABC, OfOptimizer):
    """Updates parameters from their gradients."""

    # Attributes that every run of a program reads anew, and what the dynamic panel keeps here.
    live = ("lr", "rehearsed")
    lr: float = Rate()  # type: ignore[assignment]
    rehearsed: Any = None
    _own: ClassVar[bool] = True  # of this package: no line of the author is below `step`

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._own = cls.__module__.startswith("diptych.")

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        self.parameters = _listed(parameters)
        self.lr = lr
        self._rates: dict[DType, Tensor] = {}  # what is computed once a step
        if not self.parameters:
            raise DiptychError(
                "an optimizer needs parameters, in one list",
                f"{'an empty' if parameters == [] else 'a'} {type(parameters).__name__}",
                "pass model.parameters()",
            )
        wrong = [p for p in self.parameters if not isinstance(p, Parameter)]
        if wrong:
            raise DiptychError(
                "an optimizer takes parameters",
                f"a {type(wrong[0]).__name__}",
                _INSTEAD.get(type(wrong[0]), "make it a dp.Parameter"),
            )
        if len(set(map(id, self.parameters))) < len(self.parameters):
            raise DiptychError(
                "an optimizer takes each parameter once",
                "one is there twice, and would be updated twice a step",
                "list(dict.fromkeys(parameters)), as model.parameters() has them",
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a pickle, rehearses for itself."""
        return {name: value for name, value in vars(self).items() if name != "rehearsed"}

    def _check(self, low: float = 0.0, high: float = float("inf"), **settings: float) -> None:
        """Settings are numbers from `low` to below `high`."""
        for name, value in settings.items():
            if not isinstance(value, int | float) or not low <= value < high:
                raise DiptychError(
                    f"{name} is a number from {low} to below {high}",
                    f"{name}={value!r}",
                    f"check the arguments of {type(self).__name__}",
                )

    @abstractmethod
    def update(self, parameter: Parameter, grad: Tensor) -> None:
        """Assign the parameter its next value."""

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        panel = current_panel(self.parameters[0])
        panel.advance(self, panel.with_gradients(self.parameters))
        panel.boundary()

    def record_step(self, panel: TensorRecorder, parameters: list[Parameter]) -> None:
        """The calls of a step, one by one."""
        before, line = panel.grad_enabled, LOCAL.line
        try:  # from here on, for Ctrl-C may come before the first call
            panel.grad_enabled = False
            LOCAL.line = author_line() if self._own else None  # below it all lines are one
            self.before_step()
            for parameter, grad in zip(parameters, gradients_of(panel, parameters), strict=True):
                self.update(parameter, grad)
            self.after_step()
        finally:
            panel.grad_enabled, LOCAL.line = before, line
            self._rates.clear()

    def settings(self) -> tuple[Any, ...] | None:
        """What a step depends on but for `lr`, gradients and state. An optimizer that says so, and
        whose code is all of this package, has its step recorded once by the dynamic panel."""
        return None

    def state(self) -> list[Parameter]:
        """What steps remember, in a fixed order."""
        return list(self.slots().values())

    def slots(self) -> dict[str, Parameter]:
        """State by name; a number in a name is the place of a parameter."""
        return {}

    def make_slots(self) -> None:
        """Make all state that steps would make."""

    def starts(self) -> tuple[dict[str, Array], list[dict[str, Array]]]:
        """What state begins with, by name: what all parameters share, and what each has."""
        self.make_slots()
        zeros = {name: np.zeros(s.shape, s.dtype.numpy) for name, s in self.slots().items()}
        return {}, [{name: zero} for name, zero in zeros.items()]

    def state_dict(self) -> dict[str, Array]:
        """A snapshot of the state as numpy arrays, by name, and `lr`."""
        state = {name: np.array(slot.numpy(), order="C") for name, slot in self.slots().items()}
        return {"lr": np.asarray(self.lr, np.float64), **state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state_dict, so that training goes on to the same bits. State that no step had
        made yet is not in there, and begins anew."""
        need_mapping(state)
        given = {name: np.asarray(value) for name, value in state.items() if name != "lr"}
        shared, groups = self.starts()
        start = {name: value for group in (shared, *groups) for name, value in group.items()}
        wrong = [
            name
            for name, value in given.items()
            if name not in start
            or (value.shape, value.dtype) != (start[name].shape, start[name].dtype)
        ]
        needed = [g for g in groups if not given.keys().isdisjoint(g)]  # what is made at once
        needed += [shared] if given else []
        wrong += [name for group in needed for name in group if name not in given]
        rate = np.asarray(state.get("lr"))
        wrong += ["lr"] if rate.shape != () or rate.dtype.kind not in "fiu" else []
        if wrong:
            raise ShapeError(
                "an optimizer takes the state of one like it, for parameters of the same types",
                f"{', '.join(sorted(set(wrong))[:4])} is missing, unknown or of another type",
                "make it for the same model with the same settings",
            )
        self.lr = float(rate)
        if given:
            self.make_slots()
        for name, slot in self.slots().items():
            slot.assign(given.get(name, start[name]))

    def before_step(self) -> None:
        """A hook for numbers that all parameters of a step share."""

    def after_step(self) -> None:
        """A hook to let go of them."""

    def zeros(self, parameter: Parameter) -> Parameter:
        """State of zeros that lies in memory as its parameter does."""
        zeros = np.zeros(parameter.shape, parameter.dtype.numpy)
        return Parameter(zeros, trainable=False, order=parameter.order)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        current_panel(self.parameters[0]).forget(self.parameters)

    def minimize(self, loss: Tensor) -> None:
        """backward, step and zero_grad: what a static program records after its loss."""
        loss.backward()
        self.step()
        self.zero_grad()

    def rate(self, parameter: Parameter) -> Tensor:
        """-lr as a number that every run reads anew."""
        dtype = parameter.dtype
        if dtype not in self._rates:
            self._rates[dtype] = current().live_scalar(lambda: -self.lr, dtype)
        return self._rates[dtype]
