"""What fusion hands to the emitter: buffers, and kernels that fill one buffer each."""

from __future__ import annotations

from dataclasses import dataclass, field

from diptych.dtypes import DType, TensorType
from diptych.graph.node import Node
from diptych.kernel.expr import Expr


@dataclass(eq=False)
class Buffer:
    """Memory that holds one tensor: `strides` in elements.

    `kind` is input, output or temporary; `slot` the place in the table of pointers for the first
    two, `offset` the byte in the arena for the last.
    """

    type: TensorType
    strides: tuple[int, ...]
    kind: str
    slot: int = -1
    offset: int = -1
    base: Buffer | None = None  # another buffer whose memory this one is
    first: int = 0  # in elements, from the start of base
    panel: int = 0  # columns of a panel, where the axis of stride 1 is cut into panels
    panel_step: int = 0  # elements from one column to the next panel's, the column's own taken off

    @property
    def root(self) -> Buffer:
        return self if self.base is None else self.base.root

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def bytes(self) -> int:
        return int(self.type.size) * self.dtype.bytes  # type: ignore[arg-type]


@dataclass(eq=False)
class Kernel:
    """out[indices] = value for all indices below the shape of `out`.

    A check kernel has `limit` instead: its value (an i64 position) must lie in 0 .. limit - 1.
    """

    out: Buffer
    indices: tuple[str, ...]
    value: Expr
    node: Node
    shape: tuple[int, ...]
    reads: list[Buffer] = field(default_factory=list)
    limit: int | None = None


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for d in reversed(shape):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))
