"""Unpacked copies of large files, mapped into memory instead of unpacked again.

A copy lies under the user's cache folder by name and checksum. Beside it stand the packed files
that it was unpacked from and checked against, each as it was then: a file that has changed since,
or another one, is unpacked and checked anew.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from diptych import config
from diptych.runtime.files import write_whole

LARGE = 1 << 20  # bytes below which unpacking costs nothing
SOURCES = 8  # packed files that are remembered
WHAT = "unpacked"


def kept(packed: Path, checksum: str) -> np.ndarray[Any, Any] | None:
    """The bytes that this very file holds, from a copy; None where there is none."""
    copy, stamp = _places(packed, checksum)
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
        if known["sources"][_key(packed)] != _state(packed) or known["copy"] != _state(copy):
            return None
        with copy.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def keep(packed: Path, checksum: str, data: bytes) -> None:
    """Keep what a file was unpacked to, where there is a cache and it can be written."""
    if len(data) < LARGE or config.cache_folder() is None:
        return
    copy, stamp = _places(packed, checksum)
    try:
        sources = json.loads(stamp.read_text(encoding="utf-8"))["sources"]
        if not isinstance(sources, dict):
            sources = {}
    except (OSError, ValueError, LookupError, TypeError):
        sources = {}
    sources = dict([*sources.items(), (_key(packed), _state(packed))][-SOURCES:])
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_whole(copy, data)
        known = {WHAT: copy.name, "copy": _state(copy), "sources": sources}
        write_whole(stamp, json.dumps(known).encode())
    except OSError:  # no room, or no right: it is unpacked again the next time
        return


def _places(packed: Path, checksum: str) -> tuple[Path, Path]:
    folder = Path(config.data_folder()) / WHAT
    name = f"{packed.stem}-{checksum[:16]}"
    return folder / name, folder / f"{name}.json"


def _key(path: Path) -> str:
    return str(path.resolve())


def _state(path: Path) -> list[int]:
    """What changes with every write to a file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
