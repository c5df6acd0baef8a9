"""A program as a shared library for this or another CPU, from the same compiler.

The library has the weights inside and depends on nothing but the C library. Its interface:

    int64_t diptych_arena_bytes(void);
    int64_t diptych_call(const void *const *inputs, void *const *outputs, void *arena);

Inputs and outputs are row-major arrays in the order they were named; the arena is scratch memory
of the caller, one for each thread. `diptych_call` returns 0, or the number of the check (of labels
or positions) that failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.compiler import ENTRY
from diptych.dtypes import symbols
from diptych.errors import DeviceError, FeedError, MissingExtraError
from diptych.formats.program import prune
from diptych.graph.rewrite import specialise
from diptych.runtime.files import write_whole
from diptych.runtime.llvm import host_target, object_code
from diptych.static.program import Program
from diptych.tensor import Tensor

Array = np.ndarray[Any, Any]


def export_library(
    program: Program,
    path: str | os.PathLike[str],
    inputs: Sequence[str | Tensor],
    outputs: Sequence[str | Tensor],
    sizes: Mapping[str, int] | None = None,
    target: str = "native",
) -> None:
    """Write a program with its weights as machine code: an object file where the path ends in
    `.o`, else a shared library, which needs a linker for the target.

    `sizes` gives the symbolic sizes, as in {"N": 16}; `target` is a name that DIPTYCH_CPU takes, or
    `aarch64`.
    """
    data = compile_object(program, inputs, outputs, sizes or {}, target)
    path = Path(path)
    if path.suffix == ".o":
        write_whole(path, data)
        return
    triple = host_target(target).triple
    with tempfile.TemporaryDirectory() as folder:
        source, linked = Path(folder) / "program.o", Path(folder) / "program.so"
        source.write_bytes(data)
        command = [*_linker(triple), "-shared", "-o", str(linked), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DeviceError("the linker failed", done.stderr.strip()[-300:], "write a .o file")
        write_whole(path, linked.read_bytes())


def _linker(triple: str) -> list[str]:
    machine = triple.split("-")[0]
    names = [f"{machine}-linux-gnu-gcc", "ld.lld"]
    if host_target("native").triple.startswith(machine):
        names.insert(0, "cc")
    for name in names:
        if shutil.which(name):
            return [name]
    raise MissingExtraError(
        "a shared library needs a linker for its target",
        f"none of {', '.join(names)} is installed",
        f"install lld or gcc for {machine}, or write a .o file",
    )


def compile_object(
    program: Program,
    inputs: Sequence[str | Tensor],
    outputs: Sequence[str | Tensor],
    sizes: Mapping[str, int],
    target: str,
) -> bytes:
    """Object code of a program, its weights among its data."""
    pruned = prune(program, inputs, outputs)
    needed = {s for i in pruned.graph.inputs for s in symbols(i.type.shape)}
    if needed != set(sizes):
        raise FeedError(
            "machine code is made for known sizes",
            f"the program has {sorted(needed)}, given {sorted(sizes)}",
            f"sizes={ {s: 16 for s in sorted(needed)} }",
        )
    graph = specialise(pruned.graph, sizes)
    description = host_target(target)
    from diptych.compiler.pipeline import compile_graph

    compiled = compile_graph(graph, {}, {}, description)
    weights = [np.ascontiguousarray(w) for w in pruned.weights.values()]
    text = compiled.llvm + _wrapper(
        len(pruned.inputs), len(graph.outputs), weights, compiled.constants,
        len(compiled.checks), *compiled.words({}),
    )  # fmt: skip
    return object_code(text, description)


def _wrapper(
    inputs: int,
    outputs: int,
    weights: Sequence[Array],
    constants: Sequence[Array],
    checks: int,
    words: Sequence[int],
    arena: int,
) -> str:
    """`diptych_call`: the table of pointers on the stack, then the entry."""
    slots = inputs + len(weights) + outputs + len(constants) + 3
    data, lines = [], []

    def store(slot: int, value: str) -> None:
        lines.append(f"  %t{slot} = getelementptr ptr, ptr %table, i64 {slot}")
        lines.append(f"  store ptr {value}, ptr %t{slot}")

    def given(slot: int, source: str, n: int) -> None:
        lines.append(f"  %a{slot} = getelementptr ptr, ptr {source}, i64 {n}")
        lines.append(f"  %v{slot} = load ptr, ptr %a{slot}")
        store(slot, f"%v{slot}")

    for n in range(inputs):
        given(n, "%inputs", n)
    at = inputs
    for n, array in enumerate([*weights, *constants]):
        body = "".join(f"\\{byte:02X}" for byte in array.tobytes())
        size = max(array.nbytes, 1)
        body = body or "\\00"
        data.append(f'@data{n} = internal constant [{size} x i8] c"{body}", align 64')
    for n in range(len(weights)):
        store(at + n, f"@data{n}")
    at += len(weights)
    for n in range(outputs):
        given(at + n, "%outputs", n)
    at += outputs
    for n in range(len(constants)):
        store(at + n, f"@data{len(weights) + n}")
    store(slots - 3, "%status")
    store(slots - 2, "null")
    store(slots - 1, "@words")
    listed = ", ".join(f"i64 {word}" for word in words)
    data.append(f"@words = internal constant [{len(words)} x i64] [{listed}]")
    return "\n".join([
        *data,
        "define i64 @diptych_arena_bytes() {",
        f"  ret i64 {max(arena, 1)}",
        "}",
        "define i64 @diptych_call(ptr %inputs, ptr %outputs, ptr %arena) {",
        f"  %table = alloca [{slots} x ptr]",
        f"  %status = alloca [{2 * checks + 1} x i64]",
        f"  store [{2 * checks + 1} x i64] zeroinitializer, ptr %status",
        *lines,
        f"  %code = call i64 @{ENTRY}(ptr %table, ptr %arena)",
        "  ret i64 %code",
        "}",
        "",
    ])  # fmt: skip
