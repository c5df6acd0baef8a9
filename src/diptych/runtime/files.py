"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading

from diptych.errors import UnwritableFileError


def write_whole(path: str | os.PathLike[str], data: bytes, flush: bool = True) -> None:
    """Write beside the target, by default flush to disk, then rename over it."""
    try:
        _write(os.fspath(path), data, flush)
    except OSError as problem:
        raise UnwritableFileError(
            "a file is written whole or not at all",
            f"{path}: {problem.strerror}",
            "check the folder, the rights and the space; what was there is unchanged",
        ) from problem


def _write(path: str, data: bytes, flush: bool) -> None:
    folder, name = os.path.split(path)
    own = f".{name}.{os.getpid()}-{threading.get_native_id()}"
    temporary = os.path.join(folder, own)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
