"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from diptych.errors import UnwritableFileError


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, then rename over it."""
    try:
        _write(path, data)
    except OSError as problem:
        raise UnwritableFileError(
            "a file is written whole or not at all",
            f"{path}: {problem.strerror}",
            "check the folder, the rights and the space; what was there is unchanged",
        ) from problem


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
