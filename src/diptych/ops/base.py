"""What operator functions share: operands, promotion, and operators made of others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, ClassVar, TypeVar, dataclass_transform

import numpy as np

from diptych.dtypes import Dim, Dimension, DType, TensorType, as_dtype, f32, i64, promote
from diptych.elsewhere import ARGUMENTS
from diptych.errors import DiptychError, DtypeError, GraphError, InternalError, ShapeError
from diptych.graph.node import Graph, Node, Operand, Operator, Source, input_node, walk
from diptych.graph.record import GRAPH, current, recording
from diptych.kernel.expr import Expr
from diptych.lazy import lazy
from diptych.size import has_size, without_notes

Handle = Any  # a Node in rules and bodies, a Tensor in the panels

NUMBERS = (bool, int, float, Dim, np.generic)
PLAIN = (bool, int, float, str, type(None), tuple, Dim)  # what an attribute may be
ALL: dict[str, Any] = {}  # every operator by name: primitives' classes and composites


OperatorClass = TypeVar("OperatorClass", bound=type[Operator])


RULES = ("infer", "reference", "grad", "lower")  # that a primitive has


@dataclass_transform(frozen_default=True)
def primitive(cls: OperatorClass) -> OperatorClass:
    """Class decorator: a frozen dataclass that the text form can find by name.

    One without attributes of its own has the methods of its base, which is a dataclass as well:
    making them for each would take half the time of importing diptych.
    """
    missing = sorted(n for n in RULES if hasattr(getattr(cls, n), "__isabstractmethod__"))
    if missing:
        raise InternalError(f"the operator {cls.name} has no rule for {', '.join(missing)}")
    own = [a for a in cls.__annotations__.values() if not _of_class(a)]
    made = dataclass(frozen=True)(cls) if own else cls
    ALL[made.name] = made
    return made  # type: ignore[return-value]


def _of_class(annotation: Any) -> bool:
    """Whether an annotation, or its text, is of an attribute of the class."""
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return text.removeprefix("typing.").startswith("ClassVar")


def make_operator(name: str, attributes: Mapping[str, Any]) -> Operator:
    """The operator that the text form calls `name`, with these attributes."""
    found = ALL.get(name)
    if found is None:
        raise GraphError(
            "a graph is made of diptych's operators",
            f"unknown {name!r}",
            "a newer version may have written it",
        )
    if isinstance(found, CompositeOperator):
        names = found.attribute_names
        if set(names) != set(attributes):
            raise GraphError(
                f"{name} has the attributes {names}",
                f"{sorted(attributes)}",
                "a newer version may have written it",
            )
        return found.bound(tuple(attributes[n] for n in names))
    try:
        made: Operator = found(**attributes)
    except TypeError as problem:
        raise GraphError(
            f"{name} has other attributes", str(problem), "a newer version may have written it"
        ) from problem
    return made


def record(op: Operator, *operands: Handle) -> Handle:
    return current().record(op, operands)


def with_dims(op: Operator) -> Operator:
    """The operator with plain dimensions where its attributes have the author's sizes."""
    given = op.attributes()
    if not any(has_size(v) for v in given.values()):
        return op
    if isinstance(op, Composite):
        return Composite(op.operator, tuple(map(without_notes, op.values)))
    return type(op)(**{name: without_notes(v) for name, v in given.items()})


def is_scalar(value: Any) -> bool:
    """Whether it is a number of Python's or numpy's."""
    return isinstance(value, NUMBERS)


def plain_number(value: Any) -> Any:
    """The number itself, without a dtype of numpy's."""
    if not isinstance(value, np.generic):
        return value
    kinds = {"b": bool, "i": int, "u": int, "f": float}
    if value.dtype.kind not in kinds:
        as_dtype(value.dtype)  # says what to do about it
    return kinds[value.dtype.kind](value)


def host_array(value: Any) -> np.ndarray[Any, Any]:
    """numpy's array of a number, nested lists or an array."""
    if isinstance(value, list | tuple) and _holds_gradient(value):
        raise GraphError(
            "a list becomes an array, which has no gradient",
            "a list that holds a value with a gradient",
            "dp.stack([...]) keeps the gradient; x.detach() gives it up",
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as problem:
        raise ShapeError(
            "nested lists become an array where all rows have one length",
            _ragged(value) or str(problem),
            "pad the rows to one length",
        ) from problem
    if array.dtype.kind in "Ou" and array.dtype != np.uint8 and not isinstance(value, np.ndarray):
        _check_numbers(array)
    as_dtype(array.dtype)
    return array


def plain_array(value: Any) -> np.ndarray[Any, Any]:
    """The same, where Python floats, alone or in lists, are f32."""
    array = host_array(value)
    own = isinstance(value, float | list | tuple) and not isinstance(value, np.generic)
    return array.astype(np.float32) if own and array.dtype == np.float64 else array


def _holds_gradient(rows: Sequence[Any]) -> bool:
    """Whether nested lists hold a value that a gradient flows to."""
    level = list(rows)
    while level:
        kinds = set(map(type, level))
        if any(issubclass(kind, Operand) for kind in kinds):
            return any(getattr(v, "requires_grad", False) for v in level)
        nested = any(issubclass(kind, list | tuple) for kind in kinds)
        level = [i for v in level if isinstance(v, list | tuple) for i in v] if nested else []
    return False


def _ragged(value: Any) -> str:
    """The first two lengths, from the outermost list, that differ where they should not."""
    level = [value]
    while level:
        sizes = list(dict.fromkeys([len(v) if _has_rows(v) else None for v in level]))
        if len(sizes) > 1:
            first, other = ("a number" if n is None else f"a row of {n}" for n in sizes[:2])
            return f"{first} beside {other}"
        level = [i for v in level if _has_rows(v) for i in v]
    return ""


def _has_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) or bool(getattr(value, "shape", ()))


def _check_numbers(array: np.ndarray[Any, Any]) -> None:
    """Say what numpy made objects of: None, integers that are too large, or anything else."""
    limits = np.iinfo(np.int64)
    for item in array.flat:
        if item is None:
            raise DtypeError(
                "a tensor is made of numbers",
                "None",
                "`x is None` asks for it; else look where it comes from",
            )
        if isinstance(item, int | np.unsignedinteger) and not limits.min <= item <= limits.max:
            raise DtypeError(
                "an integer of a tensor is an i64, from -2**63 to 2**63 - 1",
                f"{item}",
                "make it a float, or reduce it first",
            )


def whole(value: Any, what: str, least: int | None = None) -> Any:
    """A size, position or axis as an int, or a symbolic dimension as it is."""
    if isinstance(value, Dim):
        return value
    try:
        number = index(value)
    except TypeError:
        raise ShapeError(f"{what} is a whole number", repr(value), "int(...) makes one") from None
    if least is not None and number < least:
        raise ShapeError(f"{what} is {least} or more", f"{number}", "check the arguments")
    return number


def as_shape(shape: Any) -> tuple[Dimension, ...]:
    """The sizes of a shape given as a number, a list or a tuple."""
    listed = shape if isinstance(shape, list | tuple) else (shape,)
    return tuple(whole(d, "a size", 0) for d in listed)


def operand(value: Any, dtype: DType | None = None) -> Handle:
    """A handle on a tensor, array or number; `dtype` is what a Python number becomes."""
    if isinstance(value, Operand):
        return value
    if type(value) is np.ndarray:
        return current().array(value)
    if isinstance(value, Dim):
        return record(ALL["extent"](value, (dtype or i64).name))
    if is_scalar(value) and not (dtype is None and isinstance(value, np.generic)):
        if dtype is None:
            dtype = as_dtype("bool") if isinstance(value, bool) else f32
            dtype = i64 if isinstance(value, int) and not isinstance(value, bool) else dtype
        return current().scalar(plain_number(value), dtype)
    return current().array(plain_array(value))


def weak_dtype(value: Any, other: DType, what: str) -> DType:
    """The dtype of a number beside a tensor: the tensor's, where its kind can hold it."""
    value = plain_number(value)
    if isinstance(value, Operand):  # an input of a compiled step, whose value is not known
        kind = value.type.dtype.kind  # type: ignore[attr-defined]
    else:
        kind = "bool" if isinstance(value, bool) else "float" if isinstance(value, float) else "int"
    if other.is_integer and kind == "int" and isinstance(value, int):
        limits = np.iinfo(other.numpy)
        if not limits.min <= value <= limits.max:
            raise DtypeError(
                f"{what} with a plain number keeps the tensor's dtype",
                f"{value} is outside of {other}",
                "convert the tensor with .astype first",
            )
    if kind == "bool":
        return other
    if kind == "float" and not other.is_float:
        raise DtypeError(
            f"{what} of an integer tensor and a plain float has no dtype",
            f"{other} and {value!r}",
            "convert the tensor with .astype('float32')",
        )
    if other.kind == "bool":
        raise DtypeError(
            f"{what} of a bool tensor and a plain number has no dtype",
            f"{other} and {value!r}",
            "convert the tensor with .astype('int64') or .astype('float32')",
        )
    return other


def strength(value: Any) -> int:
    """Rank an operand: the stronger of two gives the dtype. A tensor or array is 2, a number of
    numpy's or an input that stands for one 1, a number of Python's 0."""
    if isinstance(value, Operand):
        return 1 if value.weak else 2
    return 2 if not isinstance(value, NUMBERS) else 1 if isinstance(value, np.generic) else 0


def beside(value: Any, dtype: DType, what: str) -> Handle:
    """A number as an operand beside one of a dtype."""
    dtype = weak_dtype(value, dtype, what)
    return convert(value, dtype) if isinstance(value, Operand) else operand(value, dtype)


def pair(a: Any, b: Any, what: str) -> tuple[Handle, Handle]:
    """Two operands of one dtype."""
    first, second = strength(a), strength(b)
    if first < second:
        b = operand(b)
        return beside(a, b.type.dtype, what), b
    a = operand(a)
    if second < first or second == 0:
        return a, beside(b, a.type.dtype, what)
    b = operand(b)
    dtype = promote(a.type.dtype, b.type.dtype, what)
    return convert(a, dtype), convert(b, dtype)


def convert(x: Handle, dtype: DType) -> Handle:
    return x if x.type.dtype == dtype else record(ALL["cast"](dtype=dtype.name), x)


def need_float(x: TensorType, what: str) -> None:
    if not x.dtype.is_float:
        raise DtypeError(
            f"{what} takes f32 or f64", f"{x}", "convert it with .astype('float32') first"
        )


# ---- operators made of primitives ----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Composite(Operator):
    """A call of an operator that is made of others; `values` are its attributes.

    Made by `CompositeOperator.bound` alone: equal calls are one object.
    """

    operator: CompositeOperator
    values: tuple[Any, ...]
    bodies: dict[tuple[TensorType, ...], Graph] = field(init=False, repr=False)
    name: ClassVar[str] = "composite"

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.operator.name)
        object.__setattr__(self, "bodies", {})

    def attributes(self) -> dict[str, Any]:
        return dict(zip(self.operator.attribute_names, self.values, strict=True))

    def body(self, *inputs: TensorType) -> Graph:
        found = self.bodies.get(inputs)
        if found is None:
            found = self.bodies[inputs] = self.operator.body(self.values, inputs)
        return found

    def infer(self, *inputs: TensorType) -> TensorType:
        return self.body(*inputs).outputs[0].type

    def positions(self, *inputs: TensorType) -> list[tuple[int, Dimension, str]]:
        return self.operator.positions(self.values, inputs)

    def flows(self, *inputs: TensorType) -> bool:
        return self.operator.gradient is not None or self.body(*inputs).outputs[0].needs_grad

    def reference(self, *inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        raise InternalError(f"{self.name} runs as its primitives; inline it first")

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        if self.operator.gradient is None:
            raise InternalError(f"{self.name} has the gradient of its body; inline it first")
        return self.operator.cotangents(g, node, self.values)

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        raise InternalError(f"{self.name} lowers as its primitives; inline it first")


EXACT = (int, str, type(None))  # attributes that are equal only to themselves


def exactly(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A key for attributes: 0.0, -0.0, 0 and False are not the same."""
    return tuple([v if type(v) in EXACT else (type(v), repr(v)) for v in values])


class CompositeOperator:
    """A function on handles, recorded under its own name.

    Parameters before `*` are tensors, those after it attributes (plain values).
    """

    def __init__(self, function: Callable[..., Handle]) -> None:
        functools.update_wrapper(self, function)
        self.function, self.name = function, function.__name__
        empty = inspect.Parameter.empty
        parameters = [
            p.replace(annotation=empty) for p in inspect.signature(function).parameters.values()
        ]
        self.signature = inspect.Signature(parameters)
        self.tensor_names = [p.name for p in parameters if p.kind != p.KEYWORD_ONLY]
        self.attribute_names = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
        self.arity = len(self.tensor_names)
        self.needed = sum(1 for p in parameters if p.default is empty)
        self.defaults = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
        self.gradient: Callable[..., Any] | None = None
        self._calls: dict[Any, Composite] = {}
        self._bodies: dict[Any, Graph] = {}
        self._positions: dict[Any, list[tuple[int, Dimension, str]]] = {}
        taken = ALL.get(self.name)
        if taken is not None and taken.__module__ != function.__module__:
            raise GraphError(
                "an operator has a name of its own",
                f"{self.name!r} is there already, from {taken.__module__}",
                "give the function another name",
            )
        ALL[self.name] = self

    @property
    def own(self) -> bool:
        """Whether it is part of diptych, so that every diptych knows it by its name."""
        return self.function.__module__.startswith("diptych.ops.")

    def with_gradient(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """State a gradient: rule(g, node, *attributes) -> one cotangent per input."""
        self.gradient = rule
        return rule

    def __call__(self, *tensors: Any, **attributes: Any) -> Handle:
        op = self.plain
        if attributes or len(tensors) != self.arity:
            op, tensors = self._general(tensors, attributes)
        for t in tensors:
            if not isinstance(t, Operand):
                if any(t is None for t in tensors[: self.needed]):
                    raise self._misused("a tensor is None")
                tensors = tuple([operand(t) for t in tensors if t is not None])
                break
        return current().record(op, tensors)

    def _general(
        self, tensors: tuple[Any, ...], attributes: dict[str, Any]
    ) -> tuple[Composite, tuple[Any, ...]]:
        """The call with attributes, and with tensors that were named or left out."""
        if len(tensors) != self.arity or not attributes.keys() <= self.defaults.keys():
            tensors = self._arranged(tensors, attributes)
        values = [
            self._plain(n, attributes[n]) if n in attributes else default
            for n, default in self.defaults.items()
        ]
        return self.bound(tuple(values)), tensors

    @lazy
    def plain(self) -> Composite:
        """The call without attributes."""
        return self.bound(tuple(self.defaults.values()))

    def bound(self, values: tuple[Any, ...]) -> Composite:
        """The call with these attributes."""
        key = exactly(values)
        found = self._calls.get(key)
        return self._calls.setdefault(key, Composite(self, values)) if found is None else found

    def _plain(self, name: str, value: Any) -> Any:
        """An attribute as a Python value, which is part of the graph."""
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) not in PLAIN:
            raise self._misused(f"{name} is a {type(value).__name__}, not a Python value")
        return value

    def _misused(self, why: str) -> DiptychError:
        return DiptychError(
            f"{self.name} is called as {self.name}{self.signature}",
            why,
            next(
                (cure for name, cure in ARGUMENTS.items() if repr(name) in why),
                "tensors come first, what follows the * is given by name",
            ),
        )

    def _arranged(self, tensors: tuple[Any, ...], attributes: dict[str, Any]) -> tuple[Any, ...]:
        """Tensors in order where some were named or left out; takes them out of the attributes."""
        try:
            bound = self.signature.bind(*tensors, **attributes)
        except TypeError as problem:
            raise self._misused(str(problem)) from None
        for name in self.tensor_names:
            attributes.pop(name, None)
        return tuple(bound.arguments.get(name) for name in self.tensor_names)

    def body(self, values: tuple[Any, ...], inputs: tuple[TensorType, ...]) -> Graph:
        key = (exactly(values), inputs)
        found = self._bodies.get(key)
        if found is None:
            places = tuple(
                input_node(t, n, needs_grad=t.dtype.is_float)
                for t, n in zip(inputs, self.tensor_names, strict=False)
            )
            out = self.made_of(places, dict(zip(self.attribute_names, values, strict=True)))
            found = self._bodies[key] = Graph(places, (out,))
        return found

    def made_of(self, places: Sequence[Node], attributes: dict[str, Any]) -> Node:
        """The result of the body on these inputs."""
        with recording(GRAPH):
            return self.function(*places, **attributes)  # type: ignore[no-any-return]

    def cotangents(self, g: Node, node: Node, values: Sequence[Any]) -> Sequence[Node | None]:
        """What the stated gradient gives for the inputs of a call."""
        assert self.gradient is not None
        return self.gradient(g, node, *values)  # type: ignore[no-any-return]

    def positions(
        self, values: tuple[Any, ...], inputs: tuple[TensorType, ...]
    ) -> list[tuple[int, Dimension, str]]:
        """The positions that its body checks and that are its own inputs."""
        key = (exactly(values), inputs)
        found = self._positions.get(key)
        if found is None:
            body, found = self.body(values, inputs), []
            place = {id(node): n for n, node in enumerate(body.inputs)}
            for node in body.nodes:
                for which, size, what in node.op.positions(*[i.type for i in node.inputs]):
                    if id(node.inputs[which]) in place:
                        found.append((place[id(node.inputs[which])], size, what))
            self._positions[key] = found
        return found

    def __repr__(self) -> str:
        return f"<operator {self.name}>"


def composite(function: Callable[..., Handle]) -> CompositeOperator:
    """An operator made of others: recorded, drawn and saved under the function's own name.

    Positional parameters are tensors, keyword-only ones are attributes. Its gradient follows from
    its body unless one is stated: `@f.with_gradient def rule(g, node, *attributes)` gives the
    cotangents of `node.inputs` (None where nothing flows) from g, that of the result.
    """
    return CompositeOperator(function)


def without_foreign(roots: Sequence[Node]) -> list[Node]:
    """The roots with operators of other authors replaced by what they are made of."""
    while True:
        new: dict[int, Node] = {}
        found = False
        for node in walk(roots):
            inputs = [new[id(i)] for i in node.inputs]
            if isinstance(node.op, Composite) and not node.op.operator.own:
                new[id(node)], found = inline(node, inputs), True
                new[id(node)].label = node.label
            elif all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
                new[id(node)] = node
            else:
                new[id(node)] = Node(
                    node.op, tuple(inputs), node.type, node.where, label=node.label
                )
        if not found:
            return list(roots)
        roots = [new[id(r)] for r in roots]


def inline(node: Node, inputs: Sequence[Node]) -> Node:
    """The body of a composite node as nodes that carry the line of the call."""
    assert isinstance(node.op, Composite)
    body = node.op.body(*[i.type for i in inputs])
    new: dict[int, Node] = {id(p): i for p, i in zip(body.inputs, inputs, strict=True)}
    for inner in body.nodes:
        if id(inner) in new:
            continue
        operands = tuple(new[id(i)] for i in inner.inputs)
        new[id(inner)] = Node(
            inner.op,
            operands,
            inner.type,
            node.where,
            label=inner.label,
            needs_grad=inner.type.dtype.is_float and any(o.needs_grad for o in operands),
        )
    return new[id(body.outputs[0])]
