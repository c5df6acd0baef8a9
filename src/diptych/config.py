"""One table of settings, each read once from the environment and validated."""

from __future__ import annotations

import os

from diptych.errors import DiptychError


def _number(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise DiptychError(
            f"{name} takes a whole number from {low} to {high}", repr(text), f"unset {name}"
        )
    return int(text)


def eager() -> bool:
    """DIPTYCH_EAGER=1 runs every call of the dynamic panel at once."""
    return bool(_number("DIPTYCH_EAGER", 0, 0, 1))


def tiers() -> str:
    """What is compiled in haste first, and anew in the background: with DIPTYCH_TIERS=1 all, with 0
    none, by default what would take long."""
    if not os.environ.get("DIPTYCH_TIERS"):
        return "long"
    return ("none", "all")[_number("DIPTYCH_TIERS", 0, 0, 1)]


def threads() -> int:
    """DIPTYCH_THREADS, by default the number of processors this process may use."""
    default = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return _number("DIPTYCH_THREADS", default or 1, 1, 1024)


def debug() -> int:
    """DIPTYCH_DEBUG: 1 compiles and times, 2 kernels, 4 LLVM text."""
    return _number("DIPTYCH_DEBUG", 0, 0, 5)


def verify() -> bool:
    """DIPTYCH_VERIFY=1 holds the kernels of every compile against their graph, as the tests do."""
    return bool(_number("DIPTYCH_VERIFY", 0, 0, 1))


def cpu() -> str:
    """DIPTYCH_CPU: native, or less than the host by LLVM's names."""
    return os.environ.get("DIPTYCH_CPU", "native")


def cache_folder() -> str | None:
    """DIPTYCH_CACHE, by default diptych under the user's cache folder; empty for none."""
    text = os.environ.get("DIPTYCH_CACHE")
    if text == "":
        return None
    return text or os.path.join(data_folder(), "code")


def data_folder() -> str:
    """diptych under the user's cache folder, where data sets and code are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "diptych")
