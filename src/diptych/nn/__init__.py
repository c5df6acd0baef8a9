"""Modules, layers and functions that models are made of."""

from diptych.elsewhere import missing_from
from diptych.nn import functional, init
from diptych.nn.containers import ModuleDict, ModuleList, ParameterDict, ParameterList
from diptych.nn.layers import (
    ELU,
    GELU,
    Dropout,
    Flatten,
    Identity,
    LeakyReLU,
    Linear,
    LogSoftmax,
    ReLU,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from diptych.nn.module import Module

__all__ = [
    "ELU",
    "GELU",
    "Dropout",
    "Flatten",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Module",
    "ModuleDict",
    "ModuleList",
    "ParameterDict",
    "ParameterList",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "functional",
    "init",
]


def __getattr__(name: str) -> object:
    """A layer that is not there yet is an error that says what is."""
    layers = [n for n in __all__ if n[0].isupper()]
    raise missing_from(__name__, name, layers, ", and Module for your own")
