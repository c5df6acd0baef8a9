"""A call that is like the one before it, in one native function.

Where the checks hold, what is left of a call is the same every time: numbers that are read anew,
memory for the outputs, the native call. Here all of that is one function, so that Python has two
lines to run and not fifty. What it is about is a list of words in memory, as in `checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from diptych.runtime import call
from diptych.runtime.call import address, builtin
from diptych.runtime.checks import DATA, TEXT, Checks, reads_right
from diptych.runtime.code import Code, host_target

Array = np.ndarray[Any, Any]
Call = Callable[..., list[Array] | int | None]

LINES, FRAME, WANTED, LIVE, OUTPUTS, REST = range(6)  # words; LIVE readers and the outputs follow
NEW = -1  # instead of the input that an output is written over, before what makes its memory

_TEXT = f"""
declare i32 @PyList_SetSlice(ptr, i64, i64, ptr)

define ptr @diptych_steady(ptr %self, ptr %given, i64 %number) {{
entry:
  %words.at = getelementptr i8, ptr %self, i64 {DATA}
  %words = load ptr, ptr %words.at
  %lines.at = getelementptr i64, ptr %words, i64 {LINES}
  %frame.at = getelementptr i64, ptr %words, i64 {FRAME}
  %wanted.at = getelementptr i64, ptr %words, i64 {WANTED}
  %live.at = getelementptr i64, ptr %words, i64 {LIVE}
  %outputs.at = getelementptr i64, ptr %words, i64 {OUTPUTS}
  %readers = getelementptr i64, ptr %words, i64 {REST}
  %lines = load ptr, ptr %lines.at
  %frame = load ptr, ptr %frame.at
  %wanted = load i64, ptr %wanted.at
  %live = load i64, ptr %live.at
  %count = load i64, ptr %outputs.at
  %makers = getelementptr i64, ptr %readers, i64 %live
  %arguments = getelementptr ptr, ptr %given, i64 1
  %few = sub i64 %number, 1
  %inputs = call ptr @inputs(ptr %lines, ptr %arguments, i64 %few)
  %none.at = getelementptr i64, ptr %lines, i64 1
  %none = load ptr, ptr %none.at
  %failed = icmp eq ptr %inputs, null
  %other = icmp eq ptr %inputs, %none
  %neither = or i1 %failed, %other
  br i1 %neither, label %answer, label %read
answer: ; something differs, or an error was raised
  ret ptr %inputs

read: ; what is read anew at every call
  %r = phi i64 [ 0, %entry ], [ %r1, %kept ]
  %some = icmp slt i64 %r, %live
  br i1 %some, label %ask, label %memory
ask:
  %reader.at = getelementptr ptr, ptr %readers, i64 %r
  %reader = load ptr, ptr %reader.at
  %value = call ptr @PyObject_CallObject(ptr %reader, ptr null)
  %no.value = icmp eq ptr %value, null
  br i1 %no.value, label %drop, label %keep
keep:
  %not.kept = call i32 @PyList_Append(ptr %inputs, ptr %value)
  call void @Py_DecRef(ptr %value)
  %r1 = add i64 %r, 1
  %is.kept = icmp eq i32 %not.kept, 0
  br i1 %is.kept, label %kept, label %drop
kept:
  br label %read

memory: ; of the outputs: that of an input, or new
  %outputs = call ptr @PyList_New(i64 0)
  %no.list = icmp eq ptr %outputs, null
  br i1 %no.list, label %drop, label %next
next:
  %n = phi i64 [ 0, %memory ], [ %n1, %added ]
  %more = icmp slt i64 %n, %count
  br i1 %more, label %one, label %run
one:
  %pair = mul i64 %n, 2
  %place.at = getelementptr i64, ptr %makers, i64 %pair
  %maker.at = getelementptr i64, ptr %place.at, i64 1
  %place = load i64, ptr %place.at
  %maker = load ptr, ptr %maker.at
  %is.new = icmp eq i64 %place, {NEW}
  br i1 %is.new, label %make, label %over
over:
  %old = call ptr @PyList_GetItem(ptr %inputs, i64 %place)
  call void @Py_IncRef(ptr %old)
  br label %add
make:
  %fresh = call ptr @PyObject_CallObject(ptr %maker, ptr null)
  %no.memory = icmp eq ptr %fresh, null
  br i1 %no.memory, label %drop.both, label %add
add:
  %array = phi ptr [ %old, %over ], [ %fresh, %make ]
  %not.added = call i32 @PyList_Append(ptr %outputs, ptr %array)
  call void @Py_DecRef(ptr %array)
  %n1 = add i64 %n, 1
  %is.added = icmp eq i32 %not.added, 0
  br i1 %is.added, label %added, label %drop.both
added:
  br label %next

run:
  %pool.given = load ptr, ptr %given
  %pool = call ptr @PyLong_AsVoidPtr(ptr %pool.given)
  %code = call i64 @now(ptr %frame, ptr %inputs, ptr %outputs, ptr %pool)
  call void @Py_DecRef(ptr %inputs)
  %well = icmp eq i64 %code, 0
  br i1 %well, label %cut, label %tell
tell:
  call void @Py_DecRef(ptr %outputs)
  %check = call ptr @PyLong_FromLongLong(i64 %code)
  ret ptr %check
cut: ; only what was asked for is handed out
  %is.cut = call i32 @PyList_SetSlice(ptr %outputs, i64 %wanted, i64 %count, ptr null)
  ret ptr %outputs

drop.both:
  call void @Py_DecRef(ptr %outputs)
  br label %drop
drop:
  call void @Py_DecRef(ptr %inputs)
  ret ptr null
}}
"""


def steady_call(
    checks: Checks,
    frame: int,
    live: Sequence[Callable[[], Array]],
    outputs: Sequence[tuple[int, Callable[[], Array]]],
    wanted: int,
) -> Call | None:
    """The function of the address of the pool and the arguments: the first `wanted` outputs, the
    number of the check of positions that failed, or None where a line of `checks` does not hold.
    What `live` gives is read after the inputs that the checks find. An output has the place of the
    input that it is written over, or -1 and what makes its memory. None where objects are not laid
    out as it reads them. `frame`, an address, is that of a frame which is the caller's to keep."""
    make = _maker()
    if make is None:
        return None
    lines = checks.words()
    makers = [word for place, maker in outputs for word in (place, id(maker))]
    head = [address(lines), frame, wanted, len(live), len(outputs)]
    words = np.array([*head, *map(id, live), *makers], np.int64)
    return make(words, [lines, checks.held, *live, *[maker for _, maker in outputs]])


@lru_cache(maxsize=1)
def _maker() -> Callable[..., Call] | None:
    if not reads_right():
        return None
    target = host_target("native")
    parts = [f'target triple = "{target.triple}"', *call.DECLARATIONS, TEXT, _TEXT]
    text = "\n".join([*parts, *call.call_text("now", call.NOW), ""])
    return builtin(Code(text, target, ["diptych_steady"]), "diptych_steady")
