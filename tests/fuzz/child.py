"""A process that checks cases, so that what crashes or hangs is a finding, not the end."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection

LIMIT = 120.0  # seconds for one case


class Child:
    """One process at a time; where one has ended, the next case starts another."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self.process: multiprocessing.process.BaseProcess | None = None

    def check(self, text: str) -> str:
        """What is wrong with the case of this text; empty where nothing is."""
        if self.process is None:
            self._start()
        assert self.process is not None
        self.connection.send(text)
        try:
            if self.connection.poll(self.limit):
                return str(self.connection.recv())
            problem = f"hangs: no result after {self.limit:g} s"
        except (EOFError, ConnectionResetError):
            self.process.join(10)
            code = self.process.exitcode or 0
            ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            problem = f"crashes: {ended}"
        self.stop()
        return problem

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def stop(self) -> None:
        """End the process; what it has done wrong to its memory is gone with it."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
            self.connection.close()


def serve(connection: Connection) -> None:
    """Answer every case with what is wrong with it."""
    import os

    os.environ["DIPTYCH_CACHE"] = ""  # before the package reads it; code is used once
    from fuzz.case import Case, check

    while True:
        try:
            text = connection.recv()
        except EOFError:
            return
        connection.send(check(Case.parse(text)))
