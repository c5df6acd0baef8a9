"""The operators and methods of every handle on a value: those of Python, numpy and diptych."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, Self

import numpy as np

from diptych.dtypes import DType, TensorType, product
from diptych.errors import DtypeError, GraphError, ShapeError
from diptych.graph.node import Node, Operand
from diptych.ops import contract, elementwise, functions, indexing, reduce, shape
from diptych.ops.numpy_names import RECORDED

Array = np.ndarray[Any, Any]


class Methods(Operand):
    """What follows from the node of a value and, where it is looked at, from `numpy()`."""

    __slots__ = ()
    node: Node

    @property
    def type(self) -> TensorType:
        return self.node.type

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.node.type.shape

    @property
    def dtype(self) -> DType:
        return self.node.type.dtype

    @property
    def ndim(self) -> int:
        return self.node.type.rank

    @property
    def size(self) -> Any:
        return product(self.shape)

    @property
    def requires_grad(self) -> bool:
        return self.node.needs_grad

    @abstractmethod
    def numpy(self) -> Array:
        """The value as a read-only numpy array."""

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("a tensor without axes has no length", f"{self.type}", ".item()")
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Self]:
        return (self[n] for n in range(len(self)))

    # ---- looking ---------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype, copy=copy)

    def item(self) -> Any:
        """The value of a one-element tensor as a Python number."""
        if self.size != 1:
            raise ShapeError("item() takes a tensor of one element", f"{self.type}", ".numpy()")
        return self.numpy().reshape(-1)[0].item()

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if not self.dtype.is_integer:
            raise DtypeError("an index is an integer", f"{self.type}", "int(x)")
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    # ---- numpy's functions -----------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """numpy's elementwise functions; and Python's operators after an array of numpy's."""
        own = RECORDED.get(ufunc) if method == "__call__" and not options else None
        if own is not None:
            return own(*inputs)
        return _by_numpy(getattr(ufunc, method), ufunc.__name__, inputs, options)

    def __array_function__(
        self, function: Callable[..., Any], kinds: Any, inputs: Any, options: Mapping[str, Any]
    ) -> Any:
        """numpy's other functions."""
        own = RECORDED.get(function)
        if own is not None and _takes(own, inputs, options):
            return own(*inputs, **options)
        return _by_numpy(function, function.__name__, inputs, options)

    # ---- operators -------------------------------------------------------------------------

    def __add__(self, other: Any) -> Self:
        return elementwise.add(self, other)  # type: ignore[no-any-return]

    def __radd__(self, other: Any) -> Self:
        return elementwise.add(other, self)  # type: ignore[no-any-return]

    def __sub__(self, other: Any) -> Self:
        return elementwise.subtract(self, other)  # type: ignore[no-any-return]

    def __rsub__(self, other: Any) -> Self:
        return elementwise.subtract(other, self)  # type: ignore[no-any-return]

    def __mul__(self, other: Any) -> Self:
        return elementwise.multiply(self, other)  # type: ignore[no-any-return]

    def __rmul__(self, other: Any) -> Self:
        return elementwise.multiply(other, self)  # type: ignore[no-any-return]

    def __truediv__(self, other: Any) -> Self:
        return elementwise.divide(self, other)  # type: ignore[no-any-return]

    def __rtruediv__(self, other: Any) -> Self:
        return elementwise.divide(other, self)  # type: ignore[no-any-return]

    def __floordiv__(self, other: Any) -> Self:
        return elementwise.floor_divide(self, other)  # type: ignore[no-any-return]

    def __rfloordiv__(self, other: Any) -> Self:
        return elementwise.floor_divide(other, self)  # type: ignore[no-any-return]

    def __mod__(self, other: Any) -> Self:
        return elementwise.remainder(self, other)  # type: ignore[no-any-return]

    def __rmod__(self, other: Any) -> Self:
        return elementwise.remainder(other, self)  # type: ignore[no-any-return]

    def __pow__(self, other: Any) -> Self:
        return functions.pow(self, other)  # type: ignore[no-any-return]

    def __rpow__(self, other: Any) -> Self:
        return functions.pow(other, self)  # type: ignore[no-any-return]

    def __matmul__(self, other: Any) -> Self:
        return contract.matmul(self, other)  # type: ignore[no-any-return]

    def __rmatmul__(self, other: Any) -> Self:
        return contract.matmul(other, self)  # type: ignore[no-any-return]

    def __neg__(self) -> Self:
        return elementwise.negative(self)  # type: ignore[no-any-return]

    def __abs__(self) -> Self:
        return functions.abs(self)  # type: ignore[no-any-return]

    def __invert__(self) -> Self:
        return elementwise.logical_not(self)  # type: ignore[no-any-return]

    def __and__(self, other: Any) -> Self:
        return elementwise.logical_and(self, other)  # type: ignore[no-any-return]

    def __or__(self, other: Any) -> Self:
        return elementwise.logical_or(self, other)  # type: ignore[no-any-return]

    def __xor__(self, other: Any) -> Self:
        return elementwise.logical_xor(self, other)  # type: ignore[no-any-return]

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __lt__(self, other: Any) -> Self:
        return elementwise.less(self, other)  # type: ignore[no-any-return]

    def __le__(self, other: Any) -> Self:
        return elementwise.less_equal(self, other)  # type: ignore[no-any-return]

    def __gt__(self, other: Any) -> Self:
        return elementwise.greater(self, other)  # type: ignore[no-any-return]

    def __ge__(self, other: Any) -> Self:
        return elementwise.greater_equal(self, other)  # type: ignore[no-any-return]

    def __eq__(self, other: Any) -> Self:  # type: ignore[override]
        return elementwise.equal(self, other)  # type: ignore[no-any-return]

    def __ne__(self, other: Any) -> Self:  # type: ignore[override]
        return elementwise.not_equal(self, other)  # type: ignore[no-any-return]

    def __getitem__(self, key: Any) -> Self:
        return indexing.take(self, key)  # type: ignore[no-any-return]

    def __setitem__(self, key: Any, value: Any) -> None:
        raise GraphError(
            "the value of a tensor does not change",
            f"assignment to a part of {self.type}",
            "where(...), concat or scatter_add make a new tensor",
        )

    @property
    def T(self) -> Self:
        return shape.transpose(self)  # type: ignore[no-any-return]

    def astype(self, dtype: Any) -> Self:
        return elementwise.cast(self, dtype)  # type: ignore[no-any-return]

    def reshape(self, *sizes: Any) -> Self:
        return shape.reshape(self, *sizes)  # type: ignore[no-any-return]

    def flatten(self, start: int = 0) -> Self:
        return shape.flatten(self, start)  # type: ignore[no-any-return]

    def transpose(self, *order: int) -> Self:
        return shape.transpose(self, order or None)  # type: ignore[no-any-return]

    def sum(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.reduce_sum(self, axis, keepdims)  # type: ignore[no-any-return]

    def mean(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.mean(self, axis, keepdims)  # type: ignore[no-any-return]

    def max(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.reduce_max(self, axis, keepdims)  # type: ignore[no-any-return]

    def min(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.reduce_min(self, axis, keepdims)  # type: ignore[no-any-return]

    def prod(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.prod(self, axis, keepdims)  # type: ignore[no-any-return]

    def any(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.reduce_any(self, axis, keepdims)  # type: ignore[no-any-return]

    def all(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.reduce_all(self, axis, keepdims)  # type: ignore[no-any-return]

    def argmax(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.argmax(self, axis, keepdims)  # type: ignore[no-any-return]

    def argmin(self, axis: Any = None, keepdims: bool = False) -> Self:
        return reduce.argmin(self, axis, keepdims)  # type: ignore[no-any-return]

    def clip(self, low: Any = None, high: Any = None) -> Self:
        return elementwise.clip(self, low, high)  # type: ignore[no-any-return]

    abs = __abs__

    def exp(self) -> Self:
        return functions.exp(self)  # type: ignore[no-any-return]

    def log(self) -> Self:
        return functions.log(self)  # type: ignore[no-any-return]

    def sqrt(self) -> Self:
        return functions.sqrt(self)  # type: ignore[no-any-return]

    def tanh(self) -> Self:
        return functions.tanh(self)  # type: ignore[no-any-return]

    def sigmoid(self) -> Self:
        return functions.sigmoid(self)  # type: ignore[no-any-return]


def _takes(function: Callable[..., Any], inputs: Any, options: Mapping[str, Any]) -> bool:
    """Whether a function has these arguments; some only numpy's has."""
    try:
        signature(function).bind(*inputs, **options)
    except TypeError:
        return False
    return True


def _by_numpy(call: Any, name: str, inputs: Any, options: Mapping[str, Any]) -> Any:
    """Call a function that is none of diptych's on values, unless a gradient would be lost."""
    out = options.get("out")
    if any(isinstance(value, Methods) for value in (out if isinstance(out, tuple) else (out,))):
        raise GraphError(
            "the value of a tensor does not change", f"numpy.{name} with a tensor as out", "no out"
        )
    return call(*_values(inputs, name), **_values(options, name))


def _values(given: Any, name: str) -> Any:
    """Arguments with numpy's arrays in place of tensors."""
    if isinstance(given, Methods):
        if given.requires_grad:
            raise GraphError(
                "a numpy function of a value with a gradient is recorded, or is an error",
                f"numpy.{name} of {given.type}, which diptych does not have in this form",
                "compose it of dp's operators, or hand numpy x.detach().numpy()",
            )
        return given.numpy()
    if isinstance(given, list | tuple):
        return type(given)([_values(v, name) for v in given])
    if isinstance(given, Mapping):
        return {key: _values(v, name) for key, v in given.items()}
    return given
