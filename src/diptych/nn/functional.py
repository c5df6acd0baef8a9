"""Operators under the names that PyTorch gives them."""

from diptych.elsewhere import missing_from
from diptych.ops.contract import linear
from diptych.ops.functions import sigmoid, tanh
from diptych.ops.indexing import one_hot
from diptych.ops.losses import (
    accuracy,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    cross_entropy_on_probabilities,
    elu,
    gelu,
    l1_loss,
    leaky_relu,
    log_softmax,
    mse_loss,
    nll_loss,
    relu,
    silu,
    softmax,
    softplus,
)
from diptych.ops.random import dropout

__all__ = [
    "accuracy",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "cross_entropy_on_probabilities",
    "dropout",
    "elu",
    "gelu",
    "l1_loss",
    "leaky_relu",
    "linear",
    "log_softmax",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]


def __getattr__(name: str) -> object:
    raise missing_from(__name__, name, __all__, ", and what dp has")
