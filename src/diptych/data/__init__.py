"""Data sets and loaders."""

from typing import TYPE_CHECKING, Any

from diptych.data.datasets import ArrayDataset, arrays, digits
from diptych.data.loader import DataLoader
from diptych.elsewhere import missing_from
from diptych.philox import permutation

if TYPE_CHECKING:
    from diptych.data.idx import mnist

__all__ = ["ArrayDataset", "DataLoader", "arrays", "digits", "mnist", "permutation"]


def __getattr__(name: str) -> Any:
    """What reads from the network is imported when it is asked for: it takes long."""
    if name != "mnist":
        raise missing_from(__name__, name, __all__)
    from diptych.data.idx import mnist

    return mnist
