"""fluid.optimizer: SGD, Momentum and Adam with the update rules of 1.8.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import diptych as dp
from diptych import optim
from diptych.fluid.framework import SCOPE, STATE, Program, Variable


class _Rate:
    """The learning rate of a program: a variable of it, which a scope may read and set."""

    rate_variable: dp.Parameter | None = None

    _rates: dict[Any, Any]  # what is computed once a step, as `optim.Optimizer` has it

    def rate(self, parameter: dp.Parameter) -> Any:
        if self.rate_variable is None:  # dygraph has none
            return super().rate(parameter)  # type: ignore[misc]
        if "rate" not in self._rates:
            self._rates["rate"] = dp.negative(self.rate_variable)
        return self._rates["rate"]


class _SGD(_Rate, optim.SGD):
    """param <- fma(-rate, grad, param), and with momentum as `optim.SGD` has it."""

    def update(self, parameter: dp.Parameter, grad: Any) -> None:
        super().update(parameter, grad)  # by the rate above, whatever else SGD does for all at once


class _Adam(_Rate, optim.Adam):
    """Adam with epsilon beside sqrt(v): the step is
    rate * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)."""

    def before_step(self) -> None:
        super().before_step()
        one, two = (dp.subtract(1.0, power) for power in self.powers)
        rate = dp.cast(self.rate(self.parameters[0]), "f64")  # negative
        step = dp.divide(dp.multiply(rate, dp.sqrt(two)), one)
        self._scalars = (step, dp.cast(1.0, "f64"))


class Optimizer:
    """Settings of an update; `minimize` applies it."""

    def __init__(
        self,
        learning_rate: float,
        parameter_list: Sequence[Any] | None = None,
        regularization: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(learning_rate, float):
            raise TypeError(f"learning rate should be float, not {type(learning_rate).__name__}")
        if regularization is not None or grad_clip is not None:
            raise NotImplementedError("diptych.fluid has no regularization or grad_clip yet")
        if STATE.tracer is not None and parameter_list is None:
            raise AttributeError(
                "parameter_list argument given to the Optimizer should not be None in dygraph mode."
            )
        self.learning_rate = learning_rate
        self.parameter_list = None if parameter_list is None else list(parameter_list)
        self.inner: Any = None  # made by minimize

    def make(self, parameters: Sequence[dp.Parameter]) -> Any:
        """diptych's optimizer."""
        raise NotImplementedError

    def minimize(
        self,
        loss: Any,
        startup_program: Program | None = None,
        parameter_list: Sequence[Any] | None = None,
        no_grad_set: Any = None,
    ) -> tuple[list[Any], list[tuple[Any, Any]]]:
        """In a program: record backward and update. In dygraph: apply the gradients that are
        there."""
        if STATE.tracer is not None:
            return self._apply()
        if loss.shape not in ((1,), ()):
            raise AssertionError(
                f"The loss.shape should be (1L,), but the current loss.shape is {loss.shape}. "
                "Maybe that you should call fluid.layers.mean to process the current loss."
            )
        if self.inner is not None:
            raise Exception("minimize has been called on this optimizer before; make another")
        program: Program = loss.program
        chosen = parameter_list or self.parameter_list or program.all_parameters()
        named = [program.var(v) if isinstance(v, str) else v for v in chosen]
        variables = [v for v in named if v.tensor.trainable]
        startup = startup_program or STATE.startup
        before = len(program.inner.startup.initial)
        with program.inner:
            inner = self._make([v.tensor for v in variables])
            loss.tensor.backward()
            gradients = self._name_gradients(program, variables)
            inner.step()
            inner.zero_grad()
        startup.initialisers += program.inner.startup.initial[before:]
        return [], gradients

    def _make(self, parameters: Sequence[dp.Parameter]) -> Any:
        self.inner = self.make(parameters)
        if STATE.tracer is None:
            name = STATE.names.make("learning_rate")
            rate = np.array([self.learning_rate], np.float32)
            self.inner.rate_variable = made = dp.Parameter(rate, trainable=False, name=name)
            variable = Variable(STATE.main, name, made, persistable=True)
            variable.is_parameter = False
            STATE.main.variables[name] = variable
            SCOPE.put(name, made)
        return self.inner

    def _name_gradients(
        self, program: Program, variables: Sequence[Variable]
    ) -> list[tuple[Any, Any]]:
        found = []
        for variable in variables:
            grad = variable.tensor.grad
            if grad is not None:
                name = f"{variable.name}@GRAD"
                program.variables[name] = Variable(program, name, grad)
                found.append((variable, program.variables[name]))
        return found

    def _apply(self) -> tuple[list[Any], list[tuple[Any, Any]]]:
        assert self.parameter_list is not None
        if self.inner is None:
            self._make([v.tensor for v in self.parameter_list if v.tensor.trainable])
        found = []
        for variable in self.parameter_list:
            grad = variable.tensor.grad
            if grad is None:
                if not variable.cleared:
                    continue
                grad = variable.tensor.grad = dp.tensor(np.zeros(variable.shape, np.float32))
            found.append((variable, grad))
        if found:
            self.inner.step()
        return [], found

    def clear_gradients(self) -> None:
        """Set the gradients to zeros."""
        for variable in self.parameter_list or ():
            variable.clear_gradient()

    def current_step_lr(self) -> float:
        return self.learning_rate

    def state_dict(self) -> dict[str, Any]:
        return {} if self.inner is None else self.inner.state_dict()


class SGD(Optimizer):
    """param <- param - rate * grad."""

    def make(self, parameters: Sequence[dp.Parameter]) -> Any:
        kind = _SGD if STATE.tracer is None else optim.SGD
        return kind(parameters, self.learning_rate)


class Momentum(Optimizer):
    """v <- momentum * v + grad; param <- param - rate * v, or with Nesterov
    param - rate * (grad + momentum * v)."""

    def __init__(
        self,
        learning_rate: float,
        momentum: float,
        parameter_list: Sequence[Any] | None = None,
        use_nesterov: bool = False,
        regularization: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate, parameter_list, regularization, grad_clip, name)
        self.momentum, self.use_nesterov = momentum, use_nesterov

    def make(self, parameters: Sequence[dp.Parameter]) -> Any:
        kind = _SGD if STATE.tracer is None else optim.SGD
        return kind(parameters, self.learning_rate, self.momentum, nesterov=self.use_nesterov)


class Adam(Optimizer):
    """Kingma and Ba (2015), with epsilon beside sqrt(v)."""

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        parameter_list: Sequence[Any] | None = None,
        regularization: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        lazy_mode: bool = False,
    ) -> None:
        super().__init__(learning_rate, parameter_list, regularization, grad_clip, name)
        self.betas, self.epsilon = (beta1, beta2), epsilon

    def make(self, parameters: Sequence[dp.Parameter]) -> Any:
        return _Adam(parameters, self.learning_rate, self.betas, self.epsilon)


SGDOptimizer, MomentumOptimizer, AdamOptimizer = SGD, Momentum, Adam
