"""Sums of blocks whose number is known at run time (rules 3 and 4 of docs/numerics.md).

A chain runs over one block of 1024 terms at a time. Where there is one block, its sums are the
result and never leave their registers. Where there are more, they are handed to `diptych_carry`,
which adds them to the sums of their million, as a counter carries: three levels of 1024 in memory,
of which `diptych_combine` makes the result.
"""

from __future__ import annotations

from collections.abc import Callable

from diptych.compiler.scalars import llvm_type
from diptych.compiler.text import FunctionText
from diptych.dtypes import DType

BLOCK = 1024
LEVEL = 4096  # bytes of the sums of one level: of as many vectors as there are registers
CHUNK = 16  # elements that the helpers add at once

# `into` adds the sums of a level to those of another: a block's are at 0, up to a thousand blocks'
# at 1, up to a million's at 2, a milliard's at 3.
_HELPERS = """define internal void @diptych_carry_NAME(ptr %s, i64 %n, i64 %b) noinline cold {
entry:
  %low = and i64 %b, 1023
  %starts = icmp eq i64 %low, 0
  %some = icmp ne i64 %b, 0
  %carry = and i1 %starts, %some
  br i1 %carry, label %flush, label %add
flush:
  %k = lshr i64 %b, 10
  %before = sub i64 %k, 1
  %first = and i64 %before, 1023
  %kstarts = icmp eq i64 %first, 0
  call void @diptych_into_NAME(ptr %s, i64 %n, i64 1, i64 2, i1 %kstarts)
  %klow = and i64 %k, 1023
  %full = icmp eq i64 %klow, 0
  br i1 %full, label %top, label %add
top:
  %m = lshr i64 %b, 20
  %mstarts = icmp eq i64 %m, 1
  call void @diptych_into_NAME(ptr %s, i64 %n, i64 2, i64 3, i1 %mstarts)
  br label %add
add:
  call void @diptych_into_NAME(ptr %s, i64 %n, i64 0, i64 1, i1 %starts)
  ret void
}
define internal void @diptych_combine_NAME(ptr %s, i64 %n, i64 %last) noinline cold {
entry:
  %k = lshr i64 %last, 10
  %klow = and i64 %k, 1023
  %thousands = icmp ne i64 %klow, 0
  br i1 %thousands, label %two, label %three
two:
  call void @diptych_into_NAME(ptr %s, i64 %n, i64 1, i64 2, i1 false)
  br label %three
three:
  %level = select i1 %thousands, i64 2, i64 1
  %m = lshr i64 %k, 10
  %millions = icmp ne i64 %m, 0
  br i1 %millions, label %four, label %result
four:
  call void @diptych_into_NAME(ptr %s, i64 %n, i64 %level, i64 3, i1 false)
  br label %result
result:
  %whole = select i1 %millions, i64 3, i64 %level
  call void @diptych_into_NAME(ptr %s, i64 %n, i64 %whole, i64 0, i1 true)
  ret void
}
define internal void @diptych_into_NAME(ptr %s, i64 %n, i64 %a, i64 %b, i1 %starts) noinline cold {
entry:
  %from.at = mul i64 %a, BYTES
  %from = getelementptr i8, ptr %s, i64 %from.at
  %to.at = mul i64 %b, BYTES
  %to = getelementptr i8, ptr %s, i64 %to.at
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %end
body:
  %p = getelementptr KIND, ptr %from, i64 %i
  %q = getelementptr KIND, ptr %to, i64 %i
  %new = load VECTOR, ptr %p, align SIZE
  %old = load VECTOR, ptr %q, align SIZE
  %sum = fadd VECTOR %old, %new
  %kept = select i1 %starts, VECTOR %new, VECTOR %sum
  store VECTOR %kept, ptr %q, align SIZE
  %next = add i64 %i, CHUNK
  br label %head
end:
  ret void
}
"""


def helpers(dtype: DType) -> str:
    """The functions that sum the blocks of a float dtype."""
    kind = llvm_type(dtype, 1)
    words = {
        "NAME": dtype.name, "KIND": kind, "VECTOR": llvm_type(dtype, CHUNK),
        "BYTES": str(LEVEL), "SIZE": str(dtype.bytes), "CHUNK": str(CHUNK),
    }  # fmt: skip
    text = _HELPERS
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def sum_blocks(
    text: FunctionText,
    scratch: str,
    total: str,
    dtype: DType,
    lanes: list[int],
    chain: Callable[[str, str], list[str]],
) -> list[str]:
    """The sums of a list of `total` terms: `chain(first, end)` gives those of a block of it."""
    types = [llvm_type(dtype, n) for n in lanes]
    tag, before = text.fresh("B")[1:], text.block
    assert sum(lanes) * dtype.bytes <= LEVEL
    count = -(-sum(lanes) // CHUNK) * CHUNK
    text.do(f"br label %{tag}.head")
    text.label(f"{tag}.head")
    at = len(text.lines)
    text.do(f"%{tag}.next = add nsw i64 %{tag}.q, {BLOCK}")
    text.do(f"%{tag}.few = icmp sle i64 {total}, %{tag}.next")
    text.do(f"%{tag}.end = select i1 %{tag}.few, i64 {total}, i64 %{tag}.next")
    with text.scope():
        parts = chain(f"%{tag}.q", f"%{tag}.end")
    fast = text.block
    text.do(f"%{tag}.one = icmp sle i64 {total}, {BLOCK}")
    text.do(f"br i1 %{tag}.one, label %{tag}.done, label %{tag}.slow")
    text.label(f"{tag}.slow")
    places = []
    for n, (type, part) in enumerate(zip(types, parts, strict=True)):
        places.append(f"%{tag}.p{n}")
        shift = sum(lanes[:n]) * dtype.bytes
        text.do(f"{places[-1]} = getelementptr i8, ptr {scratch}, i64 {shift}")
        text.do(f"store {type} {part}, ptr {places[-1]}, align {dtype.bytes}")
    text.do(f"%{tag}.b = lshr i64 %{tag}.q, {BLOCK.bit_length() - 1}")
    given = f"(ptr {scratch}, i64 {count}, i64 %{tag}.b)"
    text.do(f"call void @diptych_carry_{dtype.name}{given}")
    text.do(f"br i1 %{tag}.few, label %{tag}.last, label %{tag}.head")
    text.lines.insert(at, f"  %{tag}.q = phi i64 [ 0, %{before} ], [ %{tag}.next, %{tag}.slow ]")
    text.label(f"{tag}.last")
    text.do(f"call void @diptych_combine_{dtype.name}{given}")
    for n, (type, place) in enumerate(zip(types, places, strict=True)):
        text.do(f"%{tag}.s{n} = load {type}, ptr {place}, align {dtype.bytes}")
    text.do(f"br label %{tag}.done")
    text.label(f"{tag}.done")
    results = [f"%{tag}.r{n}" for n in range(len(lanes))]
    for n, (name, type, part) in enumerate(zip(results, types, parts, strict=True)):
        text.do(f"{name} = phi {type} [ {part}, %{fast} ], [ %{tag}.s{n}, %{tag}.last ]")
    return results
