"""The contraction, and matmul and linear on top of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar

import numpy as np

from diptych.dtypes import Dimension, TensorType, as_dtype, broadcast_shapes, promote
from diptych.errors import DtypeError, ShapeError
from diptych.graph.node import Node, Operator, Source
from diptych.kernel import expr as k
from diptych.kernel import scalar as scalar_ops
from diptych.kernel.expr import Expr
from diptych.ops.base import Handle, composite, convert, need_float, operand, primitive, record
from diptych.ops.elementwise import add
from diptych.ops.reduce import BLOCK, ordered_sum
from diptych.ops.shape import broadcast_to, reshape

Array = np.ndarray[Any, Any]
BATCH = "abcdefghijlopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # letters but k, m and n
_serial = count()


@primitive
class Contract(Operator):
    """Sum of products over shared axes, one letter per axis: `mk,kn->mn`.

    Letters missing from the result are contracted, as one list, in the order of `over`. Up to
    1024 terms are one chain of fused multiply-adds from +0; more are blocks of 1024 (rule 3).
    """

    left: str
    right: str
    out: str
    over: str
    name: ClassVar[str] = "contract"

    def sizes(self, a: TensorType, b: TensorType) -> dict[str, Dimension]:
        sizes: dict[str, Dimension] = {}
        for letters, t in ((self.left, a), (self.right, b)):
            if len(letters) != t.rank or len(set(letters)) != t.rank:
                raise ShapeError(
                    "contract has one letter for every axis of a side, each another",
                    f"{letters!r} for {t}",
                    "e.g. contract(x, w, 'mk,kn->mn')",
                )
            for letter, d in zip(letters, t.shape, strict=True):
                if sizes.setdefault(letter, d) != d:
                    raise ShapeError(
                        "contract needs equal sizes where the letters are equal",
                        f"{self.left},{self.right}->{self.out} of {a} and {b}: "
                        f"{letter} is {sizes[letter]} and {d}",
                        "transpose or reshape one of them",
                    )
        return sizes

    def infer(self, *inputs: TensorType) -> TensorType:
        a, b = inputs
        need_float(a, "contract")
        sizes = self.sizes(a, b)
        listed = self.out + self.over
        if a.dtype != b.dtype or sorted(listed) != sorted(sizes):
            raise ShapeError(
                "contract lists every letter once, in its result or among those it sums over",
                f"{self.left},{self.right}->{self.out} over {self.over} of {a} and {b}",
                "e.g. contract(x, w, 'mk,kn->mn')",
            )
        return a.with_shape(sizes[letter] for letter in self.out)

    def reference(self, *inputs: Array) -> Array:
        a, b = inputs
        sizes = self.sizes(*[TensorType(x.shape, as_dtype(x.dtype)) for x in inputs])
        every = self.over + self.out

        def listed(x: Array, letters: str) -> Array:
            order = sorted(range(x.ndim), key=lambda n: every.index(letters[n]))
            shape = [sizes[c] if c in letters else 1 for c in every]
            x = x.transpose(order).reshape(shape)
            over = [sizes[c] for c in self.over]
            x = np.broadcast_to(x, [*over, *x.shape[len(over) :]])  # type: ignore[list-item]
            return x.reshape(math.prod(over), *x.shape[len(over) :])

        terms = [listed(a, self.left), listed(b, self.right)]
        shape = tuple(sizes[c] for c in self.out)
        n = terms[0].shape[0]
        whole = n - n % BLOCK
        sums = []
        if whole:  # the chains of whole blocks side by side
            size = (whole // BLOCK, BLOCK)
            blocks = [t[:whole].reshape(*size, *t.shape[1:]).swapaxes(0, 1) for t in terms]
            sums += [*_chain(blocks, (size[0], *shape))]
        if n > whole:
            sums.append(_chain([t[whole:] for t in terms], shape))
        with np.errstate(all="ignore"):
            return ordered_sum(np.stack(sums)) if sums else np.zeros(shape, a.dtype)

    def grad(self, g: Node, node: Node) -> Sequence[Node | None]:
        """Each side's cotangent is a contraction of g with the other side."""
        a, b = node.inputs
        result: list[Node | None] = [None, None]
        if a.needs_grad:
            kept, over = self._cotangent(self.left, self.right)
            made = record(Contract(self.out, self.right, kept, over), g, b)
            result[0] = _spread(made, kept, self.left, a.type)
        if b.needs_grad:
            kept, over = self._cotangent(self.right, self.left)
            made = record(Contract(self.left, self.out, kept, over), a, g)
            result[1] = _spread(made, kept, self.right, b.type)
        return result

    def _cotangent(self, own: str, other: str) -> tuple[str, str]:
        """The axes of a side that its cotangent's contraction has, and those it sums over."""
        there = dict.fromkeys(self.out + other)
        return "".join(c for c in own if c in there), "".join(c for c in there if c not in own)

    def lower(self, out: TensorType, *inputs: Source) -> Callable[..., Expr]:
        a, b = inputs
        sizes = self.sizes(a.type, b.type)
        loops = {c: k.Loop(f"c{next(_serial)}", sizes[c]) for c in self.over}

        def at(*i: Expr) -> Expr:
            place = dict(zip(self.out, i, strict=True))
            place.update({c: k.index(loop.name) for c, loop in loops.items()})
            left = a.at(*[place[c] for c in self.left])
            right = b.at(*[place[c] for c in self.right])
            return k.fold("contract", list(loops.values()), left, right)

        return at


def _chain(terms: Sequence[Array], shape: Sequence[Any]) -> Array:
    """Multiply-adds of the terms of both sides along axis 0, from +0 on."""
    total: Array = np.zeros(shape, terms[0].dtype)
    with np.errstate(all="ignore"):
        for a, b in zip(*terms, strict=True):
            total = scalar_ops.fma(a, b, total)
    return total


def _spread(x: Handle, letters: str, every: str, t: TensorType) -> Handle:
    """x with the axes that were summed over on one side alone spread again."""
    if letters == every:
        return x
    shape = [d if c in letters else 1 for c, d in zip(every, t.shape, strict=True)]
    return broadcast_to(reshape(x, shape), t.shape)


def contract(a: Any, b: Any, spec: str) -> Handle:
    """A general contraction, `contract(x, w, "mk,kn->mn")`; see `Contract`."""
    parts = re.fullmatch(r"([a-zA-Z]*),([a-zA-Z]*)->([a-zA-Z]*)", str(spec).replace(" ", ""))
    if parts is None:
        raise ShapeError(
            "contract takes the letters of two sides and of the result",
            repr(spec),
            "e.g. contract(x, w, 'mk,kn->mn')",
        )
    left, right, out = parts.groups()
    a, b = operand(a), operand(b)
    dtype = promote(a.type.dtype, b.type.dtype, "contract")
    over = "".join(dict.fromkeys(c for c in left + right if c not in out))
    return record(Contract(left, right, out, over), convert(a, dtype), convert(b, dtype))


def matmul(a: Any, b: Any) -> Handle:
    """Matrix product with numpy's batching: (5, 2, 3) @ (3, 4) -> (5, 2, 4)."""
    a, b = operand(a), operand(b)
    dtype = promote(a.type.dtype, b.type.dtype, "matmul")
    a, b = convert(a, dtype), convert(b, dtype)
    ta, tb = a.type, b.type
    if ta.rank == 0 or tb.rank == 0:
        raise ShapeError("matmul takes at least one axis a side", f"{ta} @ {tb}", "use *")
    if ta.shape[-1] != tb.shape[-2 if tb.rank > 1 else 0]:
        raise ShapeError(
            "matmul needs equal inner sizes",
            f"{ta} @ {tb}: {ta.shape[-1]} is not {tb.shape[-2 if tb.rank > 1 else 0]}",
            "check the layer's in_features, or transpose one side",
        )
    m = "m" if ta.rank > 1 else ""
    n = "n" if tb.rank > 1 else ""
    batch_a, batch_b = ta.shape[: -2 if m else -1], tb.shape[: -2 if n else -1]
    if not batch_b:
        letters = BATCH[: len(batch_a)]
        return record(Contract(letters + m + "k", "k" + n, letters + m + n, "k"), a, b)
    batch = broadcast_shapes(batch_a, batch_b, "matmul")
    letters = BATCH[: len(batch)]
    a = broadcast_to(a, (*batch, *ta.shape[len(batch_a) :]))
    b = broadcast_to(b, (*batch, *tb.shape[len(batch_b) :]))
    return record(Contract(letters + m + "k", letters + "k" + n, letters + m + n, "k"), a, b)


@composite
def linear(x: Handle, weight: Handle, bias: Handle | None = None) -> Handle:
    """x @ weight.T + bias: x (..., in), weight (out, in), bias (out) -> (..., out)."""
    if weight.type.rank != 2:
        raise ShapeError(
            "linear takes a weight (out, in)", f"{weight.type}", "matmul takes other shapes"
        )
    have, want = x.type.shape[-1] if x.type.rank else 0, weight.type.shape[-1]
    if have != want:
        raise ShapeError(
            "linear needs the last size of its input to be the layer's in_features",
            f"{x.type} into weight {weight.type}: {have} is not {want}",
            "flatten the input, or build the layer with that in_features",
        )
    if x.type.dtype != weight.type.dtype:
        raise DtypeError(
            "linear needs its input to have the dtype of its weight",
            f"{x.type} into weight {weight.type}",
            f"convert the input with .astype('{weight.type.dtype.numpy}')",
        )
    lead = x.type.shape[:-1]
    letters = BATCH[: len(lead)]
    product = record(Contract(letters + "k", "nk", letters + "n", "k"), x, weight)
    return product if bias is None else add(product, bias)
