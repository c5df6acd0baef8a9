"""What optimizers share: parameters, zero_grad, step, minimize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from diptych.errors import DiptychError
from diptych.graph.record import current
from diptych.tensor import Parameter, Tensor, current_panel, no_grad


class Optimizer(ABC):
    """Updates parameters from their gradients."""

    live = ("lr",)  # attributes that every run of a program reads anew

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        if not self.parameters:
            raise DiptychError(
                "an optimizer needs parameters", "an empty list", "pass model.parameters()"
            )
        if not lr >= 0:
            raise DiptychError("a learning rate is not negative", f"{lr}", "e.g. lr=0.1")

    @abstractmethod
    def update(self, parameter: Parameter, grad: Tensor) -> None:
        """Assign the parameter its next value."""

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        panel = current_panel(self.parameters[0])
        with no_grad():
            self.before_step()
            for parameter in self.parameters:
                grad = panel.get_grad(parameter)
                if grad is not None:
                    self.update(parameter, grad)
        panel.boundary()

    def before_step(self) -> None:  # noqa: B027  (a hook, empty unless there is something)
        """A hook for numbers that all parameters of a step share."""

    def zero_grad(self) -> None:
        """Forget all gradients."""
        panel = current_panel(self.parameters[0])
        for parameter in self.parameters:
            panel.set_grad(parameter, None)

    def minimize(self, loss: Tensor) -> None:
        """backward, step and zero_grad: what a static program records after its loss."""
        loss.backward()
        self.step()
        self.zero_grad()

    def rate(self, parameter: Parameter) -> Tensor:
        """-lr as a number that every run reads anew."""
        handle: Tensor = current().live_scalar(lambda: -self.lr, parameter.dtype)
        return handle
