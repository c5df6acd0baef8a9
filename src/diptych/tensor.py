"""The user's handle on one node, and the recorder that both panels share."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from diptych.autodiff import gradients, history_of, release
from diptych.dtypes import TensorType, as_dtype
from diptych.elsewhere import OfTensor
from diptych.errors import GraphError, ShapeError
from diptych.graph.node import Node, Operator, constant_node, input_node
from diptych.graph.record import Recorder, author_line, current, origin
from diptych.ops import elementwise
from diptych.ops.base import host_array, need_float, plain_array
from diptych.ops.methods import Methods
from diptych.runtime.memory import empty, empty_columns
from diptych.size import Looked

Array = np.ndarray[Any, Any]
FREEZING = "layer.weight = dp.Parameter(layer.weight, trainable=False), before the optimizer"


class TensorRecorder(Recorder):
    """Records calls as nodes and hands out tensors; the panels differ in `observe`."""

    is_panel = True
    grad_enabled = True
    keeps_history = False  # whether backward leaves the history there
    looked: Looked | None = None  # where sizes of a capture are symbols
    device: str
    lock: Any  # held while state is read or written

    def record(self, op: Operator, operands: Sequence[Any]) -> Tensor:
        inputs = tuple([self.node_of(o) for o in operands])
        type = op.infer(*[i.type for i in inputs])
        node = Node(op, inputs, type, author_line())
        if self.grad_enabled:
            node.needs_grad, node.released = op.history(type, inputs)
        return self.made(self.form_of(operands)(node, self))

    def form_of(self, operands: Sequence[Any]) -> type[Tensor]:
        """The class of a result."""
        return Tensor

    def made(self, tensor: Tensor) -> Tensor:
        """A hook on every new tensor."""
        return tensor

    @abstractmethod
    def node_of(self, handle: Any) -> Node:
        """The node that stands for a handle in what is being recorded."""

    @abstractmethod
    def observe(self, tensor: Tensor) -> Array:
        """The value of a tensor: dynamic runs, static refuses."""

    @abstractmethod
    def assign(self, parameter: Parameter, value: Tensor) -> None:
        """From here on the parameter has another value."""

    # Gradients are read and written through the panel. `_grad` is the dynamic panel's own: there,
    # until somebody asks for one, a `Bundle` stands in the place of several.
    @abstractmethod
    def get_grad(self, handle: Tensor) -> Tensor | None:
        """The gradient of a handle as a tensor."""

    @abstractmethod
    def set_grad(self, handle: Tensor, grad: Tensor | None) -> None:
        """Give a handle a gradient, or take it away."""

    def backward(self, tensor: Tensor, grad: Any, retain_graph: bool) -> None:
        """Add the gradients of a value to the leaves that it came from."""
        order, history, leaves = history_of(self.node_of(tensor))
        found = self.gradients(order, leaves, grad)
        for leaf, g in zip(leaves, found, strict=True):
            owner = None if leaf.owner is None else leaf.owner()
            if g is not None and owner is not None:
                _add_grad(self, owner, g)
        if not retain_graph and not self.keeps_history:
            release(history)

    def gradients(
        self, order: Sequence[Node], leaves: Sequence[Node], grad: Any
    ) -> list[Node | None]:
        """The gradients of the last of `order` for the leaves of its history, from `grad`, or
        from 1 for one number."""
        root = order[-1]
        return gradients([root], [seed(self, root, grad)], leaves)

    def advance(self, optimizer: Any, parameters: list[Parameter]) -> None:
        """A step of an optimizer for parameters that have gradients."""
        optimizer.record_step(self, parameters)

    def with_gradients(self, handles: Sequence[Tensor]) -> list[Any]:
        """Those that have a gradient."""
        return [h for h in handles if self.get_grad(h) is not None]

    def forget(self, parameters: Sequence[Parameter]) -> None:
        """No gradients from here on."""
        for p in parameters:
            self.set_grad(p, None)

    def changed(self, node: Node) -> None:
        """Differentiation treats a node in another way from here on."""
        node.kind = None

    def boundary(self) -> None:
        """The end of a step."""

    def finish(self) -> None:
        """Wait for native calls that are under way: before memory of values is read or written
        without `observe`."""

    def created(self, parameter: Parameter) -> None:
        """A parameter was made while this panel records."""


class Tensor(Methods, OfTensor):
    """A handle on a value: shape and dtype are known at once, the data when it is looked at."""

    __slots__ = ("__weakref__", "_grad", "node", "recorder")

    def __init__(self, node: Node, recorder: TensorRecorder) -> None:
        self.node, self.recorder = node, recorder
        self._grad: Tensor | None = None

    # ---- type ------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[Any, ...]:
        looked = self.recorder.looked
        if looked is not None:
            return tuple([looked.shown(d) for d in self.node.type.shape])
        return self.node.type.shape

    @property
    def requires_grad(self) -> bool:
        return self.node.needs_grad

    @requires_grad.setter
    def requires_grad(self, mode: bool) -> None:
        raise GraphError(
            "whether a value is differentiated is said when it is made",
            f"requires_grad = {mode} of {self.type}",
            FREEZING if isinstance(self, Parameter) else "x.requires_grad_(), or x.detach()",
        )

    # ---- looking ---------------------------------------------------------------------------

    def numpy(self) -> Array:
        """The value as a read-only numpy array.

        Who has it holds the value's memory, which is then not written again.
        """
        value: Any = current_panel(self).observe(self)
        return np.asarray(memoryview(value).toreadonly())

    def __repr__(self) -> str:
        try:
            value = np.array2string(self.numpy(), separator=", ", prefix="tensor(")
        except Exception as problem:  # a display never raises
            return f"tensor({self.type}, no value: {type(problem).__name__})"
        return f"tensor({value}, dtype={self.dtype})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __hash__(self) -> int:
        return id(self)

    # ---- gradients -------------------------------------------------------------------------

    @property
    def grad(self) -> Tensor | None:
        """What backward has accumulated for this leaf."""
        return current_panel(self).get_grad(self)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None and (not isinstance(value, Tensor) or value.type != self.type):
            kind = value.type if isinstance(value, Tensor) else f"a {type(value).__name__}"
            cure = f"dp.tensor(...) of {self.type}"
            raise ShapeError("a gradient has the type of its value", f"{kind}", cure)
        current_panel(self).set_grad(self, value)

    def backward(self, grad: Any = None, retain_graph: bool = False) -> None:
        """Add d self / d leaf to `.grad` of every leaf that this value came from."""
        current_panel(self).backward(self, grad, retain_graph)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the value alone."""
        if self.requires_grad and not self.node.leaf:
            raise GraphError(
                "a copy has no history", f"{self.type} depends on a parameter", ".detach() first"
            )
        return tensor, (np.array(self.numpy()), None, self.requires_grad)

    def detach(self) -> Tensor:
        """The value alone, without its history: a snapshot."""
        return elementwise.stop_gradient(self)  # type: ignore[no-any-return]

    def requires_grad_(self, mode: bool = True) -> Tensor:
        """Make this a leaf whose gradient backward computes."""
        if not mode:
            self.requires_grad = mode
        need_float(self.type, "a gradient")
        self.node.needs_grad = self.node.leaf = True
        self.node.released = False  # its history is not asked for
        self.node.owner = weakref.ref(self)
        self.recorder.changed(self.node)
        return self


class Number(Tensor):
    """A number of numpy's among the arguments of a compiled function, where it is an input; and
    what is computed of such numbers and plain ones."""

    __slots__ = ()
    weak = True


class PlainNumber(Tensor):
    """A number of Python's, as an operand in a program."""

    __slots__ = ()


def _in_place(sign: str) -> Any:
    """The method behind `parameter += value`, which would bind the name to a plain tensor."""

    def refused(self: Parameter, other: Any) -> Parameter:
        raise GraphError(
            "a parameter takes a new value by assign",
            f"{sign}= on {self.name or 'a parameter'} {self.type}",
            f"p.assign(p {sign} ...) instead of p {sign}= ...",
        )

    return refused


class Parameter(Tensor):
    """A tensor that a program may assign: its handle stays, its value is re-bound.

    Memory holds a matrix with its first axis innermost, for that is what a product of a batch
    with a weight (out, in) reads without packing; `order="C"` is for a weight (in, out), and one
    made of a parameter has its order. `numpy()` shows the usual axes. Python floats are f32.
    """

    __slots__ = ("name", "order")

    def __init__(
        self, value: Any, trainable: bool = True, name: str = "", order: str | None = None
    ) -> None:
        array = plain_array(value)
        self.order: str = order or (value.order if isinstance(value, Parameter) else "F")
        own = self.memory(array)
        node = input_node(TensorType(array.shape, as_dtype(array.dtype)), name)
        node.value = own
        super().__init__(node, default_panel())
        self.name = name
        self.bind(node, trainable and node.type.dtype.is_float)
        current_panel().created(self)

    __iadd__, __isub__, __imul__ = _in_place("+"), _in_place("-"), _in_place("*")
    __itruediv__, __ifloordiv__, __imod__ = _in_place("/"), _in_place("//"), _in_place("%")
    __ipow__, __imatmul__ = _in_place("**"), _in_place("@")
    __iand__, __ior__, __ixor__ = _in_place("&"), _in_place("|"), _in_place("^")

    def memory(self, value: Array) -> Array:
        """A copy in the memory order of this parameter."""
        dtype = as_dtype(value.dtype).numpy
        if value.ndim == 2 and self.order == "F":
            own = empty_columns(value.shape, dtype)
        else:
            own = empty(value.shape, dtype)
        own[...] = value
        return own

    def place(self, value: Array) -> None:
        """Take an array of the parameter's type as the present value, in memory of its own."""
        node = input_node(self.node.type, self.node.label)
        node.value = self.memory(value)
        default_panel().changed(self.node)  # a value that waits is not looked at through this
        self.bind(node, self.node.needs_grad)

    def bind(self, node: Node, trainable: bool) -> None:
        """Take a node as the present value."""
        node.leaf, node.needs_grad, node.released, node.kind = True, trainable, False, None
        node.owner = weakref.ref(self)
        self.node = node

    def __reduce__(self) -> tuple[Any, ...]:
        return Parameter, (np.array(self.numpy()), self.trainable, self.name, self.order)

    @property
    def trainable(self) -> bool:
        return self.node.needs_grad

    @trainable.setter
    def trainable(self, mode: bool) -> None:
        self.requires_grad = mode

    def assign(self, value: Any) -> None:
        """Give the parameter another value of the same type."""
        panel = current_panel(self)
        if not isinstance(value, Tensor):
            value = np.asarray(value, self.dtype.numpy)
            if panel is default_panel() and value.shape == self.shape:
                with panel.lock:
                    self.place(value)
                return
            value = panel.array(np.asarray(value, order="C"))
        if value.type != self.type:
            raise ShapeError(
                "a parameter keeps its type", f"{self.type} assigned {value.type}", "reshape it"
            )
        panel.assign(self, value)


_panel: list[TensorRecorder] = []


def default_panel() -> TensorRecorder:
    """The dynamic panel of this process."""
    return _panel[0]


def set_default_panel(panel: TensorRecorder) -> None:
    _panel[:] = [panel]


def current_panel(tensor: Tensor | None = None) -> TensorRecorder:
    """The panel that records now."""
    recorder = current()
    if recorder.is_panel:
        return recorder  # type: ignore[return-value]
    return tensor.recorder if tensor is not None else default_panel()


def seed(panel: TensorRecorder, root: Node, grad: Any) -> Node:
    """The cotangent that backward from a node starts with: what is given, or 1 for one number."""
    if grad is not None:
        given = grad
        if not isinstance(grad, Tensor):
            given = panel.array(np.array(grad, root.type.dtype.numpy))
        if given.type != root.type:
            raise ShapeError(
                "the gradient given to backward has the type of the value",
                f"{given.type} for {root.type}",
                "check its shape and dtype",
            )
        return panel.node_of(given)
    if root.type.size != 1:
        raise ShapeError(
            "backward without a gradient starts from one number",
            f"{root.type}",
            "take the mean first, or pass a gradient",
        )
    return constant_node(np.ones(root.type.shape), root.type.dtype, author_line())


def _add_grad(panel: TensorRecorder, owner: Tensor, g: Node) -> None:
    before = panel.get_grad(owner)
    if before is not None:
        with origin(g.where):
            g = elementwise.add(panel.node_of(before), g)
    panel.set_grad(owner, panel.made(Tensor(g, panel)))


@contextmanager
def no_grad() -> Iterator[None]:
    """Record without history: nothing in here is differentiated."""
    panel = current_panel()
    before = panel.grad_enabled
    try:
        panel.grad_enabled = False
        yield
    finally:
        panel.grad_enabled = before


def tensor(value: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of a number, list or array. Python floats are f32, ints i64.

    Of a tensor it is the value without its history, also inside a program.
    """
    if isinstance(value, Tensor) and not requires_grad:
        snapshot = value.detach()
        return snapshot if dtype is None else snapshot.astype(dtype)
    if dtype is not None:
        array = host_array(value).astype(as_dtype(dtype).numpy)
    else:
        array = value if type(value) is np.ndarray else plain_array(value)
    made: Tensor = current_panel().array(array)
    made.node.where = author_line()
    return made.requires_grad_() if requires_grad else made
