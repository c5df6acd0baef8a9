"""Optimizers; each docstring states its update as the contract has it (rule 7)."""

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
