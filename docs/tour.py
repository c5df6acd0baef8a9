"""The article's y = 2a + 3b, followed from Python to machine code.

Run it (`python docs/tour.py`) to see every form that the computation takes; the tests run it too,
so what the comments say stays true. The parts are described in docs/architecture.md.
"""

import numpy as np

import diptych as dp
from diptych import autodiff, engine, interpret
from diptych.compiler.driver import Module
from diptych.compiler.fuse import fuse
from diptych.compiler.memory import plan_memory
from diptych.compiler.schedule import schedule
from diptych.compiler.simplify import simplify
from diptych.compiler.sizes import FIXED
from diptych.graph.node import Graph, constant_node, walk
from diptych.graph.text import parse_graph, print_graph
from diptych.ops.base import make_operator
from diptych.runtime.code import host_target


def show(title, text):
    print(f"\n---- {title} " + "-" * (70 - len(title)) + f"\n{text}")


# 1. The two panels. The dynamic one runs when a value is looked at: print does.
a = dp.tensor(3.0, requires_grad=True)
b = dp.tensor(4.0, requires_grad=True)
y = 2 * a + 3 * b
show("dynamic panel", f"a = {a}\nb = {b}\ny = {y}")
y.backward()
show("dynamic panel, gradients", f"dy/da = {a.grad}\ndy/db = {b.grad}")
assert (y.item(), a.grad.item(), b.grad.item()) == (18.0, 2.0, 3.0)

# The static one records first, and runs what it is fed.
with dp.Program() as program:
    a = dp.data("a", [])
    b = dp.data("b", [])
    y = 2 * a + 3 * b
    slopes = dp.partials(y, [a, b])
feed = {"a": np.float32(3), "b": np.float32(4)}
found = [float(v) for v in program.run(feed, fetch=[y, *slopes])]
show("static panel", f"y, dy/da, dy/db = {found}")
assert found == [18.0, 2.0, 3.0]

# 2. What was recorded. A node is one call of an operator: operator, inputs, type, and the line
# of this file that made it. `walk` lists nodes so that inputs come first.
show("nodes", "\n".join(map(repr, walk([y.node]))))

# 3. The graph as text, which parses back to an equal graph.
forward = Graph((a.node, b.node), (y.node,))
text = print_graph(forward)
show("the graph as text", text)
assert print_graph(parse_graph(text, make_operator)) == text

# 4. Backward propagation is a transformation from graph to graph: nodes in, nodes out. A square
# is more telling than the sum, whose partials are the constants 2 and 3.
with dp.Program():
    a = dp.data("a", [])
    b = dp.data("b", [])
    y = (2 * a + 3 * b) ** 2
seed = constant_node(1.0)
slopes = autodiff.gradients([y.node], [seed], [a.node, b.node])
graph = Graph((a.node, b.node), (y.node, *slopes))
show("(2a + 3b)^2 with its gradients", print_graph(graph))

# 5. The reference device runs the graph node by node in numpy. It is the definition.
inputs = [np.array(3, np.float32), np.array(4, np.float32)]
reference = interpret.run(graph, inputs)
show("reference device", [float(v) for v in reference])
assert [float(v) for v in reference] == [324.0, 72.0, 108.0]

# 6. The compiler: a list of steps, a value in and a value out.
# simplify: operators become primitives, and what is computed twice is computed once.
simple = simplify(graph)
show("simplify", print_graph(simple))
assert len(simple.nodes) <= len(graph.nodes)

# fuse: which values get memory. Every kernel fills one buffer with one expression.
target = host_target("native")
fusion = fuse(simple, {}, {}, target)
kernels = schedule(fusion)
show("fuse and schedule", "\n".join(f"k{n} -> {k.node!r}" for n, k in enumerate(kernels)))

# memory: temporaries share one arena. Scalars need little of it.
show("memory", f"{plan_memory([[kernel] for kernel in kernels])[1]} bytes of arena")

# emit: LLVM text for one CPU, a function for each different kernel and a loop that calls them.
# No fast-math flag, and no call that LLVM could fold on its own.
llvm = Module(kernels, target, len(graph.inputs) + len(graph.outputs), FIXED).text
first = llvm[llvm.index("define internal void @k0") :]
show("LLVM, the first kernel", first[: first.index("}") + 1])
assert "fast" not in llvm and "contract" not in llvm

# 7. Machine code. The engine does all of this behind one call, and keeps the object code on disk.
executable = engine.compile(graph, "cpu")
assembly = executable.assembly()
lines = [line for line in assembly.splitlines() if not line.lstrip().startswith(".")]
show(f"machine code ({target.triple})", "\n".join(lines[:40]))

# 8. The call: buffers in, buffers out, and the same bits as the definition.
native = executable.run(inputs)
show("native", [float(v) for v in native])
assert [v.tobytes() for v in native] == [v.tobytes() for v in reference]
