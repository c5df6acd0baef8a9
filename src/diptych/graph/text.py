"""Graphs as text that parses back; equal text means equal graph.

    diptych graph 1
    %0 = input "image" f32[N,784]  # train.py:12
    %1 = input "weight" f32[100,784]  # train.py:3
    %2 = contract(%0, %1; left="mk" right="nk" out="mn" over="k") f32[N,100]  # train.py:13
    %3 = constant f32[] 0000803f  # train.py:14
    %4 = add(%2, %3) "scores" f32[N,100]  # train.py:14
    return %4

A line is a node: operator, inputs, attributes, a label where it has one, the type, and the
author's line. Constants are their raw little-endian bytes. Parsing infers every type anew and
holds it against the one that is written, so that a text cannot describe a graph that calls could
not have made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diptych.dtypes import BY_NAME, Dim, Dimension, TensorType, product
from diptych.errors import DiptychError, GraphError
from diptych.graph.node import Constant, Graph, Input, Node, Operator, Where

HEAD = "diptych graph 1"
Make = Callable[[str, Mapping[str, Any]], Operator]
_WORDS: dict[str, Any] = {
    "true": True, "false": False, "none": None, "inf": float("inf"), "nan": float("nan"),
}  # fmt: skip


# ---- printing ------------------------------------------------------------------------------


def print_graph(graph: Graph, lines: bool = True) -> str:
    """The graph as text; `lines` adds the author's line to every node."""
    given = set(map(id, graph.inputs))
    order = [*graph.inputs, *[n for n in graph.nodes if id(n) not in given]]
    number = {id(n): f"%{place}" for place, n in enumerate(order)}
    out = [HEAD]
    for node in order:
        text = f"{number[id(node)]} = {_call(node, number, id(node) in given)}"
        out.append(f"{text}  # {node.where}" if lines and node.where.line else text)
    out.append("return " + ", ".join(number[id(o)] for o in graph.outputs))
    return "\n".join(out) + "\n"


def _call(node: Node, number: Mapping[int, str], given: bool) -> str:
    label = f" {json.dumps(node.label)}" if node.label else ""
    if given:
        return f"input{label} {node.type}"
    if isinstance(node.op, Constant):
        return f"constant{label} {node.type} {node.op.data.hex()}"
    inputs = ", ".join(number[id(i)] for i in node.inputs)
    attributes = " ".join(f"{k}={print_value(v)}" for k, v in node.op.attributes().items())
    inside = f"{inputs}; {attributes}" if attributes else inputs
    return f"{node.op.name}({inside}){label} {node.type}"


def print_value(value: Any) -> str:
    """An attribute: number, text, truth value, none, dimension, or a tuple of these."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return "(" + ", ".join(print_value(v) for v in value) + ")"
    if isinstance(value, int | float | Dim):
        return repr(value)
    raise GraphError(
        "an attribute is a number, text or a tuple",
        f"{value!r}",
        "make it one in the operator's class",
    )


# ---- parsing -------------------------------------------------------------------------------

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<node>%\d+)'
    r"|(?P<number>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|-inf)|(?P<name>[A-Za-z_]\w*)|(?P<mark>[=(),;\[\]*+]))"
)


class _Line:
    """The tokens of one line."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise GraphError(
                    "a line of a graph is a call",
                    f"{text[at:]!r} in {text!r}",
                    "compare with what print_graph writes",
                )
            self.tokens.append((found.lastgroup or "", found.group(found.lastgroup or 0)))
            at = found.end()
        self.at = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("", "")

    def take(self, kind: str = "", value: str = "") -> str:
        have = self.peek()
        if (kind and have[0] != kind) or (value and have[1] != value) or not have[0]:
            raise GraphError(
                "a line of a graph is a call",
                f"{have[1]!r} instead of {value or kind!r}",
                "compare with what print_graph writes",
            )
        self.at += 1
        return have[1]

    def skip(self, value: str) -> bool:
        if self.peek()[1] == value and self.peek()[0] == "mark":
            self.at += 1
            return True
        return False

    def value(self) -> Any:
        kind, text = self.peek()
        if kind == "text":
            return json.loads(self.take())
        if self.skip("("):
            values = []
            while not self.skip(")"):
                values.append(self.value())
                self.skip(",")
            return tuple(values)
        if text in _WORDS:
            return _WORDS[self.take()]
        total = self._term()
        while self.skip("+"):
            total = total + self._term()
        return total

    def _term(self) -> Any:
        result = self._factor()
        while self.skip("*"):
            result = self._factor() * result
        return result

    def _factor(self) -> Any:
        kind, text = self.peek()
        self.take()
        if kind == "name":
            return Dim.symbol(text)
        if kind != "number":
            raise GraphError(
                "a value is a number, text or a tuple",
                repr(text),
                "compare with what print_graph writes",
            )
        return int(text) if text.lstrip("-").isdigit() else float(text)

    def type(self) -> TensorType:
        name = self.take("name")
        self.take("mark", "[")
        dims: list[Dimension] = []
        while not self.skip("]"):
            dim = self.value()
            if not isinstance(dim, int | Dim) or isinstance(dim, bool):
                raise GraphError(
                    "a size is a whole number or a symbol",
                    repr(dim),
                    "compare with what print_graph writes",
                )
            if isinstance(dim, int) and dim < 0:
                raise GraphError("a size is not negative", str(dim), "check the shape")
            dims.append(dim)
            self.skip(",")
        if name not in BY_NAME:
            raise GraphError("a type has a dtype", repr(name), "one of " + ", ".join(BY_NAME))
        return TensorType(tuple(dims), BY_NAME[name])


def parse_graph(text: str, make: Make) -> Graph:
    """The graph that a text describes; `make` turns a name and attributes into an operator."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != HEAD:
        raise GraphError("the text of a graph begins with its version", f"{lines[:1]}", HEAD)
    nodes: dict[str, Node] = {}
    inputs: list[Node] = []
    for line in lines[1:-1]:
        code, where = _split(line)
        name, node = _node(_Line(code), nodes, where, make)
        if name in nodes:
            raise GraphError(
                "a node has a number of its own",
                f"{name} twice",
                "compare with what print_graph writes",
            )
        nodes[name] = node
        if isinstance(node.op, Input):
            inputs.append(node)
    last = _Line(lines[-1])
    last.take("name", "return")
    return Graph(tuple(inputs), tuple(_operands(last, nodes)))


def _split(line: str) -> tuple[str, Where]:
    """The call, and the author's line behind the mark."""
    found = re.search(r"  # ([^\"#]*):(\d+)$", line)
    if found is None:
        return line, Where("?", 0)
    return line[: found.start()], Where(found[1], int(found[2]))


def _node(line: _Line, nodes: Mapping[str, Node], where: Where, make: Make) -> tuple[str, Node]:
    name = line.take("node")
    line.take("mark", "=")
    operator = line.take("name")
    operands: list[Node] = []
    attributes: dict[str, Any] = {}
    if operator not in ("input", "constant"):
        line.take("mark", "(")
        operands = list(_operands(line, nodes))
        if line.skip(";"):
            while line.peek()[0] == "name":
                key = line.take("name")
                line.take("mark", "=")
                attributes[key] = line.value()
        line.take("mark", ")")
    label = json.loads(line.take()) if line.peek()[0] == "text" else ""
    type = line.type()
    if operator == "input":
        op: Operator = Input()
    elif operator == "constant":
        op = Constant(_bytes(line, type))
    else:
        op = make(operator, attributes)
        _check(op, operands, type)
    if line.peek()[0]:
        raise GraphError(
            "a line of a graph is one call",
            f"{line.peek()[1]!r} after it",
            "compare with what print_graph writes",
        )
    return name, Node(op, tuple(operands), type, where, label=label)


def _operands(line: _Line, nodes: Mapping[str, Node]) -> Iterator[Node]:
    while line.peek()[0] == "node":
        name = line.take()
        if name not in nodes:
            raise GraphError(
                "a node is made before it is used", name, "compare with what print_graph writes"
            )
        yield nodes[name]
        line.skip(",")


def _bytes(line: _Line, type: TensorType) -> bytes:
    digits = "".join(line.take() for _ in range(len(line.tokens) - line.at))
    size = product(type.shape)
    if not isinstance(size, int) or len(digits) != 2 * size * type.dtype.bytes:
        raise GraphError(
            "a constant has the bytes of its type",
            f"{type}: {len(digits)} digits",
            "compare with what print_graph writes",
        )
    try:
        return bytes.fromhex(digits)
    except ValueError as problem:
        raise GraphError(
            "the bytes of a constant are hexadecimal",
            digits[:40],
            "compare with what print_graph writes",
        ) from problem


def _check(op: Operator, operands: list[Node], type: TensorType) -> None:
    try:
        inferred = op.infer(*[o.type for o in operands])
    except DiptychError:
        raise
    except Exception as problem:
        raise GraphError(
            f"{op.name} takes other inputs or attributes",
            f"{op.name} of {[o.type for o in operands]}: {problem}",
            "compare with what print_graph writes",
        ) from problem
    if inferred != type:
        raise GraphError(
            "a node has the type that its operator infers",
            f"{op.name}: {inferred}, not {type}",
            "compare with what print_graph writes",
        )
