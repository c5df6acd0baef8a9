"""A batch in one native call: rows of a data set, gathered and converted.

numpy takes a call for each: the rows, the conversion, the scale and the shift. `call.py` says how
the address of an array is read from the object itself, and how native code is called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from diptych.compiler import modes
from diptych.runtime.call import DECLARATIONS, HEAD, address, builtin, trampoline
from diptych.runtime.code import Code, host_target

Array = np.ndarray[Any, Any]
AHEAD = 3  # rows between the one that is copied and the one that is asked for from memory
Taker = Callable[[Any], Array | None]


def taker(source: Array, scale: float | None = None, shift: float = 0.0) -> Taker:
    """A function from row numbers (k,) to these rows of `source` (n, ...), a new array; a scale
    makes f32(x) / scale + shift in f32 of u8. It gives None for what it leaves to numpy: numbers
    that are not i64, side by side and in 0 .. n-1, and sources that are not plain."""
    plain = source.flags.c_contiguous and source.size and not source.dtype.hasobject
    if not plain or trampoline() is None:
        return left
    elements = source.size // len(source)
    size = elements if scale is not None else elements * source.itemsize
    spec = np.array([address(source), len(source), size, 0])
    spec[3:].view(np.float32)[:] = [1.0 if scale is None else scale, shift]
    copy, convert = _makers()
    function = (copy if scale is None else convert)(spec, source)
    shape, dtype = source.shape[1:], source.dtype if scale is None else np.dtype(np.float32)
    integers = np.dtype(np.int64)

    def take(rows: Any) -> Array | None:
        if type(rows) is not np.ndarray or rows.dtype is not integers or rows.strides != (8,):
            return None
        out = np.empty((len(rows), *shape), dtype)
        return None if function(rows, out, len(rows)) else out

    return take


def left(rows: Any) -> None:
    """Everything is left to numpy."""


# A function of two arrays and a count, whose own array is (source, length, size of a row, numbers).
_TAKE = """
define ptr @NAME(ptr %self, ptr %given, i64 %number) {
entry:
  %out.given = getelementptr ptr, ptr %given, i64 1
  %count.given = getelementptr ptr, ptr %given, i64 2
  %rows = load ptr, ptr %given
  %out = load ptr, ptr %out.given
  %count.object = load ptr, ptr %count.given
  %count = call i64 @PyLong_AsLongLong(ptr %count.object)
  %spec.at = getelementptr i8, ptr %self, i64 HEAD
  %spec = load ptr, ptr %spec.at
  %thread = call ptr @PyEval_SaveThread()
  %code = call i64 @NAME_rows(ptr %rows, ptr %out, i64 %count, ptr %spec)
  call void @PyEval_RestoreThread(ptr %thread)
  %answer = call ptr @PyLong_FromLongLong(i64 %code)
  ret ptr %answer
}
define internal i64 @NAME_rows(ptr %rows.object, ptr %out.object, i64 %count, ptr %spec) {
entry:
  %rows.at = getelementptr i8, ptr %rows.object, i64 HEAD
  %rows = load ptr, ptr %rows.at
  %out.at = getelementptr i8, ptr %out.object, i64 HEAD
  %out = load ptr, ptr %out.at
  %source = load ptr, ptr %spec
  %length.at = getelementptr i64, ptr %spec, i64 1
  %length = load i64, ptr %length.at
  %size.at = getelementptr i64, ptr %spec, i64 2
  %size = load i64, ptr %size.at
  %numbers.at = getelementptr i64, ptr %spec, i64 3
  br label %check
check:
  %c = phi i64 [ 0, %entry ], [ %c1, %look ]
  %left = icmp slt i64 %c, %count
  br i1 %left, label %look, label %start
look:
  %look.at = getelementptr i64, ptr %rows, i64 %c
  %looked = load i64, ptr %look.at
  %inside = icmp ult i64 %looked, %length
  %c1 = add i64 %c, 1
  br i1 %inside, label %check, label %bad
bad:
  ret i64 1
start:
START
  br label %head
head:
  %n = phi i64 [ 0, %start ], [ %n1, %tail ]
  %more = icmp slt i64 %n, %count
  br i1 %more, label %row, label %end
row:
  %number.at = getelementptr i64, ptr %rows, i64 %n
  %number.read = load i64, ptr %number.at
  %still = icmp ult i64 %number.read, %length ; another thread may write the numbers meanwhile
  %number = select i1 %still, i64 %number.read, i64 0
  %from.first = mul i64 %number, %size
  %from = getelementptr i8, ptr %source, i64 %from.first
  %to.first = mul i64 %n, %size
  %to = getelementptr KIND, ptr %out, i64 %to.first
  %later = add i64 %n, FURTHER
  %is.last = icmp slt i64 %later, %count
  %then = select i1 %is.last, i64 %later, i64 %n
  %then.at = getelementptr i64, ptr %rows, i64 %then
  %then.number = load i64, ptr %then.at
  %soon.first = mul i64 %then.number, %size
  %soon = getelementptr i8, ptr %source, i64 %soon.first
  br label %ahead
ahead:
  %line = phi i64 [ 0, %row ], [ %line.next, %ahead ]
  %line.at = getelementptr i8, ptr %soon, i64 %line
  call void @llvm.prefetch.p0(ptr %line.at, i32 0, i32 3, i32 1)
  %line.next = add i64 %line, 64
  %line.more = icmp slt i64 %line.next, %size
  br i1 %line.more, label %ahead, label %here
here:
ROW
  br label %tail
tail:
  %n1 = add i64 %n, 1
  br label %head
end:
END
  ret i64 0
}
"""

_COPY = "  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %size, i1 0)"

_NUMBERS = """
  %scale = load float, ptr %numbers.at
  %shift.at = getelementptr float, ptr %numbers.at, i64 1
  %shift = load float, ptr %shift.at
"""

# From %FIRST on, LANES elements at a time as long as these are whole.
_CONVERT = """
  %scale.TAG.0 = insertelement <LANES x float> poison, float %scale, i32 0
  %scale.TAG = shufflevector <LANES x float> %scale.TAG.0, <LANES x float> poison,
    <LANES x i32> zeroinitializer
  %shift.TAG.0 = insertelement <LANES x float> poison, float %shift, i32 0
  %shift.TAG = shufflevector <LANES x float> %shift.TAG.0, <LANES x float> poison,
    <LANES x i32> zeroinitializer
  br label %TAG.head
TAG.head:
  %TAG = phi i64 [ FIRST, %BEFORE ], [ %TAG.next, %TAG.body ]
  %TAG.next = add i64 %TAG, LANES
  %TAG.more = icmp sle i64 %TAG.next, %size
  br i1 %TAG.more, label %TAG.body, label %TAG.end
TAG.body:
  %TAG.from = getelementptr i8, ptr %from, i64 %TAG
  %TAG.pixels = load <LANES x i8>, ptr %TAG.from, align 1
  %TAG.values = uitofp <LANES x i8> %TAG.pixels to <LANES x float>
  %TAG.scaled = fdiv <LANES x float> %TAG.values, %scale.TAG
  %TAG.shifted = fadd <LANES x float> %TAG.scaled, %shift.TAG
  %TAG.to = getelementptr float, ptr %to, i64 %TAG
  store <LANES x float> %TAG.shifted, ptr %TAG.to, align 4
  br label %TAG.head
TAG.end:
"""


def _filled(text: str, **words: str) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _text(triple: str, lanes: int) -> str:
    whole = _filled(_CONVERT, TAG="v", LANES=str(lanes), FIRST="0", BEFORE="here")
    rest = _filled(_CONVERT, TAG="s", LANES="1", FIRST="%v", BEFORE="v.end")
    enter = "\n".join([_NUMBERS, *modes.enter(triple)])
    parts = [
        f'target triple = "{triple}"',
        *DECLARATIONS,
        "declare i64 @PyLong_AsLongLong(ptr)",
        "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        modes.declarations(triple),
        _filled(_TAKE, NAME="diptych_copy", KIND="i8", START="", ROW=_COPY, END=""),
        _filled(_TAKE, NAME="diptych_convert", KIND="float", START=enter, ROW=whole + rest,
                END="\n".join(modes.leave(triple))),
    ]  # fmt: skip
    return _filled("\n".join(parts), HEAD=str(HEAD), FURTHER=str(AHEAD))


@lru_cache(maxsize=1)
def _makers() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes a function that copies rows, and one that converts them."""
    target = host_target("native")
    names = ("diptych_copy", "diptych_convert")
    code = Code(_text(target.triple, target.lanes), target, names)
    return builtin(code, names[0]), builtin(code, names[1])
