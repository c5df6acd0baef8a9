"""From a graph of primitives to kernels: what is computed inside the loops of what, and how the
sides of a contraction lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from diptych.compiler.choice import choose
from diptych.compiler.kernels import (
    Buffer,
    Choice,
    Form,
    Kernel,
    Panels,
    index_names,
)
from diptych.compiler.materialise import Materialise, is_alias, kind, only_ones_move
from diptych.compiler.simplify import is_scalar_constant
from diptych.compiler.sizes import NO_HINTS, typical
from diptych.compiler.target import LINE, Target
from diptych.compiler.tiling import NEAREST, choose_tile
from diptych.dtypes import (
    Dim,
    Dimension,
    Shape,
    TensorType,
    i64,
    innermost_strides,
    product,
    row_major,
)
from diptych.errors import InternalError
from diptych.graph.node import Constant, Graph, Node, Source
from diptych.kernel import expr as k
from diptych.kernel.expr import Expr
from diptych.ops.contract import Contract
from diptych.ops.indexing import Gather
from diptych.ops.shape import Reshape, Transpose

NARROW = 4  # columns below which a side is turned round although it lies straight
MANY_ROWS = 64  # rows that read a side again and again
APART = 1 << 10  # bytes between terms that are read one by one
NEAR, FAR = 1 << 17, 1 << 18  # bytes of a side that stay in the caches however it lies; that do not
NOT_PACKED: Mapping[int, Buffer] = {}  # the copies of sides that most nodes have


class Check(NamedTuple):
    """Positions (or labels: `what`) that must lie below `size`, and the line that gave them."""

    what: str
    size: Dimension
    where: Any


Steps = tuple[Dimension | None, ...]  # how far memory moves along each axis of a value


class Packing(NamedTuple):
    """How the sides of a contraction are laid out for it: the axis of its result that vectors lie
    along, and for each side that is copied its number, the axis that is innermost in the copy and,
    where it is in panels, their columns."""

    along: int
    copies: tuple[tuple[int, int, int], ...]


class Fusion:
    """Kernels and buffers of a graph; `strides` gives the memory order of inputs."""

    def __init__(
        self,
        graph: Graph,
        strides: Mapping[int, Shape],
        donated: dict[int, int],
        target: Target,
        hints: Mapping[str, int],
    ) -> None:
        self.graph, self.donated, self.target, self.hints = graph, donated, target, hints
        self.kernels: list[Kernel] = []
        self.buffers: dict[int, Buffer] = {}
        self.constants: list[Node] = []
        self.checks: list[Check] = []
        self.plan = Materialise(graph, hints)
        self.packed: dict[Node, dict[int, Buffer]] = {}  # copies of sides of contractions
        self.strides: dict[tuple[Shape, int | None], Shape] = {}  # of shapes that were met
        self.packings: dict[Any, Packing | None] = {}  # by all that they depend on
        self.forms: dict[Any, Form] = {}  # by all that the value of a kernel depends on
        self.written: set[Buffer] = set()
        # Of a node with a contraction in its kernel: the axis that vectors lie along.
        self.along: dict[Node, int] = {}
        self.choices: dict[Any, Choice | None] = {}  # by all that they depend on
        for slot, node in enumerate(graph.inputs):
            order = strides.get(slot, self._strides(node.type.shape))
            self.buffers[id(node)] = Buffer(node.type, order, "input", slot)
        self._outputs()
        for node in self.plan.nodes:
            self._visit(node)

    def typical(self, dim: Dimension) -> int:
        return typical(dim, self.hints)

    def _strides(self, shape: Shape, innermost: int | None = None) -> Shape:
        """Row-major strides, or those with one axis innermost in memory."""
        key = shape, innermost
        found = self.strides.get(key)
        if found is None:
            made = row_major(shape) if innermost is None else innermost_strides(shape, innermost)
            found = self.strides[key] = made
        return found

    def _outputs(self) -> None:
        """Outputs computed here are written where they go; others are copied at the end."""
        self.output_buffers: list[Buffer] = []
        self.copies: list[tuple[Node, Buffer]] = []
        for n, node in enumerate(self.graph.outputs):
            slot = len(self.graph.inputs) + n
            order = self._strides(node.type.shape)
            if n in self.donated:
                order = self.buffers[id(self.graph.inputs[self.donated[n]])].strides
            buffer = Buffer(node.type, order, "output", slot)
            self.output_buffers.append(buffer)
            if kind(node).leaf or is_alias(node) or id(node) in self.buffers:
                self.copies.append((node, buffer))
            else:
                self.buffers[id(node)] = buffer

    def _visit(self, node: Node) -> None:
        own = kind(node)
        if own.leaf:
            if isinstance(node.op, Constant) and not is_scalar_constant(node):
                self.constants.append(node)
                shape = node.type.shape
                self.buffers[id(node)] = Buffer(
                    node.type, row_major(shape), "constant", len(self.constants) - 1
                )
            return
        if own.checks:
            for position in node.op.positions(*[i.type for i in node.inputs]):
                self._check_kernel(node, *position)
        if is_alias(node):
            self._alias(node)
            return
        if own.contract:
            self._pack(node)
        if node in self.plan.chosen:
            self._kernel(node)

    def finish(self) -> None:
        """Copies of outputs that are inputs, views, or the same value twice."""
        for node, buffer in self.copies:
            self._add(Kernel(buffer, *self._copied(node), node, node.type.shape))

    def _alias(self, node: Node) -> None:
        """A reshape of a row-major buffer is the same memory."""
        source = node.inputs[0]
        base = self.buffers.get(id(source))
        if base is None:
            raise InternalError(f"{source!r} has no memory")
        shape = node.type.shape
        if base.strides != self._strides(source.type.shape):
            base = self._copy(source)
        self.buffers[id(node)] = Buffer(node.type, self._strides(shape), base.kind, base=base)

    def _copy(self, node: Node, innermost: int | None = None) -> Buffer:
        """A temporary copy of a value, with one axis innermost in memory."""
        shape = node.type.shape
        buffer = Buffer(node.type, self._strides(shape, innermost), "temporary")
        value = self._copied(node)
        if kind(node).gather and id(node) not in self.buffers:
            value = self._gathered(node)
        self._add(Kernel(buffer, *value, node, shape))
        return buffer

    def _pack(self, node: Node) -> None:
        """Lay out the sides of a contraction."""
        left, right = node.inputs
        if 0 in left.type.shape or (_is_literal(left) and _is_literal(right)):
            return  # which tiles do not compute
        steps = self._steps(left), self._steps(right)
        *_, root = path = self.plan.path(node)
        places = [_followed(path, axis) for axis in range(node.type.rank)]
        out = self.buffers.get(id(root))
        order = None if out is None else tuple([0 if n < 0 else out.strides[n] for n in places])
        shapes = left.type.shape, right.type.shape
        key = (id(node.op), shapes, left.type.dtype, steps, order)
        if key not in self.packings:
            self.packings[key] = self._packing(node, steps, order)
        packing = self.packings[key]
        if packing is None:
            return
        self.along[root] = places[packing.along]
        if packing.copies:
            self.packed[node] = {
                side: self._panels(node, side, axis, width)
                if width
                else self._copy(node.inputs[side], axis)
                for side, axis, width in packing.copies
            }

    def _packing(
        self, node: Node, steps: tuple[Steps, Steps], order: Shape | None
    ) -> Packing | None:
        """Where no side of a contraction moves by 1 along an output axis, one is turned round;
        where one does and is large and read many times, its columns are laid out in panels. The
        other side is turned where its terms lie far apart. `order` are the strides of an output."""
        op = node.op
        assert isinstance(op, Contract)
        sides = (op.left, op.right)
        found = []
        for side in (1, 0):
            for axis, letter in enumerate(sides[side]):
                own = letter in op.out and letter not in sides[1 - side]
                if own and self._extent(node.inputs[side], axis) > 1:
                    found.append((side, axis, steps[side][axis]))
        if not found:
            return None
        side, axis, step = min(found, key=lambda f: self._cost(node, order, *f))
        copies = []
        outer = sum(f[2] == 1 for f in found) > 1
        straight = step in (0, 1)
        if not straight or (step == 1 and self._read_far(node, side, steps[side], outer)):
            copies.append((side, axis, self._width(node, side, axis)))
        columns = self._extent(node.inputs[side], axis)
        copies += self._turned_rows(node, 1 - side, steps[1 - side], columns)
        return Packing(op.out.index(sides[side][axis]), tuple(copies))

    def _read_far(self, node: Node, side: int, steps: Steps, outer: bool) -> bool:
        """Whether panels of a side that lies straight pay: it is read again and again, and does not
        stay in the caches, or its vectors lie across lines. In an outer product (rows of both sides
        are the terms) its vectors wait behind the multiply-adds of a slow machine for longer."""
        given, op = node.inputs[side], node.op
        assert isinstance(op, Contract)
        letters = (op.left, op.right)[side]
        pitches = [step for step, letter in zip(steps, letters, strict=True) if letter in op.over]
        size = self.typical(given.type.size) * node.type.dtype.bytes
        many = 4 * MANY_ROWS if outer and self.target.fma_per_cycle == 1 else MANY_ROWS
        far = size >= FAR or any(isinstance(s, int) and self._splits(given, s) for s in pitches)
        return self._rows(node, side) >= many and far

    def _splits(self, node: Node, pitch: int) -> bool:
        """Whether vectors that lie so many elements apart lie across lines of memory, which takes
        two loads, on a machine that multiplies and adds faster than it loads."""
        fast = self.target.fma_per_cycle > self.target.loads_per_cycle
        return fast and pitch * node.type.dtype.bytes % LINE != 0

    def _turned_rows(
        self, node: Node, side: int, steps: Steps, columns: int
    ) -> list[tuple[int, int, int]]:
        """A copy with the terms of the side that is read one by one side by side, where each lies
        on a page of its own and tiles go over them again and again."""
        given, op = node.inputs[side], node.op
        assert isinstance(op, Contract)
        letters = (op.left, op.right)[side]
        if len(op.over) != 1 or op.over[0] not in letters:
            return []
        axis = letters.index(op.over[0])
        step = steps[axis]
        apart = isinstance(step, int) and step * given.type.dtype.bytes >= APART
        often = min(columns, self._extent(given, axis)) >= MANY_ROWS
        return [(side, axis, 0)] if apart and often else []

    def _extent(self, node: Node, axis: int) -> int:
        return self.typical(node.type.shape[axis])

    def _rows(self, node: Node, side: int) -> int:
        """How many elements of the other side meet each element of this one."""
        sides = (node.op.left, node.op.right)  # type: ignore[attr-defined]
        other = node.inputs[1 - side].type.shape
        own = [d for c, d in zip(sides[1 - side], other, strict=True) if c not in sides[side]]
        return self.typical(product(own))

    def _cost(
        self, node: Node, order: Shape | None, side: int, axis: int, step: Dimension | None
    ) -> float:
        """Cycles to turn a side round, so that vectors lie along an axis of it, and to store
        against the grain where that follows; `order` are the strides of an output."""
        letter = (node.op.left, node.op.right)[side][axis]  # type: ignore[attr-defined]
        given = node.inputs[side]
        turning = 0.0 if step in (0, 1) else 0.4 * self.typical(given.type.size)
        size = self.typical(node.type.size)
        extent = self._extent(given, axis)
        idle = size * (self.target.lanes / extent - 1.0) if extent < NARROW else 0.0
        place = node.op.out.index(letter)  # type: ignore[attr-defined]
        if order is None:  # a temporary may lie as it is made
            return turning + idle + (0.0 if place == node.type.rank - 1 else 1.5 * size)
        return turning + idle + (0.0 if order[place] == 1 else 10.0 * size)

    def _lying(self, node: Node) -> Shape:
        """Strides for a temporary: as the vectors of the contraction in its kernel lie."""
        return self._strides(node.type.shape, self.along.get(node))

    def _choice(self, node: Node, form: Form, out: Buffer) -> Choice | None:
        """How the kernel of a node goes over its result, where that holds a contraction."""
        along = self.along.get(node)
        key = id(form), node.type.shape, out.strides, along
        if key not in self.choices:
            given = form.value, node.type.shape, out, along
            self.choices[key] = choose(*given, self.target, self.hints)
        return self.choices[key]

    def _width(self, node: Node, side: int, axis: int) -> int:
        """The columns of the panels of a side whose copy has `axis` innermost: a tile's, where it
        is wide; 0 where the copy is in one piece."""
        given = node.inputs[side]
        columns, rows = self._extent(given, axis), self._rows(node, side)
        sizes = node.op.sizes(*[i.type for i in node.inputs])  # type: ignore[attr-defined]
        depth = self.typical(product(sizes[c] for c in node.op.over))  # type: ignore[attr-defined]
        column = depth * self.target.lanes * given.type.dtype.bytes
        column = column if column <= NEAREST else 0
        tile = choose_tile(max(rows, 1), columns, self.target, column=column)
        width = tile.columns * self.target.lanes
        near = columns <= width or depth * columns * given.type.dtype.bytes <= NEAR
        splits = rows >= MANY_ROWS and self._splits(given, columns)
        whole = (near and not splits) or isinstance(given.type.shape[axis], Dim)
        return 0 if whole else width

    def _panels(self, node: Node, side: int, axis: int, width: int) -> Buffer:
        """Panels of `width` columns, each with all its terms: a tile reads one from end to end."""
        op, given = node.op, node.inputs[side]
        letters = (op.left, op.right)[side]  # type: ignore[attr-defined]
        shape = given.type.shape
        batch = [n for n, c in enumerate(letters) if c in op.out and n != axis]  # type: ignore[attr-defined]
        terms = [letters.index(c) for c in op.over if c in letters]  # type: ignore[attr-defined]
        outer, inner = tuple(shape[n] for n in batch), tuple(shape[n] for n in terms)
        depth, (whole, left) = product(inner), divmod(self.typical(shape[axis]), width)
        full = (*outer, whole + bool(left), depth, width)
        memory = Buffer(TensorType(full, given.type.dtype), row_major(full), "temporary")
        outer_steps = memory.strides[: len(outer)]
        inner_steps = tuple(step * width for step in row_major(inner))
        at = dict(zip([*batch, *terms, axis], [*outer_steps, *inner_steps, 1], strict=True))
        for count, first, extent in ((whole, 0, width), (1, whole, left)):
            if extent == 0 or count == 0:
                continue
            size = (*outer, count, *inner, extent)
            steps = (*outer_steps, depth * width, *inner_steps, 1)
            part = TensorType(size, given.type.dtype)
            out = Buffer(part, steps, "temporary", base=memory, first=first * depth * width)
            indices = self._indices(len(size))
            place = dict(
                zip([*batch, *terms], [*indices[: len(outer)], *indices[len(outer) + 1 : -1]])
            )
            place[axis] = (indices[len(outer)] + first) * width + indices[-1]
            how = ("panels", op, side, axis, width, first)
            value = self._copied(given, how, [place[n] for n in range(len(shape))])
            self._add(Kernel(out, *value, given, size))
        return Buffer(
            given.type, tuple(at[n] for n in range(len(shape))), "temporary",
            base=memory, panels=Panels(axis, width, depth * width),
        )  # fmt: skip

    def _steps(self, node: Node) -> Steps:
        """How far memory moves along each axis of a value, seen through views, of which at most
        DEPTH follow each other; None where that is not known before it runs."""
        buffer = self.buffers.get(id(node))
        if buffer is not None:
            return buffer.strides
        op, shape = node.op, node.type.shape
        if _is_literal(node):
            return (0,) * len(shape)
        if isinstance(op, Transpose):
            inner = self._steps(node.inputs[0])
            return tuple([inner[axis] for axis in op.order])
        if isinstance(op, Gather):
            positions = node.inputs[1].type.rank
            return (*[None] * positions, *self._steps(node.inputs[0])[1:])
        if isinstance(op, Reshape):
            given = node.inputs[0]
            all_steps = zip(self._steps(given), given.type.shape, strict=True)
            steps = iter([step for step, d in all_steps if d != 1])
            return tuple([0 if d == 1 else next(steps) for d in shape])
        return (None,) * len(shape)

    def _indices(self, rank: int) -> list[Expr]:
        return [k.index(n) for n in index_names(rank)]

    def _kernel(self, node: Node) -> None:
        shape = node.type.shape
        buffer = self.buffers.get(id(node))
        if buffer is None:
            buffer = Buffer(node.type, self._lying(node), "temporary")
        indices = self._indices(len(shape))
        form, reads = self._value("computed", node, lambda: self._lowered(node, {}, indices))
        self.buffers[id(node)] = buffer
        choice = self._choice(node, form, buffer)
        self._add(Kernel(buffer, form, reads, node, shape, choice=choice))

    def _check_kernel(self, node: Node, which: int, size: Dimension, what: str) -> None:
        """The first position outside its axis stops the call before anything is written."""
        positions = node.inputs[which]
        shape = positions.type.shape
        indices = self._indices(len(shape))

        def position() -> Expr:
            return k.cast(self._source(positions, {}).at(*indices), i64)

        value = self._value("position", positions, position)
        place = Buffer(TensorType((2,), i64), (1,), "check", len(self.checks), first=0)
        self.checks.append(Check(what, size, node.where))
        self._add(Kernel(place, *value, node, shape, limit=size))

    def _add(self, kernel: Kernel) -> None:
        self.written.add(kernel.out)
        self.kernels.append(kernel)

    # ---- values that are lowered once ------------------------------------------------------

    def _copied(
        self, node: Node, how: Any = "copied", indices: list[Expr] | None = None
    ) -> tuple[Form, list[Buffer]]:
        """A value at the indices of the kernel, or at those that `how` stands for."""
        at = self._indices(node.type.rank) if indices is None else indices
        return self._value(how, node, lambda: self._source(node, {}).at(*at))

    def _gathered(self, node: Node) -> tuple[Form, list[Buffer]]:
        """Rows with their own positions, which are computed although they are in memory."""
        rows, places = node.inputs
        unread = None if kind(places).leaf else places

        def lower() -> Expr:
            own = self._source(places, {})
            if unread is not None:
                own = Source(places.type, self._inlined(places, {}))
            found = node.op.lower(node.type, self._source(rows, {}), own)
            return found(*self._indices(node.type.rank))

        return self._value("gathered", node, lower, unread)

    def _value(
        self, how: Any, node: Node, lower: Callable[[], Expr], unread: Node | None = None
    ) -> tuple[Form, list[Buffer]]:
        """What a kernel writes, and the buffers that it reads: lowered, or as a kernel before it
        that computes the same of buffers that lie alike. `unread` is computed although it has
        memory."""
        computed = {node, unread} if how in ("computed", "gathered") else set()
        parts, leaves = self._signature(node, computed)
        key = (how, *parts)
        form = self.forms.get(key)
        if form is None:
            form = self.forms[key] = Form(lower(), leaves)
        return form, [leaves[n] for n in form.reads]

    def _signature(self, root: Node, computed: set[Node | None]) -> tuple[list[Any], list[Buffer]]:
        """All that the value of a node depends on, and what has memory under it; `computed` are
        nodes that are computed although they have memory."""
        parts: list[Any] = []
        number: dict[Node | Buffer, int] = {}
        leaves: list[Buffer] = []
        memory = self._memory

        def visit(node: Node) -> int:
            """Of a node that is computed."""
            packed = self.packed.get(node, NOT_PACKED)
            sides = []
            for side, given in enumerate(node.inputs):
                buffer = packed.get(side)
                if buffer is None and given not in computed:
                    buffer = memory(given)
                known = number.get(given if buffer is None else buffer)
                if known is None:
                    known = visit(given) if buffer is None else read(buffer)
                sides.append(known)
            number[node] = len(parts)
            parts.append((id(node.op), *sides) if sides else (id(node.op), node.type))
            return number[node]

        def read(buffer: Buffer) -> int:
            leaves.append(buffer)
            number[buffer] = len(parts)
            parts.append((buffer.type.shape, buffer.dtype, buffer.strides, buffer.panels))
            return number[buffer]

        own = None if root in computed else memory(root)
        if own is None:
            visit(root)
        else:
            read(own)
        return parts, leaves

    def _memory(self, node: Node) -> Buffer | None:
        """Where a value lies, if it does already."""
        buffer = self.buffers.get(id(node))
        written = buffer is None or buffer.kind != "output" or buffer in self.written
        return buffer if written else None

    # ---- expressions -----------------------------------------------------------------------

    def _source(self, node: Node, memo: dict[Any, Expr]) -> Source:
        if is_scalar_constant(node):
            value = node.op.array(node.type).reshape(-1)[0]  # type: ignore[attr-defined]
            return Source(node.type, lambda *i: k.const(value, node.type.dtype))
        buffer = self._memory(node)
        if buffer is not None:
            found = buffer
            return Source(node.type, lambda *i: k.load(found, i, node.type.dtype))
        return Source(node.type, self._inlined(node, memo))

    def _inlined(self, node: Node, memo: dict[Any, Expr]) -> Callable[..., Expr]:
        def at(*indices: Expr) -> Expr:
            key = (id(node), *map(id, indices))
            if key not in memo:
                memo[key] = self._lowered(node, memo, indices)
                memo["keep", *key] = k.Expr("keep", tuple(indices), i64)
            return memo[key]

        return at

    def _lowered(self, node: Node, memo: dict[Any, Expr], indices: Any) -> Expr:
        packed = self.packed.get(node, NOT_PACKED)
        sources = [
            self._buffer_source(packed[side]) if side in packed else self._source(given, memo)
            for side, given in enumerate(node.inputs)
        ]
        if isinstance(node.op, Reshape) and only_ones_move(node):
            return self._moved_ones(node, sources[0], indices)
        return node.op.lower(node.type, *sources)(*indices)

    def _buffer_source(self, buffer: Buffer) -> Source:
        return Source(buffer.type, lambda *i: k.load(buffer, i, buffer.dtype))

    def _moved_ones(self, node: Node, source: Source, indices: Any) -> Expr:
        real = iter([i for i, d in zip(indices, node.type.shape, strict=True) if d != 1])
        zero = k.const(0, i64)
        return source.at(*[zero if d == 1 else next(real) for d in source.type.shape])


def _is_literal(node: Node) -> bool:
    """Whether every element of a node is one number that is part of the graph."""
    while kind(node).view or (kind(node).reshape and only_ones_move(node)):
        (node,) = node.inputs
    return is_scalar_constant(node)


def _followed(path: list[Node], axis: int) -> int:
    """The axis of the last node that an axis of the first becomes; -1 for one of size 1."""
    for node, user in pairwise(path):
        shape = node.type.shape
        if shape[axis] == 1:
            return -1
        if isinstance(user.op, Transpose):
            axis = user.op.order.index(axis)
        else:
            number = sum(d != 1 for d in shape[:axis])
            axis = [n for n, d in enumerate(user.type.shape) if d != 1][number]
    return axis


def fuse(
    graph: Graph,
    strides: Mapping[int, Shape],
    donated: dict[int, int],
    target: Target,
    hints: Mapping[str, int] = NO_HINTS,
) -> Fusion:
    """Kernels of a graph; `donated` maps outputs to inputs that they may overwrite."""
    fusion = Fusion(graph, strides, donated, target, hints)
    fusion.finish()
    return fusion
