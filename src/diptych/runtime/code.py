"""LLVM text to callable machine code, with a cache of object code on disk."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from diptych import config
from diptych.compiler.target import Target
from diptych.errors import PACKAGE
from diptych.lazy import lazy
from diptych.runtime.files import write_whole
from diptych.runtime.llvm import INSIDE, USUAL, apart, binding, new_machine, objects
from diptych.runtime.llvm import assembly as assembly
from diptych.runtime.llvm import host_target as host_target

_lock = threading.Lock()
_serial = 0
MAGIC = b"diptych object 6\n"  # another number where other code is made of the same text


def sha256(data: bytes) -> bytes:
    """A digest; hashlib is imported with the first compile, for it loads OpenSSL."""
    import hashlib

    return hashlib.sha256(data).digest()


Texts = Callable[[], Sequence[str]]  # what makes the modules of some code


class Source:
    """Modules that are one piece of code: what makes their texts, and what the object code is kept
    under, which is the texts, or `known_as`, from which the compiler makes them, and the compiler.
    """

    def __init__(
        self, texts: Texts, target: Target, known_as: str = "", level: int = USUAL
    ) -> None:
        self.texts, self.target, self.known_as, self.level = texts, target, known_as, level

    @lazy
    def path(self) -> str | None:
        """Where the cache has the object code, or will have it."""
        folder = config.cache_folder()
        if folder is None:
            return None
        versions = f"{binding().llvm_version_info} {self.target} {self.level}\n"
        known = f"{_compiler()}\n{self.known_as}" if self.known_as else "\n".join(self.texts())
        key = sha256((versions + known).encode()).hex()
        return os.path.join(folder, key[:2], f"{key}.o")

    def is_stored(self) -> bool:
        """Whether object code need not be made."""
        return self.path is not None and os.path.exists(self.path)

    def objects(self, threads: int, between: Callable[[], None]) -> tuple[list[bytes], bool]:
        """Object code from the cache, or made and put there; and whether it was made."""
        found = None if self.path is None else _read(self.path)
        if found is not None:
            return found, False
        made = objects(self.texts(), self.target, self.level, threads, between)
        if self.path is not None:
            _write(self.path, made)
        return made, True


@lru_cache(maxsize=1)
def _compiler() -> str:
    """A digest of the sources that make text from graphs: another compiler makes other text."""
    found = [os.path.join(PACKAGE, "dtypes.py")]
    for part in ("graph", "kernel", "ops", "compiler"):
        folder = os.path.join(PACKAGE, part)
        found += [os.path.join(folder, n) for n in sorted(os.listdir(folder)) if n.endswith(".py")]
    contents = []
    for path in found:
        with open(path, "rb") as file:
            contents.append(file.read())
    return sha256(b"\0".join(contents)).hex()


def _read(path: str) -> list[bytes] | None:
    """A whole entry of the cache, or None where it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    head, digest, body = (
        data[: len(MAGIC)],
        data[len(MAGIC) : len(MAGIC) + 32],
        data[len(MAGIC) + 32 :],
    )
    if head != MAGIC or sha256(body) != digest:
        return None
    found = []
    while body:
        size = int.from_bytes(body[:8], "little")
        found.append(body[8 : 8 + size])
        body = body[8 + size :]
    return found


def _write(path: str, made: Sequence[bytes]) -> None:
    """A cache that cannot be written (no rights, disk full) only costs time."""
    body = b"".join(len(m).to_bytes(8, "little") + m for m in made)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, MAGIC + sha256(body) + body, flush=False)  # the digest tells what is lost
    except OSError:
        return


class Code:
    """Loaded machine code: each function takes two pointers (the table and the arena) and returns
    a code; those named in `counted` also take a number. `threads` and `between` as in `objects`."""

    def __init__(
        self,
        source: str | Source,
        target: Target,
        entries: Sequence[str],
        counted: Sequence[str] = (),
        threads: int = 1,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        if isinstance(source, str):
            text = source
            source = Source(lambda: [text], target)
        made, self.compiled = source.objects(threads, between)
        self._library = apart(partial(Library, made, (*entries, *counted)))
        two = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        three = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        self.functions: dict[str, Callable[..., int]] = {
            **{name: two(self._library[name]) for name in entries},
            **{name: three(self._library[name]) for name in counted},
        }

    def address(self, name: str) -> int:
        """Where a function is in memory."""
        return self._library[name]


_loaded: dict[int, Any] = {}  # what LLVM keeps of every library, by its number
_ended: list[int] = []  # the numbers of those that nobody has any more


class Library:
    """Object code as functions in memory. Python may drop one anywhere, where Ctrl-C would leave
    llvmlite's lock taken, and so would a fork: LLVM forgets it when the next is made. What it keeps
    is held here and not by the library, for Python's collector ends all of a cycle at once."""

    def __init__(self, made: Sequence[bytes], names: Sequence[str]) -> None:
        global _serial
        with _lock, INSIDE:
            while _ended:
                _loaded.pop(_ended.pop(), None)
            _serial += 1
            builder = binding().JITLibraryBuilder()
            for data in made:
                builder = builder.add_object_img(data)
            for name in names:
                builder = builder.export_symbol(name)
            loaded = builder.add_current_process().link(_jit(), f"diptych{_serial}")
            self.places = {name: int(loaded[name]) for name in names}
            self.number, _loaded[_serial] = _serial, loaded

    def __getitem__(self, name: str) -> int:
        """Where a function is."""
        return self.places[name]

    def __del__(self, ended: list[int] = _ended) -> None:
        if hasattr(self, "number"):
            ended.append(self.number)


@lru_cache(maxsize=1)
def _jit() -> Any:
    return binding().create_lljit_compiler(_jit_machine(), use_jit_link=False)


@lru_cache(maxsize=1)
def _jit_machine() -> Any:
    return new_machine(host_target("native"))


def _forked() -> None:
    """In a child of a fork no other thread holds the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
