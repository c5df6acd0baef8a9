"""A native call in flight while Python records on is seen by nobody but the clock."""

import ctypes
import os
import subprocess
import sys
import threading as python_threads
import time

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim
from diptych.dynamic import PANEL
from diptych.errors import ValueRangeError
from diptych.runtime import threads

pytestmark = pytest.mark.usefixtures("two_threads", "natively")


def awake():
    """Have the next call handed over, whether workers sleep or not."""
    PANEL.finish()  # whose kernels count too
    word = threads.running_pool().address + 8 * threads.CALLS
    ctypes.c_int64.from_address(word).value = threads.WORTH_HANDING


def model_and_data(rows=16, hidden=40, seed=3):
    dp.manual_seed(seed)
    model = nn.Sequential(nn.Linear(30, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((40, rows, 30), np.float32)
    return model, images, rng.integers(0, 10, (40, rows))


def bits(model):
    return b"".join(v.tobytes() for v in model.state_dict().values())


def train(look=lambda n, loss, model: None, make=lambda p: optim.SGD(p, lr=0.1), rows=16):
    """Weights after 40 steps, and how often a call was in flight as the next step began."""
    model, images, labels = model_and_data(rows)
    optimizer, flights = make(list(model.parameters())), 0
    for n, (x, y) in enumerate(zip(images, labels)):
        if dp.threads() > 1:
            awake()
        scores = model(dp.tensor(x))
        flights += PANEL.runner.flight is not None
        loss = F.cross_entropy(scores, dp.tensor(y))
        del scores
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        look(n, loss, model)
    return bits(model), flights


def alone(**more):
    dp.set_threads(1)
    weights, flights = train(**more)
    assert flights == 0
    dp.set_threads(2)
    return weights


@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam, lambda p, lr: optim.SGD(p, lr, 0.9)])
def test_steps_are_in_flight_and_the_bits_are_the_same(rule):
    def make(parameters):
        return rule(parameters, lr=0.01)

    weights, flights = train(make=make)
    assert flights > 30
    assert weights == alone(make=make)


def test_large_steps_are_helped_with_and_agree():
    weights, flights = train(rows=300)
    assert flights > 30
    assert weights == alone(rows=300)


@pytest.mark.parametrize(
    "look",
    [
        lambda n, loss, model: loss.item(),
        lambda n, loss, model: n % 3 == 0 and float(loss),
        lambda n, loss, model: model.state_dict(),
        lambda n, loss, model: repr(model.parameters()[0]),
        lambda n, loss, model: dp.set_threads(1 + n % 3),
        lambda n, loss, model: time.sleep(0.001 * (n % 4)),
        lambda n, loss, model: model.parameters()[0].assign(model.parameters()[0].numpy()),
    ],
)
def test_whoever_looks_waits(look):
    assert train(look=look)[0] == alone()


def test_a_value_read_in_flight_is_the_finished_one():
    model, images, labels = model_and_data(rows=2000, hidden=300)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for x, y in zip(images[:6], labels[:6]):
        loss = F.cross_entropy(model(dp.tensor(x)), dp.tensor(y))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        awake()
        dp.exp(dp.tensor(1.0))  # the step goes off
        seen.append(loss)
        if len(seen) == 6:
            assert PANEL.runner.flight is not None
            assert np.isfinite(loss.numpy())  # memory of an unfinished call would hold anything
            assert PANEL.runner.flight is None
    dp.set_threads(1)
    again, images, labels = model_and_data(rows=2000, hidden=300)
    optimizer = optim.SGD(again.parameters(), lr=0.1)
    for x, y, before in zip(images[:6], labels[:6], seen):
        loss = F.cross_entropy(again(dp.tensor(x)), dp.tensor(y))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.numpy().tobytes() == before.numpy().tobytes()


def test_a_compiled_function_reads_parameters_after_the_flight():
    model, images, labels = model_and_data(rows=2000, hidden=300)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    score = dp.compile(lambda x: model(x).sum())
    found = []
    score(images[0])
    for x, y in zip(images[:6], labels[:6]):
        F.cross_entropy(model(dp.tensor(x)), dp.tensor(y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        awake()
        waiting = dp.exp(dp.tensor(1.0))  # the step goes off
        assert PANEL.runner.flight is not None or not found
        found.append(score(images[0]).item())
        del waiting
        assert found[-1] == score(images[0]).item()  # the weights were finished for the first, too


def test_positions_that_are_computed_in_flight_are_checked():
    scores = dp.Parameter(np.arange(12, dtype=np.float32).reshape(3, 4))
    optimizer = optim.SGD([scores], lr=0.0)
    for limit in (4, 4, 4, 3):
        places = scores.argmax(1)  # 3 everywhere
        (scores.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        awake()
        dp.exp(dp.tensor(1.0))
        table = dp.tensor(np.zeros((3, limit), np.float32))
        if limit == 4:
            F.cross_entropy(table, places)
        else:
            with pytest.raises(ValueRangeError):
                F.cross_entropy(table, places).numpy()


def test_what_may_fail_is_not_in_flight():
    model, images, labels = model_and_data()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    before = bits(model)
    for bad in (False, True):
        y = labels[0] + 100 * bad
        loss = F.cross_entropy(model(dp.tensor(images[0])), dp.tensor(y - 1) + 1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        awake()
        if bad:
            with pytest.raises(ValueRangeError):
                dp.exp(dp.tensor(1.0))
        else:
            dp.exp(dp.tensor(1.0))
            assert PANEL.runner.flight is None
            before = bits(model)
    assert bits(model) == before


def test_data_of_a_step_in_flight_is_not_written_over():
    def run():
        model, images, _labels = model_and_data(rows=500, hidden=200)
        x, totals, flights = images[0].copy(), [], 0
        with dp.no_grad():
            for n in range(20):
                x[...] = n
                value = dp.tensor(x)
                total = model(value).sum() + value.sum()
                del value
                PANEL.boundary()
                if dp.threads() > 1:
                    awake()
                flights += PANEL.runner.flight is not None
                totals.append(total)
                dp.exp(dp.tensor(1.0))  # the step goes off, and the next batch is copied
                flights += PANEL.runner.flight is not None
        return [total.numpy().tobytes() for total in totals], flights

    found, flights = run()
    assert flights > 10
    dp.set_threads(1)
    assert run() == (found, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_waits_for_the_flight():
    model, images, labels = model_and_data(rows=1000, hidden=300)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for x, y in zip(images[:5], labels[:5]):
        F.cross_entropy(model(dp.tensor(x)), dp.tensor(y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    awake()
    dp.exp(dp.tensor(1.0))
    assert PANEL.runner.flight is not None
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, bits(model)[:4096])
        os._exit(0)
    assert os.read(read, 4096) == bits(model)[:4096]
    os.waitpid(child, 0)


def test_python_may_end_with_a_call_in_flight():
    program = """
import numpy as np, diptych as dp, ctypes
from diptych.dynamic import PANEL
from diptych.runtime import threads
dp.set_threads(2)
a = dp.tensor(np.ones((700, 700), np.float32))
for n in range(3):
    b = dp.matmul(a, a)
    PANEL.boundary()
    PANEL.finish()
    word = threads.running_pool().address + 8 * threads.CALLS
    ctypes.c_int64.from_address(word).value = threads.WORTH_HANDING
    c = dp.exp(a)
assert PANEL.runner.flight is not None
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_many_python_threads_look_at_what_one_has_in_flight():
    model, images, labels = model_and_data()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    seen, ended = [], python_threads.Event()

    def look():
        while not ended.is_set():
            seen.append(all(np.isfinite(p.numpy()).all() for p in model.parameters()))

    lookers = [python_threads.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    for x, y in zip(images, labels):
        F.cross_entropy(model(dp.tensor(x)), dp.tensor(y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        awake()
    ended.set()
    for looker in lookers:
        looker.join()
    assert all(seen)
    assert bits(model) == alone_again(images, labels)


def alone_again(images, labels):
    dp.set_threads(1)
    model, *_ = model_and_data()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for x, y in zip(images, labels):
        F.cross_entropy(model(dp.tensor(x)), dp.tensor(y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return bits(model)


def test_a_flight_is_one_call_and_its_memory_is_used_again():
    model, images, labels = model_and_data()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    calls = engine.STATISTICS.calls
    for x, y in zip(images, labels):
        awake()
        F.cross_entropy(model(dp.tensor(x)), dp.tensor(y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        flight = PANEL.runner.flight
    PANEL.run()
    assert engine.STATISTICS.calls - calls == len(images)
    flight.finish()
    assert len(flight.executable.frames) == 1
    assert flight.frame is None


def test_interrupts_leave_a_panel_that_goes_on():
    """Ctrl-C at any point of a loop: no crash, no other error, and training goes on after it."""
    program = """
import os, random, signal, threading, time
import numpy as np, diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim

armed = False

def interrupt(*_):
    if armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
dp.set_threads(2)
dp.manual_seed(0)
model = nn.Sequential(nn.Linear(300, 60), nn.ReLU(), nn.Linear(60, 10))
optimizer = optim.Adam(model.parameters(), lr=0.001)
rng = np.random.default_rng(0)
x, y = rng.standard_normal((16, 300), np.float32), rng.integers(0, 10, 16)

def step():
    loss = F.cross_entropy(model(dp.tensor(x)), dp.tensor(y))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss

def pest():
    wait = random.Random(1)
    while True:
        time.sleep(wait.random() * 0.004)
        os.kill(os.getpid(), signal.SIGINT)

for _ in range(5):
    step().item()
threading.Thread(target=pest, daemon=True).start()
stopped, end = 0, time.time() + 2
while time.time() < end:
    try:
        armed = True
        step()
        armed = False
    except KeyboardInterrupt:
        armed = False
        stopped += 1
assert stopped
optimizer.zero_grad()
losses = [step().item() for _ in range(20)]
assert losses[-1] < losses[0], losses
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
