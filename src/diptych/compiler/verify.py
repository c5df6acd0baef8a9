"""A second reading of the kernels that fusion made, before any code is made of them.

At some elements of every kernel, this evaluates the value that the kernel writes, and the value of
its node by the operators themselves. An element of memory stands for itself: (node, indices), found
by who wrote its address. So both values are equal where every load reads the element that the graph
means. A load outside its buffer, or of memory that nothing wrote, is an error as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diptych.compiler.fuse import Fusion
from diptych.compiler.kernels import Buffer, Kernel
from diptych.compiler.materialise import is_alias, kind
from diptych.compiler.simplify import is_scalar_constant
from diptych.compiler.sizes import typical
from diptych.dtypes import Dimension, Shape, i64
from diptych.errors import InternalError
from diptych.graph.node import Node, Source
from diptych.kernel import expr as k
from diptych.kernel import scalar

SAMPLES = 1  # elements of a kernel, and terms of a fold, beside the first and the last


class Datum(NamedTuple):
    """A number that is not known before the graph runs: what it is computed of, as a hash."""

    key: int


Number = Any  # a Python or numpy number, or a Datum
Place = tuple[int, ...]

_PLAIN: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
}


def verify_memory(
    groups: Sequence[Sequence[Kernel]], offsets: Sequence[int], hints: Mapping[str, int]
) -> None:
    """Raise InternalError where temporaries share bytes while both are in use, or where an old
    value is read after a new one is written over it. `offsets` are the places of temporaries whose
    sizes are symbols. Kernels of one group run row by row, which `chains` answers for."""
    lives: dict[int, tuple[int, int, int, int]] = {}  # first byte, end, first group, last group
    written: dict[int, Buffer] = {}  # by slot: what lies there instead of the input
    for time, kernels in enumerate(groups):
        for buffer in [b for kernel in kernels for b in kernel.buffers]:
            root = buffer.root
            if root.kind == "temporary":
                start = root.offset if root.word < 0 else offsets[root.word]
                end = start + typical(root.reach, hints)
                lives[id(root)] = start, end, lives.get(id(root), (0, 0, time, 0))[2], time
            elif root.slot in written and written[root.slot] is not root:
                raise InternalError(f"slot {root.slot} is read after it is written over")
        for kernel in kernels:
            if kernel.limit is None and kernel.out.root.kind == "input":
                written[kernel.out.root.slot] = kernel.out.root
    in_order = sorted(lives.values())
    for n, (_, end, born, gone) in enumerate(in_order):
        for start, _, first, last in in_order[n + 1 :]:
            if start >= end:
                break
            if first <= gone and born <= last:
                raise InternalError(f"two temporaries share byte {start}")


def verify(fusion: Fusion) -> None:
    """Raise InternalError where a kernel of a fusion reads another element than its graph means."""
    _Verifier(fusion).run()


class _Verifier:
    def __init__(self, fusion: Fusion) -> None:
        self.fusion = fusion
        self.inputs = {("input", n): node for n, node in enumerate(fusion.graph.inputs)}
        self.inputs |= {("constant", n): node for n, node in enumerate(fusion.constants)}
        self.computed = {id(buffer): node for node, buffer in self._computed()}
        self.copied = {id(buffer): node for node, buffer in fusion.copies}
        self.writers: dict[int, list[Kernel]] = {}  # of the kernels before, by their memory
        self.numbers = {id(node): n for n, node in enumerate(fusion.graph.nodes)}
        self.meanings: dict[int, k.Expr | None] = {}
        # Of gathers. A kernel may compute a position anew, so it is compared by what it is made of.
        self.positions = {node.inputs[1] for node in fusion.plan.nodes if kind(node).gather}

    def _computed(self) -> Iterator[tuple[Node, Buffer]]:
        """Nodes with memory of their own, and that memory."""
        for node in self.fusion.plan.nodes:
            buffer = self.fusion.buffers.get(id(node))
            if buffer is not None and not is_alias(node):
                yield node, buffer

    def run(self) -> None:
        for kernel in self.fusion.kernels:
            shape = tuple(self.size(d) for d in kernel.shape)
            for place in _sampled(shape):
                at = dict(zip(kernel.indices, place, strict=True))
                found = self._evaluate(kernel.value, at)
                meaning = self._meaning(kernel)
                if meaning is not None:
                    self._compare(kernel, place, found, self._evaluate(meaning, at))
            self.writers.setdefault(id(kernel.out.root), []).append(kernel)

    def _compare(self, kernel: Kernel, place: Place, found: Number, meant: Number) -> None:
        same = found == meant or (found != found and meant != meant)
        if not same:
            raise InternalError(
                f"the kernel of {kernel.node!r} reads other elements than the graph at {place}"
            )

    def size(self, dim: Dimension) -> int:
        return typical(dim, self.fusion.hints)

    # ---- what the graph means ---------------------------------------------------------------

    def _meaning(self, kernel: Kernel) -> k.Expr | None:
        """The node that a kernel is for, of elements of nodes that have memory. None for a part of
        a copy, which is read through, and for a check."""
        if id(kernel) not in self.meanings:
            made = self.computed.get(id(kernel.out)), self.copied.get(id(kernel.out))
            computed, copied = made if kernel.limit is None else (None, None)
            indices = [k.index(n) for n in kernel.indices]
            self.meanings[id(kernel)] = (
                self._lowered(computed)(*indices)
                if computed is not None
                else self._at(copied)(*indices)
                if copied is not None
                else None
            )
        return self.meanings[id(kernel)]

    def _lowered(self, node: Node) -> Callable[..., k.Expr]:
        sources = [Source(i.type, self._at(i)) for i in node.inputs]
        made: Callable[..., k.Expr] = node.op.lower(node.type, *sources)
        return made

    def _at(self, node: Node) -> Callable[..., k.Expr]:
        if is_scalar_constant(node):
            value = node.op.array(node.type).reshape(-1)[0]  # type: ignore[attr-defined]
            return lambda *_: k.const(value, node.type.dtype)
        if kind(node).leaf or node in self.fusion.plan.chosen or is_alias(node):
            return lambda *indices: k.load(node, indices, node.type.dtype)
        if kind(node).reshape:
            return lambda *indices: self._through(node, indices)
        return self._lowered(node)

    def _through(self, node: Node, indices: Sequence[k.Expr]) -> k.Expr:
        """A reshape that moves axes of size 1."""
        (given,) = node.inputs
        real = iter([i for i, d in zip(indices, node.type.shape, strict=True) if d != 1])
        zero = k.const(0, i64)
        return self._at(given)(*[zero if d == 1 else next(real) for d in given.type.shape])

    def _element(self, node: Node, place: Place) -> Number:
        """The element of a node, by the node that its memory belongs to."""
        while is_alias(node):
            (given,) = node.inputs
            place = _unravelled(self._linear(node.type.shape, place), self._shape(given))
            node = given
        if node in self.positions and not kind(node).leaf:
            return self._evaluate(self._lowered(node)(*[k.const(n, i64) for n in place]), {})
        return Datum(hash((self.numbers[id(node)], place)))

    def _shape(self, node: Node) -> Place:
        return tuple([self.size(d) for d in node.type.shape])

    def _linear(self, shape: Shape, place: Place) -> int:
        total = 0
        for extent, index in zip(shape, place, strict=True):
            total = total * self.size(extent) + index
        return total

    # ---- what memory holds ------------------------------------------------------------------

    def _stored(self, buffer: Buffer, place: Place) -> Number:
        """What lies where a buffer says that it has an element."""
        address = self._address(buffer, place)
        root = buffer.root
        if not 0 <= address * root.dtype.bytes < self.size(root.reach):
            raise InternalError(f"element {place} of {buffer} lies outside its memory")
        node = self.inputs.get((root.kind, root.slot))
        if node is not None:
            return self._element(node, self._place(root, address, self._shape(node)))
        for kernel in self.writers.get(id(root), ()):
            shape = tuple([self.size(d) for d in kernel.shape])
            written = self._place(kernel.out, address, shape)
            inside = all(n < d for n, d in zip(written, shape, strict=True))
            if inside and self._address(kernel.out, written) == address:
                node = self.computed.get(id(kernel.out))
                if node is not None and not kind(node).leaf:
                    return self._element(node, written)
                at = dict(zip(kernel.indices, written, strict=True))
                return self._evaluate(kernel.value, at)
        raise InternalError(f"element {place} of {buffer} is read before it is written")

    def _address(self, buffer: Buffer, place: Place) -> int:
        """The number of an element in the memory that a buffer is part of."""
        first = buffer.first if buffer.base is not None else 0
        return self.size(buffer.address(place)) + self.size(first)

    def _place(self, buffer: Buffer, address: int, shape: Place) -> Place:
        """The indices of the element at an address, for a buffer that is not in panels."""
        rest = address - (self.size(buffer.first) if buffer.base is not None else 0)
        found = [0] * len(shape)
        steps = [self.size(s) for s in buffer.strides]
        for axis in sorted(range(len(shape)), key=lambda n: -steps[n]):
            if shape[axis] > 1 and steps[axis]:
                found[axis], rest = divmod(rest, steps[axis])
        return tuple(found)

    # ---- expressions ------------------------------------------------------------------------

    def _evaluate(self, root: k.Expr, at: Mapping[str, int]) -> Number:
        """An expression where the loops have these indices; a fold, at some of its terms."""
        done: dict[k.Expr, Number] = {}
        stack = [(root, False)]
        while stack:
            e, ready = stack.pop()
            if e in done:
                continue
            if e.op == "fold":
                done[e] = self._fold(e, at)
            elif ready or not e.args:
                done[e] = self._one(e, [done[a] for a in e.args], at)
            else:
                stack.append((e, True))
                stack.extend((a, False) for a in e.args)
        return done[root]

    def _fold(self, fold: k.Expr, at: Mapping[str, int]) -> Datum:
        names = [loop.name for loop in fold.attr[1]]
        extents = tuple([self.size(loop.extent) for loop in fold.attr[1]])
        terms = []
        for place in _sampled(extents):
            inner = {**at, **dict(zip(names, place, strict=True))}
            terms.append(tuple([self._evaluate(a, inner) for a in fold.args]))
        return Datum(hash((fold.attr[0], extents, *terms)))

    def _one(self, e: k.Expr, args: list[Number], at: Mapping[str, int]) -> Number:
        if e.op == "const":
            return int(e.attr) if e.dtype == i64 else e.attr
        if e.op == "size":
            return self.size(e.attr)
        if e.op == "index":
            return at[e.attr]
        if e.op == "load":
            return self._load(e, args)
        if e.op == "select" and not isinstance(args[0], Datum):
            return args[1] if args[0] else args[2]
        if any([isinstance(a, Datum) for a in args]):
            keys = [a.tobytes() if isinstance(a, np.generic) else a for a in args]
            return Datum(hash((e.op, e.dtype.name, *keys)))
        plain = _PLAIN.get(e.op)
        if plain is not None and all([type(a) is int for a in args]):
            return plain(*args)
        with np.errstate(all="ignore"):
            value = scalar.apply(
                e.op, [np.asarray(a, x.dtype.numpy) for a, x in zip(args, e.args)], e.dtype
            )
        return int(value) if e.dtype == i64 else value[()]

    def _load(self, e: k.Expr, args: list[Number]) -> Number:
        """An element; a position that is not known stands for one inside its axis."""
        shape = tuple([self.size(d) for d in e.attr.type.shape])
        if any(d == 0 and isinstance(a, Datum) for a, d in zip(args, shape, strict=True)):
            return Datum(0)  # which never happens: a check of the position comes first
        known = zip(args, shape, strict=True)
        place = tuple([a.key % d if isinstance(a, Datum) else int(a) for a, d in known])
        if not all(0 <= n < d for n, d in zip(place, shape, strict=True)):
            raise InternalError(f"element {place} is outside {e.attr}")
        return (
            self._element(e.attr, place)
            if isinstance(e.attr, Node)
            else self._stored(e.attr, place)
        )


def _sampled(shape: Place) -> list[Place]:
    """Some indices of a shape: the first, the last, and some between."""
    if 0 in shape:
        return []
    size = 1
    for d in shape:
        size *= d
    between = [size * 21 * n // 34 % size for n in range(1, SAMPLES + 1)]  # by the golden section
    return [_unravelled(n, shape) for n in dict.fromkeys([0, *between, size - 1])]


def _unravelled(n: int, shape: Place) -> Place:
    place = []
    for d in reversed(shape):
        n, index = divmod(n, d)
        place.append(index)
    return tuple(reversed(place))
