"""Layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from diptych.errors import DiptychError, ValueRangeError
from diptych.nn import init
from diptych.nn.module import NAMED, Module, parts
from diptych.ops import contract, functions, losses, random, shape
from diptych.ops.base import whole
from diptych.tensor import Parameter


class Linear(Module):
    """x @ weight.T + bias: (..., in_features) -> (..., out_features).

    weight (out, in) and bias (out) start from U(-b, b), b = 1 / sqrt(in_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        in_features = whole(in_features, "the number of features", 1)
        out_features = whole(out_features, "the number of features", 1)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(init.kaiming_uniform((out_features, in_features)), order="C")
        bound = 1.0 / math.sqrt(in_features)
        self.bias = Parameter(init.uniform((out_features,), -bound, bound)) if bias else None

    def forward(self, x: Any) -> Any:
        return contract.linear(x, self.weight, self.bias)

    def describe(self) -> str:
        return f"{self.in_features} -> {self.out_features}" + (
            "" if self.bias is not None else ", no bias"
        )


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Any) -> Any:
        return losses.relu(x)


class Tanh(Module):
    """tanh(x)."""

    def forward(self, x: Any) -> Any:
        return functions.tanh(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Any) -> Any:
        return functions.sigmoid(x)


class LeakyReLU(Module):
    """x where x > 0, else x * negative_slope."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Any) -> Any:
        return losses.leaky_relu(x, negative_slope=self.negative_slope)

    def describe(self) -> str:
        return str(self.negative_slope)


class ELU(Module):
    """x where x > 0, else alpha * expm1(x)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Any) -> Any:
        return losses.elu(x, alpha=self.alpha)

    def describe(self) -> str:
        return str(self.alpha)


class Softplus(Module):
    """max(x, 0) + log1p(exp(-|x|))."""

    def forward(self, x: Any) -> Any:
        return losses.softplus(x)


class LogSoftmax(Module):
    """s - log(sum(exp(s))) along the last axis, s = x - max(x)."""

    def forward(self, x: Any) -> Any:
        return losses.log_softmax(x)


class Identity(Module):
    """x."""

    def forward(self, x: Any) -> Any:
        return x


class GELU(Module):
    """x * (0.5 * (1 + erf(x / sqrt(2))))."""

    def forward(self, x: Any) -> Any:
        return losses.gelu(x)


class SiLU(Module):
    """x * sigmoid(x)."""

    def forward(self, x: Any) -> Any:
        return losses.silu(x)


class Softmax(Module):
    """exp(x - max) / sum along the last axis."""

    def forward(self, x: Any) -> Any:
        return losses.softmax(x)


class Dropout(Module):
    """In training zeroes each element with probability p and scales the others by 1/(1-p)."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p <= 1.0:
            raise ValueRangeError("a dropout probability lies from 0 to 1", f"p={p}", "e.g. 0.5")
        self.p = p

    def forward(self, x: Any) -> Any:
        return random.dropout(x, self.p, self.training)

    def describe(self) -> str:
        return str(self.p)


class Flatten(Module):
    """(n, ...) -> (n, features)."""

    def forward(self, x: Any) -> Any:
        return shape.flatten(x, 1)


def _module(value: Any) -> Any:
    """A module, or a list of modules, as it is; anything else is said to be none."""
    for part in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(part, Module):
            raise DiptychError(
                "Sequential takes modules, one after another",
                f"{_shown(part)}",
                f"{_instead(part)}",
            )
    return value


def _shown(value: Any) -> str:
    name = getattr(value, "__name__", "")
    if isinstance(value, type):
        return f"the class {name}"
    return f"the function {name}" if callable(value) and name else f"{value!r:.60}"


def _instead(value: Any) -> str:
    """The module that somebody meant by a class or a function."""
    name = str(getattr(value, "__name__", ""))
    if isinstance(value, type) and issubclass(value, Module):
        return f"an instance of it, {name}(...)"
    layers = {c.__name__.lower(): c.__name__ for c in Module.__subclasses__() if c._own}
    layer = layers.get(name.replace("_", "").lower()) if callable(value) else None
    return f"nn.{layer}()" if layer else "e.g. nn.ReLU(), or a Module whose forward calls it"


class Sequential(Module):
    """Modules one after another; parameters are named 0.weight, 0.bias, 2.weight, ..."""

    _walks = True

    def __init__(self, *modules: Module) -> None:
        for n, module in enumerate(modules):
            setattr(self, str(n), _module(module))

    def __iter__(self) -> Iterator[Module]:
        return iter([child for _, child in self.children()])

    def __getitem__(self, n: int) -> Module:
        return [child for _, child in self.children()][n]

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def append(self, module: Module) -> Sequential:
        """Add a module at the end."""
        setattr(self, str(len(self)), _module(module))
        return self

    def forward(self, x: Any) -> Any:
        inside = vars(self).values() if type(self).__iter__ is Sequential.__iter__ else self
        for value in list(inside):
            if isinstance(value, Module):
                x = value.forward(x) if value._direct else value(x)
            elif isinstance(value, NAMED):
                for _, part in parts("", value):
                    if isinstance(part, Module):
                        x = part(x)
        return x
