"""Two tiers: what is new is made in haste, what recurs is optimised meanwhile, the same bits."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim, tiers
from diptych.runtime import background

RNG = np.random.default_rng(0)
X = [RNG.standard_normal((7, 13)).astype(np.float32) for _ in range(8)]
Y = [RNG.integers(0, 3, 7) for _ in range(8)]
HASTY, DONE = "compiled in haste", "compiled in the background"


@pytest.fixture(autouse=True)
def panel(monkeypatch):
    """Both tiers, no code from before, and nothing in the background but what a test lets there."""
    monkeypatch.setenv("DIPTYCH_CACHE", "")
    monkeypatch.setenv("DIPTYCH_TIERS", "1")
    monkeypatch.setattr(tiers, "PATIENCE", 1e9)
    monkeypatch.setattr(tiers, "RATE", 1e15)
    forget()
    yield
    dp.finish_compiling()


def forget():
    """No piece of the dynamic panel has code."""
    dp.PANEL.cache.clear()
    dp.PANEL.runner.families.groups.clear()
    dp.PANEL.trail.root.clear()


def hold(monkeypatch):
    """What is handed over waits until `finish_compiling`."""
    monkeypatch.setattr(background, "_start", lambda: None)


def tiered():
    """Executables of the panel whose code was made in haste."""
    return [e for e in dp.PANEL.cache.values() if type(e) is tiers.TieredExecutable]


def trained(steps, swap, kind=optim.Adam):
    """Weights and losses after some steps; `swap` is the step before which the code is there."""
    dp.manual_seed(3)
    model = nn.Sequential(nn.Linear(13, 5), nn.ReLU(), nn.Dropout(0.25), nn.Linear(5, 3))
    optimizer = kind(model.parameters(), lr=0.1)
    losses = []
    for n in range(steps):
        if n == swap:
            dp.finish_compiling()
        loss = F.cross_entropy(model(dp.tensor(X[n])), dp.tensor(Y[n]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.numpy().tobytes())
    return losses, [p.numpy().tobytes() for p in model.parameters()]


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_swap_in_mid_run_has_the_bits_of_either_tier(monkeypatch, kind):
    hold(monkeypatch)
    hasty = trained(8, None, kind)
    assert tiered()
    dp.finish_compiling()
    assert trained(8, None, kind) == hasty  # optimised from its first step
    assert not [e for e in tiered() if e.tier.job is not None]
    for swap in (2, 3, 5):
        forget()
        assert trained(8, swap, kind) == hasty
    monkeypatch.setenv("DIPTYCH_TIERS", "0")
    forget()
    assert trained(8, None, kind) == hasty  # optimised at once
    assert not tiered()


def test_what_does_not_recur_is_not_compiled_and_what_recurs_is(monkeypatch):
    hold(monkeypatch)
    compiles, calls = engine.STATISTICS.compiles, engine.STATISTICS.calls

    def one():
        return (dp.tanh(dp.tensor(X[0])) * 1.5 - dp.floor(dp.tensor(X[1]))).numpy()

    first = one()
    assert engine.STATISTICS.compiles == compiles + 1 and engine.STATISTICS.calls == calls + 1
    assert dp.why()[-1].how == HASTY and f"{HASTY} 1 kernels" in str(dp.why()[-1])
    count = len(dp.why())
    dp.finish_compiling()
    assert dp.why()[-1].how == HASTY
    with dp.no_recompile():  # it ran before
        assert one().tobytes() == first.tobytes()
        dp.finish_compiling()
        assert len(dp.why()) == count and dp.why()[-1].how == DONE
        assert one().tobytes() == first.tobytes()
    assert engine.STATISTICS.compiles == compiles + 1 and not tiered()


def test_a_second_size_compiles_once_more_and_a_third_shares_the_code(monkeypatch):
    hold(monkeypatch)
    compiles = engine.STATISTICS.compiles

    def one(n):
        x = np.concatenate([X[0]] * 3)[:n]
        return x, (dp.exp(dp.tensor(x)) * 0.5 + dp.sin(dp.tensor(x))).sum(1).numpy()

    results = [one(n) for n in (5, 6, 8)]
    assert engine.STATISTICS.compiles == compiles + 2
    dp.finish_compiling()
    with dp.no_recompile():
        for n in (6, 8, 9, 20):
            results.append(one(n))
    assert engine.STATISTICS.compiles == compiles + 2
    for x, result in results:
        assert result.tobytes() == results[-1][1][: len(x)].tobytes()


def test_no_recompile_holds_for_what_is_new():
    with dp.no_recompile():
        waiting = dp.ceil(dp.tensor(X[0])) * dp.cos(dp.tensor(X[1]))
        with pytest.raises(dp.DiptychError, match="no_recompile"):
            waiting.numpy()
    assert waiting.numpy().shape == (7, 13)


@pytest.mark.parametrize("native", [False, True])
def test_a_position_outside_is_an_error_before_anything_is_written(monkeypatch, native):
    hold(monkeypatch)
    w = dp.Parameter(np.arange(6, dtype=np.float32))

    def step(scale):
        at = (dp.tensor(np.array([1, 2])) * scale).astype("i64")
        w.assign(w * 2)
        return dp.gather(w, at).numpy()

    for _ in range(2):
        step(1)
    if native:
        dp.finish_compiling()
    before = w.numpy().copy()
    with pytest.raises(dp.errors.ValueRangeError) as caught:
        step(4)
    assert "(test_tiers.py:" in str(caught.value) and " 8 " in str(caught.value)
    assert w.numpy().tobytes() == before.tobytes()
    assert step(1).tobytes() == (before[1:3] * 2).tobytes()


def test_outputs_are_memory_of_their_own():
    x = dp.Parameter(X[0])
    kept = x.reshape((13, 7))
    kept.numpy()
    x.assign(x * 2)
    assert x.numpy().tobytes() == (X[0] * 2).tobytes()
    assert kept.numpy().tobytes() == X[0].tobytes()
    a, b = dp.Parameter(X[0]), dp.Parameter(X[1])
    for n in range(4):  # each takes the place of the other
        old_a, old_b = a * 1, b * 1
        a.assign(old_b)
        b.assign(old_a)
        assert a.numpy().tobytes() == X[(n + 1) % 2].tobytes()
        assert b.numpy().tobytes() == X[n % 2].tobytes()


def test_a_compile_that_fails_is_raised_by_the_next_run(monkeypatch):
    hold(monkeypatch)

    def one():
        return (dp.rsqrt(dp.abs(dp.tensor(X[0]))) + 0.5).numpy()

    def broken(*_, **__):
        raise RuntimeError("no code")

    one()
    monkeypatch.setattr(tiers, "Code", broken)
    one()
    dp.finish_compiling()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no code"):
            one()


def test_an_interrupt_of_who_waits_is_not_an_error_of_the_compile(monkeypatch):
    hold(monkeypatch)
    make, asked = tiers.Code, []

    def interrupted(*given, **more):
        asked.append(given)
        if len(asked) == 2:  # the optimised one
            raise KeyboardInterrupt
        return make(*given, **more)

    def one():
        return (dp.tanh(dp.tensor(X[0])) + 0.5).numpy().tobytes()

    monkeypatch.setattr(tiers, "Code", interrupted)
    first = one()
    monkeypatch.setattr(tiers, "PATIENCE", -1)
    with pytest.raises(KeyboardInterrupt):
        one()
    assert len(background._waiting) == 1 and not background._begun
    assert one() == first and len(asked) == 3
    assert not background._waiting and not tiered()


def test_a_run_of_much_work_waits_for_the_optimised_code(monkeypatch):
    monkeypatch.setattr(tiers, "RATE", 1)
    dp.exp(dp.tensor(X[0])).numpy()
    assert dp.why()[-1].how == DONE and not tiered()


def test_patience_with_code_made_in_haste_ends(monkeypatch):
    hold(monkeypatch)
    for n in range(4):
        if n == 3:
            monkeypatch.setattr(tiers, "PATIENCE", 0)
        assert bool(tiered()) == (n > 0)
        (dp.expm1(dp.tensor(X[0])) * 3.5).numpy()
    assert dp.why()[-1].how == DONE and not tiered()


@pytest.mark.parametrize("seconds, hasty", [(1e9, False), (0, True)])
def test_by_default_only_what_takes_long_is_made_in_haste(monkeypatch, seconds, hasty):
    hold(monkeypatch)
    monkeypatch.delenv("DIPTYCH_TIERS")
    monkeypatch.setattr(tiers, "LONG", seconds)
    (dp.log1p(dp.tensor(np.abs(X[0]))) * 2.5).numpy()
    assert bool(tiered()) == hasty
    assert dp.why()[-1].how == (HASTY if hasty else "compiled")


def test_a_compiled_step_is_swapped_too(monkeypatch):
    hold(monkeypatch)
    step = dp.compile(lambda x, y: (dp.tanh(x) @ dp.sigmoid(y).T).sum(0))
    found = [step(X[0], X[1]).numpy().tobytes() for _ in range(3)]
    (ready,) = step.last.plans[None].executables.values()
    assert type(ready.executable) is tiers.TieredExecutable
    dp.finish_compiling()
    found.append(step(X[0], X[1]).numpy().tobytes())
    assert type(ready.executable) is engine.Executable and len(set(found)) == 1


def test_both_are_kept_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    hold(monkeypatch)

    def one():
        result = (dp.cos(dp.tensor(X[0])) * 4.5).numpy().tobytes()
        return result, dp.why()[-1].how

    first = one()
    assert first[1] == HASTY
    count = len(list(tmp_path.rglob("*.o")))
    forget()
    assert one() == (first[0], "loaded")
    one()
    dp.finish_compiling()
    assert dp.why()[-1].how == DONE and len(list(tmp_path.rglob("*.o"))) == count + 1
    forget()
    assert one() == (first[0], "loaded") and not tiered()


def test_two_threads_and_their_compiles():
    found = {}

    def work(name, scale):
        rounds = [
            (dp.tensor(X[n % 8]) * scale - dp.tanh(dp.tensor(X[0]))).numpy() for n in range(40)
        ]
        found[name] = b"".join(r.tobytes() for r in rounds[::8]) == rounds[0].tobytes() * 5
        dp.finish_compiling()

    workers = [threading.Thread(target=work, args=(n, 0.5 + n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert found == {0: True, 1: True}


PROGRAM = """
    import os, sys
    import numpy as np
    import diptych as dp

    def step(x):
        for n in range(40):
            x = dp.tanh(x * (0.5 + n)) - dp.matmul(x, x) * 0.01
        return x.sum(0)

    x = dp.tensor(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    first = step(x).numpy()
    second = step(x).numpy()  # from here on it is being compiled
"""


def run(more, limit=60):
    environment = {**os.environ, "DIPTYCH_TIERS": "1", "DIPTYCH_CACHE": ""}
    text = textwrap.dedent(PROGRAM) + textwrap.dedent(more)
    return subprocess.run(
        [sys.executable, "-c", text], env=environment, timeout=limit, capture_output=True, text=True
    )


def test_a_process_ends_while_it_compiles():
    done = run("print(dp.why()[-1].how)")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{HASTY}\n"


def test_the_end_of_a_process_waits_for_one_part_only(monkeypatch):
    monkeypatch.setattr(background, "_closing", False)
    made, began = [], threading.Event()

    def make():
        for part in range(500):
            made.append(part)
            began.set()
            time.sleep(0.01)
            background.between()

    background.submit(background.Job(make))
    began.wait()
    background._close()
    background._waiting.clear()
    assert len(made) < 100 and background._worker is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_fork_goes_on_with_what_was_being_compiled():
    done = run("""
    child = os.fork()
    dp.finish_compiling()
    third = step(x).numpy()
    good = first.tobytes() == second.tobytes() == third.tobytes()
    good = good and dp.why()[-1].how == "compiled in the background"
    if child == 0:
        os._exit(0 if good else 1)
    print(good, os.waitpid(child, 0)[1])
    """)
    assert (done.returncode, done.stdout) == (0, "True 0\n"), done.stderr
