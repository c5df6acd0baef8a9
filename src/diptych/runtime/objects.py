"""Nodes, handles and pieces as native code sees them: what `recall` tells its functions, as words
in memory, and the text that they share."""

from __future__ import annotations

from diptych.runtime.call import HEAD

ITEMS = tuple.__basicsize__  # bytes before the first of a tuple
TYPE = HEAD - 8  # the type of an object, in bytes

# Words: objects, then how large nodes and handles are, then where in them slots are, in bytes.
(
    NONE, TRUE, FALSE, TUPLE, HANDLE, PARAMETER, KIND, SAMPLE_HANDLE, INPUT, NOTHING, CHECK, OWN,
    LOCAL, LINE, ASK, ACQUIRE, RELEASE, PYTHON, RUN, THREAD, MOST,
    NODE_SIZE, NODE_WEAK, HANDLE_SIZE, HANDLE_WEAK, OF_HANDLE_NODE, OF_POINT_SAMPLE,
    OF_POINT_CHECKS, SLOTS,
) = range(29)  # fmt: skip
NODE_SLOTS = ("kind", "op", "inputs", "where", "pending", "needs_grad", "owner", "value")
PIECE_SLOTS = (
    "point", "nodes", "slots", "waiting", "grad_enabled", "replaced", "at_boundary"
)  # fmt: skip
OF_NODE = {name: n for n, name in enumerate(NODE_SLOTS, SLOTS)}
OF_PIECE = {name: n for n, name in enumerate(PIECE_SLOTS, SLOTS + len(NODE_SLOTS))}


def word(name: str, number: int) -> str:
    return (
        f"  %{name}.at = getelementptr i64, ptr %words, i64 {number}\n"
        f"  %{name} = load i64, ptr %{name}.at\n"
        f"  %{name}.object = inttoptr i64 %{name} to ptr"
    )


def read(name: str, of: str, offset: str) -> str:
    """What an object has in a slot; nobody else is given it."""
    return (
        f"  %{name}.slot = getelementptr i8, ptr %{of}, i64 {offset}\n"
        f"  %{name} = load ptr, ptr %{name}.slot"
    )


TEXT = f"""
declare ptr @PyTuple_New(i64)
declare ptr @PyDict_GetItemWithError(ptr, ptr)
declare i32 @PyDict_SetItem(ptr, ptr, ptr)
declare ptr @PyList_New(i64)
declare i64 @PyList_Size(ptr)
declare ptr @PyList_GetItem(ptr, i64)
declare ptr @PyTuple_Pack(i64, ...)
declare i64 @PyLong_AsSsize_t(ptr)
declare i32 @PyList_Append(ptr, ptr)
declare ptr @PyLong_FromSsize_t(i64)
declare ptr @PyType_GenericAlloc(ptr, i64)
declare ptr @PyObject_CallFunctionObjArgs(ptr, ...)
declare ptr @PyObject_CallObject(ptr, ptr)
declare ptr @PyObject_GetAttr(ptr, ptr)
declare i64 @PyThread_get_thread_ident()
declare void @PyErr_Fetch(ptr, ptr, ptr)
declare void @PyErr_Restore(ptr, ptr, ptr)
declare ptr @PyErr_Occurred()
declare void @Py_IncRef(ptr)
declare void @Py_DecRef(ptr)

; A new object with what another of its type has in its slots.
define internal ptr @copied(ptr %sample, i64 %size, i64 %weak) {{
entry:
{read("type", "sample", str(TYPE))}
  %new = call ptr @PyType_GenericAlloc(ptr %type, i64 0)
  %failed = icmp eq ptr %new, null
  br i1 %failed, label %done, label %next
next:
  %at = phi i64 [ {HEAD}, %entry ], [ %at1, %kept ]
  %more = icmp slt i64 %at, %size
  br i1 %more, label %one, label %done
one:
  %is.weak = icmp eq i64 %at, %weak
  br i1 %is.weak, label %kept, label %keep
keep:
  %from = getelementptr i8, ptr %sample, i64 %at
  %to = getelementptr i8, ptr %new, i64 %at
  %value = load ptr, ptr %from
  call void @Py_IncRef(ptr %value)
  store ptr %value, ptr %to
  br label %kept
kept:
  %at1 = add i64 %at, 8
  br label %next
done:
  ret ptr %new
}}

; Put another object, which is held already, into a slot.
define internal void @put(ptr %object, i64 %offset, ptr %value) {{
  %at = getelementptr i8, ptr %object, i64 %offset
  %old = load ptr, ptr %at
  store ptr %value, ptr %at
  call void @Py_DecRef(ptr %old)
  ret void
}}

; Give a node the next number of a piece; 0, or where memory ended another number.
define internal i32 @numbered(ptr %node, ptr %nodes, ptr %slots) {{
  %count = call i64 @PyList_Size(ptr %nodes)
  %number = call ptr @PyLong_FromSsize_t(i64 %count)
  %failed = icmp eq ptr %number, null
  br i1 %failed, label %wrong, label %set
set:
  %not.set = call i32 @PyDict_SetItem(ptr %slots, ptr %node, ptr %number)
  call void @Py_DecRef(ptr %number)
  %is.set = icmp eq i32 %not.set, 0
  br i1 %is.set, label %add, label %wrong
add:
  %not.added = call i32 @PyList_Append(ptr %nodes, ptr %node)
  ret i32 %not.added
wrong:
  ret i32 -1
}}
"""
