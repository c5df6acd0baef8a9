"""Ctrl-C at every place where Python looks for it, and then going on."""

import subprocess
import sys
import weakref

import pytest

from diptych.runtime import background, code, llvm
from diptych.runtime.code import Code

MODULE = "define i64 @one(ptr %table, ptr %arena) { ret i64 1 }"

# Whether a call came as far as its `place`-th call or return from C, where Ctrl-C is raised.
INTERRUPTED = """
import gc, sys

def interrupted(call, place):
    left = place
    def look(frame, event, arg):
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt
    sys.setprofile(look)
    try:
        call()
    except KeyboardInterrupt as problem:
        problem.itself = problem
    finally:
        sys.setprofile(None)
    return left <= 0

gc.disable()
"""

# An interrupt at every place of translating a module, each kept with its traceback until the
# garbage is collected.
TRANSLATING = f"""{INTERRUPTED}
from diptych.runtime.llvm import binding, host_target, objects
text, target = {MODULE!r}, host_target("native")

place = 1
while interrupted(lambda: objects([text], target), place):
    gc.collect()
    place += 1
assert place > 10, place
objects([text], target)
print("went on")
"""


def run(script):
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_interrupt_while_llvm_is_at_work():
    assert run(TRANSLATING) == "went on\n"


# The same where the last that holds code lets it go, and where the collector of cycles does.
DROPPING = f"""{INTERRUPTED}
from diptych.runtime.code import Code
from diptych.runtime.llvm import host_target
text, target = {MODULE!r}, host_target("native")

class Cycle:
    pass

def held():
    cycle = Cycle()
    cycle.itself, cycle.code = cycle, Code(text, target, ["one"])
    return [Code(text, target, ["one"]), cycle]

def drop(codes):
    codes.clear()
    gc.collect()

sys.unraisablehook = lambda told: None
place, codes = 1, held()
while interrupted(lambda: drop(codes), place):
    place, codes = place + 1, held()
assert place > 1, place
print(Code(text, target, ["one"]).functions["one"](0, 0))
"""


def test_an_interrupt_while_code_is_dropped():
    assert run(DROPPING) == "1\n"


def test_dropped_code_is_ended_with_the_next_load():
    target = llvm.host_target("native")
    first = Code(MODULE, target, ["one"])
    loaded = weakref.ref(code._loaded[first._library.number])
    del first
    assert loaded() is not None
    assert Code(MODULE, target, ["one"]).functions["one"](0, 0) == 1
    assert loaded() is None


FAILING = f"""
import gc
from diptych.runtime import background, llvm
text, target = {MODULE!r}, llvm.host_target("native")
gc.disable()
for problem in (RuntimeError, KeyboardInterrupt):
    def fail(*_):
        raise problem
    before, llvm._emitted = llvm._emitted, fail
    try:
        llvm.objects([text] * 3, target, threads=2)
    except problem as raised:
        raised.itself = raised
    llvm._emitted = before
    gc.collect()
print(len(llvm.objects([text], target)))
"""


def test_an_error_of_llvm_ends_modules_before_their_contexts():
    assert run(FAILING) == "1\n"


def test_what_is_called_apart_returns_or_raises_here():
    assert llvm.apart(lambda: 5) == 5
    with pytest.raises(KeyError):
        llvm.apart(lambda: {}[1])


def test_an_interrupt_of_who_is_in_a_hurry_leaves_the_job_to_the_background():
    calls = []

    def make():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return 7

    job = background.Job(make)
    with pytest.raises(KeyboardInterrupt):
        background.hurry(job)
    background.hurry(job)
    assert job.result() == 7 and len(calls) == 2
