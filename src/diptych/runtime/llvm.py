"""LLVM text to object code, in as many threads as ask.

llvmlite lets one thread at a time into LLVM, and holds others up for as long as LLVM makes code.
Its two long calls are therefore made past that lock: every module here has a context, and every
thread at work a machine, of its own, which is all that LLVM asks of threads.

Ctrl-C comes to the main thread, between any two calls: inside llvmlite it would leave its lock
taken or a module without its context. So the main thread has others call LLVM (`apart`) and waits;
where it is interrupted they go on to the end of what they are at.
"""

from __future__ import annotations

import _thread
import atexit
import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

from diptych.compiler.target import Target, describe

HASTE, USUAL = 0, 2  # levels of LLVM's code generator
T = TypeVar("T")


class Call(Generic[T]):
    """A call that another thread makes, and what came of it. Locks and threads are Python's plain
    ones: those of `threading` are themselves calls, which Ctrl-C may cut short."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.made: list[T] = []
        self.problem: BaseException | None = None
        self.running = False
        self.done = _thread.allocate_lock()
        self.done.acquire()

    def run(self) -> None:
        self.running = True
        try:
            self.made.append(self.function())
        except BaseException as problem:  # raised in the thread that waits
            self.problem = problem
        finally:
            _begun.discard(self)
            self.done.release()

    def result(self) -> T:
        with self.done:
            pass
        if self.problem is not None:
            raise self.problem
        return self.made[0]


_begun: set[Call[Any]] = set()


def begin(function: Callable[[], T]) -> Call[T]:
    """Have a thread of its own call a function."""
    call = Call(function)
    _begun.add(call)
    try:
        _thread.start_new_thread(call.run, ())
    except RuntimeError:  # no more threads, or the process ends
        call.run()
    return call


def apart(function: Callable[[], T]) -> T:
    """What a function returns, called where no Ctrl-C comes: by another than the main thread."""
    if threading.get_ident() != threading.main_thread().ident:
        return function()
    return begin(function).result()


def _wait() -> None:
    """The process does not end inside LLVM, where an interrupt has left a call."""
    for call in list(_begun):
        call.done.acquire(timeout=-1 if call.running else 1.0)  # which may not have been begun


@lru_cache(maxsize=1)
def binding() -> Any:
    """llvmlite's binding, imported at the first compile and not before."""
    return apart(_binding)


def _binding() -> Any:
    import llvmlite.binding

    with INSIDE:
        llvmlite.binding.initialize_native_target()
        llvmlite.binding.initialize_native_asmprinter()
    return llvmlite.binding


@lru_cache(maxsize=8)
def host_target(name: str) -> Target:
    """The description of this machine, or of less than it."""
    llvm = binding()

    def host() -> tuple[str, str, dict[str, bool]]:
        features = dict(llvm.get_host_cpu_features())
        return llvm.get_process_triple(), llvm.get_host_cpu_name(), features

    return describe(name, *apart(host))


class _Inside:
    """How many threads are inside LLVM. A fork there would leave its locks taken in the child, so
    a fork waits until there are none, and lets none in."""

    def __init__(self) -> None:
        self.count, self.changed = 0, threading.Condition()

    def __enter__(self) -> None:
        with self.changed:
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.count -= 1
            self.changed.notify_all()

    def close(self) -> None:
        self.changed.acquire()
        self.changed.wait_for(lambda: self.count == 0)

    def open(self) -> None:
        self.changed.release()


INSIDE = _Inside()
atexit.register(_wait)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=INSIDE.close, after_in_parent=INSIDE.open, after_in_child=INSIDE.open
    )
    os.register_at_fork(after_in_child=_begun.clear)


_idle: dict[tuple[Target, int], list[Any]] = {}  # machines that no thread uses


@contextmanager
def _machine(target: Target, level: int = USUAL) -> Iterator[Any]:
    """What makes code for a target, for one thread at a time. It is kept: to end one takes the lock
    that a fork must not find taken."""
    idle = _idle.setdefault((target, level), [])
    try:
        found = idle.pop()
    except IndexError:
        found = new_machine(target, level)
    try:
        yield found
    finally:
        idle.append(found)


def new_machine(target: Target, level: int = USUAL) -> Any:
    llvm = binding()
    if target.triple != llvm.get_process_triple():  # code for another machine, to be written out
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic", codemodel="default"
    )


def _past_the_lock(function: Any) -> Any:
    """A function of LLVM without llvmlite's lock, which it is wrapped in."""
    return getattr(function, "_cfn", function)


def object_code(text: str, target: Target, level: int = USUAL) -> bytes:
    """Translate one module. In haste that takes about a third of the time, and the code up to ten
    times as long to run."""
    return apart(partial(_object_code, text, target, level))


def _object_code(text: str, target: Target, level: int) -> bytes:
    with INSIDE, _machine(target, level) as machine, _parsed(text) as module:
        return _emitted(module, machine)


def assembly(text: str, target: Target) -> str:
    """The machine code of a module as assembly text."""
    return apart(partial(_assembly, text, target))


def _assembly(text: str, target: Target) -> str:
    with INSIDE, _machine(target) as machine, _parsed(text) as module:
        return str(machine.emit_assembly(module))


@contextmanager
def _parsed(text: str) -> Iterator[Any]:
    """A module, ended before its context: an error keeps both in a cycle, whose parts Python ends
    in any order."""
    llvm = binding()
    context = llvm.create_context()
    try:
        module = llvm.parse_assembly(text, context)
        try:
            module.verify()
            yield module
        finally:
            module.close()
    finally:
        context.close()


def _emitted(module: Any, machine: Any) -> bytes:
    """As llvmlite's `emit_object`: LLVM's code generator, and none of its passes over the text.
    Common subexpressions are found there, and loops are tiled, unrolled and ended where they are
    to go on; LLVM's whole pipeline takes six times as long and makes no faster code of it."""
    lib, problem = binding().ffi.lib, ctypes.c_char_p()
    emit = _past_the_lock(lib.LLVMPY_TargetMachineEmitToMemory)
    memory = emit(machine, module, 1, ctypes.byref(problem))
    if not memory:
        raise RuntimeError(str(problem.value))
    try:
        return ctypes.string_at(lib.LLVMPY_GetBufferStart(memory), lib.LLVMPY_GetBufferSize(memory))
    finally:
        lib.LLVMPY_DisposeMemoryBuffer(memory)


class Work:
    """Modules to be translated by some threads, the longest first."""

    def __init__(self, texts: Sequence[str], target: Target, level: int) -> None:
        self.texts, self.target, self.level = texts, target, level
        self.left = sorted(range(len(texts)), key=lambda n: texts[n].count("\n"))
        self.made: dict[int, bytes] = {}
        self.problems: list[BaseException] = []

    def do(self, between: Callable[[], None] = lambda: None) -> None:
        """Translate modules until none is left; `between` is called after each, and may raise."""
        try:
            while (n := self._next()) is not None:
                self.made[n] = _object_code(self.texts[n], self.target, self.level)
                between()
        except BaseException as problem:  # raised by `objects`, in the thread that asked
            self.problems.append(problem)
            self.left.clear()

    def _next(self) -> int | None:
        try:
            return self.left.pop()
        except IndexError:  # another thread may have taken the last one just now
            return None


def objects(
    texts: Sequence[str],
    target: Target,
    level: int = USUAL,
    threads: int = 1,
    between: Callable[[], None] = lambda: None,
) -> list[bytes]:
    """The object code of modules, made by so many threads; `between` is called after each by this
    one, or for the main one, and may raise."""
    work = Work(texts, target, level)
    try:
        helpers = [begin(work.do) for _ in range(min(threads, len(texts)) - 1)]
        apart(partial(work.do, between))
        for helper in helpers:
            helper.result()
    except BaseException:  # Ctrl-C: what is begun is ended, and nothing else begun
        work.left.clear()
        raise
    if work.problems:
        raise work.problems[0]
    return [work.made[n] for n in range(len(texts))]
