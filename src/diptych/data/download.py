"""Files from the network: mirrors, resume, checksums, progress; written whole or not at all."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from diptych.errors import FileFormatError, MissingFileError

CHUNK = 1 << 16
TIMEOUT = 15  # seconds without an answer


def download(
    name: str, folder: Path, mirrors: Sequence[str], check: Callable[[Path], None]
) -> Path:
    """The file `name`, from the first mirror that has it whole.

    What has come is kept beside the target as `.part` and continued by the next attempt, here or
    in a later process. `check` raises FileFormatError where a whole file is not the right one; it
    is then dropped, and the next mirror asked. Raises MissingFileError where none has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / name, folder / f"{name}.part"
    problems = []
    for mirror in mirrors:
        try:
            _fetch(mirror.rstrip("/") + "/" + name, part)
            check(part)
        except FileFormatError as problem:
            part.unlink(missing_ok=True)
            problems.append(f"{mirror}: {problem.facts}")
        except (OSError, urllib.error.URLError, ValueError) as problem:
            problems.append(f"{mirror}: {problem}")
        else:
            part.replace(target)
            return target
    raise MissingFileError(
        f"{name} is fetched from its mirrors", "; ".join(problems), f"put it into {folder} yourself"
    )


def _fetch(address: str, part: Path) -> None:
    """Continue or begin `part` from an address."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as problem:
        if have and problem.code == 416:  # there is no more: it is whole, or not the same file
            return
        raise
    with answer:
        resumed = answer.status == 206
        length = answer.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else None
        with part.open("ab" if resumed else "wb") as file:
            done = have if resumed else 0
            with _progress(part.stem, total) as report:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    report(done)
        if total is not None and done < total:
            raise OSError(f"the connection ended after {done} of {total} bytes")


class _progress:
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total = name, total

    def __enter__(self) -> Callable[[int], None]:
        if not sys.stderr.isatty():
            self.bar = None
            return lambda done: None
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self.bar.start()
        task = self.bar.add_task(self.name, total=self.total)
        bar = self.bar
        return lambda done: bar.update(task, completed=done)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
