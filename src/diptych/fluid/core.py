"""paddle.fluid.core: places, types and the engine's exception."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any

import numpy as np


class EnforceNotMet(Exception):
    """What Paddle's engine raises; here its text is diptych's: rule, facts, cure."""


class CPUPlace:
    """The CPU."""


class _Settings:
    cuda_on_cpu = False  # diptych fluid --device cpu


SETTINGS = _Settings()


class CUDAPlace:
    """A GPU, which is not there. Under `diptych fluid --device cpu` it stands for the CPU."""

    def __init__(self, index: int = 0) -> None:
        if not SETTINGS.cuda_on_cpu:
            raise EnforceNotMet(
                f"CUDAPlace({index}) needs a GPU, and diptych runs on CPUs\n"
                "  try  fluid.CPUPlace(), or diptych fluid --device cpu SCRIPT"
            )
        print(f"diptych: CUDAPlace({index}) is the CPU here (--device cpu)", file=sys.stderr)


class VarType(IntEnum):
    """Data types under Paddle's numbers."""

    BOOL = 0
    INT32 = 2
    INT64 = 3
    FP32 = 5
    FP64 = 6
    UINT8 = 20

    @staticmethod
    def of(dtype: Any) -> VarType:
        """The type of a numpy dtype, a name or a VarType."""
        if isinstance(dtype, VarType):
            return dtype
        found = _BY_NAME.get(np.dtype(dtype).name)
        if found is None:
            raise TypeError(f"diptych has the dtypes {', '.join(_BY_NAME)}, not {dtype}")
        return found

    @property
    def numpy(self) -> Any:
        return np.dtype(next(n for n, t in _BY_NAME.items() if t is self))

    def __str__(self) -> str:
        return f"VarType.{self.name}"


_BY_NAME = {
    "bool": VarType.BOOL, "int32": VarType.INT32, "int64": VarType.INT64,
    "float32": VarType.FP32, "float64": VarType.FP64, "uint8": VarType.UINT8,
}  # fmt: skip


class VarDesc:
    VarType = VarType


class LoDTensor:
    """A fed value; np.array reads it."""

    def __init__(self, array: Any = None) -> None:
        self.array = array

    def set(self, array: Any, place: Any = None) -> None:
        self.array = np.asarray(array)

    def lod(self) -> list[Any]:
        return []

    def shape(self) -> list[int]:
        return list(np.shape(self.array))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.array, dtype)


def get_cuda_device_count() -> int:
    return 0
