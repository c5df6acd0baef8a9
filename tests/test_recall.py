"""Calls that recur are recorded by native code: to the same bits, with the same errors at the same
lines, and what is not as it was is recorded by Python."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import dynamic, nn, optim
from diptych.dynamic import PANEL
from diptych.errors import ValueRangeError
from diptych.ops.contract import linear
from diptych.runtime import recall

pytestmark = pytest.mark.usefixtures("recorded")

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 5, 6)).astype(np.float32)
Y = rng.integers(0, 3, (40, 5))


class Trainer:
    """A network and what its steps gave."""

    def __init__(self, kind=optim.SGD):
        dp.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
        self.optimizer = kind(self.model.parameters(), lr=0.1)
        self.losses = []

    def loss(self, n):
        return F.cross_entropy(self.model(dp.tensor(X[n])), dp.tensor(Y[n]))

    def step(self, n):
        loss = self.loss(n)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss)

    def bits(self):
        kept = [loss.numpy().tobytes() for loss in self.losses]
        return kept + [p.numpy().tobytes() for p in self.model.parameters()]


def eager(run):
    """What a function gives where every call is run at once."""
    try:
        dynamic.set_eager(True)
        return run()
    finally:
        dynamic.set_eager(False)
        PANEL.learn() if PANEL.recall is not dynamic._unknown else None


def trained(change=lambda trainer, n: None, kind=optim.SGD, steps=12):
    trainer = Trainer(kind)
    for n in range(steps):
        change(trainer, n)
        trainer.step(n)
    return trainer.bits()


def another_parameter(trainer, n):
    if n == 6:
        trainer.model[2].bias = dp.Parameter(np.full(3, 0.25, np.float32))
        trainer.optimizer = optim.SGD(trainer.model.parameters(), lr=0.1)


def another_value(trainer, n):
    if n % 4 == 3:
        trainer.model[0].weight.assign(trainer.model[0].weight * 0.5)


def another_rate(trainer, n):
    trainer.optimizer.lr = [0.1, 0.1, 0.0, -0.0, 0.2][n % 5]


def two_backwards(trainer, n):
    if n % 3 == 1:
        trainer.loss(n + 1).backward()


def a_look(trainer, n):
    if n in (4, 5, 9):
        float(trainer.losses[n - 1])


def no_history(trainer, n):
    if n % 2:
        with dp.no_grad():
            trainer.losses.append(trainer.loss(n + 3) * 2.0)


def a_frozen_bias(trainer, n):
    if n == 7:
        layer = trainer.model[0]
        layer.bias = dp.Parameter(layer.bias, trainable=False)


CHANGES = [
    another_parameter, another_value, another_rate, two_backwards, a_look, no_history,
    a_frozen_bias,
]  # fmt: skip


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("change", CHANGES)
def test_a_step_that_differs(change, kind):
    assert trained(change, kind) == eager(lambda: trained(change, kind))


def test_numbers_of_two_steps_before_a_run():
    """Where a rate is the same as before its node is the same; whether it is belongs to the way."""

    def run():
        trainer = Trainer()
        for n, rates in enumerate([(0.1, 0.1), (0.1, 0.1), (0.1, 0.3), (0.3, 0.1), (0.1, 0.1)]):
            trainer.loss(n).backward()
            for rate in rates:
                trainer.optimizer.lr = rate
                PANEL.advance(trainer.optimizer, trainer.model.parameters())
            trainer.optimizer.zero_grad()
            PANEL.boundary()
        return trainer.bits()

    assert run() == eager(run)


def test_an_error_in_the_middle():
    """It names its own line, changes nothing, and leaves no lock."""
    trainer, expected = Trainer(), trained()
    for n in range(12):
        scores = trainer.model(dp.tensor(X[n]))
        bad = dp.tensor(np.array([0, 1, 3, 0, 0]))
        with pytest.raises(ValueRangeError, match=r"label 3    \(test_recall.py:\d+\)") as found:
            F.cross_entropy(scores, bad)
        assert found.traceback[0].frame.code.path.name == "test_recall.py"
        assert not PANEL.lock._is_owned()
        trainer.step(n)
    assert trainer.bits() == expected


def test_an_operator_that_cannot_be_compared(monkeypatch):
    """An error while a call is looked up is raised, and the next call is as if nothing was."""
    trainer, expected = Trainer(), trained()
    a = dp.tensor(X[0])
    for n in range(12):
        a + a
        if n == 6:
            with monkeypatch.context() as patch:
                patch.setattr(type(dynamic._ADD), "__hash__", lambda self: 1 // 0)
                with pytest.raises(ZeroDivisionError):
                    a + a
            assert not PANEL.lock._is_owned()
        trainer.step(n)
    assert trainer.bits() == expected


def test_without_history_is_another_call():
    """An operator with an input left out is not one whose last input is the first of the piece."""
    bias, x, w = (np.full(s, v, np.float32) for s, v in ((3, 5.0), ((2, 4), 1.0), ((3, 4), 1.0)))

    def run(history):
        b = dp.tensor(bias)
        first = dp.expand_dims(b, 0)
        if history:
            return first, linear(dp.tensor(x), dp.tensor(w), b)
        with dp.no_grad():
            return first, linear(dp.tensor(x), dp.tensor(w))

    for history, expected in [(True, 9.0), (False, 4.0), (True, 9.0), (False, 4.0)]:
        assert (run(history)[1].numpy() == expected).all()


def test_one_value_as_both_inputs():
    for n in range(6):
        a, b = dp.tensor(X[n]), dp.tensor(X[n + 1])
        result = a * a if n % 2 else a * b
        assert (result.numpy() == X[n] * X[n if n % 2 else n + 1]).all()


def test_tensors_of_earlier_steps():
    """Values, histories and handles outlive the step in which they were made."""

    def run():
        trainer, kept, found = Trainer(), [], []
        for n in range(12):
            scores = trainer.model(dp.tensor(X[n]))
            kept.append(scores * 2.0 if n % 3 else scores)
            trainer.step(n)
            if n % 4 == 3:
                old = kept[n - 2]
                (old * kept[n]).mean().backward(retain_graph=True)
                found.append(trainer.model[2].bias.grad.numpy().tobytes())
                trainer.optimizer.zero_grad()
        return found + [k.numpy().tobytes() for k in kept] + trainer.bits()

    assert run() == eager(run)


def test_of_other_threads():
    """Each records for itself, whoever has native code."""
    expected, found = trained(), []
    for _ in range(3):  # one after the other, for they share the generator
        thread = threading.Thread(target=lambda: found.append(trained()))
        thread.start()
        thread.join()
    assert found == [expected] * 3 and trained() == expected


def test_lines_are_those_of_the_call():
    x = dp.tensor(X[0])
    for _ in range(3):
        first = F.relu(x)
        second = F.relu(x)
        assert second.node.where.line == first.node.where.line + 1
        assert first.node is not second.node
        PANEL.run()


def test_code_is_made_where_calls_recur(monkeypatch, request):
    """Or nothing changes, where objects are laid out in another way."""
    if "by_python" in request.fixturenames:
        monkeypatch.setattr(recall, "native", lambda told: None)
    monkeypatch.setattr(dynamic, "OFTEN", 20)
    monkeypatch.setattr(PANEL, "known", 0)
    monkeypatch.setattr(PANEL, "recall", dynamic._unknown)
    PANEL.look_again()
    assert trained() == trained()
    assert (PANEL.recall is dynamic._unknown) == ("by_python" in request.fixturenames)
    assert ("record" in vars(PANEL)) == (
        PANEL.recall is not dynamic._unknown and not PANEL.loops.cuts
    )


def test_code_that_runs_in_between(monkeypatch, request):
    """A comparison of operators may run anything, the piece that is recorded too. In a process of
    its own: Python's way, which a loop that was cut leaves behind, has the lists of before."""
    if "by_python" in request.fixturenames:
        pytest.skip("its lists are those of before")
    if "ALONE" not in os.environ:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        alone = f"{__file__}::test_code_that_runs_in_between[natively]"
        done = subprocess.run(
            [*command, alone], env={**os.environ, "ALONE": "1"}, capture_output=True, text=True
        )
        assert "1 passed" in done.stdout, done.stdout
        return
    trainer, expected, runs = Trainer(), trained(), []
    a, compare = dp.tensor(X[0]), type(dynamic._ADD).__hash__

    def run_first(op):
        if runs and runs.pop():
            PANEL.run()
        return compare(op)

    monkeypatch.setattr(type(dynamic._ADD), "__hash__", run_first)
    for n in range(12):
        trainer.step(n)
        b = F.relu(a)
        runs.append(n > 3)
        c = b + a
        assert b.node.value is not None or n < 4
        assert (c.numpy() == np.maximum(X[0], 0) + X[0]).all()
    assert trainer.bits() == expected


def test_where_native_code_is_called_from():
    """The call may have no caller, and the author may call the recorder."""
    x, places = dp.tensor(X[0]), set()
    for _ in range(3):
        places.add(PANEL.record(dynamic._ADD, (x, x)).node.where)
    assert [place.file for place in places] == [__file__]


LATE = """
import atexit, builtins, numpy as np, diptych as dp
from diptych.dynamic import PANEL
class Late:
    x = dp.tensor(np.ones(3, np.float32))
    def __init__(self, add):
        self.add = add
    def __del__(self):
        try:
            self.add(self.x, self.x)
        except Exception:  # modules are gone
            pass
PANEL.learn()
builtins.late = Late(dp.add)
atexit.register(dp.add, Late.x, Late.x)
for _ in range(5):
    (Late.x + Late.x).numpy()
"""


def test_where_the_interpreter_ends():
    """Native code is there as long as anything may call it."""
    run = [sys.executable, "-c", LATE]
    done = subprocess.run(run, env={**os.environ, "PYTHONMALLOC": "debug"}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
