"""Derivatives of functions: `grad`, `value_and_grad`, and the partials of one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych.autodiff import gradients, seen, was_released
from diptych.errors import GraphError
from diptych.graph.node import constant_node
from diptych.graph.record import author_line, origin
from diptych.ops import elementwise, shape
from diptych.ops.base import need_float
from diptych.tensor import (
    Parameter,
    Tensor,
    TensorRecorder,
    current_panel,
    seed,
    tensor,
)


def grad(function: Callable[..., Tensor], argument: int = 0) -> Callable[..., Tensor]:
    """The function that computes d function / d argument; may be applied again."""

    both = value_and_grad(function, argument)

    def gradient(*args: Any) -> Tensor:
        return both(*args)[1]

    return gradient


def value_and_grad(
    function: Callable[..., Tensor], argument: int = 0
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that computes its value (one number) and its gradient in one argument."""
    if not isinstance(argument, int | np.integer) or not callable(function):
        raise GraphError(
            "a gradient is of a function, in one argument by its place",
            f"argument={argument!r} of a {type(function).__name__}",
            "dp.partials(result, [a, b]) gives those of several values, made with requires_grad",
        )

    def both(*args: Any) -> tuple[Tensor, Tensor]:
        given = list(args)
        if not -len(given) <= argument < len(given):
            raise GraphError("there is no such argument", f"{argument} of {len(args)}", "0")
        x = given[argument] if isinstance(given[argument], Tensor) else tensor(given[argument])
        need_float(x.type, "a gradient")
        panel = current_panel(x)
        before = panel.grad_enabled
        try:
            panel.grad_enabled = True
            given[argument] = own = elementwise.identity(x)
            own.node.needs_grad, own.node.released = True, False
            panel.changed(own.node)
            value = function(*given)
            if not isinstance(value, Tensor):
                raise GraphError("a gradient is of a tensor", f"{value!r}", "return a tensor")
            return value, partials(value, [own])[0]
        finally:
            panel.grad_enabled = before

    return both


def partials(result: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """d result / d each of the given values, for a result of one number; zeros where it does not
    depend on one. In a program they are any floats; in the dynamic panel those that history
    leads to."""
    panel = current_panel(result)
    root = panel.node_of(result)
    nodes = [panel.node_of(t) for t in of]
    if any(node.released for node in nodes):
        raise was_released(root)
    seen(root, nodes)
    for node in nodes:
        if not node.needs_grad:
            raise GraphError(
                "partials are taken with respect to floats whose history is recorded",
                f"{node!r}",
                "set requires_grad on it, or on what it came from, before it is used",
            )
    made = []
    for node, g in zip(nodes, gradients([root], [seed(panel, root, None)], nodes), strict=True):
        if g is None:
            with origin(author_line()):
                zero = constant_node(0.0, node.type.dtype, author_line())
                g = shape.broadcast_to(zero, node.type.shape)
        made.append(panel.made(Tensor(g, panel)))
    return made


def gradients_of(panel: TensorRecorder, parameters: Sequence[Parameter]) -> list[Tensor]:
    """The gradients of parameters that had one when a step began."""
    found = [grad for p in parameters if (grad := panel.get_grad(p)) is not None]
    if len(found) < len(parameters):
        raise GraphError(
            "one thread at a time trains a model",
            "gradients were forgotten by another thread while a step read them",
            "a lock around the step, or a model for each thread",
        )
    return found
