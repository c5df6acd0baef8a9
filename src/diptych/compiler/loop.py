"""A loop around the entry of a module: an epoch in one native call."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.compiler import ENTRY
from diptych.compiler.sizes import Sizes, SizeTable
from diptych.dtypes import Dimension

LOOP_ENTRY = "diptych_loop"


@dataclass(frozen=True)
class Loop:
    """What changes from step to step: `start` is the slot of an i64 that counts rows by `batch`;
    each of `outputs` (slot, bytes) is appended to the buffer in the slot `stacks` + n; the
    streams in the slots `random` advance by their number."""

    start: int
    batch: Dimension
    outputs: tuple[tuple[int, Dimension], ...]
    stacks: int
    random: tuple[int, ...]
    table: SizeTable


def emit_loop(loop: Loop) -> str:
    """`diptych_loop(table, arena, steps)` returns 0, or the code of the step that failed."""
    sizes = Sizes(loop.table)
    batch, counts = sizes.size(loop.batch), [sizes.size(size) for _, size in loop.outputs]
    lines = [
        "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
        f"define i64 @{LOOP_ENTRY}(ptr %table, ptr %arena, i64 %steps) {{",
        "entry:",
        *_pointer("words", loop.stacks - 1),
        *sizes.lines,
        *_pointer("start", loop.start),
    ]
    for n, (slot, _) in enumerate(loop.outputs):
        lines += [*_pointer(f"from{n}", slot), *_pointer(f"to{n}", loop.stacks + n)]
    for n, slot in enumerate(loop.random):
        lines += _pointer(f"random{n}", slot)
    lines += [
        "  br label %head",
        "head:",
        "  %i = phi i64 [ 0, %entry ], [ %next, %tail ]",
        "  %more = icmp slt i64 %i, %steps",
        "  br i1 %more, label %body, label %done",
        "body:",
        f"  %row = mul i64 %i, {batch}",
        "  store i64 %row, ptr %start",
        f"  %code = call i64 @{ENTRY}(ptr %table, ptr %arena)",
        "  %bad = icmp ne i64 %code, 0",
        "  br i1 %bad, label %failed, label %tail",
        "failed:",
        "  ret i64 %code",
        "tail:",
    ]
    for n, size in enumerate(counts):
        lines += [
            f"  %at{n} = mul i64 %i, {size}",
            f"  %place{n} = getelementptr i8, ptr %to{n}, i64 %at{n}",
            f"  call void @llvm.memcpy.p0.p0.i64(ptr %place{n}, ptr %from{n}, i64 {size}, i1 0)",
        ]
    for n in range(len(loop.random)):
        lines += [
            f"  %stream{n} = getelementptr i64, ptr %random{n}, i64 1",
            f"  %was{n} = load i64, ptr %stream{n}",
            f"  %is{n} = add i64 %was{n}, {len(loop.random)}",
            f"  store i64 %is{n}, ptr %stream{n}",
        ]
    lines += ["  %next = add i64 %i, 1", "  br label %head", "done:", "  ret i64 0", "}", ""]
    return "\n".join(lines)


def _pointer(name: str, slot: int) -> list[str]:
    return [
        f"  %{name}.slot = getelementptr ptr, ptr %table, i64 {slot}",
        f"  %{name} = load ptr, ptr %{name}.slot",
    ]
