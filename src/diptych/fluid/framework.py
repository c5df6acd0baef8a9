"""Programs, variables, names and modes of the fluid API, on top of diptych's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import diptych as dp
from diptych.fluid.core import CPUPlace, CUDAPlace, EnforceNotMet, VarType
from diptych.fluid.operators import ACTIVATIONS, OPERATORS


class UniqueNames:
    """`fc` -> `fc_0`, `fc_1`, ...; a guard begins anew."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def make(self, stem: str) -> str:
        n = self.counts.get(stem, 0)
        self.counts[stem] = n + 1
        return f"{stem}_{n}"


@dataclass
class Operation:
    """One operator of a program, as Paddle describes it."""

    type: str
    inputs: dict[str, list[str]]
    outputs: dict[str, list[str]]
    attributes: dict[str, Any]


class Arithmetic:
    """Python's operators, of variables in both modes."""

    tensor: Any

    __hash__ = object.__hash__

    def __add__(self, other: Any) -> Any:
        return (
            _scaled(self, 1.0, other)
            if _is_number(other)
            else _binary("elementwise_add", self, other)
        )

    def __sub__(self, other: Any) -> Any:
        return (
            _scaled(self, 1.0, -other)
            if _is_number(other)
            else _binary("elementwise_sub", self, other)
        )

    def __rsub__(self, other: Any) -> Any:
        return _scaled(self, -1.0, other)

    def __mul__(self, other: Any) -> Any:
        return (
            _scaled(self, other, 0.0)
            if _is_number(other)
            else _binary("elementwise_mul", self, other)
        )

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Any:
        return _scaled(self, -1.0, 0.0)

    def __truediv__(self, other: Any) -> Any:
        return _binary("elementwise_div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _binary("elementwise_div", _constant(self, other), self)

    def __floordiv__(self, other: Any) -> Any:
        return _binary("elementwise_floordiv", self, other)

    def __mod__(self, other: Any) -> Any:
        return _binary("elementwise_mod", self, other)

    def __pow__(self, other: Any) -> Any:
        return _binary("elementwise_pow", self, other)

    def __rpow__(self, other: Any) -> Any:
        return _binary("elementwise_pow", _constant(self, other), self)

    def __lt__(self, other: Any) -> Any:
        return _binary("less_than", self, other)

    def __le__(self, other: Any) -> Any:
        return _binary("less_equal", self, other)

    def __gt__(self, other: Any) -> Any:
        return _binary("greater_than", self, other)

    def __ge__(self, other: Any) -> Any:
        return _binary("greater_equal", self, other)

    def __eq__(self, other: Any) -> Any:
        return _binary("equal", self, other)

    def __ne__(self, other: Any) -> Any:
        return _binary("not_equal", self, other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _scaled(x: Any, scale: float, bias: float) -> Any:
    """x * scale + bias; of integers a whole number each."""
    if not x.tensor.dtype.is_float:
        assert scale == int(scale) and bias == int(bias), "an integer variable and a fraction"
    return Helper("tmp").op("scale", {"X": [x]}, scale=float(scale), bias=float(bias))


def _constant(like: Any, value: Any) -> Any:
    """A number beside a variable: shape (1,), of its dtype; fractions of integers are cut off."""
    value = float(value) if like.tensor.dtype.is_float else float(int(value))
    dtype = int(VarType.of(like.tensor.dtype.numpy))
    return Helper("tmp").op("fill_constant", {}, shape=[1], dtype=dtype, value=value)


def _binary(type: str, x: Any, y: Any) -> Any:
    if _is_number(y):
        y = _constant(x, y)
    if not isinstance(y, Arithmetic):
        raise TypeError(f"a variable and {y.__class__.__name__} have no operator in common")
    if x.tensor.dtype != y.tensor.dtype:
        raise TypeError(f"the dtypes differ: {x.tensor.dtype} and {y.tensor.dtype}")
    return Helper("tmp").op(type, {"X": [x], "Y": [y]}, axis=-1)


class Variable(Arithmetic):
    """A named value of a program."""

    def __init__(self, program: Program, name: str, tensor: Any, persistable: bool = False) -> None:
        self.program, self.name, self.tensor = program, name, tensor
        self.persistable, self.is_parameter = persistable, isinstance(tensor, dp.Parameter)
        self.stop_gradient = not (isinstance(tensor, dp.Parameter) and tensor.trainable)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.tensor.shape)

    @property
    def dtype(self) -> VarType:
        return VarType.of(self.tensor.dtype.numpy)

    def __repr__(self) -> str:
        return f"Variable({self.name}, shape={list(self.shape)}, dtype={self.dtype})"


class Program:
    """A list of operators: a diptych program, and its variables by name.

    A startup program holds initialisers instead.
    """

    def __init__(self) -> None:
        self.inner = dp.Program()
        self.random_seed = 0
        self.variables: dict[str, Variable] = {}
        self.operations: list[Operation] = []
        self.initialisers: list[tuple[dp.Parameter, Callable[[], Any]]] = []
        self.optimized: set[int] = set()

    def clone(self, for_test: bool = False) -> Program:
        """A copy that shares its variables by name; for_test leaves out backward and updates."""
        copy = Program()
        copy.inner, copy.random_seed = self.inner.clone(for_test), self.random_seed
        copy.variables = dict(self.variables)
        copy.operations = list(self.operations)
        if for_test:
            copy.variables = {n: v for n, v in self.variables.items() if "@GRAD" not in n}
        return copy

    def global_block(self) -> Program:
        """A program has one block: itself."""
        return self

    def all_parameters(self) -> list[Variable]:
        return [v for v in self.variables.values() if v.is_parameter]

    def list_vars(self) -> Iterator[Variable]:
        yield from self.variables.values()

    def var(self, name: str) -> Variable:
        if name not in self.variables:
            raise ValueError(f"var {name} not in this block")
        return self.variables[name]

    def append(
        self,
        type: str,
        inputs: Mapping[str, Sequence[Any]],
        names: Sequence[str],
        attributes: Mapping[str, Any],
    ) -> Variable:
        """Record one operator; its first output is the value."""
        operator = OPERATORS[type]
        with self.inner:
            tensor = operator.run(*[v.tensor for vs in inputs.values() for v in vs], **attributes)
        out = Variable(self, names[0], tensor)
        self.variables[names[0]] = out
        shown = {slot: [v.name for v in vs] for slot, vs in inputs.items()}
        outputs = {slot: [n] for slot, n in zip(operator.outputs, names, strict=False)}
        self.operations.append(Operation(type, shown, outputs, dict(attributes)))
        return out


@dataclass
class _State:
    """What is current in this process."""

    main: Program = field(default_factory=Program)
    startup: Program = field(default_factory=Program)
    names: UniqueNames = field(default_factory=UniqueNames)
    tracer: Any = None  # of the dygraph guard that is active


STATE = _State()


def default_main_program() -> Program:
    return STATE.main


def default_startup_program() -> Program:
    return STATE.startup


def in_dygraph_mode() -> bool:
    return STATE.tracer is not None


@contextlib.contextmanager
def program_guard(main_program: Program, startup_program: Program | None = None) -> Iterator[None]:
    """Layers inside write to these programs."""
    before = STATE.main, STATE.startup
    STATE.main, STATE.startup = main_program, startup_program or STATE.startup
    try:
        yield
    finally:
        STATE.main, STATE.startup = before


def dynamic(function: Callable[..., Any], *variables: Any, **attributes: Any) -> Any:
    """A call in dygraph, where an operator needs no names."""
    try:
        return STATE.tracer.variable(function(*[v.tensor for v in variables], **attributes))
    except dp.DiptychError as problem:
        raise EnforceNotMet(str(problem)) from problem


class Helper:
    """Names, parameters and operators of one call of a layer, in both modes."""

    __slots__ = ("_name", "layer")

    def __init__(self, layer: str, name: str | None = None) -> None:
        self.layer, self._name = layer, name

    @property
    def name(self) -> str:
        if self._name is None:  # operators of dygraph need none
            self._name = STATE.names.make(self.layer)
        return self._name

    @property
    def dygraph(self) -> bool:
        return STATE.tracer is not None

    def op(self, type: str, inputs: Mapping[str, Sequence[Any]], **attributes: Any) -> Any:
        """The first output of an operator."""
        if STATE.tracer is not None:
            operands = [v for vs in inputs.values() for v in vs]
            return dynamic(OPERATORS[type].run, *operands, **attributes)
        names = [STATE.names.make(f"{self.name}.tmp") for _ in OPERATORS[type].outputs]
        return STATE.main.append(type, inputs, names, attributes)

    def act(self, value: Any, act: str | None) -> Any:
        """An activation by its name."""
        if act is None:
            return value
        if act not in ACTIVATIONS:
            error = AttributeError if self.dygraph else ValueError
            raise error(
                f"Operator {act!r} has not been registered; diptych has {', '.join(ACTIVATIONS)}"
            )
        return self.op(act, {"X": [value]})

    def parameter(
        self, shape: Sequence[int], draw: Callable[[Sequence[int], int], Any], suffix: str
    ) -> Any:
        """A new parameter, `fc_0.w_0`; in a program its startup draws it again at every run."""
        name = STATE.names.make(f"{self.name}.{suffix}")
        return self.named_parameter(name, shape, draw)

    def named_parameter(
        self, name: str, shape: Sequence[int], draw: Callable[[Sequence[int], int], Any]
    ) -> Any:
        if self.dygraph:
            return STATE.tracer.parameter(name, draw(shape, STATE.main.random_seed))
        if name in STATE.main.variables:
            return STATE.main.variables[name]
        startup, seed = STATE.startup, STATE.startup.random_seed
        with STATE.main.inner:
            made = dp.Parameter(np.zeros(tuple(shape), np.float32), name=name, order="F")
        startup.initialisers.append((made, lambda: draw(shape, seed)))
        variable = Variable(STATE.main, name, made, persistable=True)
        STATE.main.variables[name] = variable
        SCOPE.put(name, made)
        return variable


def activations() -> list[str]:
    """Operators of one input, which layers take as `act`."""
    return list(ACTIVATIONS)


class ScopeTensor:
    """The data of one variable of a scope: np.array reads it, `set` writes."""

    def __init__(self, parameter: dp.Parameter) -> None:
        self.parameter = parameter

    def get_tensor(self) -> ScopeTensor:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.parameter.numpy(), dtype)

    def shape(self) -> list[int]:
        return [int(d) for d in self.parameter.shape]

    def set(self, array: Any, place: Any = None) -> None:
        put_value(self.parameter, np.asarray(array))


def put_value(parameter: dp.Parameter, value: Any) -> None:
    """Give a parameter a value, also before its startup ran."""
    startup = type(dp.Program().startup)()
    startup.initial.append((parameter, lambda: value))
    dp.Executor().run(startup)


class Scope:
    """Parameters by name, shared by all programs."""

    def __init__(self) -> None:
        self.parameters: dict[str, dp.Parameter] = {}

    def put(self, name: str, parameter: dp.Parameter) -> None:
        self.parameters[name] = parameter

    def find_var(self, name: str) -> ScopeTensor | None:
        found = self.parameters.get(name)
        return None if found is None else ScopeTensor(found)


SCOPE = Scope()


def global_scope() -> Scope:
    return SCOPE


def is_compiled_with_cuda() -> bool:
    return False


__all__ = [
    "CPUPlace", "CUDAPlace", "EnforceNotMet", "Program", "Variable", "default_main_program",
    "default_startup_program", "global_scope", "in_dygraph_mode", "is_compiled_with_cuda",
    "program_guard",
]  # fmt: skip
