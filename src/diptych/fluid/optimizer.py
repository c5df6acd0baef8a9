"""fluid.optimizer: SGD, Momentum and Adam with the update rules of 1.8.5."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

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


class _Adam(_Rate, optim.Adam):
    """Adam with epsilon beside sqrt(v): the step is
    rate * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)."""

    def before_step(self) -> None:
        super().before_step()
        one, two = (dp.subtract(1.0, power) for power in self.powers)
        rate = dp.cast(self.rate(self.parameters[0]), "f64")  # negative
        step = dp.divide(dp.multiply(rate, dp.sqrt(two)), one)
        self._scalars = (step, dp.cast(1.0, "f64"))


def clear(variables: Sequence[Any]) -> None:
    """Dygraph: the gradients are zeros from here on."""
    dp.PANEL.forget([v.tensor for v in variables])
    for variable in variables:
        variable.cleared = True


class _Applied(Sequence[tuple[Any, Any]]):
    """Parameters and their gradients. A gradient is asked for when it is looked at: one that
    nobody looks at is never written to memory."""

    def __init__(self, variables: Sequence[Any]) -> None:
        self.variables = variables

    def __len__(self) -> int:
        return len(self.variables)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Applied(self.variables[place])
        variable = self.variables[place]
        return variable, variable.tensor.grad


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
    ) -> tuple[list[Any], Sequence[tuple[Any, Any]]]:
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

    def _apply(self) -> tuple[list[Any], Sequence[tuple[Any, Any]]]:
        assert self.parameter_list is not None
        if self.inner is None:
            self._make([v.tensor for v in self.parameter_list if v.tensor.trainable])
        given = [v.tensor for v in self.parameter_list]
        have = dp.PANEL.with_gradients(given)
        if len(have) < len(given):
            for variable in self.parameter_list:
                if variable.cleared and variable.tensor.grad is None:
                    variable.tensor.grad = dp.tensor(np.zeros(variable.shape, np.float32))
            have = dp.PANEL.with_gradients(given)
        if have:
            self.inner.step()
        if len(have) == len(given):
            return [], _Applied(self.parameter_list)
        own = set(map(id, have))
        return [], _Applied([v for v in self.parameter_list if id(v.tensor) in own])

    def clear_gradients(self) -> None:
        """Set the gradients to zeros."""
        clear(self.parameter_list or ())

    def current_step_lr(self) -> float:
        return self.learning_rate

    accumulators: ClassVar[dict[str, str]] = {}  # by the kind of a slot: Paddle's name
    betas: tuple[float, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """Dygraph: the accumulators as arrays, `linear_0.w_0_moment1_0`; none before minimize."""
        if self.inner is None:
            return {}
        state = self.inner.state_dict()
        found = {}
        for slot, name in self._names(state).items():
            found[name] = state[slot]
            for n, beta in enumerate(self.betas):  # Paddle is one step ahead, and keeps one each
                power = np.array([state[f"power.{n}"] * beta], np.float32)
                found[f"{name.rpartition('_moment')[0]}_beta{n + 1}_pow_acc_0"] = power
        return found

    def set_dict(self, state: Mapping[str, Any]) -> None:
        """Dygraph: take a state_dict, of 1.8.5 or of ours, and go on from there."""
        if self.inner is None:
            self._make([v.tensor for v in self.parameter_list or () if v.tensor.trainable])
        self.inner.make_slots()
        own = self.inner.state_dict()
        for slot, name in self._names(own).items():
            if name not in state:
                raise RuntimeError(f"optimizer variable {name} not found in the state")
            own[slot] = np.asarray(state[name])
            for n, beta in enumerate(self.betas):
                power = state[f"{name.rpartition('_moment')[0]}_beta{n + 1}_pow_acc_0"]
                own[f"power.{n}"] = np.asarray(_power(beta, np.asarray(power).item()), np.float64)
        self.inner.load_state_dict(own)

    def _names(self, slots: Iterable[str]) -> dict[str, str]:
        """Paddle's names of the slots of parameters."""
        names = [v.name for v in self.parameter_list or () if v.tensor.trainable]
        split = [(slot, *slot.split(".")) for slot in slots if slot.count(".") == 1]
        return {
            slot: f"{names[int(place)]}_{self.accumulators[kind]}_0"
            for slot, kind, place in split
            if kind in self.accumulators
        }


def _power(beta: float, kept: float) -> float:
    """beta^t as a running product in f64, from what a file has: beta^(t + 1), rounded to f32."""
    if not 0.0 < beta < 1.0 or kept <= 0.0:
        return 0.0
    power = 1.0
    for _ in range(round(math.log(kept) / math.log(beta)) - 1):
        power *= beta
    return power


class SGD(Optimizer):
    """param <- param - rate * grad."""

    def make(self, parameters: Sequence[dp.Parameter]) -> Any:
        kind = _SGD if STATE.tracer is None else optim.SGD
        return kind(parameters, self.learning_rate)


class Momentum(Optimizer):
    """v <- momentum * v + grad; param <- param - rate * v, or with Nesterov
    param - rate * (grad + momentum * v)."""

    accumulators: ClassVar = {"velocity": "velocity"}

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

    accumulators: ClassVar = {"m": "moment1", "v": "moment2"}

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
        return _Adam(parameters, self.learning_rate, (self.betas[0], self.betas[1]), self.epsilon)


SGDOptimizer, MomentumOptimizer, AdamOptimizer = SGD, Momentum, Adam
