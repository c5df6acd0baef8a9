"""Where the time of a step goes, kernel by kernel: `python benchmarks/kernels.py [--batch N] ...`.

Every kernel of the step's executable is compiled into a module of its own and called many times on
the buffers of the real step, so each row is that kernel alone, with warm caches.
"""

import argparse
import statistics
import time

import numpy as np
from growth import training_step

import diptych as dp
from diptych import config, engine
from diptych.compiler import ENTRY
from diptych.compiler.driver import Module
from diptych.compiler.memory import place
from diptych.data import ArrayDataset, DataLoader
from diptych.runtime import memory
from diptych.runtime.call import address
from diptych.runtime.code import Code, host_target
from diptych.runtime.threads import pool_address


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--widths", default="784,100,100,10")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pixels", choices=["u8", "f32"], default="f32")
    options = parser.parse_args()
    global THREADS
    THREADS = options.threads
    dp.set_threads(THREADS)
    executable, inputs = recorded(options)
    total = 0.0
    for seconds, kernel in profile(executable, inputs):
        total += seconds
        print(f"{seconds * 1e6:9.2f} us  {kernel.node!r}")
    print(f"{total * 1e6:9.2f} us  all {len(executable.compiled.kernels)} kernels")


def recorded(options):
    """The executable of one epoch of the network, and the inputs of its last call."""
    widths = [int(w) for w in options.widths.split(",")]
    step = training_step(widths)
    rng = np.random.default_rng(0)
    rows = options.batch * 20
    pixels = rng.integers(0, 256, (rows, widths[0])).astype(np.uint8)
    if options.pixels == "f32":
        pixels = (pixels / 127.5 - 1).astype(np.float32)
    labels = rng.integers(0, widths[-1], rows)
    loader = DataLoader(ArrayDataset(pixels, labels, scale=255.0), options.batch, shuffle=True)
    seen = []
    run = engine.LoopExecutable.run_steps

    def keep(self, inputs, steps):
        seen.append((self, inputs))
        return run(self, inputs, steps)

    engine.LoopExecutable.run_steps = keep
    dp.scan(dp.compile(step), loader)
    return seen[-1]


def profile(executable, inputs):
    """(seconds a call, kernel) for every kernel of an executable."""
    compiled = executable.compiled
    results = [memory.empty(shape, dtype) for shape, dtype in executable.outputs]
    for n, given in executable.donated.items():
        results[n] = inputs[given]
    status = np.zeros(2 * len(compiled.checks) + 1, np.int64)
    places = [*inputs, *results, *executable.constants, status]
    last = [pool_address(), address(executable.words)]
    table = np.array([*map(address, places), *last], np.int64)
    arena = memory.empty((max(executable.arena_bytes, 1),), np.uint8)
    addresses = address(table), address(arena)
    executable.code.functions[ENTRY](*addresses)
    target = host_target(config.cpu())
    offsets, _ = place(compiled.temporaries, executable.sizes)
    found = []
    for kernel in compiled.kernels:
        module = Module([kernel], target, len(table) - 2, compiled.table)
        words = np.array(module.words(executable.sizes, offsets), np.int64)
        table[-1] = address(words)
        code = Code(module.text, target, [ENTRY])
        found.append((timed(code.functions[ENTRY], addresses), kernel))
    return found


def timed(function, addresses, rounds=7):
    """Median seconds of a call, the cost of calling from Python taken off."""
    clock = time.perf_counter if THREADS > 1 else time.thread_time  # others may be at work
    function(*addresses)
    begin = clock()
    function(*addresses)
    calls = max(3, int(0.004 / (clock() - begin + 1e-9)))
    times = []
    for _ in range(rounds):
        begin = clock()
        for _call in range(calls):
            function(*addresses)
        times.append((clock() - begin) / calls)
    return max(0.0, statistics.median(times) - EMPTY)


THREADS = 1
EMPTY = 0.35e-6  # seconds of a call into an empty native function


if __name__ == "__main__":
    main()
