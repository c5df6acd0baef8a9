"""fluid.io: inference models as 1.8.5 writes and reads them.

A folder holds `__model__`, a ProgramDesc (framework.proto of Paddle 1.8), and a file for every
parameter, or one file with all of them in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diptych as dp
from diptych.errors import FileFormatError
from diptych.fluid import files
from diptych.fluid.core import VarType
from diptych.fluid.framework import SCOPE, STATE, Operation, Program, Variable, put_value
from diptych.fluid.operators import OPERATORS
from diptych.fluid.wire import Message, integer, real, text

LOD_TENSOR, FEED_MINIBATCH, FETCH_LIST = 7, 9, 10
INT, FLOAT, STRING, INTS, BOOLEAN, LONG = 0, 1, 2, 3, 6, 9
VERSION = 1008005


def save_inference_model(
    dirname: str,
    feeded_var_names: Any,
    target_vars: Any,
    executor: Any,
    main_program: Program | None = None,
    model_filename: str | None = None,
    params_filename: str | None = None,
    export_for_deployment: bool = True,
    program_only: bool = False,
) -> list[str]:
    """Write the part of a program that leads from feeds to targets, and its weights; returns the
    names of the targets."""
    program = STATE.main if main_program is None else main_program
    feeds = [feeded_var_names] if isinstance(feeded_var_names, str) else list(feeded_var_names)
    if not all(isinstance(name, str) for name in feeds):
        raise ValueError("feeded_var_names takes names: ['image']")
    targets = [target_vars] if isinstance(target_vars, Variable) else list(target_vars)
    scaled = []
    for n, target in enumerate(targets):
        name = STATE.names.make(f"save_infer_model/scale_{n}.tmp")
        scaled.append(program.append("scale", {"X": [target]}, [name], {"scale": 1.0}))
    operations = pruned(program, [v.name for v in scaled])
    names = {n for op in operations for slot in (op.inputs, op.outputs) for ns in slot.values()
             for n in ns}  # fmt: skip
    variables = [program.variables[n] for n in sorted(names) if n in program.variables]
    folder = files.mapped(dirname)
    model = describe(operations, variables, feeds, [v.name for v in scaled])
    weights = {v.name: files.parameter_bytes(v.tensor.numpy()) for v in variables if v.persistable}
    if params_filename is not None:
        weights = {params_filename: b"".join(weights[n] for n in sorted(weights))}
    if program_only:
        weights = {}
    files.write_all(folder, {**weights, model_filename or "__model__": model}, str(dirname))
    return [v.name for v in scaled]


def pruned(program: Program, targets: Sequence[str]) -> list[Operation]:
    """The operators that lead to the targets."""
    wanted, kept = set(targets), []
    for operation in reversed(program.operations):
        if any(n in wanted for names in operation.outputs.values() for n in names):
            kept.append(operation)
            wanted.update(n for names in operation.inputs.values() for n in names)
    return kept[::-1]


def describe(
    operations: Sequence[Operation],
    variables: Sequence[Variable],
    feeds: Sequence[str],
    fetches: Sequence[str],
) -> bytes:
    """A ProgramDesc of one block."""
    feeding = [Operation("feed", {"X": ["feed"]}, {"Out": [n]}, {"col": i})
               for i, n in enumerate(feeds)]  # fmt: skip
    fetching = [Operation("fetch", {"X": [n]}, {"Out": ["fetch"]}, {"col": i})
                for i, n in enumerate(fetches)]  # fmt: skip
    block = integer(1, 0) + integer(2, -1)
    for name, holder in (("feed", FEED_MINIBATCH), ("fetch", FETCH_LIST)):
        block += text(3, text(1, name) + text(2, integer(1, holder)) + integer(3, 1))
    for variable in variables:
        tensor = integer(1, variable.dtype) + b"".join(integer(2, d) for d in variable.shape)
        kind = integer(1, LOD_TENSOR) + text(3, text(1, tensor) + integer(2, 0))
        block += text(3, text(1, variable.name) + text(2, kind) + integer(3, variable.persistable))
    for operation in (*feeding, *operations, *fetching):
        block += text(4, _operation(operation))
    return text(1, block) + text(4, integer(1, VERSION))


def _operation(operation: Operation) -> bytes:
    out = b""
    for field, slots in ((1, operation.inputs), (2, operation.outputs)):
        for slot, names in slots.items():
            out += text(field, text(1, slot) + b"".join(text(2, n) for n in names))
    out += text(3, operation.type)
    for name, value in operation.attributes.items():
        out += text(4, text(1, name) + _attribute(value))
    return out


def _attribute(value: Any) -> bytes:
    if isinstance(value, bool):
        return integer(2, BOOLEAN) + integer(10, value)
    if isinstance(value, int):
        return integer(2, INT) + integer(3, value)
    if isinstance(value, float):
        return integer(2, FLOAT) + real(4, value)
    if isinstance(value, str):
        return integer(2, STRING) + text(5, value)
    return integer(2, INTS) + b"".join(integer(6, v) for v in value)


_READ: dict[int, Callable[[Message], Any]] = {
    INT: lambda m: m.integer(3), FLOAT: lambda m: m.fields.get(4, [0.0])[-1],
    STRING: lambda m: m.string(5), INTS: lambda m: m.integers(6),
    BOOLEAN: lambda m: bool(m.integer(10)), LONG: lambda m: m.integer(13),
}  # fmt: skip


def load_inference_model(
    dirname: str,
    executor: Any,
    model_filename: str | None = None,
    params_filename: str | None = None,
    pserver_endpoints: Any = None,
) -> list[Any]:
    """[program, names of the feeds, variables to fetch]; the weights go into the scope."""
    folder = files.mapped(dirname)
    if not folder.is_dir():
        raise ValueError(f"There is no directory named '{dirname}'")
    path = folder / (model_filename or "__model__")
    try:
        (block,) = Message(path.read_bytes()).messages(1)
        program, feeds, fetches = _build(block, folder, params_filename)
    except (ValueError, LookupError, UnicodeDecodeError) as problem:
        if isinstance(problem, FileFormatError):
            raise
        raise FileFormatError(
            "an inference model is a ProgramDesc of one block",
            f"{path}: {problem}",
            "save it again",
        ) from problem
    return [program, feeds, [program.variables[n] for n in fetches]]


def _build(
    block: Message, folder: Path, together: str | None
) -> tuple[Program, list[str], list[str]]:
    program = Program()
    shapes = {}
    weights = []
    for variable in block.messages(3):
        name, kind = variable.string(1), variable.messages(2)[0]
        if kind.integer(1) == LOD_TENSOR:
            tensor = kind.messages(3)[0].messages(1)[0]
            shapes[name] = (tensor.integers(2), VarType(tensor.integer(1)))
            if variable.integer(3):
                weights.append(name)
    _weights(program, sorted(weights), folder, together)
    feeds: dict[int, str] = {}
    fetches: dict[int, str] = {}
    for message in block.messages(4):
        operation = _read_operation(message)
        column = operation.attributes.get("col", 0)
        if operation.type == "feed":
            name = operation.outputs["Out"][0]
            feeds[column] = name
            sizes, dtype = shapes[name]
            with program.inner:
                place = dp.placeholder(name, [None if d < 0 else d for d in sizes], dtype.numpy)
            program.variables[name] = Variable(program, name, place)
        elif operation.type == "fetch":
            fetches[column] = operation.inputs["X"][0]
        else:
            _append(program, operation)
    return program, [feeds[n] for n in sorted(feeds)], [fetches[n] for n in sorted(fetches)]


def _weights(program: Program, names: Sequence[str], folder: Path, together: str | None) -> None:
    data, at = b"", 0
    path = folder / (together or "")
    for name in names:
        if together is None or not data:
            path = folder / (together or name)
            data, at = path.read_bytes(), 0
        array, at = files.read_parameter(data, at, path)
        known = SCOPE.parameters.get(name)
        if known is not None and tuple(known.shape) == array.shape:
            put_value(known, array)
            made = known
        else:
            made = dp.Parameter(array, name=name, order="F")
            SCOPE.put(name, made)
        program.variables[name] = Variable(program, name, made, persistable=True)


def _read_operation(message: Message) -> Operation:
    slots = [
        {m.string(1): m.strings(2) for m in message.messages(field) if m.strings(2)}
        for field in (1, 2)
    ]
    attributes = {}
    for attribute in message.messages(4):
        read = _READ.get(attribute.integer(2))
        if read is not None:
            attributes[attribute.string(1)] = read(attribute)
    return Operation(message.string(3), slots[0], slots[1], attributes)


def _append(program: Program, operation: Operation) -> None:
    translated = OPERATORS.get(operation.type)
    if translated is None:
        raise FileFormatError(
            f"diptych.fluid has the operators {', '.join(OPERATORS)}",
            f"the model uses {operation.type!r}",
            "run it with what wrote it, or ask for the operator",
        )
    inputs = {
        slot: [program.variables[n] for n in operation.inputs[slot]] for slot in translated.slots
    }
    names = operation.outputs[translated.outputs[0]]
    known = {n: v for n, v in operation.attributes.items() if n in translated.attributes}
    program.append(operation.type, inputs, names, known)
