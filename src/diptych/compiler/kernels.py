"""What fusion hands to the emitter: buffers, and kernels that fill one buffer each."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diptych.compiler.tiling import Tile
from diptych.dtypes import Dimension, DType, Shape, TensorType
from diptych.graph.node import Node
from diptych.kernel.expr import Expr, binary, walk
from diptych.lazy import lazy


@dataclass(frozen=True)
class Choice:
    """How a kernel around one contraction goes over its result. `vector` is the axis that lanes lie
    along, `row` that of the rows of a tile (-1: there is none), `outer` are the loops round these.
    `panel` is the width of the panels that one side lies in, or 0."""

    vector: int
    row: int
    outer: tuple[int, ...]
    tile: Tile
    panel: int


@dataclass(frozen=True)
class Panels:
    """The columns along `axis`, whose stride is 1, in panels of `width`; the first column of a
    panel is `step` elements behind the first of the panel before it."""

    axis: int
    width: int
    step: Dimension


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
    panels: Panels | None = None

    @property
    def root(self) -> Buffer:
        return self if self.base is None else self.base.root

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @lazy
    def bytes(self) -> Dimension:
        return self.type.size * self.dtype.bytes

    @lazy
    def reach(self) -> Dimension:
        """The bytes from the first element to the end of the last one, which are more than `bytes`
        where lines of memory are padded. For memory that is not in panels."""
        if 0 in self.type.shape:
            return 0
        last: Dimension = 0
        for size, step in zip(self.type.shape, self.strides, strict=True):
            last = last + (size - 1) * step
        return (last + 1) * self.dtype.bytes

    def address(self, indices: Sequence[Any]) -> Any:
        """How many elements behind its start an element lies; indices are expressions or ints."""
        total: Any = 0
        for index, stride in zip(indices, self.strides, strict=True):
            total = index * stride + total
        if self.panels is None:
            return total
        column, width = indices[self.panels.axis], self.panels.width
        panel = binary("div", column, width) if isinstance(column, Expr) else column // width
        return panel * (self.panels.step - width) + total

    @lazy
    def flat(self) -> Buffer:
        """The same memory as one axis, for loads by address."""
        size = self.type.size if self.panels is None else self.root.type.size
        return Buffer(TensorType((size,), self.dtype), (1,), self.kind, base=self)


class Form:
    """The value of kernels that are lowered alike. Its loads are of the buffers of the first one;
    another's stand in the same places of its own list."""

    def __init__(self, value: Expr, buffers: Sequence[Buffer]) -> None:
        self.value = value
        place = {b: n for n, b in enumerate(buffers)}
        loads = [e for e in walk([value]) if e.op == "load"]
        self.reads = list(dict.fromkeys(place[e.attr] for e in loads))  # in the order of loads
        self.buffers = [buffers[n] for n in self.reads]
        self.known: dict[Hashable, Hashable] = {}  # structures of its kernels
        self.own: dict[Hashable, bool] = {}  # what `reads_only_own_place` found

    @lazy
    def parts(self) -> tuple[Hashable, ...]:
        """The value as one key, with loops and buffers numbered."""
        names: dict[str, int] = {}
        seen: dict[Expr, int] = {}
        place = {b: n for n, b in enumerate(self.buffers)}
        parts: list[Hashable] = []
        for e in walk([self.value]):
            attr: Any = e.attr
            if e.op == "const":
                attr = attr.tobytes()
            elif e.op == "load":
                attr = place[attr]
            elif e.op == "index":
                attr = attr if attr[0] == "i" else names.setdefault(attr, len(names))
            elif e.op == "fold":
                loops = tuple((names.setdefault(p.name, len(names)), p.extent) for p in attr[1])
                attr = (attr[0], loops)
            seen[e] = len(parts)
            parts.append((e.op, e.dtype.name, attr, *[seen[a] for a in e.args]))
        return tuple(parts)

    def reads_only_own_place(self, n: int, shape: Shape) -> bool:
        """Whether every read of the n-th buffer is of the element about to be written."""
        key = (n, shape)
        if key not in self.own:
            self.own[key] = self._reads_only_own_place(self.buffers[n], shape)
        return self.own[key]

    def _reads_only_own_place(self, buffer: Buffer, shape: Shape) -> bool:
        indices = index_names(len(shape))
        for e in walk([self.value]):
            if e.op == "load" and e.attr is buffer:
                own = [
                    (a.op == "index" and a.attr == i) or d == 1
                    for a, i, d in zip(e.args, indices, shape, strict=False)
                ]
                if len(e.args) != len(indices) or not all(own):
                    return False
            if e.op == "fold" and any(a.attr is buffer for a in walk(e.args) if a.op == "load"):
                return False
        return True


class Kernel:
    """out[indices] = value for all indices below the shape of `out`.

    A check kernel has `limit` instead: its value (an i64 position) must lie in 0 .. limit - 1.
    """

    def __init__(
        self,
        out: Buffer,
        form: Form,
        reads: list[Buffer],
        node: Node,
        shape: Shape,
        limit: Dimension | None = None,
        choice: Choice | None = None,
    ) -> None:
        """`reads` stand in the places of the form's own buffers. `choice` is the `Choice` of a
        kernel that is computed by tiles."""
        self.out, self.form, self.reads = out, form, reads
        self.node, self.shape, self.limit, self.choice = node, shape, limit, choice

    @property
    def indices(self) -> tuple[str, ...]:
        return index_names(len(self.shape))

    @lazy
    def value(self) -> Expr:
        if all(a is b for a, b in zip(self.reads, self.form.buffers, strict=True)):
            return self.form.value
        own = dict(zip(self.form.buffers, self.reads, strict=True))
        new: dict[Expr, Expr] = {}
        for e in walk([self.form.value]):
            args = tuple([new[a] for a in e.args])
            attr = own[e.attr] if e.op == "load" else e.attr
            new[e] = Expr(e.op, args, e.dtype, attr) if args or e.op == "load" else e
        return new[self.form.value]

    @lazy
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


def index_names(rank: int) -> tuple[str, ...]:
    """The indices of a kernel over so many axes."""
    return tuple([f"i{n}" for n in range(rank)])


def structure(kernel: Kernel) -> Hashable:
    """Equal for kernels that differ only in where their buffers are, which share their code."""
    roots: dict[Any, int] = {}
    memory = []
    for b in kernel.buffers:
        root = b.root
        place = root if root.kind == "temporary" else root.slot
        memory.append(roots.setdefault(place, len(roots)))
    out = kernel.out
    key = (tuple(memory), kernel.limit, out.dtype, out.strides, kernel.choice)
    found = kernel.form.known.get(key)
    if found is None:
        number = kernel.buffers.index(kernel.out)
        forms = tuple(
            (m, b.dtype.name, b.strides, b.type.size, b.panels)
            for m, b in zip(memory, kernel.buffers, strict=True)
        )
        found = kernel.shape, kernel.limit, kernel.choice, number, forms, kernel.form.parts
        kernel.form.known[key] = found
    return found
