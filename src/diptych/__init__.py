"""diptych: dynamic and static computation graphs, two panels on one hinge, the same bits."""

import sys as _sys
from importlib import import_module as _import
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from diptych import data, nn, optim
from diptych.compiles import why
from diptych.derivatives import grad, partials, value_and_grad
from diptych.dtypes import bool_, f32, f64, i32, i64, u8
from diptych.dynamic import PANEL, no_recompile, set_eager, use_device
from diptych.elsewhere import missing_from as _missing_from
from diptych.errors import DiptychError
from diptych.generator import default_generator, manual_seed
from diptych.ops.author import operator
from diptych.ops.contract import contract, matmul
from diptych.ops.elementwise import (
    add,
    cast,
    clip,
    divide,
    equal,
    fma,
    greater,
    greater_equal,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    stop_gradient,
    subtract,
    where,
)
from diptych.ops.functions import (
    abs,
    ceil,
    cos,
    erf,
    exp,
    expm1,
    floor,
    log,
    log1p,
    pow,
    round,
    rsqrt,
    sigmoid,
    sign,
    sin,
    sqrt,
    tanh,
)
from diptych.ops.indexing import arange, gather, one_hot, scatter_add
from diptych.ops.random import bernoulli, normal, permutation, uniform
from diptych.ops.reduce import argmax, argmin, mean, prod
from diptych.ops.reduce import reduce_all as all
from diptych.ops.reduce import reduce_any as any
from diptych.ops.reduce import reduce_max as max
from diptych.ops.reduce import reduce_min as min
from diptych.ops.reduce import reduce_sum as sum
from diptych.ops.shape import (
    broadcast_to,
    concat,
    expand_dims,
    flatten,
    pad,
    reshape,
    squeeze,
    stack,
    transpose,
)
from diptych.runtime.threads import set_threads, threads
from diptych.static import Executor, Program, compile, scan
from diptych.static import data as placeholder
from diptych.tensor import Parameter, Tensor, no_grad, tensor
from diptych.tiers import finish_compiling

if _TYPE_CHECKING:
    from diptych.formats.library import export_library
    from diptych.formats.program import load, save
    from diptych.formats.state import load_state, save_state
    from diptych.testing import gradcheck
    from diptych.view import Drawing, draw

# What few programs use is imported when it is asked for: name -> part.
_LATER = {
    "Drawing": "view.draw", "draw": "view.draw", "export_library": "formats.library",
    "gradcheck": "testing", "load": "formats.program", "load_state": "formats.state",
    "save": "formats.program", "save_state": "formats.state",
}  # fmt: skip


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise _missing_from(__name__, name, __all__)
    value = globals()[name] = getattr(_import(f"diptych.{_LATER[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


class _DataModule(_ModuleType):
    """`dp.data` is the module of data sets; called, it makes a placeholder as the article does."""

    __call__ = staticmethod(placeholder)


_sys.modules["diptych.data"].__class__ = _DataModule

__version__ = "0.1.0"

__all__ = [
    "PANEL",
    "DiptychError",
    "Drawing",
    "Executor",
    "Parameter",
    "Program",
    "Tensor",
    "abs",
    "add",
    "all",
    "any",
    "arange",
    "argmax",
    "argmin",
    "bernoulli",
    "bool_",
    "broadcast_to",
    "cast",
    "ceil",
    "clip",
    "compile",
    "concat",
    "contract",
    "cos",
    "data",
    "default_generator",
    "divide",
    "draw",
    "equal",
    "erf",
    "exp",
    "expand_dims",
    "expm1",
    "export_library",
    "f32",
    "f64",
    "finish_compiling",
    "flatten",
    "floor",
    "fma",
    "gather",
    "grad",
    "gradcheck",
    "greater",
    "greater_equal",
    "i32",
    "i64",
    "less",
    "less_equal",
    "load",
    "load_state",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "manual_seed",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "multiply",
    "negative",
    "nn",
    "no_grad",
    "no_recompile",
    "normal",
    "not_equal",
    "one_hot",
    "operator",
    "optim",
    "pad",
    "partials",
    "permutation",
    "placeholder",
    "pow",
    "prod",
    "reshape",
    "round",
    "rsqrt",
    "save",
    "save_state",
    "scan",
    "scatter_add",
    "set_eager",
    "set_threads",
    "sigmoid",
    "sign",
    "sin",
    "sqrt",
    "squeeze",
    "stack",
    "stop_gradient",
    "subtract",
    "sum",
    "tanh",
    "tensor",
    "threads",
    "transpose",
    "u8",
    "uniform",
    "use_device",
    "value_and_grad",
    "where",
    "why",
]
