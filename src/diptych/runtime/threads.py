"""The pool of native threads: the outer range of a kernel in chunks, without the interpreter.

Workers are Python threads that spend their life in one native call (the interpreter lock is
released there). Work is published in one 64-bit ticket, generation << 32 | front << 16 | back: the
caller claims chunks from the front and workers from the back, by compare-and-exchange, so that what
was read of the description belongs to the generation of the chunk. Claiming from two ends lets a
thread meet the same part of a weight in every kernel and step, where its caches have it. Workers
spin for some microseconds, then sleep on a condition. Waking one takes longer than a short kernel,
so the caller runs some alone first: calls that come seldom disturb nobody. Which thread computes a
chunk cannot change a bit, for chunks divide outputs and never a sum.

A whole call may be handed to a worker as well, one at a time: the caller goes on, and when it needs
the results it helps with the chunks that are left (`finish`), or runs the call itself where no
worker has taken it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

from diptych import config
from diptych.compiler import TAKEN, TASK, modes
from diptych.errors import DiptychError
from diptych.runtime.code import Code, host_target
from diptych.runtime.llvm import Call, begin

CHUNKS_PER_THREAD = 4
MOST_CHUNKS = 65535
WORTH_WAKING = 64  # short kernels that the caller runs alone before it wakes workers that sleep
WORTH_HANDING = 4  # the same of whole calls, which take longer than to wake a worker
SPINS = 20000

# The pool in memory, in words of 8 bytes. The mutex and the condition are the system's own.
RUN, HAND_OVER = 0, 1  # functions that code calls through the pool
TICKET, FINISHED, SLEEPERS, AWAY, STOP, BUSY, THREADS = 8, 16, 24, 25, 32, 40, 48
KERNEL, TABLE, ARENA, UNITS, CHUNKS, ALONE, CALLS = 49, 50, 51, 52, 53, 54, 55
TASK_ENTRY, TASK_TABLE, TASK_ARENA, TASK_CODE = range(TASK + 1, TASK + 5)
MUTEX, CONDITION = 64, 80
WORDS = 96
NOTHING, OFFERED, DONE = 0, 1, 3  # states, beside TAKEN, of the call that is handed over


def _place(name: str, word: int, pool: str = "%pool") -> str:
    return f"  %{name} = getelementptr i64, ptr {pool}, i64 {word}"


def _places() -> list[str]:
    names = {
        "ticket": TICKET, "finished": FINISHED, "sleepers": SLEEPERS, "away": AWAY, "stop": STOP,
        "busy": BUSY, "threads": THREADS, "kernel": KERNEL, "table.at": TABLE, "arena.at": ARENA,
        "units.at": UNITS, "chunks.at": CHUNKS, "alone.at": ALONE, "calls.at": CALLS,
        "task": TASK, "entry.at": TASK_ENTRY, "given.at": TASK_TABLE, "memory.at": TASK_ARENA,
        "code.at": TASK_CODE, "mutex": MUTEX, "condition": CONDITION,
    }  # fmt: skip
    return [_place(name, word) for name, word in names.items()]


def _claim(tag: str, empty: str, front: bool) -> list[str]:
    """Claim and run chunks from one end until there are none, then go to the label `empty`."""
    return [
        f"{tag}.claim:",
        f"  %{tag}.t = load atomic i64, ptr %ticket seq_cst, align 8",
        f"  %{tag}.high = lshr i64 %{tag}.t, 16",
        f"  %{tag}.front = and i64 %{tag}.high, {MOST_CHUNKS}",
        f"  %{tag}.back = and i64 %{tag}.t, {MOST_CHUNKS}",
        f"  %{tag}.none = icmp eq i64 %{tag}.front, %{tag}.back",
        f"  br i1 %{tag}.none, label %{empty}, label %{tag}.read",
        f"{tag}.read:",
        f"  %{tag}.kw = load atomic i64, ptr %kernel monotonic, align 8",
        f"  %{tag}.tw = load atomic i64, ptr %table.at monotonic, align 8",
        f"  %{tag}.aw = load atomic i64, ptr %arena.at monotonic, align 8",
        f"  %{tag}.units = load atomic i64, ptr %units.at monotonic, align 8",
        f"  %{tag}.chunks = load atomic i64, ptr %chunks.at monotonic, align 8",
        f"  %{tag}.new = add i64 %{tag}.t, {65536 if front else -1}",
        f"  %{tag}.x = cmpxchg ptr %ticket, i64 %{tag}.t, i64 %{tag}.new seq_cst seq_cst",
        f"  %{tag}.got = extractvalue {{ i64, i1 }} %{tag}.x, 1",
        f"  br i1 %{tag}.got, label %{tag}.run, label %{tag}.claim",
        f"{tag}.run:",
        f"  %{tag}.k = inttoptr i64 %{tag}.kw to ptr",
        f"  %{tag}.table = inttoptr i64 %{tag}.tw to ptr",
        f"  %{tag}.arena = inttoptr i64 %{tag}.aw to ptr",
        f"  %{tag}.n = add i64 %{tag}.{'front, 0' if front else 'back, -1'}",
        f"  %{tag}.n1 = add i64 %{tag}.n, 1",
        f"  %{tag}.p = mul i64 %{tag}.n, %{tag}.units",
        f"  %{tag}.p1 = mul i64 %{tag}.n1, %{tag}.units",
        f"  %{tag}.b = udiv i64 %{tag}.p, %{tag}.chunks",
        f"  %{tag}.e = udiv i64 %{tag}.p1, %{tag}.chunks",
        f"  call void %{tag}.k(ptr %{tag}.table, ptr %{tag}.arena, i64 %{tag}.b, i64 %{tag}.e)",
        f"  %{tag}.f = atomicrmw add ptr %finished, i64 1 seq_cst",
        f"  br label %{tag}.claim",
    ]


def _some_left(tag: str, ticket: str) -> list[str]:
    """Whether a ticket has chunks, as `%tag.some`."""
    return [
        f"  %{tag}.high = lshr i64 {ticket}, 16",
        f"  %{tag}.front = and i64 %{tag}.high, {MOST_CHUNKS}",
        f"  %{tag}.back = and i64 {ticket}, {MOST_CHUNKS}",
        f"  %{tag}.some = icmp ne i64 %{tag}.front, %{tag}.back",
    ]


def _take(tag: str, to: str, otherwise: str) -> list[str]:
    """Take the call that is offered and run it, then go to the label `to`."""
    return [
        f"{tag}.take:",
        f"  %{tag}.x = cmpxchg ptr %task, i64 {OFFERED}, i64 {TAKEN} seq_cst seq_cst",
        f"  %{tag}.mine = extractvalue {{ i64, i1 }} %{tag}.x, 1",
        f"  br i1 %{tag}.mine, label %{tag}.call, label %{otherwise}",
        f"{tag}.call:",
        f"  %{tag}.entry = load ptr, ptr %entry.at",
        f"  %{tag}.given = load ptr, ptr %given.at",
        f"  %{tag}.memory = load ptr, ptr %memory.at",
        f"  %{tag}.code = call i64 %{tag}.entry(ptr %{tag}.given, ptr %{tag}.memory)",
        f"  store i64 %{tag}.code, ptr %code.at",
        f"  store atomic i64 {DONE}, ptr %task seq_cst, align 8",
        f"  br label %{to}",
    ]


def _shy(counter: str, worth: int, otherwise: str) -> list[str]:
    """Where all workers sleep: run alone so often, then go to the label `otherwise` once."""
    return [
        "shy:",
        f"  %c = load i64, ptr %{counter}.at",
        "  %c1 = add i64 %c, 1",
        f"  %rare = icmp ult i64 %c1, {worth}",
        "  %c2 = select i1 %rare, i64 %c1, i64 0",
        f"  store i64 %c2, ptr %{counter}.at",
        f"  br i1 %rare, label %solo, label %{otherwise}",
    ]


def _sleep() -> list[str]:
    """Sleep until there is something to do, then claim."""
    return [
        "sleep:",
        "  %l = call i32 @pthread_mutex_lock(ptr %mutex)",
        "  %in = atomicrmw add ptr %sleepers, i64 1 seq_cst",
        "  br label %check",
        "check:",
        "  %s2 = load atomic i64, ptr %stop seq_cst, align 8",
        "  %t2 = load atomic i64, ptr %ticket seq_cst, align 8",
        *_some_left("asleep", "%t2"),
        "  %o2 = load atomic i64, ptr %task seq_cst, align 8",
        "  %told = icmp ne i64 %s2, 0",
        f"  %wanted = icmp eq i64 %o2, {OFFERED}",
        "  %needed = or i1 %wanted, %asleep.some",
        "  %awake = or i1 %told, %needed",
        "  br i1 %awake, label %woken, label %doze",
        "doze:",
        "  %w = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)",
        "  br label %woken",  # for what comes next, where the caller was faster
        "woken:",
        "  %out = atomicrmw sub ptr %sleepers, i64 1 seq_cst",
        "  %u = call i32 @pthread_mutex_unlock(ptr %mutex)",
        "  br label %work.claim",
    ]


def _worker(triple: str) -> list[str]:
    """A worker's whole life: claim, take a call, spin, sleep, until told to stop."""
    return [
        "define i64 @diptych_worker(ptr %pool, ptr %unused) {",
        "entry:",
        *modes.enter(triple),
        *_places(),
        "  br label %work.claim",
        *_claim("work", "spin", front=False),
        "spin:",
        "  %i = phi i64 [ 0, %work.claim ], [ %i1, %again ]",
        "  %i1 = add i64 %i, 1",
        "  %s = load atomic i64, ptr %stop seq_cst, align 8",
        "  %stopped = icmp ne i64 %s, 0",
        "  br i1 %stopped, label %end, label %look",
        "look:",
        "  %t = load atomic i64, ptr %ticket seq_cst, align 8",
        *_some_left("look", "%t"),
        "  br i1 %look.some, label %work.claim, label %glance",
        "glance:",
        "  %o = load atomic i64, ptr %task seq_cst, align 8",
        f"  %offered = icmp eq i64 %o, {OFFERED}",
        "  br i1 %offered, label %leave, label %wait",
        "leave:",
        "  %gone = atomicrmw add ptr %away, i64 1 seq_cst",
        "  br label %own.take",
        *_take("own", "back", "back"),
        "back:",
        "  %here = atomicrmw sub ptr %away, i64 1 seq_cst",
        "  br label %work.claim",
        "wait:",
        "  PAUSE",
        f"  %long = icmp ugt i64 %i, {SPINS}",
        "  br i1 %long, label %sleep, label %again",
        "again:",
        "  br label %spin",
        *_sleep(),
        "end:",
        "  ret i64 0",
        "}",
    ]


def _publish() -> list[str]:
    """Describe a kernel, give it a ticket with all its chunks, and wake who sleeps."""
    return [
        "publish:",
        "  %kw = ptrtoint ptr %k to i64",
        "  %tw = ptrtoint ptr %table to i64",
        "  %aw = ptrtoint ptr %arena to i64",
        f"  %most = mul i64 %n, {CHUNKS_PER_THREAD}",
        "  %fewer = icmp ult i64 %units, %most",
        "  %chunks = select i1 %fewer, i64 %units, i64 %most",
        "  store atomic i64 %kw, ptr %kernel monotonic, align 8",
        "  store atomic i64 %tw, ptr %table.at monotonic, align 8",
        "  store atomic i64 %aw, ptr %arena.at monotonic, align 8",
        "  store atomic i64 %units, ptr %units.at monotonic, align 8",
        "  store atomic i64 %chunks, ptr %chunks.at monotonic, align 8",
        "  store atomic i64 0, ptr %finished seq_cst, align 8",
        "  %old = load atomic i64, ptr %ticket seq_cst, align 8",
        "  %generation = and i64 %old, -4294967296",
        "  %following = add i64 %generation, 4294967296",
        "  %new = or i64 %following, %chunks",
        "  store atomic i64 %new, ptr %ticket seq_cst, align 8",
        "  %asleep = load atomic i64, ptr %sleepers seq_cst, align 8",
        "  %any = icmp ne i64 %asleep, 0",
        "  br i1 %any, label %wake, label %main.claim",
        "wake:",
        "  %l = call i32 @pthread_mutex_lock(ptr %mutex)",
        "  %b = call i32 @pthread_cond_broadcast(ptr %condition)",
        "  %u = call i32 @pthread_mutex_unlock(ptr %mutex)",
        "  br label %main.claim",
    ]  # fmt: skip


def _run() -> list[str]:
    """Run a kernel on the pool, or alone where the pool is at another kernel."""
    return [
        "define void @diptych_parallel"
        "(ptr %pool, ptr %k, ptr %table, ptr %arena, i64 %units, i1 %long) {",
        "entry:",
        *_places(),
        "  %x = cmpxchg ptr %busy, i64 0, i64 1 seq_cst seq_cst",
        "  %free = extractvalue { i64, i1 } %x, 1",
        "  br i1 %free, label %look, label %alone",
        "alone:",
        "  call void %k(ptr %table, ptr %arena, i64 0, i64 %units)",
        "  ret void",
        "look:",
        "  %n = load i64, ptr %threads",
        "  %out = load atomic i64, ptr %sleepers seq_cst, align 8",
        "  %gone = load atomic i64, ptr %away seq_cst, align 8",
        "  %absent = add i64 %out, %gone",
        "  %others = sub i64 %n, 1",
        "  %awake = icmp slt i64 %absent, %others",
        "  %share = or i1 %awake, %long",
        "  br i1 %share, label %publish, label %shy",
        *_shy("alone", WORTH_WAKING, "publish"),
        "solo:",
        "  call void %k(ptr %table, ptr %arena, i64 0, i64 %units)",
        "  store atomic i64 0, ptr %busy seq_cst, align 8",
        "  ret void",
        *_publish(),
        *_claim("main", "join", front=True),
        "join:",
        "  %f = load atomic i64, ptr %finished seq_cst, align 8",
        "  %all = icmp eq i64 %f, %chunks",
        "  br i1 %all, label %end, label %hold",
        "hold:",
        "  PAUSE",
        "  br label %join",
        "end:",
        "  store atomic i64 0, ptr %busy seq_cst, align 8",
        "  ret void",
        "}",
    ]  # fmt: skip


def _hand_over() -> list[str]:
    """Offer a call to the workers, and return -1; where all of them sleep it is run at once, but
    for one in so many, which wakes them."""
    return [
        "define i64 @diptych_hand_over(ptr %pool, ptr %call, ptr %table, ptr %arena) {",
        "entry:",
        *_places(),
        "  %n = load i64, ptr %threads",
        "  %others = sub i64 %n, 1",
        "  %out = load atomic i64, ptr %sleepers seq_cst, align 8",
        "  %awake = icmp slt i64 %out, %others",
        "  br i1 %awake, label %offer, label %shy",
        *_shy("calls", WORTH_HANDING, "offer"),
        "solo:",
        "  %code = call i64 %call(ptr %table, ptr %arena)",
        "  ret i64 %code",
        "offer:",
        "  store ptr %call, ptr %entry.at",
        "  store ptr %table, ptr %given.at",
        "  store ptr %arena, ptr %memory.at",
        f"  store atomic i64 {OFFERED}, ptr %task seq_cst, align 8",
        "  %asleep = load atomic i64, ptr %sleepers seq_cst, align 8",
        "  %all = icmp sge i64 %asleep, %others",
        "  br i1 %all, label %wake, label %end",
        "wake:",
        "  %l = call i32 @pthread_mutex_lock(ptr %mutex)",
        "  %b = call i32 @pthread_cond_broadcast(ptr %condition)",
        "  %u = call i32 @pthread_mutex_unlock(ptr %mutex)",
        "  br label %end",
        "end:",
        "  ret i64 -1",
        "}",
    ]


def _finish(triple: str) -> list[str]:
    """What the call that was handed over returns: help until it is done."""
    return [
        "define i64 @diptych_finish(ptr %pool, ptr %unused) {",
        "entry:",
        *modes.enter(triple),
        *_places(),
        "  br label %own.take",
        *_take("own", "end", "help"),
        "help:",
        "  %here = atomicrmw sub ptr %away, i64 1 seq_cst",
        "  br label %work.claim",
        *_claim("work", "look", front=False),
        "look:",
        "  %s = load atomic i64, ptr %task seq_cst, align 8",
        f"  %done = icmp ne i64 %s, {TAKEN}",  # or never handed over
        "  br i1 %done, label %go, label %wait",
        "wait:",
        "  PAUSE",
        "  br label %work.claim",
        "go:",
        "  %gone = atomicrmw add ptr %away, i64 1 seq_cst",
        "  br label %end",
        "end:",
        *modes.leave(triple),
        "  %code = load i64, ptr %code.at",
        "  ret i64 %code",
        "}",
    ]


def pool_text(triple: str) -> str:
    """LLVM text of the pool: its worker, and what the calling thread does."""
    x86 = triple.startswith("x86_64")
    pause = "call void @llvm.x86.sse2.pause()" if x86 else 'call void asm sideeffect "yield", ""()'
    head = [
        f'target triple = "{triple}"',
        "declare i32 @pthread_mutex_init(ptr, ptr)",
        "declare i32 @pthread_cond_init(ptr, ptr)",
        "declare i32 @pthread_mutex_lock(ptr)",
        "declare i32 @pthread_mutex_unlock(ptr)",
        "declare i32 @pthread_cond_wait(ptr, ptr)",
        "declare i32 @pthread_cond_broadcast(ptr)",
        "declare void @llvm.x86.sse2.pause()" if x86 else "",
        modes.declarations(triple),
    ]
    start = [
        "define i64 @diptych_start(ptr %pool, ptr %unused) {",
        "entry:",
        _place("mutex", MUTEX),
        _place("condition", CONDITION),
        "  %a = call i32 @pthread_mutex_init(ptr %mutex, ptr null)",
        "  %b = call i32 @pthread_cond_init(ptr %condition, ptr null)",
        "  store ptr @diptych_parallel, ptr %pool",
        _place("offer.at", HAND_OVER),
        "  store ptr @diptych_hand_over, ptr %offer.at",
        "  ret i64 0",
        "}",
        "define i64 @diptych_stop(ptr %pool, ptr %unused) {",
        "entry:",
        *_places(),
        "  %l = call i32 @pthread_mutex_lock(ptr %mutex)",
        "  store atomic i64 1, ptr %stop seq_cst, align 8",
        "  %b = call i32 @pthread_cond_broadcast(ptr %condition)",
        "  %u = call i32 @pthread_mutex_unlock(ptr %mutex)",
        "  ret i64 0",
        "}",
    ]
    lines = [*head, *start, *_worker(triple), *_run(), *_hand_over(), *_finish(triple), ""]
    return "\n".join(lines).replace("PAUSE", pause)


@lru_cache(maxsize=1)
def _code() -> Code:
    target = host_target("native")
    entries = ("diptych_start", "diptych_stop", "diptych_worker", "diptych_finish")
    return Code(pool_text(target.triple), target, entries)


def _prepared_code() -> Code:
    """What `prepare_pool` has begun to make, or made now."""
    global _prepared
    prepared, _prepared = _prepared, None
    return _code() if prepared is None else prepared.result()


def _started(threads: Iterable[threading.Thread]) -> list[threading.Thread]:
    """The threads that the system lets start: it may allow no more."""
    running = []
    with suppress(RuntimeError):
        for thread in threads:
            thread.start()
            running.append(thread)
    return running


class Pool:
    """`threads` - 1 workers beside the caller, or as many as the system allows; `address` is what a
    table of pointers carries."""

    def __init__(self, threads: int) -> None:
        self._code = _prepared_code()
        self._memory = np.zeros(WORDS + 8, np.int64)
        self.address = -(-self._memory.ctypes.data // 64) * 64
        self._call("diptych_start")
        self._workers = _started(
            threading.Thread(
                target=self._call, args=("diptych_worker",), name=f"diptych-{n}", daemon=True
            )
            for n in range(1, threads)
        )
        ctypes.c_int64.from_address(self.address + 8 * THREADS).value = 1 + len(self._workers)
        self._finish = self._code.functions["diptych_finish"]

    def finish(self) -> int:
        """Wait for the call that was handed over, and help with it; what it returns."""
        return self._finish(self.address, 0)

    def _call(self, name: str) -> None:
        self._code.functions[name](self.address, 0)

    def close(self) -> None:
        """Tell the workers to end, and wait for it."""
        self._call("diptych_stop")
        for worker in self._workers:
            worker.join()


_pool: Pool | None = None
_ended: list[Pool] = []  # a call of another Python thread may still read their memory
_prepared: Call[Code] | None = None  # what makes the pool's code
_wanted: int | None = None
_alone = False  # whether one thread was wanted when a pool was asked for
_lock = threading.Lock()


def threads() -> int:
    """Threads that a native call may use: `set_threads`, else DIPTYCH_THREADS, else the
    processors of this process."""
    return config.threads() if _wanted is None else _wanted


def set_threads(count: int) -> None:
    """Let native calls use `count` threads from now on; results do not depend on it."""
    global _wanted, _alone
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1024:
        raise DiptychError(
            "threads are a whole number from 1 to 1024", repr(count), "dp.set_threads(2)"
        )
    with _lock:
        _wanted, _alone = count, False
        _close()


def running_pool() -> Pool | None:
    """The pool, started at need; None where one thread is wanted."""
    global _pool, _alone
    pool = _pool  # which another Python thread may end
    if pool is not None or _alone:
        return pool
    if threads() == 1:
        _alone = True
        return None
    with _lock:
        if _pool is None:
            _pool = Pool(threads())
        return _pool


def prepare_pool() -> None:
    """Have the pool's code made beside what the caller does, where a pool will be asked for."""
    global _prepared
    if _prepared is None and _pool is None and threads() > 1:
        _prepared = begin(_code)


def pool_address() -> int:
    """Where the running pool is; 0 where one thread is wanted."""
    pool = _pool
    if pool is None:
        pool = running_pool()
    return 0 if pool is None else pool.address


def _close() -> None:
    global _pool
    pool, _pool = _pool, None
    if pool is not None:
        pool.close()
        _ended.append(pool)


def _forked() -> None:
    """A child of a fork has none of its parent's threads: the pool is made anew at need."""
    global _pool, _prepared, _alone, _lock
    _pool, _prepared, _alone, _lock = None, None, False, threading.Lock()


def _register(hook: Any) -> None:
    if hook is not None:
        hook(after_in_child=_forked)


atexit.register(_close)
_register(getattr(os, "register_at_fork", None))
