"""diptych: the scanned epoch, the compiled step, the dynamic loop; and what the machine can do."""

import sys
from itertools import pairwise

import llvmlite
import numpy as np
import workloads as given
from workloads import Case

import diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim
from diptych.data import ArrayDataset, DataLoader
from diptych.runtime.code import Code, host_target


def training(workload):
    """A training step of the workload's network, and the batches: images, labels."""
    model = network(given.MLP[workload][1])
    kind = optim.Adam if workload.startswith("adam") else optim.SGD
    optimizer = kind(model.parameters(), lr=given.LEARNING_RATE)

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step, *given.batches(workload)


def network(widths):
    dp.manual_seed(0)
    layers = []
    for n, (ins, outs) in enumerate(pairwise(widths)):
        layers += [nn.ReLU(), nn.Linear(ins, outs)] if n else [nn.Linear(ins, outs)]
    model = nn.Sequential(*layers)
    values = [np.ascontiguousarray(a.T) if a.ndim == 2 else a for a in given.weights(widths)]
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    return model


def dynamic(workload):
    step, images, labels = training(workload)
    batches, last = list(zip(images, labels)), [None]

    def call(n):
        x, y = batches[n % len(batches)]
        last[0] = step(dp.tensor(x), dp.tensor(y))
        return last[0]

    return Case(call, lambda: float(last[0]), check=given.loss_after(call))


def compiled(workload):
    step, images, labels = training(workload)
    batches, fast = list(zip(images, labels)), dp.compile(step)

    def call(n):
        return fast(*batches[n % len(batches)])

    return Case(call, check=given.loss_after(call))


def scan(workload):
    step, images, labels = training(workload)
    rows = ArrayDataset(images.reshape(-1, 784), labels.reshape(-1))
    loader, fast = DataLoader(rows, images.shape[1]), dp.compile(step)
    (losses,) = dp.scan(fast, loader)
    return Case(
        lambda _: dp.scan(fast, loader), steps=len(images), check=float(losses[given.CHECKED - 1])
    )


def matmul(workload):
    if workload == "awkward":
        return [product(*shape) for shape in given.AWKWARD]
    n = given.SQUARE[workload]
    return product((), n, n, n, "nn")


def product(lead, m, k, n, stored):
    arrays = given.matrices(lead, m, k, n, stored)
    axes = [*range(len(lead)), len(lead) + 1, len(lead)]

    @dp.compile
    def multiply(a, b):
        a, b = (dp.transpose(x, axes) if how == "t" else x for x, how in zip((a, b), stored))
        return dp.matmul(a, b)

    found, expected = multiply(*arrays).numpy(), arrays
    expected = [x.swapaxes(-1, -2) if how == "t" else x for x, how in zip(arrays, stored)]
    np.testing.assert_allclose(found, np.matmul(*expected), atol=1e-3 * np.sqrt(k))
    return Case(lambda _: multiply(*arrays))


def inference(_):
    model = network(given.MLP["mlp16"][1]).eval()
    images = list(given.batches("null1")[0])
    fast = dp.compile(lambda x: model(x))

    def call(n):
        return fast(images[n % len(images)]).numpy()

    return Case(call, check=float(call(0).sum()))


def inference_program(_):
    """The same network as an explicit program, as one that was saved and loaded is served."""
    model = network(given.MLP["mlp16"][1]).eval()
    images = list(given.batches("null1")[0])
    with dp.Program() as program:
        scores = model(dp.data("x", [1, images[0].shape[1]]))
    executor = dp.Executor()

    def call(n):
        return executor.run(program, {"x": images[n % len(images)]}, [scores])[0]

    return Case(call, check=float(call(0).sum()))


TURNS = 100_000
CHAINS, REPEAT = 24, 50_000  # enough for the call itself to be nothing beside it


def fma_limit(workload):
    """The time of the workload's products at the rate at which one core multiplies and adds."""
    target = host_target("native")
    vector = f"<{target.lanes} x float>"
    lines = [f"define i64 @peak(ptr %table, ptr %out) {{\nentry:\n  %a = load {vector}, ptr %out"]
    lines.append("  br label %loop\nloop:\n  %i = phi i64 [ 0, %entry ], [ %j, %loop ]")
    for n in range(CHAINS):
        lines.append(f"  %x{n} = phi {vector} [ %a, %entry ], [ %y{n}, %loop ]")
    for n in range(CHAINS):
        lines.append(
            f"  %y{n} = call {vector} @llvm.fma.v{target.lanes}f32"
            f"({vector} %x{n}, {vector} %a, {vector} %a)"
        )
    lines.append(f"  %j = add i64 %i, 1\n  %more = icmp ult i64 %j, {REPEAT}")
    lines.append("  br i1 %more, label %loop, label %end\nend:")
    for n in range(CHAINS):
        lines.append(f"  %p{n} = getelementptr {vector}, ptr %out, i64 {n}")
        lines.append(f"  store {vector} %y{n}, ptr %p{n}, align 4")
    lines.append("  ret i64 0\n}")
    lines.append(f"declare {vector} @llvm.fma.v{target.lanes}f32({vector}, {vector}, {vector})")
    code = Code("\n".join(lines) + "\n", target, ["peak"])
    out = np.full(CHAINS * target.lanes + 16, 0.5, np.float32)
    done = 2 * target.lanes * CHAINS * REPEAT  # operations in one call

    def call(_):
        return code.functions["peak"](0, -(-out.__array_interface__["data"][0] // 64) * 64)

    return Case(call, steps=done / given.flops(workload))


def python_limit(_):
    """The time of a turn of a loop in plain Python: what stated times of calls depend on."""

    def call(_):
        total = 0
        for n in range(TURNS):
            total += n
        return total

    return Case(call, steps=TURNS)


def copy(_):
    """The time to copy a gigabyte between arrays far larger than the caches, read and written."""
    source = np.ones(1 << 26, np.float32)
    into = np.empty_like(source)
    return Case(lambda _: np.copyto(into, source), steps=2 * source.nbytes / 1e9)


CASES = {
    "dynamic": dynamic, "compiled": compiled, "scan": scan, "matmul": matmul,
    "inference": inference, "inference_program": inference_program, "fma_limit": fma_limit,
    "python_limit": python_limit, "copy": copy,
}  # fmt: skip


if __name__ == "__main__":
    given.pin(int(sys.argv[1]))
    versions = {
        "diptych": dp.__version__,
        "llvmlite": llvmlite.__version__,
        "numpy": np.__version__,
    }
    given.serve(CASES, versions, dp.set_threads)
