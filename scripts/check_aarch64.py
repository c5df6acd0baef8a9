"""A network with a gate as a library for aarch64, run under qemu-user: the bits of this CPU.

python scripts/check_aarch64.py     (needs qemu-user and gcc-aarch64-linux-gnu)
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import diptych as dp
import diptych.nn.functional as F
from diptych import nn

MAIN = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
int64_t digits_arena_bytes(void);
int64_t digits_call(const void *const *inputs, void *const *outputs, void *arena);
int main(void) {
    static float in[128 * 784], out[128 * 10];
    if (fread(in, 4, 128 * 784, stdin) != 128 * 784) return 2;
    const void *inputs[1] = {in};
    void *outputs[1] = {out};
    int64_t code = digits_call(inputs, outputs, malloc(digits_arena_bytes()));
    if (code) return 3;
    return fwrite(out, 4, 128 * 10, stdout) == 128 * 10 ? 0 : 4;
}
"""


def main():
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        print("needs aarch64-linux-gnu-gcc and qemu-aarch64 on the PATH")
        return 2
    dp.manual_seed(0)
    first, gate, last = nn.Linear(784, 100), nn.Linear(784, 100), nn.Linear(100, 10)
    with dp.Program() as program:
        pixels = dp.placeholder("pixels", [None, 784])
        hidden = F.relu(first(pixels)) * dp.sigmoid(gate(pixels))  # two products in one expression
        probabilities = F.softmax(last(hidden))
    images = np.random.default_rng(0).random((128, 784), np.float32)
    (here,) = program.run({"pixels": images}, [probabilities])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "libdigits.so"
        dp.export_library(
            program, library, ["pixels"], [probabilities], sizes={"N": 128}, target="aarch64"
        )
        (folder / "main.c").write_text(MAIN)
        subprocess.run(
            [compiler, "-O1", "main.c", "-L.", "-ldigits", "-Wl,-rpath,.", "-o", "main"],
            cwd=folder, check=True,
        )  # fmt: skip
        done = subprocess.run(
            [emulator, "-L", "/usr/aarch64-linux-gnu", "./main"], input=images.tobytes(),
            cwd=folder, capture_output=True, check=True,
        )  # fmt: skip
        kind = subprocess.run(["file", "-b", str(library)], capture_output=True, text=True)
    hashes = [hashlib.sha256(b).hexdigest() for b in (here.tobytes(), done.stdout)]
    print(f"this CPU  {hashes[0]}\naarch64   {hashes[1]}  ({kind.stdout.strip()[:60]})")
    return 0 if hashes[0] == hashes[1] else 1


if __name__ == "__main__":
    sys.exit(main())
