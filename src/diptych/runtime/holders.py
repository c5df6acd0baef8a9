"""How many hold an object.

A count of references includes those of the question, which differ between versions of Python. So
there is one way to count, and a count means something only beside another of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from sys import getrefcount
from typing import Any


def holders(objects: Sequence[Any]) -> list[int]:
    """Count for each object of a list those who hold it, the list among them."""
    return list(map(getrefcount, objects))


ALONE = holders([object()])[0]  # of what the list holds, and nobody else
SOLE = ALONE + 1  # of what one other holds
