"""One thread that makes machine code while Python goes on: LLVM works outside the interpreter lock.

The thread ends when nothing waits, and is started anew at need. At exit it stops after the module
that LLVM is at, for the process must not end inside it; a child of a fork goes on with what waited.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Job:
    """Something to make, and later what was made or why it could not be."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.made: Any = None
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            self.made = self.make()
        except _Stopped:
            return
        except Exception as problem:  # raised by `result`, in the thread that asks
            self.problem = problem

    def result(self) -> Any:
        """What was made, or None where it is not there yet; raises what making it raised."""
        if self.problem is not None:
            raise self.problem
        if self.made is None:
            _start()  # a child of a fork has no thread yet
        return self.made

    def is_done(self) -> bool:
        return self.made is not None or self.problem is not None


class _Stopped(BaseException):
    """The process ends."""


_lock = threading.RLock()  # for all below; Ctrl-C finds a way into a condition's `with`
_changed = threading.Condition(_lock)
_waiting: deque[Job] = deque()
_begun: list[Job] = []  # what is being made, by the thread or by who is in a hurry
_worker: threading.Thread | None = None
_closing = False


def submit(job: Job) -> None:
    """Make it in the background, after what was submitted before."""
    with _lock:
        _waiting.append(job)
    _start()


def hurry(job: Job) -> None:
    """Return once it is made: here, unless somebody has begun."""
    mine = False
    try:
        with _lock:
            while job in _begun:
                _changed.wait()
            if job.is_done():
                return
            mine = True
            if job in _waiting:
                _waiting.remove(job)
            _begun.append(job)
        _make(job)
    except BaseException:  # Ctrl-C: what was begun here is left to the background
        if mine:
            _put_back(job)
        raise


def _put_back(job: Job) -> None:
    with _lock:
        if job in _begun:
            _begun.remove(job)
        if not job.is_done() and job not in _waiting:
            _waiting.append(job)
        _changed.notify_all()
    _start()


def finish() -> None:
    """Return once nothing waits."""
    with _lock:
        jobs = [*_begun, *_waiting]
    for job in jobs:
        hurry(job)


def between() -> None:
    """What the thread calls between two modules: the end of the process goes first."""
    if threading.current_thread() is _worker and _closing:
        raise _Stopped


def _make(job: Job) -> None:
    job.run()
    with _lock:
        _begun.remove(job)
        _changed.notify_all()


def _start() -> None:
    global _worker
    with _lock:
        if _worker is None and _waiting and not _closing:
            worker = threading.Thread(target=_work, name="diptych-compiler", daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads: what waits is not made
                worker.start()
                _worker = worker


def _work() -> None:
    global _worker
    while True:
        with _lock:
            if not _waiting or _closing:
                _worker = None
                return
            job = _waiting.popleft()
            _begun.append(job)
        _make(job)


def _close() -> None:
    global _closing
    with _lock:
        _closing = True
        _waiting.clear()
        worker = _worker
    if worker is not None:
        worker.join()


def _forked() -> None:
    global _lock, _changed, _worker
    _waiting.extendleft(reversed(_begun))
    _begun.clear()
    _lock, _worker = threading.RLock(), None
    _changed = threading.Condition(_lock)


atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _lock.acquire() and None,
        after_in_parent=lambda: _lock.release(),
        after_in_child=_forked,
    )
