"""Data sets and loaders."""

from diptych.data.datasets import ArrayDataset, digits, mnist
from diptych.data.loader import DataLoader
from diptych.philox import permutation

__all__ = ["ArrayDataset", "DataLoader", "digits", "mnist", "permutation"]
