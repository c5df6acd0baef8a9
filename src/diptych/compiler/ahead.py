"""What will be read soon: the rows of the next batch, where a batch is a window of a list.

A step of an epoch reads rows of a data set at order[start], order[start + 1], ...: the next step
will read those at order[start + batch] and on. Asking for them while this batch is gathered takes
the wait for memory out of the next. Only what is asked for depends on this, never a value.
"""

from __future__ import annotations

from collections.abc import Mapping

from diptych.compiler.affine import Affine, affine, uses
from diptych.compiler.kernels import Kernel
from diptych.compiler.sizes import typical
from diptych.dtypes import i64
from diptych.kernel import expr as k

FAR_TABLE = 1 << 21  # bytes of a table whose rows are not in the nearer caches


def next_batch(
    load: k.Expr, kernel: Kernel, hints: Mapping[str, int], memo: dict[int, Affine | None]
) -> k.Expr | None:
    """The load a whole batch later, or of the last row where the list ends; None where it is not
    from a large table, or its positions are no window of a list."""
    if typical(load.attr.bytes, hints) < FAR_TABLE:
        return None
    args = [a if affine(a, memo) is not None else _later(a, kernel, memo) for a in load.args]
    found = tuple(a for a in args if a is not None)
    return k.Expr("load", found, load.dtype, load.attr) if len(found) == len(args) else None


def _later(position: k.Expr, kernel: Kernel, memo: dict[int, Affine | None]) -> k.Expr | None:
    """A computed position, a whole batch later."""
    inner = position
    while inner.op == "cast":
        inner = inner.args[0]
    if inner.op != "load" or len(inner.args) != 1 or affine(inner.args[0], memo) is not None:
        return None
    axes = [n for n, name in enumerate(kernel.indices) if uses(inner, {name})]
    if len(axes) != 1:
        return None
    name, batch = kernel.indices[axes[0]], kernel.shape[axes[0]]

    def moved(e: k.Expr) -> k.Expr | None:
        return k.index(name) + k.size(batch) if e.op == "index" and e.attr == name else None

    last = inner.attr.type.shape[0] - 1
    place = k.minimum(k.substitute(inner.args[0], moved), k.size(last))
    return k.cast(k.load(inner.attr, [place], inner.dtype), i64)
