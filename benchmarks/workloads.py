"""What every side is given, and how every side is timed: read by all workers, needs only numpy.

A worker answers requests, one JSON object a line: `prepare` builds a case of a workload and says
the loss after 50 steps, `round` times it once more, `forget` drops what was built.
"""

import gzip
import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

MLP = {  # batch, widths of the layers
    "null1": (1, (784, 4, 4, 10)),  # nothing to compute: the overhead of a step
    "mlp16": (16, (784, 100, 100, 10)),  # the article's network and batch
    "mlp128": (128, (784, 100, 100, 10)),
    "wide128": (128, (784, 1024, 1024, 10)),
    "adam16": (16, (784, 100, 100, 10)),  # as mlp16, by Adam; the others by SGD
}
SQUARE = {f"matmul{n}": n for n in (256, 512, 1024, 2048)}
# (batch axes, m, k, n, how a and b are stored: n as they are, t transposed)
AWKWARD = [
    ((), 127, 127, 127, "nn"), ((), 127, 131, 137, "tn"), ((), 131, 137, 139, "nt"),
    ((), 137, 139, 149, "tt"), ((), 509, 503, 499, "nn"), ((), 509, 503, 499, "tn"),
    ((), 509, 503, 499, "nt"), ((), 509, 503, 499, "tt"), ((), 10007, 61, 13, "nn"),
    ((), 10007, 17, 97, "nt"), ((), 7, 2003, 1009, "nn"), ((), 13, 1021, 3001, "nt"),
    ((), 3, 4099, 5, "nn"), ((), 1, 784, 1000, "nn"), ((), 1000, 784, 1, "tn"),
    ((), 17, 19, 23, "nn"), ((), 37, 41, 43, "tt"), ((16,), 61, 67, 71, "nn"),
    ((8,), 97, 101, 103, "nt"), ((2, 3), 129, 65, 257, "tn"),
]  # fmt: skip
LEARNING_RATE = 0.001
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
STEPS = {"wide128": 50}  # batches that a training workload goes round, else 200
CHECKED = 50  # steps after which the losses of all sides are compared


def flops(workload):
    """Floating-point operations of the products of one step or call."""
    if workload in SQUARE:
        return 2 * SQUARE[workload] ** 3
    batch, widths = MLP[workload]
    weights = [a * b for a, b in pairwise(widths)]
    return 2 * batch * (3 * sum(weights) - weights[0])


def mnist(folder):
    """Images (60000, 784) u8 and labels (60000,) i64."""
    images, labels = (
        np.frombuffer(gzip.decompress((Path(folder) / name).read_bytes()), np.uint8, offset=start)
        for name, start in (("train-images-idx3-ubyte.gz", 16), ("train-labels-idx1-ubyte.gz", 8))
    )
    return images.reshape(-1, 784), labels.astype(np.int64)


def batches(workload):
    """The first batches: images (200, batch, 784) f32 from -1 to 1, labels (200, batch) i64."""
    batch, steps = MLP[workload][0], STEPS.get(workload, 200)
    rows = steps * batch
    folder = os.environ.get("DIPTYCH_DATA")
    if folder:
        images, labels = mnist(folder)
    else:
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (rows, 784)).astype(np.uint8)
        labels = random.integers(0, 10, rows)
    images = images[:rows].astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    return images.reshape(steps, batch, 784), labels[:rows].reshape(steps, batch)


def weights(widths):
    """Weights [in, out], uniform in Xavier's bounds, and biases of zeros, in turn."""
    random, found = np.random.default_rng(0), []
    for given, made in pairwise(widths):
        bound = np.sqrt(6 / (given + made))
        found.append(random.uniform(-bound, bound, (given, made)).astype(np.float32))
        found.append(np.zeros(made, np.float32))
    return found


def matrices(lead, m, k, n, stored):
    """The two sides of a product as they are stored, f32."""
    random = np.random.default_rng(0)
    shapes = [
        (*lead, *(pair[::-1] if how == "t" else pair))
        for pair, how in zip(((m, k), (k, n)), stored)
    ]
    return [random.standard_normal(shape, np.float32) for shape in shapes]


# On a machine with other work, a processor's time says more of a single thread than the clock.
now = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter


@dataclass
class Case:
    """One thing to time: `call(i)` is the i-th call, `sync` waits until all calls are done,
    `around` is a context that holds for all calls of a round."""

    call: object
    sync: object = lambda: None
    around: object = nullcontext
    steps: int = 1  # steps in one call
    check: float | None = None  # what must agree with the other sides

    def calls(self, seconds):
        """How many calls fill a round."""
        calls, spent = 1, 0.0
        while calls < 4 or (spent < min(0.1, seconds) and calls < 1e6):
            spent = self.microseconds(calls) * calls * self.steps / 1e6
            calls *= 2
        return max(1, int(seconds / spent * calls / 2))

    def microseconds(self, calls):
        """The mean time of a step over some calls."""
        with self.around():
            begin = now()
            for n in range(calls):
                self.call(n)
            self.sync()
            return (now() - begin) / calls / self.steps * 1e6


def loss_after(step):
    """The loss of the 50th step, for sides that are called once a step."""
    for n in range(CHECKED):
        loss = step(n)
    return float(loss)


def serve(cases, versions, set_threads):
    """The life of a worker. `cases[name](workload)` gives a Case, or several timed one by one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints does not belong among the answers
    set_threads(int(sys.argv[1]))
    known = {}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        key = (ask.get("case"), ask.get("workload"))
        if ask["do"] == "prepare":
            try:
                made = cases[ask["case"]](ask["workload"])
                made = made if isinstance(made, list) else [made]
                known[key] = [(c, c.calls(ask["seconds"] / len(made))) for c in made]
                answer = {"check": made[0].check}
            except Exception as problem:  # one case less, not one worker less
                answer = {"failed": f"{type(problem).__name__}: {problem}"[-2000:]}
        elif ask["do"] == "round":
            answer = {"us": [case.microseconds(calls) for case, calls in known[key]]}
        else:
            known.clear()
            answer = {}
        print(json.dumps(answer), file=answers, flush=True)


def pin(threads):
    """One thread stays on one processor."""
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
