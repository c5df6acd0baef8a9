"""From two lists of arrays to a native call, without a word of Python per array.

A call needs the addresses of its arrays. numpy gives one in a microsecond, which is more than many
a step computes. An array of numpy begins, after the head that every object has, with the address of
its data: so says numpy's C interface, which every extension is built against. The trampoline here
reads it from the lists themselves; whether this interpreter lays lists and arrays out that way is
tried once, and where it does not the addresses are asked for one by one.

The trampoline is called as Python's own built-in functions are (`builtin`), in 0.1 us where ctypes
takes 0.6, and lets go of the interpreter for the native call as ctypes does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from diptych.runtime.code import Code, host_target
from diptych.runtime.threads import HAND_OVER

Array = np.ndarray[Any, Any]
HEAD = object.__basicsize__  # bytes before what a class adds
ENTRY, INPUTS, OUTPUTS, ARENA, POOL, TABLE = range(6)  # words of a frame; the table follows

Trampoline = Callable[[int, list[Array], list[Array], int], int]
FASTCALL = 0x80  # METH_FASTCALL: self, the arguments, how many they are


def address(array: Array) -> int:
    """Where the data of an array lies."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


class _Definition(ctypes.Structure):
    """PyMethodDef of Python's C interface; it lives as long as the functions made of it."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def builtin(code: Code, name: str) -> Callable[..., Any]:
    """What makes a function of Python's from native code that takes an object, the address of the
    arguments and their number, and returns a new reference. It is given the object and, where the
    function needs them, others that live as long as it does."""
    definition = _Definition(name.encode(), code.address(name), FASTCALL, None)
    new = ctypes.pythonapi.PyCFunction_NewEx
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.py_object)
    make = kind(ctypes.cast(new, ctypes.c_void_p).value or 0)
    # A function may outlive whoever made it, and this module where the interpreter ends.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object((code, definition)))
    # Python holds the third, meant for a module, as long as the function, and asks nothing of it.
    return lambda own, held=None: make(ctypes.addressof(definition), own, held)


def _copy(what: str, first: str, count: int) -> list[str]:
    """Write the addresses of the arrays of a list into the table, from the word `first`."""
    w = what
    return [
        f"  %{w}.count.at = getelementptr i64, ptr %frame, i64 {count}",
        f"  %{w}.count = load i64, ptr %{w}.count.at",
        f"  %{w}.items.at = getelementptr i8, ptr %{w}, i64 {HEAD + 8}",
        f"  %{w}.items = load ptr, ptr %{w}.items.at",
        f"  %{w}.none = icmp eq i64 %{w}.count, 0",
        f"  br i1 %{w}.none, label %{w}.done, label %{w}.next",
        f"{w}.next:",
        f"  %{w}.i = phi i64 [ 0, %{first} ], [ %{w}.i1, %{w}.next ]",
        f"  %{w}.item.at = getelementptr ptr, ptr %{w}.items, i64 %{w}.i",
        f"  %{w}.item = load ptr, ptr %{w}.item.at",
        f"  %{w}.data.at = getelementptr i8, ptr %{w}.item, i64 {HEAD}",
        f"  %{w}.data = load ptr, ptr %{w}.data.at",
        f"  %{w}.slot = add i64 %{w}.i, %{w}.first",
        f"  %{w}.to = getelementptr ptr, ptr %table, i64 %{w}.slot",
        f"  store ptr %{w}.data, ptr %{w}.to",
        f"  %{w}.i1 = add i64 %{w}.i, 1",
        f"  %{w}.more = icmp ult i64 %{w}.i1, %{w}.count",
        f"  br i1 %{w}.more, label %{w}.next, label %{w}.done",
        f"{w}.done:",
    ]


NOW = ["  %code = call i64 %function(ptr %table, ptr %arena)"]
LATER = [
    f"  %hand.at = getelementptr ptr, ptr %pool, i64 {HAND_OVER}",
    "  %hand = load ptr, ptr %hand.at",
    "  %code = call i64 %hand(ptr %pool, ptr %function, ptr %table, ptr %arena)",
]
DECLARATIONS = [
    "declare ptr @PyLong_AsVoidPtr(ptr)",
    "declare ptr @PyLong_FromLongLong(i64)",
    "declare ptr @PyEval_SaveThread()",
    "declare void @PyEval_RestoreThread(ptr)",
]


def call_text(name: str, call: list[str]) -> list[str]:
    """`name(frame, inputs, outputs, pool)`: fill the table of the frame from two lists of arrays,
    and call its entry with the table and the arena as the lines of `call` do."""
    return [
        f"define internal i64 @{name}(ptr %frame, ptr %inputs, ptr %outputs, ptr %pool) {{",
        "entry:",
        f"  %table = getelementptr i64, ptr %frame, i64 {TABLE}",
        "  %inputs.first = add i64 0, 0",
        *_copy("inputs", "entry", INPUTS),
        "  %outputs.first = add i64 %inputs.count, 0",
        *_copy("outputs", "inputs.done", OUTPUTS),
        f"  %pool.at = getelementptr i64, ptr %frame, i64 {POOL}",
        "  %pool.slot = load i64, ptr %pool.at",
        "  %pool.to = getelementptr ptr, ptr %table, i64 %pool.slot",
        "  store ptr %pool, ptr %pool.to",
        f"  %arena.at = getelementptr i64, ptr %frame, i64 {ARENA}",
        "  %arena = load ptr, ptr %arena.at",
        "  %function = load ptr, ptr %frame",
        "  %thread = call ptr @PyEval_SaveThread()",
        *call,
        "  call void @PyEval_RestoreThread(ptr %thread)",
        "  ret i64 %code",
        "}",
    ]


def _function(name: str, call: list[str]) -> list[str]:
    """`name(address of a frame, inputs, outputs, address of the pool)`, called from Python."""
    return [
        *call_text(f"{name}_of", call),
        f"define ptr @{name}(ptr %self, ptr %given, i64 %number) {{",
        "  %inputs.at = getelementptr ptr, ptr %given, i64 1",
        "  %outputs.at = getelementptr ptr, ptr %given, i64 2",
        "  %pool.at = getelementptr ptr, ptr %given, i64 3",
        "  %frame.given = load ptr, ptr %given",
        "  %inputs = load ptr, ptr %inputs.at",
        "  %outputs = load ptr, ptr %outputs.at",
        "  %pool.given = load ptr, ptr %pool.at",
        "  %frame = call ptr @PyLong_AsVoidPtr(ptr %frame.given)",
        "  %pool = call ptr @PyLong_AsVoidPtr(ptr %pool.given)",
        f"  %code = call i64 @{name}_of(ptr %frame, ptr %inputs, ptr %outputs, ptr %pool)",
        "  %answer = call ptr @PyLong_FromLongLong(i64 %code)",
        "  ret ptr %answer",
        "}",
    ]


def _text(triple: str) -> str:
    """`diptych_call` calls at once; `diptych_later` has the pool do it."""
    lines = [
        f'target triple = "{triple}"',
        *DECLARATIONS,
        *_function("diptych_call", NOW),
        *_function("diptych_later", LATER),
        "define i64 @diptych_second(ptr %table, ptr %arena) {",
        "  %at = getelementptr i64, ptr %table, i64 1",
        "  %second = load i64, ptr %at",
        "  ret i64 %second",
        "}",
        "",
    ]
    return "\n".join(lines)


@lru_cache(maxsize=1)
def _trampolines() -> tuple[Trampoline, Trampoline] | None:
    names = ("diptych_call", "diptych_later", "diptych_second")
    code = Code(_text(host_target("native").triple), host_target("native"), names)
    call, later = builtin(code, "diptych_call")(None), builtin(code, "diptych_later")(None)
    return (call, later) if _reads_right(call, code.address("diptych_second")) else None


def trampoline() -> Trampoline | None:
    """The native function (address of a frame, inputs, outputs, address of the pool), or None where
    objects are not laid out as it reads them."""
    found = _trampolines()
    return None if found is None else found[0]


def later() -> Trampoline | None:
    """The same for a pool that runs the call: -1 where it does, else what the call returned. Frame
    and arrays have to be there until `Pool.finish`."""
    found = _trampolines()
    return None if found is None else found[1]


def _reads_right(call: Trampoline, second: int) -> bool:
    """Whether the layout is the one that is read: tried on what cannot be read wrongly."""
    if (HEAD, list.__basicsize__) != (16, 40) or id(list) % 8:
        return False
    given, made = [np.zeros(3)], [np.zeros((4, 5), np.int32)[1:, ::2]]
    frame = np.array([second, 1, 1, 0, 2, 0, 0, 0], np.int64)
    return call(address(frame), given, made, 0) == address(made[0])
