"""What fusion hands to the emitter: buffers, and kernels that fill one buffer each."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diptych.dtypes import Dimension, DType, Shape, TensorType
from diptych.graph.node import Node
from diptych.kernel.expr import Expr, walk


@dataclass(eq=False)
class Buffer:
    """Memory that holds one tensor: `strides` in elements.

    `kind` is input, output or temporary; `slot` the place in the table of pointers for the first
    two. Of the last, `offset` is the byte in the arena, or where sizes are symbolic `word` its
    number among the temporaries.
    """

    type: TensorType
    strides: Shape
    kind: str
    slot: int = -1
    offset: int = -1
    word: int = -1
    base: Buffer | None = None  # another buffer whose memory this one is
    first: Dimension = 0  # in elements, from the start of base
    panel: int = 0  # columns of a panel, where the axis of stride 1 is cut into panels
    panel_step: Dimension = (
        0  # elements from one column to the next panel's, the column's own taken off
    )

    @property
    def root(self) -> Buffer:
        return self if self.base is None else self.base.root

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def bytes(self) -> Dimension:
        return self.type.size * self.dtype.bytes


@dataclass(eq=False)
class Kernel:
    """out[indices] = value for all indices below the shape of `out`.

    A check kernel has `limit` instead: its value (an i64 position) must lie in 0 .. limit - 1.
    """

    out: Buffer
    indices: tuple[str, ...]
    value: Expr
    node: Node
    shape: Shape
    reads: list[Buffer] = field(default_factory=list)
    limit: Dimension | None = None

    @property
    def buffers(self) -> list[Buffer]:
        """What it reads and writes, each once, in the order of its arguments."""
        return list(dict.fromkeys([*self.reads, self.out]))

    @property
    def loads(self) -> list[Expr]:
        """Every read in the value."""
        return [e for e in walk([self.value]) if e.op == "load"]


class Rows(NamedTuple):
    """How the units of a kernel lie: over an axis of its result, so many for every `step` rows."""

    axis: int
    extent: int
    step: int
    units: int


def structure(kernel: Kernel) -> Hashable:
    """Equal for kernels that differ only in where their buffers are, which share their code."""
    buffers = kernel.buffers
    number = {id(b): n for n, b in enumerate(buffers)}
    roots: dict[Any, int] = {}
    forms = []
    for b in buffers:
        root = b.root
        place = id(root) if root.kind == "temporary" else root.slot
        memory = roots.setdefault((root.kind == "temporary", place), len(roots))
        forms.append((memory, b.dtype.name, b.strides, b.type.size, b.panel, b.panel_step))
    names: dict[str, int] = {name: n for n, name in enumerate(kernel.indices)}
    seen: dict[int, int] = {}
    parts: list[Hashable] = []
    for e in walk([kernel.value]):
        attr: Any = e.attr
        if e.op == "const":
            attr = attr.tobytes()
        elif e.op == "load":
            attr = number[id(attr)]
        elif e.op == "index":
            attr = names.setdefault(attr, len(names))
        elif e.op == "fold":
            loops = tuple((names.setdefault(p.name, len(names)), p.extent) for p in attr[1])
            attr = (attr[0], loops)
        seen[id(e)] = len(parts)
        parts.append((e.op, e.dtype.name, attr, *[seen[id(a)] for a in e.args]))
    return kernel.shape, kernel.limit, number[id(kernel.out)], tuple(forms), tuple(parts)


def row_major(shape: Shape) -> Shape:
    strides: list[Dimension] = []
    step: Dimension = 1
    for d in reversed(shape):
        strides.append(step)
        step = step * d
    return tuple(reversed(strides))


def innermost_strides(shape: Shape, axis: int) -> Shape:
    """Row-major strides but for one axis, which is innermost in memory."""
    order = [n for n in range(len(shape)) if n != axis] + [axis]
    steps = dict(zip(order, row_major(tuple(shape[n] for n in order)), strict=True))
    return tuple(steps[n] for n in range(len(shape)))
