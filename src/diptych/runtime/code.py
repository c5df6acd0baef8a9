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
from diptych.runtime.files import write_whole

_lock = threading.Lock()
_serial = 0
MAGIC = b"diptych object 2\n"


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


def object_code(text: str, target: Target) -> bytes:
    """Translate one module. The text is optimised when it is written, so LLVM's own optimiser is
    left out: it doubled the time of a compile and made no kernel faster. No pass that the code
    generator runs may change a bit."""
    llvm, machine = _llvm(), _machine(target)
    with _lock:
        module = llvm.parse_assembly(text)
        module.verify()
        return bytes(machine.emit_object(module))


def cached_object(text: str, target: Target) -> tuple[bytes, bool]:
    """Object code from the cache, or made and put there; and whether it was made."""
    folder = config.cache_folder()
    if folder is None:
        return object_code(text, target), True
    versions = f"{_llvm().llvm_version_info} {target}\n"
    key = sha256((versions + text).encode()).hex()
    path = os.path.join(folder, key[:2], f"{key}.o")
    found = _read(path)
    if found is not None:
        return found, False
    made = object_code(text, target)
    _write(path, made)
    return made, True


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
    a code; those named in `counted` also take a number."""

    def __init__(
        self, text: str, target: Target, entries: Sequence[str], counted: Sequence[str] = ()
    ) -> None:
        global _serial
        data, self.compiled = cached_object(text, target)
        self.size = len(data)
        with _lock:
            _serial += 1
            builder = _llvm().JITLibraryBuilder().add_object_img(data)
            for name in (*entries, *counted):
                builder = builder.export_symbol(name)
            self._library = builder.add_current_process().link(_jit(), f"diptych{_serial}")
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
    llvm, machine = _llvm(), _machine(target)
    with _lock:
        return str(machine.emit_assembly(llvm.parse_assembly(text)))
