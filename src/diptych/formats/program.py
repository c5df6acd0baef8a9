"""Saved programs: the pruned graph as text and its weights, in one safetensors file.

The file states (`tensors.py`) the graph in the form of `diptych.graph.text`, and the names of its
inputs, weights and outputs, and has a digest of it all. The same program gives the same bytes.
Loading parses text and copies numbers; it runs no code from the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.errors import DiptychError, FeedError, FileFormatError
from diptych.formats.tensors import UNDIGESTED, read_tensors, write_tensors
from diptych.graph.node import Constant, Graph, Node, input_node, walk
from diptych.graph.record import recording
from diptych.graph.rewrite import rebuilt
from diptych.graph.text import parse_graph, print_graph
from diptych.ops.base import make_operator, without_foreign
from diptych.static.executor import Feed
from diptych.static.program import Program
from diptych.tensor import Parameter, Tensor, default_panel

Array = np.ndarray[Any, Any]
FORMAT = "diptych program 2"
LARGE = 256  # bytes of a constant above which it is stored beside the weights

AGAIN = "write it again with dp.save"


def save(
    program: Program,
    path: str | os.PathLike[str],
    inputs: Sequence[str | Tensor],
    outputs: Sequence[str | Tensor],
) -> None:
    """Write what `outputs` need of a program, and its weights, to one file, whole or not at all.

    `inputs` are the placeholders that a run will feed. The weights are the present values of the
    parameters. Raises FeedError where an output needs a placeholder that is not among the inputs.
    """
    pruned = prune(program, inputs, outputs)
    stated = {
        "format": FORMAT,
        "graph": print_graph(pruned.graph),
        "inputs": pruned.inputs,
        "weights": list(pruned.weights),
        "outputs": pruned.outputs,
    }
    write_tensors(path, pruned.weights, stated)


@dataclass(frozen=True)
class Pruned:
    """What outputs need of a program: inputs of the graph are the feeds, then the weights."""

    graph: Graph
    inputs: list[str]
    weights: dict[str, Array]
    outputs: list[str]


def prune(
    program: Program, inputs: Sequence[str | Tensor], outputs: Sequence[str | Tensor]
) -> Pruned:
    """The part of a program between inputs and outputs, with the present weights."""
    if not isinstance(program, Program):
        raise FeedError(
            "what is saved is a program", f"{type(program).__name__}", "dp.Program(), or save_state"
        )
    if isinstance(inputs, str | Tensor) or isinstance(outputs, str | Tensor):
        raise FeedError(
            "the inputs and outputs of a saved program are lists",
            f"{type(inputs).__name__} and {type(outputs).__name__}",
            "dp.save(program, path, ['image'], [scores])",
        )
    names = [i if isinstance(i, str) else i.node.label for i in inputs]
    roots = [program.target(o) for o in outputs]
    if not roots:
        raise FeedError("a saved program has outputs", "an empty list", "outputs=[scores]")
    used = {id(n) for n in walk(roots)}
    feeds = _placeholders(program, names, used)
    if any(id(n) in used for n, _ in program.live):
        raise FeedError(
            "a saved program is a function of its inputs",
            "the outputs depend on random numbers or on a learning rate",
            "save program.clone(for_test=True), or call model.eval() before recording",
        )
    weights: dict[str, Array] = {}
    places: dict[int, Node] = {}
    for parameter, node in program.state.values():
        if id(node) in used:
            name = _unique(parameter.name or "parameter", {*weights, *names})
            weights[name] = default_panel().observe(parameter)
            places[id(node)] = input_node(node.type, name, node.where)
    for node in walk(roots):
        if isinstance(node.op, Constant) and len(node.op.data) > LARGE:
            name = _unique("constant", {*weights, *names})
            weights[name] = np.array(node.op.array(node.type))
            places[id(node)] = input_node(node.type, name, node.where)
    graph = Graph((*feeds, *places.values()), tuple(rebuilt(without_foreign(roots), places)))
    labels = [r.label or f"output_{n}" for n, r in enumerate(roots)]
    return Pruned(graph, names, weights, labels)


def _placeholders(program: Program, names: Sequence[str], used: set[int]) -> list[Node]:
    for name in names:
        if name not in program.feeds:
            raise FeedError(
                "the inputs of a saved program are its placeholders",
                f"unknown {name!r}",
                f"the program has {sorted(program.feeds)}",
            )
    needed = [f.name for f in program.feeds.values() if id(f.node) in used]
    missing = sorted(set(needed) - set(names))
    if missing:
        raise FeedError(
            "the inputs of a saved program are all that its outputs need",
            f"missing {missing}",
            f"inputs={needed}",
        )
    return [program.feeds[name].node for name in names]


def _unique(stem: str, taken: set[str]) -> str:
    name, n = stem, 0
    while name in taken:
        n += 1
        name = f"{stem}_{n}"
    return name


def load(path: str | os.PathLike[str]) -> Program:
    """A saved program: `program.run({"image": array})` computes its `outputs`, for any batch size.

    Raises MissingFileError or FileFormatError, which name the file.
    """
    stated, arrays = read_tensors(path)
    if stated.get("format") not in (FORMAT, *UNDIGESTED):
        raise FileFormatError(
            "a saved program says so in its metadata",
            f"{path} is a {stated.get('format') or 'file of weights'}, not a {FORMAT}",
            "dp.load_state(path) reads weights alone; dp.save writes a program",
        )
    try:
        graph = parse_graph(stated["graph"], make_operator)
        inputs, weights, outputs = (
            [str(n) for n in stated[key]] for key in ("inputs", "weights", "outputs")
        )
        return _program(graph, inputs, weights, outputs, arrays)
    except (DiptychError, AttributeError, LookupError, ValueError, TypeError) as problem:
        reason = problem.facts if isinstance(problem, DiptychError) else repr(problem)
        raise FileFormatError(
            "a saved program is a graph with its weights",
            f"{path} is damaged: {reason}",
            AGAIN,
        ) from problem


def _program(
    graph: Graph,
    inputs: list[str],
    weights: list[str],
    outputs: list[str],
    arrays: dict[str, Array],
) -> Program:
    if len(graph.inputs) != len(inputs) + len(weights) or len(outputs) != len(graph.outputs):
        raise FileFormatError(
            "a graph has its inputs, weights and outputs", "their numbers differ", AGAIN
        )
    program = Program()
    for name, node in zip(inputs, graph.inputs, strict=False):
        program.feeds[name] = Feed(name, node)
    with recording(default_panel()):
        for name, node in zip(weights, graph.inputs[len(inputs) :], strict=True):
            parameter = Parameter(arrays[name], name=name)
            if parameter.type != node.type:
                raise FileFormatError("a weight has its type", f"{name}: {parameter.type}", AGAIN)
            program.state[id(parameter)] = (parameter, node)
            program.present[id(parameter)] = node
    program.recorded = [n for n in walk(graph.outputs) if n.inputs]
    program.names = {n.label: n for n in walk([*graph.inputs, *graph.outputs]) if n.label}
    for name, node in zip(outputs, graph.outputs, strict=True):
        program.names[name] = node
        program.outputs.append(Tensor(node, program))
    return program
