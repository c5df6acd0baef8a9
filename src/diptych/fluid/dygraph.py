"""fluid.dygraph: the dynamic panel under Paddle's names."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import diptych as dp
from diptych.fluid import files
from diptych.fluid.core import EnforceNotMet, VarType
from diptych.fluid.framework import STATE, Arithmetic, Helper, Program, UniqueNames, activations
from diptych.fluid.initializer import Constant, Xavier
from diptych.fluid.layers import initialiser
from diptych.fluid.operators import fluid_linear
from diptych.fluid.optimizer import clear

Array = np.ndarray[Any, Any]
NAMES_KEY = "StructuredToParameterName@@"


class VarBase(Arithmetic):
    """A value of the dynamic panel."""

    def __init__(self, tensor: Any, name: str = "") -> None:
        self.tensor, self._name = tensor, name

    @property
    def name(self) -> str:
        if not self._name:
            self._name = STATE.names.make("tmp")
        return self._name

    @property
    def shape(self) -> list[int]:
        return list(self.tensor.shape)

    @property
    def dtype(self) -> VarType:
        return VarType.of(self.tensor.dtype.numpy)

    @property
    def stop_gradient(self) -> bool:
        return not self.tensor.requires_grad

    def numpy(self) -> Array:
        return np.array(self.tensor.numpy())

    def backward(self, backward_strategy: Any = None, retain_graph: bool = False) -> None:
        """Gradients of this value; they take the place of those of an earlier backward."""
        tensor = self.tensor
        if tensor.node.released or not tensor.requires_grad:
            return
        known = dp.PANEL.with_gradients([p.tensor for p in _tracer().parameters])
        before = [(p, p.grad) for p in known]
        dp.PANEL.forget(known)
        seed = None if tensor.shape in ((1,), ()) else np.ones(self.shape, np.float32)
        tensor.backward(seed, retain_graph)
        for p, grad in before:
            if p.grad is None:
                p.grad = grad

    def gradient(self) -> Array | None:
        grad = self.tensor.grad
        return None if grad is None else np.array(grad.numpy())

    def clear_gradient(self) -> None:
        self.tensor.grad = None

    def detach(self) -> VarBase:
        return VarBase(self.tensor.detach())

    def astype(self, dtype: Any) -> VarBase:
        return VarBase(self.tensor.astype(VarType.of(dtype).numpy))

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[VarBase]:
        return (self[n] for n in range(len(self)))

    def _number(self) -> Any:
        value = self.numpy()
        assert value.size == 1, "only a variable of one element is a number or a truth"
        return value.reshape(-1)[0]

    def __float__(self) -> float:
        return float(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __bool__(self) -> bool:
        return bool(self._number())

    def __getitem__(self, key: Any) -> VarBase:
        picked = self.tensor[key]
        return VarBase(picked.reshape(1) if picked.shape == () else picked)

    def __repr__(self) -> str:
        return f"name {self.name}, dtype: {self.dtype} shape: {self.shape}\n{self.numpy()}"


class ParamBase(VarBase):
    """A parameter of a layer."""

    cleared = False

    @property
    def trainable(self) -> bool:
        return bool(self.tensor.trainable)

    def gradient(self) -> Array | None:
        grad = super().gradient()
        return np.zeros(self.shape, np.float32) if grad is None and self.cleared else grad

    def clear_gradient(self) -> None:
        self.tensor.grad, self.cleared = None, True

    def set_value(self, value: Any) -> None:
        array = value.numpy() if isinstance(value, VarBase) else np.asarray(value)
        assert list(array.shape) == self.shape, (
            f"{self.name} has the shape {self.shape}, and the value {list(array.shape)}"
        )
        assert VarType.of(array.dtype) is self.dtype, (
            f"{self.name} has the dtype {self.dtype}, and the value {array.dtype}"
        )
        self.tensor.assign(array)


class Tracer:
    """What a guard holds: the parameters made inside."""

    def __init__(self) -> None:
        self.parameters: list[ParamBase] = []

    def variable(self, tensor: Any) -> VarBase:
        return VarBase(tensor)

    def parameter(self, name: str, value: Array) -> ParamBase:
        made = ParamBase(dp.Parameter(value, name=name, order="F"), name)
        self.parameters.append(made)
        return made


def _tracer() -> Any:
    assert STATE.tracer is not None, (
        "this API belongs to dygraph mode: use it inside `with fluid.dygraph.guard():`"
    )
    return STATE.tracer


@contextlib.contextmanager
def guard(place: Any = None) -> Iterator[None]:
    """Calls run in the dynamic panel; programs and names begin anew, and are as before after."""
    before = STATE.tracer, STATE.main, STATE.startup, STATE.names, dp.PANEL.grad_enabled
    STATE.tracer, STATE.main, STATE.startup = Tracer(), Program(), Program()
    STATE.names = UniqueNames()
    try:
        yield
    finally:
        STATE.tracer, STATE.main, STATE.startup, STATE.names, dp.PANEL.grad_enabled = before


def enabled() -> bool:
    return STATE.tracer is not None


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    with dp.no_grad():
        yield


def to_variable(value: Any, name: str | None = None, zero_copy: bool | None = None) -> VarBase:
    """A variable with a copy of an array."""
    _tracer()
    if isinstance(value, VarBase):
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"to_variable takes a numpy.ndarray, not {type(value).__name__}")
    return VarBase(dp.PANEL.array(value), name or "")


class Layer:
    """Parameters and layers that are assigned as attributes belong to it, in that order."""

    def __init__(self, name_scope: str | None = None, dtype: Any = VarType.FP32) -> None:
        stem = name_scope or _snake(type(self).__name__)
        self._full_name = STATE.names.make(stem)
        self._parameters: OrderedDict[str, ParamBase] = OrderedDict()
        self._sub_layers: OrderedDict[str, Layer] = OrderedDict()
        self.training = True

    def full_name(self) -> str:
        return self._full_name

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ParamBase | Layer):
            if "_parameters" not in self.__dict__:
                raise ValueError("super().__init__() should be called first")
            into = self._parameters if isinstance(value, ParamBase) else self._sub_layers
            into[name] = value  # type: ignore[assignment]
        object.__setattr__(self, name, value)

    def add_parameter(self, name: str, parameter: ParamBase) -> ParamBase:
        setattr(self, name, parameter)
        return parameter

    def add_sublayer(self, name: str, layer: Layer) -> Layer:
        setattr(self, name, layer)
        return layer

    def create_parameter(
        self,
        shape: Sequence[int],
        attr: Any = None,
        dtype: Any = "float32",
        is_bias: bool = False,
        default_initializer: Any = None,
    ) -> ParamBase:
        default = default_initializer or (Constant(0.0) if is_bias else Xavier())
        name = STATE.names.make(f"{self._full_name}.{'b' if is_bias else 'w'}")
        _tracer()
        made: ParamBase = Helper("parameter", name).named_parameter(
            name, shape, initialiser(attr, default)
        )
        return made

    def sublayers(self, include_sublayers: bool = True) -> list[Layer]:
        found = []
        for layer in self._sub_layers.values():
            found.append(layer)
            if include_sublayers:
                found += layer.sublayers()
        return found

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, ParamBase]]:
        for name, parameter in self._parameters.items():
            yield prefix + name, parameter
        for name, layer in self._sub_layers.items():
            yield from layer.named_parameters(f"{prefix}{name}.")

    def parameters(self, include_sublayers: bool = True) -> list[ParamBase]:
        found = list(self._parameters.values())
        for layer in self._sub_layers.values():
            found += layer.parameters()
        return found

    def state_dict(self) -> OrderedDict[str, ParamBase]:
        return OrderedDict(self.named_parameters())

    def set_dict(self, state: Mapping[str, Any], include_sublayers: bool = True) -> None:
        own = self.state_dict()
        for name, parameter in own.items():
            if name not in state:
                raise RuntimeError(f"Parameter not found, Can't not find [ {name} ] in stat_dict")
            parameter.set_value(state[name])
        unused = [name for name in state if name not in own]
        if unused:
            warnings.warn(f"these parameters are not used: {unused}", stacklevel=2)

    load_dict = set_dict

    def clear_gradients(self) -> None:
        clear(self.parameters())

    def train(self) -> None:
        self._mode(True)

    def eval(self) -> None:
        self._mode(False)

    def _mode(self, training: bool) -> None:
        if STATE.tracer is None:
            raise AttributeError("train() and eval() belong inside fluid.dygraph.guard()")
        for layer in (self, *self.sublayers()):
            layer.training = training
        dp.PANEL.grad_enabled = training  # 1.8.5 switches the recording of the whole guard

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.forward(*inputs, **kwargs)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Linear(Layer):
    """act(x W + b), x (..., input_dim), W [input_dim, output_dim]."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        param_attr: Any = None,
        bias_attr: Any = None,
        act: str | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self._act = act
        self.weight = self.create_parameter([input_dim, output_dim], param_attr)
        self.bias: ParamBase | None = None
        if bias_attr is not False:
            self.bias = self.create_parameter([output_dim], bias_attr, is_bias=True)
        self._helper = Helper("linear_call", self._full_name)
        self._known = act is None or act in activations()

    def forward(self, input: VarBase) -> Any:
        if self.bias is None or not self._known:
            out = self._helper.op("matmul", {"X": [input], "Y": [self.weight]})
            if self.bias is not None:
                out = self._helper.op("elementwise_add", {"X": [out], "Y": [self.bias]}, axis=-1)
            return self._helper.act(out, self._act)
        try:
            operands = input.tensor, self.weight.tensor, self.bias.tensor
            return VarBase(fluid_linear(*operands, act=self._act or ""))
        except dp.DiptychError as problem:
            raise EnforceNotMet(str(problem)) from problem


def save_dygraph(state_dict: Mapping[str, Any], model_path: str) -> None:
    """The weights as 1.8.5 writes them: `model_path`.pdparams (.pdopt for an optimizer)."""
    assert state_dict, "state_dict is empty, no need to save"
    arrays = {
        n: np.array(v.numpy() if isinstance(v, VarBase) else v) for n, v in state_dict.items()
    }
    weights = isinstance(next(iter(state_dict.values())), ParamBase)
    content: dict[str, Any] = dict(arrays)
    content[NAMES_KEY] = {n: v.name for n, v in state_dict.items() if isinstance(v, VarBase)}
    path = files.mapped(model_path)
    name = f"{path.name}{'.pdparams' if weights else '.pdopt'}"
    files.write_all(path.parent, {name: files.dump(content)}, str(model_path))


def load_dygraph(
    model_path: str, keep_name_table: bool = False
) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """(weights, optimizer state or None), by name."""
    path = re.sub(r"\.(pdparams|pdopt)$", "", str(files.mapped(model_path)))
    if not os.path.exists(path + ".pdparams"):
        raise RuntimeError(f"Parameter file [ {path}.pdparams ] not exists")
    parameters = files.load(Path(path + ".pdparams"))
    if not keep_name_table:
        parameters.pop(NAMES_KEY, None)
    optimizer = None
    if os.path.exists(path + ".pdopt"):
        optimizer = files.load(Path(path + ".pdopt"))
    return parameters, optimizer
