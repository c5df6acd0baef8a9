"""Unpacked copies of large files, mapped into memory instead of unpacked again.

A copy lies under the user's cache folder by name and SHA-256. A list beside it names the packed
files that were unpacked, each as it was then, and the digest of what was in it: a file that has
changed since, or another one, is unpacked anew. Copies that the list does not need are deleted.
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
SOURCES = 8  # packed files of one name that are remembered


def kept(packed: Path) -> tuple[np.ndarray[Any, Any], str] | None:
    """Return the bytes that this very file holds, from a copy, and their SHA-256, or None."""
    try:
        sources, copies = _listed(packed)
        state, digest = sources[_key(packed)]
        copy = _copy(packed, digest)
        if state != _state(packed) or copies[digest] != _state(copy):
            return None
        with copy.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return np.frombuffer(mapped, np.uint8), digest
    except (OSError, ValueError, LookupError, TypeError):
        return None


def keep(packed: Path, digest: str, data: bytes) -> None:
    """Keep what a file was unpacked to, where there is a cache and it can be written."""
    if len(data) < LARGE or config.cache_folder() is None:
        return
    try:
        sources, copies = _listed(packed)
    except (OSError, ValueError, LookupError, TypeError):
        sources, copies = {}, {}
    copy = _copy(packed, digest)
    try:
        sources.pop(_key(packed), None)
        sources = dict([*sources.items(), (_key(packed), (_state(packed), digest))][-SOURCES:])
        needed = {d for _, d in sources.values()}
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_whole(copy, data)
        copies[digest] = _state(copy)
        known = {"sources": sources, "copies": {d: s for d, s in copies.items() if d in needed}}
        write_whole(_list(packed), json.dumps(known).encode())
        for other in copies.keys() - needed:
            _copy(packed, other).unlink(missing_ok=True)
    except OSError:  # no room, or no right: it is unpacked again the next time
        return


def _listed(packed: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state and digest of each packed file, state of each copy), as the list has them."""
    known = json.loads(_list(packed).read_text(encoding="utf-8"))
    sources, copies = dict(known["sources"]), dict(known["copies"])
    return {path: (state, str(digest)) for path, (state, digest) in sources.items()}, copies


def _folder() -> Path:
    return Path(config.data_folder()) / "unpacked"


def _list(packed: Path) -> Path:
    return _folder() / f"{packed.stem}.json"


def _copy(packed: Path, digest: str) -> Path:
    return _folder() / f"{packed.stem}-{digest[:16]}"


def _key(path: Path) -> str:
    return str(path.resolve())


def _state(path: Path) -> list[int]:
    """What changes with every write to a file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
