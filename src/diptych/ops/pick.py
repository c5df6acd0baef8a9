"""One element of every row, by label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from diptych.dtypes import Dimension, TensorType, bool_, i64
from diptych.errors import DtypeError, ShapeError
from diptych.graph.node import Node, Operator, Source
from diptych.kernel import expr as k
from diptych.kernel.expr import Expr
from diptych.ops.base import convert, operand, primitive
from diptych.ops.elementwise import where
from diptych.ops.indexing import is_at
from diptych.ops.shape import expand_dims

Array = np.ndarray[Any, Any]


@primitive
class PickLabel(Operator):
    """out[i] = x[i, label[i]]; labels are checked to be inside."""

    name: ClassVar[str] = "pick_label"

    def infer(self, *inputs: TensorType) -> TensorType:
        x, label = inputs
        if x.rank != 2 or label.rank != 1 or x.shape[0] != label.shape[0]:
            raise ShapeError(
                "pick_label takes (n, c) and (n,)",
                f"{x} and {label}",
                "flatten the labels with .reshape(-1)",
            )
        if not label.dtype.is_integer:
            raise DtypeError("pick_label takes integer labels", f"{label}", "use .astype('int64')")
        return x.with_shape(x.shape[:1])

    def positions(self, *inputs: TensorType) -> list[tuple[int, Dimension, str]]:
        return [(1, inputs[0].shape[1], "label")]

    def reference(self, *inputs: Array) -> Array:
        x, label = inputs
        return x[np.arange(x.shape[0]), label]

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        x, label = node.inputs
        hot = is_at(convert(label, i64), x.type.shape[1], bool_)
        return [where(hot, expand_dims(g, -1), operand(0.0, g.type.dtype)), None]

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        x, label = inputs
        return lambda i: x.at(i, k.cast(label.at(i), i64))
