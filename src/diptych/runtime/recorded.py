"""The text of `recall`: a call that was recorded before is recorded again."""

from __future__ import annotations

from diptych.runtime.call import HEAD
from diptych.runtime.checks import DATA
from diptych.runtime.objects import (
    ACQUIRE,
    ASK,
    CHECK,
    FALSE,
    HANDLE,
    HANDLE_SIZE,
    HANDLE_WEAK,
    ITEMS,
    KIND,
    LINE,
    LOCAL,
    MOST,
    NODE_SIZE,
    NODE_WEAK,
    NONE,
    OF_HANDLE_NODE,
    OF_NODE,
    OF_PIECE,
    OF_POINT_CHECKS,
    OF_POINT_SAMPLE,
    OWN,
    PARAMETER,
    PYTHON,
    RELEASE,
    RUN,
    SAMPLE_HANDLE,
    THREAD,
    TRUE,
    TUPLE,
    TYPE,
    read,
    word,
)

TEXT = f"""
define internal ptr @recall(ptr %words, ptr %piece, ptr %op, ptr %operands, ptr %where) {{
entry:
{word("none", NONE)}
{word("true", TRUE)}
{word("tuple", TUPLE)}
{word("handle", HANDLE)}
{word("parameter", PARAMETER)}
{word("kind", KIND)}
{word("sample.handle", SAMPLE_HANDLE)}
{word("node.size", NODE_SIZE)}
{word("node.weak", NODE_WEAK)}
{word("handle.size", HANDLE_SIZE)}
{word("handle.weak", HANDLE_WEAK)}
{word("of.handle.node", OF_HANDLE_NODE)}
{word("of.node.kind", OF_NODE["kind"])}
{word("of.node.op", OF_NODE["op"])}
{word("of.node.inputs", OF_NODE["inputs"])}
{word("of.node.where", OF_NODE["where"])}
{word("of.node.pending", OF_NODE["pending"])}
{word("of.point.sample", OF_POINT_SAMPLE)}
{word("of.point.checks", OF_POINT_CHECKS)}
{word("check", CHECK)}
{word("of.piece.point", OF_PIECE["point"])}
{word("of.piece.nodes", OF_PIECE["nodes"])}
{word("of.piece.slots", OF_PIECE["slots"])}
{word("of.piece.waiting", OF_PIECE["waiting"])}
{word("of.piece.grad", OF_PIECE["grad_enabled"])}
{read("point", "piece", "%of.piece.point")}
{read("grad", "piece", "%of.piece.grad")}
{read("operands.type", "operands", str(TYPE))}
  %on.trail = icmp ne ptr %point, %none.object
  %is.tuple = icmp eq ptr %operands.type, %tuple.object
  %has.history = icmp eq ptr %grad, %true.object
  %some = and i1 %on.trail, %is.tuple
  %usual = and i1 %some, %has.history
  br i1 %usual, label %begin, label %other
other:
  call void @Py_IncRef(ptr %none.object)
  ret ptr %none.object

begin: ; whatever runs author's code in between, the point stays
  call void @Py_IncRef(ptr %point)
{read("count.object", "operands", str(HEAD))}
  %count = ptrtoint ptr %count.object to i64
  %long = add i64 %count, 1
  %inputs = call ptr @PyTuple_New(i64 %count)
  %no.inputs = icmp eq ptr %inputs, null
  br i1 %no.inputs, label %wrong, label %begin.key
begin.key:
  %key = call ptr @PyTuple_New(i64 %long)
  %no.key = icmp eq ptr %key, null
  br i1 %no.key, label %wrong.inputs, label %begin.places
begin.places:
{read("slots", "piece", "%of.piece.slots")}
  %input.items = getelementptr i8, ptr %inputs, i64 {ITEMS}
  %key.items = getelementptr i8, ptr %key, i64 {ITEMS}
  %places = getelementptr ptr, ptr %key.items, i64 1
  %operand.items = getelementptr i8, ptr %operands, i64 {ITEMS}
  call void @Py_IncRef(ptr %op)
  store ptr %op, ptr %key.items
  br label %next

next: ; the key: for every input its number, or its kind where it is new
  %n = phi i64 [ 0, %begin.places ], [ %n1, %placed ]
  %more = icmp slt i64 %n, %count
  br i1 %more, label %one, label %look
one:
  %operand.at = getelementptr ptr, ptr %operand.items, i64 %n
  %operand = load ptr, ptr %operand.at
{read("operand.type", "operand", str(TYPE))}
  %is.handle = icmp eq ptr %operand.type, %handle.object
  %is.parameter = icmp eq ptr %operand.type, %parameter.object
  %is.either = or i1 %is.handle, %is.parameter
  br i1 %is.either, label %find, label %drop
find:
{read("node", "operand", "%of.handle.node")}
  %not.made = icmp eq ptr %node, null
  br i1 %not.made, label %drop, label %is.made
is.made:
  %input.at = getelementptr ptr, ptr %input.items, i64 %n
  call void @Py_IncRef(ptr %node)
  store ptr %node, ptr %input.at
  %found = call ptr @PyDict_GetItemWithError(ptr %slots, ptr %node)
  %is.found = icmp ne ptr %found, null
  br i1 %is.found, label %place, label %new
new:
{read("own.kind", "node", "%of.node.kind")}
  %no.kind = icmp eq ptr %own.kind, %none.object
  br i1 %no.kind, label %drop, label %place
place:
  %is.at = phi ptr [ %found, %is.made ], [ %own.kind, %new ]
  %place.at = getelementptr ptr, ptr %places, i64 %n
  call void @Py_IncRef(ptr %is.at)
  store ptr %is.at, ptr %place.at
  br label %placed
placed:
  %n1 = add i64 %n, 1
  br label %next

look:
  %after = call ptr @PyDict_GetItemWithError(ptr %point, ptr %key)
  %no.point = icmp eq ptr %after, null
  br i1 %no.point, label %unknown, label %known
unknown: ; or comparing operators raised an error
  %error = call ptr @PyErr_Occurred()
  %is.error = icmp ne ptr %error, null
  br i1 %is.error, label %wrong.key, label %drop
known:
  call void @Py_IncRef(ptr %after)
{read("sample", "after", "%of.point.sample")}
  %no.sample = icmp eq ptr %sample, %none.object
  br i1 %no.sample, label %drop.after, label %positions
positions:
{read("checks", "after", "%of.point.checks")}
  %no.checks = icmp eq ptr %checks, %none.object
  br i1 %no.checks, label %make, label %ask.positions
ask.positions:
  %checked = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(
    ptr %check.object, ptr %after, ptr %op, ptr %inputs, ptr %where, ptr null)
  %is.bad = icmp eq ptr %checked, null
  br i1 %is.bad, label %wrong.after, label %good
good:
  call void @Py_DecRef(ptr %checked)
  br label %make

make:
  %made = call ptr @copied(ptr %sample, i64 %node.size, i64 %node.weak)
  %no.node = icmp eq ptr %made, null
  br i1 %no.node, label %wrong.after, label %fill
fill:
  call void @Py_IncRef(ptr %op)
  call void @put(ptr %made, i64 %of.node.op, ptr %op)
  call void @Py_IncRef(ptr %inputs)
  call void @put(ptr %made, i64 %of.node.inputs, ptr %inputs)
  call void @Py_IncRef(ptr %where)
  call void @put(ptr %made, i64 %of.node.where, ptr %where)
  call void @Py_IncRef(ptr %piece)
  call void @put(ptr %made, i64 %of.node.pending, ptr %piece)
  %tensor = call ptr @copied(ptr %sample.handle.object, i64 %handle.size, i64 %handle.weak)
  %no.tensor = icmp eq ptr %tensor, null
  br i1 %no.tensor, label %wrong.node, label %see
see: ; whether the piece is where it was, for code that Python ran may have run it
  call void @put(ptr %tensor, i64 %of.handle.node, ptr %made)
{read("still", "piece", "%of.piece.point")}
  %is.still = icmp eq ptr %still, %point
  br i1 %is.still, label %change, label %drop.tensor

change: ; from here on no code but this runs; what is new in the piece gets a number
{read("nodes", "piece", "%of.piece.nodes")}
{read("slots.now", "piece", "%of.piece.slots")}
{read("waiting", "piece", "%of.piece.waiting")}
  br label %read
read:
  %r = phi i64 [ 0, %change ], [ %r1, %is.read ]
  %unread = icmp slt i64 %r, %count
  br i1 %unread, label %ask, label %note
ask:
  %asked.at = getelementptr ptr, ptr %places, i64 %r
  %asked = load ptr, ptr %asked.at
{read("asked.type", "asked", str(TYPE))}
  %is.new = icmp eq ptr %asked.type, %kind.object
  br i1 %is.new, label %take, label %is.read
take:
  %taken.at = getelementptr ptr, ptr %input.items, i64 %r
  %taken = load ptr, ptr %taken.at
  %not.taken = call i32 @numbered(ptr %taken, ptr %nodes, ptr %slots.now)
  %is.taken = icmp eq i32 %not.taken, 0
  br i1 %is.taken, label %is.read, label %wrong.tensor
is.read:
  %r1 = add i64 %r, 1
  br label %read
note:
  %not.noted = call i32 @numbered(ptr %made, ptr %nodes, ptr %slots.now)
  %not.waiting = call i32 @PyList_Append(ptr %waiting, ptr %tensor)
  %neither = or i32 %not.noted, %not.waiting
  %well = icmp eq i32 %neither, 0
  br i1 %well, label %answer, label %wrong.tensor
answer:
  call void @put(ptr %piece, i64 %of.piece.point, ptr %after)
  call void @Py_DecRef(ptr %point)
  call void @Py_DecRef(ptr %key)
  call void @Py_DecRef(ptr %inputs)
  ret ptr %tensor

drop.tensor:
  call void @Py_DecRef(ptr %tensor)
  br label %drop.after
drop.after:
  call void @Py_DecRef(ptr %after)
  br label %drop
drop:
  call void @Py_DecRef(ptr %key)
  call void @Py_DecRef(ptr %inputs)
  call void @Py_DecRef(ptr %point)
  br label %other

wrong.tensor:
  call void @Py_DecRef(ptr %tensor)
  br label %wrong.after
wrong.node:
  call void @Py_DecRef(ptr %made)
  br label %wrong.after
wrong.after:
  call void @Py_DecRef(ptr %after)
  br label %wrong.key
wrong.key:
  call void @Py_DecRef(ptr %key)
  br label %wrong.inputs
wrong.inputs:
  call void @Py_DecRef(ptr %inputs)
  br label %wrong
wrong:
  call void @Py_DecRef(ptr %point)
  ret ptr null
}}

define ptr @diptych_recall(ptr %self, ptr %given, i64 %number) {{
{read("words", "self", str(DATA))}
{read("piece", "given", "0")}
{read("op", "given", "8")}
{read("operands", "given", "16")}
{read("where", "given", "24")}
  %tensor = call ptr @recall(ptr %words, ptr %piece, ptr %op, ptr %operands, ptr %where)
  ret ptr %tensor
}}

; The same for the thread whose piece is known; what is not as it was goes through Python.
define ptr @diptych_record(ptr %self, ptr %given, i64 %number) {{
entry:
{read("words", "self", str(DATA))}
{word("none", NONE)}
{word("false", FALSE)}
{word("thread", THREAD)}
{word("own", OWN)}
{word("most", MOST)}
{word("local", LOCAL)}
{word("line", LINE)}
{word("ask", ASK)}
{word("acquire", ACQUIRE)}
{word("release", RELEASE)}
{word("python", PYTHON)}
{word("run", RUN)}
{word("of.piece.nodes", OF_PIECE["nodes"])}
{word("of.piece.boundary", OF_PIECE["at_boundary"])}
{read("op", "given", "0")}
{read("operands", "given", "8")}
{read("boundary", "own.object", "%of.piece.boundary")}
  %now = call i64 @PyThread_get_thread_ident()
  %is.main = icmp eq i64 %now, %thread
  br i1 %is.main, label %here, label %other
here:
  %is.inside = icmp eq ptr %boundary, %false.object
  br i1 %is.inside, label %measure, label %end.piece
end.piece:
  %ran = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(
    ptr %run.object, ptr %own.object, ptr %false.object, ptr null)
  %not.run = icmp eq ptr %ran, null
  br i1 %not.run, label %wrong, label %well.run
well.run:
  call void @Py_DecRef(ptr %ran)
  br label %measure
measure:
{read("nodes", "own.object", "%of.piece.nodes")}
  %count = call i64 @PyList_Size(ptr %nodes)
  %is.short = icmp slt i64 %count, %most
  br i1 %is.short, label %locate, label %other
locate: ; the author's line
  %known = call ptr @PyObject_GetAttr(ptr %local.object, ptr %line.object)
  %failed = icmp eq ptr %known, null
  br i1 %failed, label %wrong, label %see
see:
  %is.known = icmp ne ptr %known, %none.object
  br i1 %is.known, label %lock, label %ask.line
ask.line:
  call void @Py_DecRef(ptr %known)
  %found = call ptr @PyObject_CallObject(ptr %ask.object, ptr null)
  %not.found = icmp eq ptr %found, null
  br i1 %not.found, label %wrong, label %lock
lock:
  %where = phi ptr [ %known, %see ], [ %found, %ask.line ]
  %locked = call ptr @PyObject_CallObject(ptr %acquire.object, ptr null)
  %not.locked = icmp eq ptr %locked, null
  br i1 %not.locked, label %wrong.where, label %call
call:
  call void @Py_DecRef(ptr %locked)
  %tensor = call ptr @recall(ptr %words, ptr %own.object, ptr %op, ptr %operands, ptr %where)
  call void @Py_DecRef(ptr %where)
  %error = call ptr @PyErr_Occurred()
  %is.error = icmp ne ptr %error, null
  br i1 %is.error, label %keep.error, label %free
free:
  %freed = call ptr @PyObject_CallObject(ptr %release.object, ptr null)
  call void @Py_DecRef(ptr %freed)
  %is.none = icmp eq ptr %tensor, %none.object
  br i1 %is.none, label %again, label %answer
answer:
  ret ptr %tensor
again:
  call void @Py_DecRef(ptr %tensor)
  br label %other
other:
  %any = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(
    ptr %python.object, ptr %op, ptr %operands, ptr null)
  ret ptr %any

keep.error: ; while the lock is given back
  %type = alloca ptr
  %value = alloca ptr
  %traceback = alloca ptr
  call void @PyErr_Fetch(ptr %type, ptr %value, ptr %traceback)
  %given.back = call ptr @PyObject_CallObject(ptr %release.object, ptr null)
  call void @Py_DecRef(ptr %given.back)
  %type.had = load ptr, ptr %type
  %value.had = load ptr, ptr %value
  %traceback.had = load ptr, ptr %traceback
  call void @PyErr_Restore(ptr %type.had, ptr %value.had, ptr %traceback.had)
  ret ptr null
wrong.where:
  call void @Py_DecRef(ptr %where)
  br label %wrong
wrong:
  ret ptr null
}}
"""
