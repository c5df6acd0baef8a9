"""No kernel reads or writes a byte outside of its arrays: each ends where memory does."""

import ctypes
import math
import mmap
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from cases import CASES
from test_by_rows import SHAPES, products, values

import diptych as dp
from diptych import engine
from diptych.compiler import ahead, contraction
from diptych.compiler.sizes import NO_HINTS
from diptych.dtypes import symbols
from diptych.errors import DeviceError
from diptych.graph.node import Graph
from diptych.runtime import memory
from diptych.runtime.code import host_target
from diptych.runtime.rows import taker

PAGE = mmap.PAGESIZE


def guarded(at_end, shape, dtype):
    """An array with a page before and one behind it that nobody may touch, next to one of them."""
    size, dtype = math.prod(shape), np.dtype(dtype)
    pages = max(1, -(-size * dtype.itemsize // PAGE))
    memory = np.frombuffer(mmap.mmap(-1, (pages + 2) * PAGE), np.uint8)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for page in (0, pages + 1):
        assert protect(memory.ctypes.data + page * PAGE, PAGE, 0) == 0
    first = PAGE * (1 + pages) - size * dtype.itemsize if at_end else PAGE
    return memory[first : first + size * dtype.itemsize].view(dtype).reshape(shape)


def placed(at_end, values):
    """Guarded copies."""
    copies = [guarded(at_end, np.shape(v), np.asarray(v).dtype) for v in values]
    for place, value in zip(copies, values, strict=True):
        place[...] = value
    return copies


def run(graph, given, at_end, sizes=NO_HINTS):
    """A call whose inputs, outputs and arena are guarded; nothing is looked at afterwards."""
    memory.empty = partial(guarded, at_end)
    memory.maker = lambda shape, dtype, again: partial(guarded, at_end, shape, dtype)
    engine.compile(graph, "cpu").at(sizes).run(placed(at_end, given))


def recorded(case):
    """A case and its gradients as a graph, and what it is given."""
    arrays = case.inputs()
    with dp.Program() as program:
        places = [
            dp.data(f"x{n}", list(shape), a.dtype)
            for n, (shape, a) in enumerate(zip(case.shapes, arrays, strict=True))
        ]
        results = [case.call(*places)]
        floats = [p for p in places if p.dtype.is_float]
        if results[0].dtype.is_float and results[0].requires_grad and floats:
            results += dp.partials((results[0] * results[0]).sum(), floats)
    inputs = [f.node for f in program.feeds.values()] + [node for node, _ in program.live]
    live = [read() for _, read in program.live]
    return Graph(tuple(inputs), tuple(r.node for r in results)), [*arrays, *live]


def window(batch):
    """Rows of a table at a window of a list, whose next rows are asked for, and as a product."""
    with dp.Program() as program:
        table, order = dp.data("table", [500, 64]), dp.data("order", [300], "i64")
        start, weight = dp.data("start", [], "i64"), dp.data("weight", [100, 64])
        rows = dp.gather(table, dp.gather(order, dp.arange(batch) + start))
        outputs = rows * 2.0, dp.matmul(rows, weight.T)
    return Graph(tuple(f.node for f in program.feeds.values()), tuple(o.node for o in outputs))


def main(at_end):
    ahead.FAR_TABLE, contraction.FAR_RESULT = 0, 1 << 16
    for case in CASES:
        run(*recorded(case), at_end)
    for shape in SHAPES:
        run(products(*shape), values(*shape), at_end)
    graph = products(61, 0, 83, 37, symbolic=True)
    (name,) = symbols(graph.inputs[1].type.shape)
    for batch in (2, 15, 16, 17, 129):
        run(graph, values(61, batch, 83, 37), at_end, {name: batch})
    rng = np.random.default_rng(0)
    for batch in (1, 16, 100):
        arrays = [rng.random((500, 64), np.float32), rng.integers(0, 500, 300)]
        more = [np.array(300 - batch), rng.random((100, 64), np.float32)]
        run(window(batch), [*arrays, *more], at_end)
    images, picked = placed(at_end, [rng.integers(0, 256, (50, 79), np.uint8), np.arange(50)])
    for take in (taker(images), taker(images, 255.0)):
        assert take(picked) is not None
    print("inside")


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize(
    "level", ["native", *[pytest.param(n, marks=pytest.mark.slow) for n in ("x86-64", "x86-64-v3")]]
)
def test_nothing_outside_is_touched(level, at_end):
    try:
        host_target(level)
    except DeviceError:
        pytest.skip("the host has less")
    # A process of its own: memory that is not there ends it.
    environment = {**os.environ, "DIPTYCH_CPU": level, "DIPTYCH_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, str(int(at_end))],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "inside\n", done.stderr[-2000:]


if __name__ == "__main__":
    main(bool(int(sys.argv[1])))
