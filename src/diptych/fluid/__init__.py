"""paddle.fluid as of 1.8.5, on diptych: what the article's programs use.

`import diptych.fluid as fluid` by name, or `diptych fluid SCRIPT.py` for a script that imports
`paddle`.
"""

from typing import Any

from diptych.fluid import core, dygraph, framework, initializer, io, layers, optimizer
from diptych.fluid.core import CPUPlace, CUDAPlace, LoDTensor
from diptych.fluid.dygraph import load_dygraph, save_dygraph
from diptych.fluid.executor import DataFeeder, Executor
from diptych.fluid.framework import (
    Program,
    Scope,
    Variable,
    default_main_program,
    default_startup_program,
    global_scope,
    in_dygraph_mode,
    is_compiled_with_cuda,
    program_guard,
)


def cpu_places(device_count: int | None = None) -> list[CPUPlace]:
    return [CPUPlace() for _ in range(device_count or 1)]


def cuda_places(device_ids: Any = None) -> list[CUDAPlace]:
    raise AssertionError("Not compiled with CUDA")


__all__ = [
    "CPUPlace", "CUDAPlace", "DataFeeder", "Executor", "LoDTensor", "Program", "Scope", "Variable",
    "core", "cpu_places", "cuda_places", "default_main_program", "default_startup_program",
    "dygraph", "framework", "global_scope", "in_dygraph_mode", "initializer", "io",
    "is_compiled_with_cuda", "layers", "load_dygraph", "optimizer", "program_guard",
    "save_dygraph",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    raise AttributeError(f"diptych.fluid has no {name} yet; it has {', '.join(n for n in __all__)}")
