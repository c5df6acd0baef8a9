"""Modules, layers and functions that models are made of."""

from diptych.nn import functional, init
from diptych.nn.layers import (
    GELU,
    Dropout,
    Flatten,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from diptych.nn.module import Module

__all__ = [
    "GELU",
    "Dropout",
    "Flatten",
    "Linear",
    "Module",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "functional",
    "init",
]
