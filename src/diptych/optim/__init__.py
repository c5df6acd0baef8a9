"""Optimizers; each docstring states its update as the contract has it (rule 7)."""

from diptych.optim.optimizer import Optimizer
from diptych.optim.sgd import SGD

__all__ = ["SGD", "Optimizer"]
