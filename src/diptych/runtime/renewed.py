"""The text of `recall` for what is not a call: leaves, the new values of an optimizer's step, and
what a run reads and gives."""

from __future__ import annotations

from diptych.runtime.checks import DATA
from diptych.runtime.objects import (
    HANDLE_SIZE,
    HANDLE_WEAK,
    INPUT,
    NODE_SIZE,
    NODE_WEAK,
    NONE,
    NOTHING,
    OF_HANDLE_NODE,
    OF_NODE,
    OF_PIECE,
    SAMPLE_HANDLE,
    read,
    word,
)

TEXT = f"""
define ptr @diptych_renew(ptr %self, ptr %given, i64 %number) {{
entry:
{read("words", "self", str(DATA))}
{word("none", NONE)}
{word("node.size", NODE_SIZE)}
{word("node.weak", NODE_WEAK)}
{word("of.handle.node", OF_HANDLE_NODE)}
{word("of.node.where", OF_NODE["where"])}
{word("of.node.pending", OF_NODE["pending"])}
{word("of.node.needs", OF_NODE["needs_grad"])}
{word("of.node.owner", OF_NODE["owner"])}
{word("of.piece.nodes", OF_PIECE["nodes"])}
{word("of.piece.slots", OF_PIECE["slots"])}
{word("of.piece.waiting", OF_PIECE["waiting"])}
{word("of.piece.replaced", OF_PIECE["replaced"])}
{read("piece", "given", "0")}
{read("owners", "given", "8")}
{read("olds", "given", "16")}
{read("samples", "given", "24")}
{read("where", "given", "32")}
{read("nodes", "piece", "%of.piece.nodes")}
{read("slots", "piece", "%of.piece.slots")}
{read("waiting", "piece", "%of.piece.waiting")}
{read("replaced", "piece", "%of.piece.replaced")}
  call void @Py_IncRef(ptr %nodes) ; for memory for an object may be found by running author's code
  call void @Py_IncRef(ptr %slots)
  call void @Py_IncRef(ptr %waiting)
  call void @Py_IncRef(ptr %replaced)
  %count = call i64 @PyList_Size(ptr %owners)
  br label %next
next:
  %n = phi i64 [ 0, %entry ], [ %n1, %renewed ]
  %more = icmp slt i64 %n, %count
  br i1 %more, label %one, label %done
one:
  %owner = call ptr @PyList_GetItem(ptr %owners, i64 %n)
  %old = call ptr @PyList_GetItem(ptr %olds, i64 %n)
  %sample = call ptr @PyList_GetItem(ptr %samples, i64 %n)
  %made = call ptr @copied(ptr %sample, i64 %node.size, i64 %node.weak)
  %no.node = icmp eq ptr %made, null
  br i1 %no.node, label %wrong, label %fill
fill:
  call void @Py_IncRef(ptr %where)
  call void @put(ptr %made, i64 %of.node.where, ptr %where)
  call void @Py_IncRef(ptr %piece)
  call void @put(ptr %made, i64 %of.node.pending, ptr %piece)
{read("needs", "old", "%of.node.needs")}
  call void @Py_IncRef(ptr %needs)
  call void @put(ptr %made, i64 %of.node.needs, ptr %needs)
{read("own", "old", "%of.node.owner")}
  call void @Py_IncRef(ptr %own)
  call void @put(ptr %made, i64 %of.node.owner, ptr %own)
  %pair = call ptr (i64, ...) @PyTuple_Pack(i64 2, ptr %made, ptr %old)
  %no.pair = icmp eq ptr %pair, null
  br i1 %no.pair, label %wrong.node, label %note
note:
  %not.noted = call i32 @PyList_Append(ptr %replaced, ptr %pair)
  call void @Py_DecRef(ptr %pair)
  %not.numbered = call i32 @numbered(ptr %made, ptr %nodes, ptr %slots)
  %not.waiting = call i32 @PyList_Append(ptr %waiting, ptr %owner)
  call void @put(ptr %owner, i64 %of.handle.node, ptr %made)
  %either = or i32 %not.noted, %not.numbered
  %any = or i32 %either, %not.waiting
  %well = icmp eq i32 %any, 0
  br i1 %well, label %renewed, label %wrong
renewed:
  %n1 = add i64 %n, 1
  br label %next
wrong.node:
  call void @Py_DecRef(ptr %made)
  br label %wrong
wrong:
  br label %end
done:
  call void @Py_IncRef(ptr %none.object)
  br label %end
end:
  %answer = phi ptr [ null, %wrong ], [ %none.object, %done ]
  call void @Py_DecRef(ptr %nodes)
  call void @Py_DecRef(ptr %slots)
  call void @Py_DecRef(ptr %waiting)
  call void @Py_DecRef(ptr %replaced)
  ret ptr %answer
}}

define ptr @diptych_leaf(ptr %self, ptr %given, i64 %number) {{
entry:
{read("words", "self", str(DATA))}
{word("sample.handle", SAMPLE_HANDLE)}
{word("node.size", NODE_SIZE)}
{word("node.weak", NODE_WEAK)}
{word("handle.size", HANDLE_SIZE)}
{word("handle.weak", HANDLE_WEAK)}
{word("of.handle.node", OF_HANDLE_NODE)}
{word("of.node.value", OF_NODE["value"])}
{read("sample", "given", "0")}
{read("value", "given", "8")}
  %made = call ptr @copied(ptr %sample, i64 %node.size, i64 %node.weak)
  %no.node = icmp eq ptr %made, null
  br i1 %no.node, label %wrong, label %fill
fill:
  call void @Py_IncRef(ptr %value)
  call void @put(ptr %made, i64 %of.node.value, ptr %value)
  %tensor = call ptr @copied(ptr %sample.handle.object, i64 %handle.size, i64 %handle.weak)
  %no.tensor = icmp eq ptr %tensor, null
  br i1 %no.tensor, label %wrong.node, label %answer
answer:
  call void @put(ptr %tensor, i64 %of.handle.node, ptr %made)
  ret ptr %tensor
wrong.node:
  call void @Py_DecRef(ptr %made)
  br label %wrong
wrong:
  ret ptr null
}}

define ptr @diptych_values(ptr %self, ptr %given, i64 %number) {{
entry:
{read("words", "self", str(DATA))}
{word("of.node.value", OF_NODE["value"])}
{read("nodes", "given", "0")}
{read("places", "given", "8")}
  %count = call i64 @PyList_Size(ptr %places)
  %values = call ptr @PyList_New(i64 0)
  %no.values = icmp eq ptr %values, null
  br i1 %no.values, label %wrong, label %next
next:
  %n = phi i64 [ 0, %entry ], [ %n1, %added ]
  %more = icmp slt i64 %n, %count
  br i1 %more, label %one, label %done
one:
  %place = call ptr @PyList_GetItem(ptr %places, i64 %n)
  %at = call i64 @PyLong_AsSsize_t(ptr %place)
  %node = call ptr @PyList_GetItem(ptr %nodes, i64 %at)
{read("value", "node", "%of.node.value")}
  %not.added = call i32 @PyList_Append(ptr %values, ptr %value)
  %is.added = icmp eq i32 %not.added, 0
  br i1 %is.added, label %added, label %drop
added:
  %n1 = add i64 %n, 1
  br label %next
done:
  ret ptr %values
drop:
  call void @Py_DecRef(ptr %values)
  br label %wrong
wrong:
  ret ptr null
}}

define ptr @diptych_bind(ptr %self, ptr %given, i64 %number) {{
entry:
{read("words", "self", str(DATA))}
{word("none", NONE)}
{word("input", INPUT)}
{word("nothing", NOTHING)}
{word("of.node.kind", OF_NODE["kind"])}
{word("of.node.op", OF_NODE["op"])}
{word("of.node.inputs", OF_NODE["inputs"])}
{word("of.node.pending", OF_NODE["pending"])}
{word("of.node.value", OF_NODE["value"])}
{read("nodes", "given", "0")}
{read("outputs", "given", "8")}
{read("values", "given", "16")}
{read("kinds", "given", "24")}
{read("ended", "given", "32")}
  %count = call i64 @PyList_Size(ptr %outputs)
  %gone = call i64 @PyList_Size(ptr %ended)
  br label %next
next:
  %n = phi i64 [ 0, %entry ], [ %n1, %one ]
  %more = icmp slt i64 %n, %count
  br i1 %more, label %one, label %end
one:
  %place = call ptr @PyList_GetItem(ptr %outputs, i64 %n)
  %at = call i64 @PyLong_AsSsize_t(ptr %place)
  %node = call ptr @PyList_GetItem(ptr %nodes, i64 %at)
  %value = call ptr @PyList_GetItem(ptr %values, i64 %n)
  %kind = call ptr @PyList_GetItem(ptr %kinds, i64 %n)
  call void @Py_IncRef(ptr %value)
  call void @put(ptr %node, i64 %of.node.value, ptr %value)
  call void @Py_IncRef(ptr %none.object)
  call void @put(ptr %node, i64 %of.node.pending, ptr %none.object)
  call void @Py_IncRef(ptr %kind)
  call void @put(ptr %node, i64 %of.node.kind, ptr %kind)
  call void @Py_IncRef(ptr %input.object)
  call void @put(ptr %node, i64 %of.node.op, ptr %input.object)
  call void @Py_IncRef(ptr %nothing.object)
  call void @put(ptr %node, i64 %of.node.inputs, ptr %nothing.object)
  %n1 = add i64 %n, 1
  br label %next
end:
  %e = phi i64 [ 0, %next ], [ %e1, %last ]
  %further = icmp slt i64 %e, %gone
  br i1 %further, label %last, label %done
last:
  %old.place = call ptr @PyList_GetItem(ptr %ended, i64 %e)
  %old.at = call i64 @PyLong_AsSsize_t(ptr %old.place)
  %old = call ptr @PyList_GetItem(ptr %nodes, i64 %old.at)
  call void @Py_IncRef(ptr %none.object)
  call void @put(ptr %old, i64 %of.node.value, ptr %none.object)
  %e1 = add i64 %e, 1
  br label %end
done:
  call void @Py_IncRef(ptr %none.object)
  ret ptr %none.object
}}
"""
