"""How diptych grows: time with the work, compile time with the kernels, memory as planned."""

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise

ENOUGH = 50.0  # microseconds above which time is to be linear in the work
SERIES = {  # batch, widths
    "layers": [(16, (64,) * (n + 1)) for n in (2, 5, 10, 20, 50, 100, 200)],
    "width": [(128, (784, n, n, 10)) for n in (16, 64, 256, 1024, 4096)],
    "batch": [(n, (784, 100, 100, 10)) for n in (1, 16, 256, 4096, 65536)],
}
LINEAR = 1.3  # how much faster than the work or the kernels a time may grow
PASSES = 2  # over every series, for a point and its neighbour may meet another minute of the host


def run(quick, rounds):
    """Points of every series, measured in processes of their own: a list of dicts."""
    made = []
    for name, points in SERIES.items():
        chosen = points[: 3 if quick else None]
        passes = [[measured(*point, rounds) for point in chosen] for _ in range(PASSES)]
        for (batch, widths), *found in zip(chosen, *passes, strict=True):
            label = {"layers": len(widths) - 1, "width": widths[1], "batch": batch}[name]
            least = {what: min(f[what] for f in found) for what in ("us", "compile_s")}
            made.append({"series": name, "at": label, **found[0], **least})
    return made


def measured(batch, widths, rounds):
    """`point` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(batch), ",".join(map(str, widths)), str(rounds)],
        env={**os.environ, "DIPTYCH_CACHE": "", "DIPTYCH_THREADS": "1", "DIPTYCH_TIERS": "0"},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return json.loads(done.stdout)


def training_step(widths):
    """A step of SGD on a network of these widths."""
    import diptych.nn.functional as F
    from diptych import nn, optim

    layers = []
    for ins, outs in pairwise(widths):
        linear = nn.Linear(ins, outs)
        # What passes 100 layers is subnormal with weights that are smaller, and some processors are
        # many times slower at that.
        linear.weight.assign(linear.weight * 6**0.5)
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = optim.SGD(model.parameters(), lr=0.001)

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def point(batch, widths, rounds):
    """One training step of a network, compiled and timed."""
    import numpy as np

    import diptych as dp
    from diptych import tiers

    step = training_step(widths)
    made = []
    compile = tiers.compile

    def timed(*arguments):
        seconds = []
        for _ in range(7):  # others on the machine move single ones by half
            begin = time.perf_counter()
            made.append(compile(*arguments))
            seconds.append(time.perf_counter() - begin)
        compile_seconds.append(min(seconds))
        return made[-1]

    tiers.compile, compile_seconds = timed, []
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, widths[0]), np.float32)
    labels = random.integers(0, widths[-1], batch)
    fast, times = dp.compile(step), []
    fast(images, labels)
    fast(images, labels)
    for _ in range(rounds):
        calls, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < 0.05:
            fast(images, labels)
            calls += 1
        times.append((time.perf_counter() - begin) / calls * 1e6)
    weights = [a * b for a, b in pairwise(widths)]
    return {
        "mflop": 2 * batch * (3 * sum(weights) - weights[0]) / 1e6,
        "us": statistics.median(times), "compile_s": sum(compile_seconds),
        "kernels": distinct(made[0].compiled.kernels),
        "arena_bytes": made[0].compiled.arena_bytes, "values_bytes": 4 * batch * sum(widths),
    }  # fmt: skip


def distinct(kernels):
    """Kernels that differ in more than where their buffers lie."""
    return len({(repr(k.node.op), repr(k.node.type), str([i.type for i in k.node.inputs]))
                for k in kernels})  # fmt: skip


def worst(points, what, per):
    """The largest growth of `what` over that of `per` between neighbours, and those two."""
    pairs = [(a, b) for a, b in pairwise(points) if a["us"] > ENOUGH]
    grown = [((b[what] / a[what]) / (b[per] / a[per]), b[what], a[what]) for a, b in pairs]
    return max(grown, default=None)


def rows(points):
    """Rows of the table: time against work, compile time against distinct kernels."""
    made = []
    for name in SERIES:
        series = [p for p in points if p["series"] == name]
        for what, unit, per, text in (
            ("us", 1, "mflop", "a step's time over its work"),
            ("compile_s", 1e6, "kernels", "compile time over distinct kernels"),
        ):
            found = worst(series, what, per)
            if found is not None and (what == "us" or name == "layers"):
                ratio, ours, before = found
                made.append(
                    {"row": f"growth in {name}, {text}", "ours": "diptych/compiled/1",
                     "ours_us": ours * unit, "theirs": "the point before",
                     "theirs_us": before * unit, "ratio": ratio, "low": ratio, "high": ratio,
                     "limit": LINEAR, "speed": False, "met": ratio <= LINEAR}
                )  # fmt: skip
    return made


def show(points, console):
    from rich.table import Table

    if not points:
        return
    heads = ("series", "at", "MFLOP", "a step", "GFLOP/s", "compile s", "distinct kernels",
             "arena, KB", "values, KB")  # fmt: skip
    table = Table(*heads)
    for p in points:
        table.add_row(
            p["series"], str(p["at"]), f"{p['mflop']:.3g}", f"{p['us']:.4g} us",
            f"{p['mflop'] / p['us'] * 1e3:.0f}", f"{p['compile_s']:.2f}", str(p["kernels"]),
            f"{p['arena_bytes'] / 1024:.0f}", f"{p['values_bytes'] / 1024:.0f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    batch, widths, rounds = sys.argv[1:]
    print(json.dumps(point(int(batch), tuple(map(int, widths.split(","))), int(rounds))))
