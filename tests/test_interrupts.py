"""Ctrl-C at any line of a training step leaves weights that are those before it or after it."""

import ctypes
import itertools
import linecache
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import network, step_of

import diptych as dp
import diptych.nn.functional as F
from diptych import optim

rng = np.random.default_rng(0)
X = rng.standard_normal((4, 6)).astype(np.float32)
Y = rng.integers(0, 3, 4)
RULES = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
}
FILES = ("dynamic.py", "trail.py", "running.py", "rehearsal.py", "optimizer.py", "tensor.py")
BORDERS = ("try:", "with ")  # a lock is held, and Python handles no signal
PACKAGE = str(Path(dp.__file__).parent)

pytestmark = pytest.mark.usefixtures("natively")


@pytest.fixture(autouse=True)
def unverified(monkeypatch):
    """An interrupt at every function of a compile; the verifier's are many, and are the tests'."""
    monkeypatch.setenv("DIPTYCH_VERIFY", "0")


class Trainer:
    def __init__(self, rule, steps):
        self.model = network(6, 5, 3)
        self.optimizer = rule(self.model.parameters())
        self.run = step_of(self.model, self.optimizer)
        for _ in range(steps):
            self.step()

    def step(self):
        return self.run(dp.tensor(X), dp.tensor(Y))

    def bits(self):
        return tuple(p.numpy().tobytes() for p in self.model.parameters())


def interrupted(call, at):
    """Whether the call came as far as its `at`-th line of this package, where Ctrl-C is raised.

    A loop inside a line counts once: Python 3.12 and 3.13 hand no handler an exception that a trace
    function raises where it jumps back. `test_where_a_loop_jumps_back` has Ctrl-C itself there.
    """
    left, last = at, None

    def line(frame, event, _):
        nonlocal left, last
        before, last = last, (frame, frame.f_lineno)
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and last != before and not text.startswith(BORDERS):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return line

    def entry(frame, event, _):
        file = frame.f_code.co_filename
        return line if file.startswith(PACKAGE) and file.endswith(FILES) else None

    sys.settrace(entry)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_at_every_line_of_a_step(rule, looks):
    """The step before may wait to be run, and is then the one that is interrupted."""
    states = [Trainer(rule, steps).bits() for steps in (2, 3, 4)]

    def call():
        trainer.step()
        if looks:
            trainer.bits()

    at, more, ends = 0, True, set()
    while more:
        trainer = Trainer(rule, 3)
        more = interrupted(call, at)
        trainer.optimizer.zero_grad()
        assert dp.PANEL.grad_enabled and not dp.PANEL.lock._is_owned(), at
        assert trainer.bits() in states, at
        ends.add(states.index(trainer.bits()))
        trainer.step().item()
        at += 1
    assert at > 100 and ends == {0, 1, 2}


def test_where_a_loop_jumps_back():
    """Python looks for Ctrl-C there too, in the middle of a step that is recorded as one call."""
    states = [Trainer(RULES["sgd"], steps).bits() for steps in (3, 4)]
    trainer = Trainer(RULES["sgd"], 3)
    structure = trainer.optimizer.rehearsed.structure
    interrupt = ctypes.pythonapi.PyErr_SetInterrupt  # of C: Python comes to look after it
    interrupt.restype, changed = None, structure.changed
    structure.changed = itertools.filterfalse(interrupt, changed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.step()
    finally:
        structure.changed = changed
        signal.signal(signal.SIGINT, before)
    assert trainer.bits() == states[0]
    trainer.optimizer.zero_grad()
    trainer.step()
    assert trainer.bits() == states[1]


def interrupted_at_entry(call, at):
    """Whether the call came as far as the entry of its `at`-th function, where Ctrl-C is raised."""
    left = at

    def look(frame, event, _):
        nonlocal left
        if event == "call":
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return left < 0


@pytest.mark.parametrize("steps", [0, 5], ids=["capture", "steady"])
def test_of_a_compiled_step(steps, monkeypatch):
    """The first call captures and compiles; after five nothing is looked at in Python."""
    # An interrupt where Python ends a generator, or a finalizer runs, is told and forgotten; pytest
    # would keep it, with all frames above it and what is captured in them.
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)

    def trainer():
        made = Trainer(RULES["momentum"], 0)
        made.run = dp.compile(made.run)
        made.step = lambda: made.run(X, Y)
        for _ in range(steps):
            made.step()
        return made

    expected, plain = [], trainer()
    for _ in range(4):
        expected.append(plain.bits())
        plain.step()
    at, stride = 0, 1 if steps else 41
    while True:
        one = trainer()
        if not interrupted_at_entry(one.step, at):
            break
        one.optimizer.zero_grad()
        now = expected.index(one.bits())
        one.step()
        assert now < 2 and one.bits() == expected[now + 1], at
        at += stride
    assert at > 5


@pytest.mark.parametrize("steps", [0, 4])
def test_weights_and_state_of_adam_are_of_one_step(steps):
    """The first step is recorded call by call, later ones as one call."""

    def whole(trainer):
        state = trainer.optimizer.state_dict()
        return trainer.bits(), {k: v.tobytes() for k, v in state.items()}

    def made(count):
        return Trainer(lambda p: optim.Adam(p, lr=0.1), count)

    before, after = whole(made(steps)), whole(made(steps + 1))
    at, ends = 0, set()
    while True:
        one = made(steps)
        F.cross_entropy(one.model(dp.tensor(X)), dp.tensor(Y)).backward()
        if not interrupted_at_entry(one.optimizer.step, at):
            break
        one.optimizer.zero_grad()
        now = whole(one)
        if steps:
            assert now in (before, after), at
        else:  # moments that are not there yet are zeros, powers ones
            assert now[0] in (before[0], after[0]), at
            moved = {k for k, v in one.optimizer.state_dict().items() if v.any() and v.shape}
            assert bool(moved) == (now[0] == after[0]), at
            powers = [v for k, v in one.optimizer.state_dict().items() if not v.shape and k != "lr"]
            assert all(v == 1.0 for v in powers) or now[0] == after[0], at
        ends.add(now[0] == after[0])
        at += 23 if steps == 0 else 3
    assert at > 20 and False in ends


def test_where_a_program_ends():
    """An interrupt that comes as a capture leaves its program leaves no thread recording."""
    one, code = Trainer(RULES["sgd"], 0), dp.Program.__exit__.__code__

    def look(frame, event, _):
        if event == "call" and frame.f_code is code:
            sys.setprofile(None)
            raise KeyboardInterrupt

    fast = dp.compile(one.run)
    sys.setprofile(look)
    try:
        with pytest.raises(KeyboardInterrupt):
            fast(X, Y)
    finally:
        sys.setprofile(None)
    one.optimizer.zero_grad()
    assert (dp.tensor(X) * 2.0).numpy().tolist() == (X * 2).tolist()
    assert np.isfinite(float(fast(X, Y)))
