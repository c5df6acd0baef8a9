"""Data sets and loaders."""

from diptych.data.datasets import ArrayDataset, arrays, digits
from diptych.data.loader import DataLoader
from diptych.data.mnist import mnist
from diptych.philox import permutation

__all__ = ["ArrayDataset", "DataLoader", "arrays", "digits", "mnist", "permutation"]
