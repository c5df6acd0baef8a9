"""LLVM text to callable machine code, with a cache of object code on disk."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from diptych import config
from diptych.compiler.target import Target, describe
from diptych.errors import PACKAGE
from diptych.runtime.files import write_whole

_lock = threading.Lock()
_serial = 0
MAGIC = b"diptych object 4\n"  # another number where other code is made of the same text


def sha256(data: bytes) -> bytes:
    """A digest; hashlib is imported with the first compile, for it loads OpenSSL."""
    import hashlib

    return hashlib.sha256(data).digest()


@lru_cache(maxsize=1)
def _llvm() -> Any:
    """llvmlite's binding, imported at the first compile and not before."""
    import llvmlite.binding

    llvmlite.binding.initialize_native_target()
    llvmlite.binding.initialize_native_asmprinter()
    return llvmlite.binding


@lru_cache(maxsize=8)
def host_target(name: str) -> Target:
    """The description of this machine, or of less than it."""
    llvm = _llvm()
    return describe(
        name,
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        dict(llvm.get_host_cpu_features()),
    )


@lru_cache(maxsize=8)
def _machine(target: Target) -> Any:
    llvm = _llvm()
    if target.triple != llvm.get_process_triple():  # code for another machine, to be written out
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="default"
    )


def object_code(text: str, target: Target, between: Callable[[], None] = lambda: None) -> bytes:
    """Optimise and translate one module; no pass here may change a bit. `between` is called outside
    of the lock, where others may go first, and may raise."""
    with _lock:
        module = _optimised(text, target)
    between()
    with _lock:  # what LLVM made ends inside the lock, which a fork waits for
        made = bytes(_machine(target).emit_object(module))
        del module
    return made


def _optimised(text: str, target: Target) -> Any:
    """A module after three passes. The text has its common subexpressions found, its loops tiled
    and unrolled: LLVM's whole pipeline takes seven times as long and makes no faster code of it."""
    llvm = _llvm()
    module = llvm.parse_assembly(text)
    module.verify()
    builder = llvm.create_pass_builder(_machine(target), llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_module_pass_manager()
    passes.add_instruction_combine_pass()
    passes.add_loop_rotate_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return module


Text = str | Callable[[], str]  # a module, or what makes it


def _path(text: Text, target: Target, known_as: str) -> str | None:
    """Where the cache has the object code of a module, or will have it."""
    folder = config.cache_folder()
    if folder is None:
        return None
    versions = f"{_llvm().llvm_version_info} {target}\n"
    named = f"{_compiler()}\n{known_as}" if known_as else _made(text)
    key = sha256((versions + named).encode()).hex()
    return os.path.join(folder, key[:2], f"{key}.o")


def is_stored(text: Text, target: Target, known_as: str = "") -> bool:
    """Whether object code need not be made."""
    path = _path(text, target, known_as)
    return path is not None and os.path.exists(path)


def cached_object(
    text: Text, target: Target, known_as: str = "", between: Callable[[], None] = lambda: None
) -> tuple[bytes, bool]:
    """Object code from the cache, or made and put there; and whether it was made.

    The key is the text; or `known_as`, from which the compiler makes the text, and the compiler.
    """
    path = _path(text, target, known_as)
    found = None if path is None else _read(path)
    if found is not None:
        return found, False
    made = object_code(_made(text), target, between)
    if path is not None:
        _write(path, made)
    return made, True


def _made(text: Text) -> str:
    return text if isinstance(text, str) else text()


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


def _read(path: str) -> bytes | None:
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
    return body if head == MAGIC and sha256(body) == digest else None


def _write(path: str, body: bytes) -> None:
    """A cache that cannot be written (no rights, disk full) only costs time."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, MAGIC + sha256(body) + body, flush=False)  # the digest tells what is lost
    except OSError:
        return


class Code:
    """Loaded machine code: each function takes two pointers (the table and the arena) and returns
    a code; those named in `counted` also take a number. `known_as` as in `cached_object`."""

    def __init__(
        self,
        text: Text,
        target: Target,
        entries: Sequence[str],
        counted: Sequence[str] = (),
        known_as: str = "",
        between: Callable[[], None] = lambda: None,
    ) -> None:
        global _serial
        data, self.compiled = cached_object(text, target, known_as, between)
        self.size = len(data)
        with _lock:
            _serial += 1
            builder = _llvm().JITLibraryBuilder().add_object_img(data)
            for name in (*entries, *counted):
                builder = builder.export_symbol(name)
            self._library = builder.add_current_process().link(_jit(), f"diptych{_serial}")
            del builder  # what LLVM made ends inside the lock
        two = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        three = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        self.functions: dict[str, Callable[..., int]] = {
            **{name: two(self._library[name]) for name in entries},
            **{name: three(self._library[name]) for name in counted},
        }

    def address(self, name: str) -> int:
        """Where a function is in memory."""
        return int(self._library[name])


@lru_cache(maxsize=1)
def _jit() -> Any:
    return _llvm().create_lljit_compiler(_machine(host_target("native")), use_jit_link=False)


def assembly(text: str, target: Target) -> str:
    """The machine code of a module as assembly text."""
    with _lock:
        return str(_machine(target).emit_assembly(_optimised(text, target)))


if hasattr(os, "register_at_fork"):  # a fork inside LLVM would leave its locks taken in the child
    os.register_at_fork(
        before=lambda: _lock.acquire() and None,
        after_in_parent=lambda: _lock.release(),
        after_in_child=lambda: _lock.release(),
    )
