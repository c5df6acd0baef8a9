"""Gradient clipping, between backward and step."""

from __future__ import annotations

from collections.abc import Iterable

from diptych.ops.elementwise import add, clip, divide, minimum, multiply
from diptych.ops.functions import sqrt
from diptych.ops.reduce import reduce_sum
from diptych.tensor import Parameter, Tensor, current_panel, no_grad


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float) -> Tensor:
    """g <- g * min(max_norm / (norm + 1e-6), 1); returns norm = sqrt(sum over parameters, in
    order, of sum(g * g))."""
    with no_grad():
        listed = list(parameters)
        panel = current_panel(listed[0] if listed else None)
        grads = [(p, g) for p in listed if (g := panel.get_grad(p)) is not None]
        total: Tensor | None = None
        for _, g in grads:
            part = reduce_sum(multiply(g, g))
            total = part if total is None else add(total, part)
        norm: Tensor = sqrt(0.0 if total is None else total)
        scale = minimum(divide(max_norm, add(norm, 1e-6)), 1.0)
        for p, g in grads:
            panel.set_grad(p, multiply(g, scale))
        return norm


def clip_grad_value_(parameters: Iterable[Parameter], limit: float) -> None:
    """g <- clip(g, -limit, limit)."""
    with no_grad():
        for p in parameters:
            g = current_panel(p).get_grad(p)
            if g is not None:
                current_panel(p).set_grad(p, clip(g, -limit, limit))
