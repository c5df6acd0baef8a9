"""Optimizers; each docstring states its update as the contract has it (rule 7)."""

from diptych.elsewhere import missing_from
from diptych.optim.adam import Adam, AdamW
from diptych.optim.clip import clip_grad_norm_, clip_grad_value_
from diptych.optim.optimizer import Optimizer
from diptych.optim.schedule import CosineLR, Schedule, StepLR
from diptych.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineLR",
    "Optimizer",
    "Schedule",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
]


def __getattr__(name: str) -> object:
    raise missing_from(__name__, name, __all__, ", and Optimizer for your own")
