"""Threads divide outputs: any number of them gives the same bits."""

import ctypes
import gc
import os
import platform
import threading
import time
import weakref

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import config, engine, nn, optim
from diptych.compiler import trials
from diptych.errors import DiptychError
from diptych.graph.node import Graph
from diptych.runtime import llvm, threads

pytestmark = pytest.mark.usefixtures("same_threads")


def train(count, width=130, batch=33, steps=3):
    dp.set_threads(count)
    dp.manual_seed(3)
    model = nn.Sequential(nn.Linear(300, width), nn.Tanh(), nn.Linear(width, 10))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    images = rng.random((batch, 300), dtype=np.float32)
    labels = rng.integers(0, 10, batch)
    for _ in range(steps):
        loss = F.cross_entropy(model(dp.tensor(images)), dp.tensor(labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return b"".join(v.tobytes() for v in model.state_dict().values())


def test_one_two_and_five_threads_agree():
    assert train(1) == train(2) == train(5)


def test_kernels_are_divided():
    a = dp.tensor(np.ones((256, 256), np.float32))
    dp.set_threads(2)
    assert (dp.matmul(a, a).numpy() == 256.0).all()
    assert threads._pool is not None
    dp.set_threads(1)
    assert threads.pool_address() == 0


def test_every_part_of_every_shape_is_computed_once():
    rng = np.random.default_rng(1)
    for shape in [(1, 1000, 700), (700, 1000, 1), (17, 999, 257), (257, 1025, 19)]:
        m, n, p = shape
        a, b = (rng.standard_normal(s).astype(np.float32) for s in [(m, n), (n, p)])
        results = []
        for count in (1, 3):
            dp.set_threads(count)
            results.append((dp.matmul(dp.tensor(a), dp.tensor(b)) + 1.0).numpy().tobytes())
        assert results[0] == results[1]


def test_python_threads_share_the_pool():
    dp.set_threads(2)
    rng = np.random.default_rng(2)
    a = rng.standard_normal((200, 300)).astype(np.float32)
    expected = dp.matmul(dp.tensor(a), dp.tensor(a).transpose()).numpy().tobytes()
    wrong = []

    def work():
        for _ in range(20):
            now = dp.matmul(dp.tensor(a), dp.tensor(a).transpose()).numpy().tobytes()
            if now != expected:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_the_pool_is_made_anew_after_a_fork():
    expected = train(2)
    child = os.fork()
    if child == 0:
        os._exit(0 if train(2) == expected else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert train(2) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_waits_for_a_compile():
    began = threading.Event()

    def compiles():
        with llvm.INSIDE:
            began.set()
            time.sleep(0.2)

    compiling = threading.Thread(target=compiles)
    compiling.start()
    began.wait()
    child = os.fork()
    if child == 0:
        free = llvm.INSIDE.changed.acquire(timeout=5) and llvm.INSIDE.count == 0
        os._exit(0 if free else 1)
    compiling.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_call_that_goes_on_keeps_its_pool(monkeypatch):
    dp.set_threads(2)
    a = dp.tensor(np.ones((256, 256), np.float32))
    address = threads.pool_address()
    pool = weakref.ref(threads._pool)
    dp.set_threads(3)
    gc.collect()
    assert pool() is not None
    monkeypatch.setattr(engine, "pool_address", lambda: address)  # as read before the change
    assert (dp.matmul(a, a).numpy() == 256.0).all()


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_system_that_allows_few_threads(monkeypatch, allowed):
    expected, start, begun = train(2), threading.Thread.start, []
    monkeypatch.setenv("DIPTYCH_CACHE", "")

    def refuse(thread):
        if len(begun) == allowed:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert train(5) == expected
    assert len(threads._pool._workers) == allowed
    texts = [threads.pool_text(llvm.host_target("native").triple)] * 3
    assert len(llvm.objects(texts, llvm.host_target("native"), threads=3)) == 3


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", 10**6])
def test_a_bad_number_of_threads(count):
    with pytest.raises(DiptychError, match="whole number from 1 to 1024"):
        dp.set_threads(count)


@pytest.mark.parametrize("text", ["0", "-1", "1025", "two", "²", "1.0"])
def test_a_bad_number_in_the_environment(monkeypatch, text):
    monkeypatch.setenv("DIPTYCH_THREADS", text)
    with pytest.raises(DiptychError, match="DIPTYCH_THREADS takes a whole number from 1 to 1024"):
        config.threads()


def short_kernels():
    """An executable whose kernels are worth dividing, but not worth waking a worker for, and its
    inputs; with the words of the plan that say how it is run."""
    x, weight = np.ones((16, 100), np.float32), np.ones((100, 100), np.float32)
    with dp.Program():
        a, b = dp.data("a", [16, 100]), dp.data("b", [100, 100])
        out = (a @ b) @ b
    executable = engine.compile(Graph((a.node, b.node), (out.node,)), "cpu")
    expected = (x @ weight) @ weight
    return executable, [x, weight], expected, executable.words


tries = pytest.mark.skipif(platform.machine() != "x86_64", reason="where a clock can be read")


@tries
def test_a_trial_chooses_what_was_faster(two_threads):
    executable, inputs, expected, words = short_kernels()
    assert words[:4].tolist() == trials.STATE
    for n in range(trials.FIRST + trials.SINGLE + trials.SHARED + 3):
        (found,) = executable.run(inputs)
        assert found.tobytes() == expected.tobytes()
        assert words[0] == trials.PERIOD - trials.FIRST + n + 1
    single, shared, choice = words[1:4].tolist()
    assert 0 < single < 1 << 40 and 0 < shared < 1 << 40
    assert choice == (shared < single - (single >> trials.GAIN))


@tries
def test_the_choice_is_what_is_done(two_threads):
    executable, inputs, expected, words = short_kernels()
    place = threads.running_pool().address

    def handed():
        """What changes where a kernel is offered to the pool, or would be if a worker was awake."""
        return [int.from_bytes(ctypes.string_at(place + 8 * w, 8), "little")
                for w in (threads.TICKET, threads.ALONE)]  # fmt: skip

    for phase, choice, divides in (
        (200, 1, True), (200, 0, False), (trials.PERIOD - 1, 0, False), (0, 1, False),
        (trials.SINGLE - 1, 1, False), (trials.SINGLE, 0, True), (trials.SINGLE + 9, 0, True),
    ):  # fmt: skip
        words[0], words[3] = phase, choice
        before = handed()
        (found,) = executable.run(inputs)
        assert (handed() != before) == divides, (phase, choice)
        assert found.tobytes() == expected.tobytes()


def test_one_thread_tries_nothing():
    before = threads.threads()
    dp.set_threads(1)
    try:
        executable, inputs, _, words = short_kernels()
        for _ in range(3):
            executable.run(inputs)
        assert words[:4].tolist() == trials.STATE  # in a library it cannot be written
    finally:
        dp.set_threads(before)


def test_code_of_the_pool_that_could_not_be_prepared_is_made_again(two_threads, monkeypatch):
    made = threads._code()

    def fails():
        raise OSError("no memory")

    monkeypatch.setattr(threads, "_code", fails)
    threads.prepare_pool()
    with pytest.raises(OSError, match="no memory"):
        threads.running_pool()
    monkeypatch.setattr(threads, "_code", lambda: made)
    assert threads.running_pool() is not None
