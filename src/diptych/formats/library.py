"""A program as a shared library for this or another CPU, from the same compiler.

The library has the weights inside and needs no other one. Its interface, for the name `digits`:

    int64_t digits_arena_bytes(void);
    int64_t digits_call(const void *const *inputs, void *const *outputs, void *arena);

Inputs and outputs are row-major arrays in the order they were named, of the sizes that
`export_library` was given, each 1 or more; an element lies at a multiple of its size. An array that
has no elements by its own shape is not touched. The arena is scratch memory of the caller, at a
multiple of 64 bytes, one for each thread. `digits_call` returns 0, or the number of the check (of
labels or positions) that failed; then no output is to be read. Nothing else is exported, so that a
program may contain several libraries, or object files, of different names.
"""

from __future__ import annotations

import os
import re
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
from diptych.ops.base import whole
from diptych.runtime.files import write_whole
from diptych.runtime.llvm import host_target, object_code
from diptych.static.program import Program
from diptych.tensor import Parameter, Tensor

Array = np.ndarray[Any, Any]
OBJECT = ".o"


def export_library(
    program: Program,
    path: str | os.PathLike[str],
    inputs: Sequence[str | Tensor],
    outputs: Sequence[str | Tensor],
    sizes: Mapping[str, int] | None = None,
    target: str = "native",
    name: str | None = None,
) -> None:
    """Write a program with its weights as machine code: an object file where the path ends in
    `.o`, or a shared library, which needs a linker for the target.

    `sizes` gives the symbolic sizes, as in {"N": 16}, each 1 or more; `target` is a name that
    DIPTYCH_CPU takes, or `aarch64`. `name` begins the names of the two functions, which stand at
    the top of this file; by default it is the file's without its suffix and without a `lib` before
    it: `digits_call` of libdigits.so. A program that trains is an error.
    """
    path = Path(path)
    triple = host_target(target).triple
    _check_suffix(path, triple)
    name = path.stem.removeprefix("lib") if name is None else name
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise FeedError(
            "the name of a library is a C identifier",
            f"{name!r}",
            "name='digits' gives digits_call and digits_arena_bytes",
        )
    data = compile_object(program, inputs, outputs, sizes or {}, target, name)
    if path.suffix == OBJECT:
        write_whole(path, data)
        return
    with tempfile.TemporaryDirectory() as folder:
        source, linked = Path(folder) / "program.o", Path(folder) / "program.so"
        source.write_bytes(data)
        command = [*_linker(triple), "-o", str(linked), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DeviceError("the linker failed", done.stderr.strip()[-300:], "write a .o file")
        write_whole(path, linked.read_bytes())


def _check_suffix(path: Path, triple: str) -> None:
    """Raise unless the path says what is written for a target."""
    apple, windows = "apple" in triple or "darwin" in triple, "windows" in triple
    library = ".dylib" if apple else ".dll" if windows else ".so"
    if path.suffix not in (OBJECT, library):
        raise FeedError(
            f"code for {triple} is a {library} library or a {OBJECT} file",
            f"{path.name!r}",
            f"{path.stem or 'digits'}{library}",
        )


def _linker(triple: str) -> list[str]:
    """Return the command that links a library in which nothing is left undefined."""
    machine = triple.split("-")[0]
    names = [f"{machine}-linux-gnu-gcc", "ld.lld"]
    if host_target("native").triple.startswith(machine):
        names.insert(0, "cc")
    for name in names:
        if shutil.which(name):
            if "linux" not in triple:
                return [name, "-shared"]
            closed = ["-z", "defs"] if name == "ld.lld" else ["-nostdlib", "-Wl,-z,defs"]
            return [name, "-shared", *closed]
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
    name: str,
) -> bytes:
    """Object code of a program, its weights among its data."""
    if isinstance(program, Program) and program.updates():
        raise FeedError(
            "a library computes outputs from inputs, and does not train",
            f"the program updates {_listed([p for p, *_ in program.updates()])}",
            "export program.clone(for_test=True), which shares the weights; dp.compile trains",
        )
    pruned = prune(program, inputs, outputs)
    needed = {s for i in pruned.graph.inputs for s in symbols(i.type.shape)}
    if needed != set(sizes):
        raise FeedError(
            "machine code is made for known sizes",
            f"the program has {sorted(needed)}, given {sorted(sizes)}",
            f"sizes={ {s: 16 for s in sorted(needed)} }",
        )
    counts = {s: whole(n, f"the size {s} of a library", 1) for s, n in sizes.items()}
    graph = specialise(pruned.graph, counts)
    description = host_target(target)
    from diptych.compiler.pipeline import compile_graph

    compiled = compile_graph(graph, {}, {}, description)
    weights = [np.ascontiguousarray(w) for w in pruned.weights.values()]
    public, own = f"define i64 @{ENTRY}(", f"define internal i64 @{ENTRY}("
    text = compiled.llvm.replace(public, own, 1) + _wrapper(
        name, len(pruned.inputs), len(graph.outputs), weights, compiled.constants,
        len(compiled.checks), *compiled.words({}),
    )  # fmt: skip
    return object_code(text, description)


def _listed(parameters: Sequence[Parameter]) -> str:
    """Return the names of some parameters, or how many there are."""
    names = [p.name for p in parameters if p.name]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return shown or f"{len(parameters)} parameters"


def _wrapper(
    name: str,
    inputs: int,
    outputs: int,
    weights: Sequence[Array],
    constants: Sequence[Array],
    checks: int,
    words: Sequence[int],
    arena: int,
) -> str:
    """The two functions. `NAME_call` makes the table of pointers on the stack, for the entry."""
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
        f"define i64 @{name}_arena_bytes() {{",
        f"  ret i64 {max(arena, 1)}",
        "}",
        f"define i64 @{name}_call(ptr %inputs, ptr %outputs, ptr %arena) {{",
        f"  %table = alloca [{slots} x ptr]",
        f"  %status = alloca [{2 * checks + 1} x i64]",
        f"  store [{2 * checks + 1} x i64] zeroinitializer, ptr %status",
        *lines,
        f"  %code = call i64 @{ENTRY}(ptr %table, ptr %arena)",
        "  ret i64 %code",
        "}",
        "",
    ])  # fmt: skip
