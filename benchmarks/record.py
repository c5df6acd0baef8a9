"""Figures for the record: `python benchmarks/record.py [--data MNIST_FOLDER]` prints a table.

Steps are timed in turn, mode after mode, several rounds of them; the table has the median and the
spread of the rounds. Without --data the pixels are random, of MNIST's size: the work is the same.
"""

import argparse
import ast
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import llvmlite
import numpy as np

import diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim
from diptych.data import ArrayDataset, DataLoader, mnist

SOURCE = Path(dp.__file__).parent
START = """
import time
begin = time.perf_counter()
import numpy
numpy_there = time.perf_counter()
import diptych as dp
imported = time.perf_counter()
import numpy as np, diptych.nn.functional as F
from diptych import nn, optim
model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(),
                      nn.Linear(100, 10))
optimizer = optim.SGD(model.parameters(), lr=0.1)
def step(images, labels):
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss
step = dp.compile(step) if {compiled} else step
for _ in range(2):  # the second step is the one that recurs
    float(step(dp.tensor(np.ones((16, 784), np.float32)), dp.tensor(np.arange(16) % 10)))
print(numpy_there - begin, imported - numpy_there, time.perf_counter() - imported)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of MNIST")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{processor()}, {len(__import__('os').sched_getaffinity(0))} processors, "
          f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
          f"numpy {np.__version__}, llvmlite {llvmlite.__version__}\n")  # fmt: skip
    print("| figure | median | spread |\n|---|---|---|")
    for name, values, unit in [*steps(options), *threads(options), *starts(options)]:
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"| {name} | {middle:.4g} {unit} | {low:.4g} to {high:.4g} |")
    lines, tokens = size()
    print(f"| lines of code (no comments, no docstrings) | {lines} | tokens a line {tokens:.1f} |")


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def network(width, classes, hidden):
    dp.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def steps(options):
    """Microseconds a step of the article's network at batch 16, the loader included."""
    if options.data:
        full = mnist("train", options.data)
        dataset = ArrayDataset(full.images[:16000], full.labels[:16000], full.scale, full.shift)
    else:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (16000, 784)).astype(np.uint8)
        dataset = ArrayDataset(pixels, rng.integers(0, 10, 16000), scale=255.0)
    loader = DataLoader(dataset, 16, shuffle=True, seed=0)
    runs = {"dynamic": network(784, 10, 100), "static": dp.compile(network(784, 10, 100))}
    scanned = dp.compile(network(784, 10, 100))
    found = {name: [] for name in [*runs, "scan"]}
    for _ in range(options.rounds + 1):
        for name, step in runs.items():
            begin = time.perf_counter()
            for images, labels in loader:
                loss = step(dp.tensor(images), dp.tensor(labels))
            float(loss)
            found[name].append((time.perf_counter() - begin) / len(loader) * 1e6)
        begin = time.perf_counter()
        dp.scan(scanned, loader)
        found["scan"].append((time.perf_counter() - begin) / len(loader) * 1e6)
    return [(f"{name}, batch 16, a step", v[1:], "us") for name, v in found.items()]


def threads(options):
    """A network of 1024 units a layer at batch 128, on one thread and on two."""
    rng = np.random.default_rng(0)
    images = dp.tensor(rng.standard_normal((128, 784)).astype(np.float32))
    labels = dp.tensor(rng.integers(0, 10, 128))
    step = dp.compile(network(784, 10, 1024))
    found = {1: [], 2: []}
    for _ in range(options.rounds + 1):
        for count, times in found.items():
            dp.set_threads(count)
            begin = time.perf_counter()
            for _step in range(5):
                loss = step(images, labels)
            float(loss)
            times.append((time.perf_counter() - begin) / 5 * 1e3)
    return [(f"1024 wide, batch 128, {n} thread(s), a step", v[1:], "ms") for n, v in found.items()]


def starts(options):
    """A new process until its second step is done, with an empty and with a full cache."""
    found = []
    for compiled in (False, True):
        name = "static" if compiled else "dynamic"
        cold, warm = [], []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as cache:
                cold.append(start(compiled, cache)[2])
                warm.append(start(compiled, cache)[2])
        found += [(f"{name}, cold start", cold, "s"), (f"{name}, warm start", warm, "s")]
    imports = [start(True, "")[:2] for _ in range(options.rounds)]
    found.append(("import numpy", [a * 1e3 for a, _ in imports], "ms"))
    found.append(("import diptych after it", [b * 1e3 for _, b in imports], "ms"))
    return found


def start(compiled, cache):
    import os

    done = subprocess.run(
        [sys.executable, "-c", START.format(compiled=compiled)],
        env={**os.environ, "DIPTYCH_CACHE": cache}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [float(word) for word in done.stdout.split()]


def size():
    """Lines of code in the package and tokens a line."""
    import io
    import tokenize

    lines = count = 0
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        prose = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                prose |= set(range(node.lineno, node.end_lineno + 1))
        tokens = [
            t for t in tokenize.generate_tokens(io.StringIO(text).readline)
            if t.type not in skip and t.start[0] not in prose and t.string
        ]  # fmt: skip
        lines += len({t.start[0] for t in tokens})
        count += len(tokens)
    return lines, count / lines


if __name__ == "__main__":
    main()
