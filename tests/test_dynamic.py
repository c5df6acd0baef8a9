"""The dynamic panel: deferral is invisible except to the clock, and its cost does not wander."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from networks import network

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim
from diptych.errors import GraphError

rng = np.random.default_rng(0)
X = rng.standard_normal((5, 8)).astype(np.float32)
Y = rng.integers(0, 3, 5)

pytestmark = pytest.mark.usefixtures("natively")


class Count:
    """Native calls and compiles inside a with."""

    def __enter__(self):
        self.start = engine.STATISTICS.calls, engine.STATISTICS.compiles
        return self

    def __exit__(self, *_):
        self.calls = engine.STATISTICS.calls - self.start[0]
        self.compiles = engine.STATISTICS.compiles - self.start[1]


@pytest.mark.parametrize("zero", ["first", "last"])
@pytest.mark.parametrize("look", ["never", "before backward", "after step", "gradient"])
def test_native_calls_of_a_training_loop(zero, look):
    """One call an iteration; a look before backward makes two."""
    model = network(8, 7, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def iteration():
        if zero == "first":
            optimizer.zero_grad()
        loss = F.cross_entropy(model(dp.tensor(X)), dp.tensor(Y))
        if look == "before backward":
            loss.item()
        loss.backward()
        optimizer.step()
        if look == "after step":
            loss.item()
        if look == "gradient":
            model.parameters()[0].grad.numpy()
        if zero == "last":
            optimizer.zero_grad()

    for _ in range(4):
        iteration()
    with Count() as count:
        for _ in range(10):
            iteration()
    assert count.calls == (20 if look == "before backward" else 10)
    assert count.compiles == 0


def test_a_loop_that_never_looks_is_bounded():
    model = network(8, 7, 3)
    values = []
    for _ in range(2):
        total = 0.0
        with Count() as count:
            with dp.no_grad():
                for _ in range(300):
                    total = total + F.accuracy(model(dp.tensor(X)), dp.tensor(Y))
                    assert len(dp.PANEL.piece.waiting) < 200
            values.append(total.item())
    assert count.compiles <= 1 and count.calls <= 301
    assert values[0] == values[1]


def test_an_evaluation_loop_with_history_is_bounded_too():
    model, total = network(8, 7, 3), 0.0
    for _ in range(300):
        total = total + F.accuracy(model(dp.tensor(X)), dp.tensor(Y))
        assert len(dp.PANEL.piece.waiting) < 1000
    assert 0 <= total.item() <= 300


def test_large_batches_are_not_hoarded():
    total = 0.0
    for _ in range(12):
        total = total + dp.tensor(np.ones((1 << 20,), np.float32)).sum()
        assert dp.PANEL.piece.held <= (1 << 25) + (1 << 22)
    assert total.item() == 12 * 2**20


def test_a_deep_network_is_one_call():
    layers = [nn.Linear(8, 8) for _ in range(60)]
    optimizer = optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.1)

    def iteration():
        x = dp.tensor(X)
        for layer in layers:
            x = F.relu(layer(x))
        x.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    iteration()
    iteration()
    with Count() as count:
        iteration()
        layers[0].weight.numpy()
    assert count.calls == 2 and count.compiles <= 1


def test_values_are_the_same_at_every_point_as_when_run_eagerly():
    """Stepping through in a debugger: every local is displayed after every line."""

    def lines():
        model = network(8, 7, 3)
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            x = dp.tensor(X)
            yield x
            scores = model(x)
            yield scores
            loss = F.cross_entropy(scores, dp.tensor(Y))
            yield loss
            loss.backward()
            yield model.parameters()[0].grad
            yield model.parameters()[3].grad
            optimizer.step()
            yield model.parameters()[0]
            optimizer.zero_grad()
            yield model.parameters()[3]

    def shown(eager, look):
        dp.set_eager(eager)
        try:
            kept = []
            for value in lines():
                kept.append(repr(value) if look else value)
            return [k if look else repr(k) for k in kept]
        finally:
            dp.set_eager(False)

    eager = shown(True, True)
    assert shown(False, True) == eager
    late = shown(False, False)  # parameters show their last value; the rest are values
    fixed = [n for n in range(len(late)) if n % 7 not in (5, 6)]
    assert [late[n] for n in fixed] == [eager[n] for n in fixed]


def test_control_flow_on_values():
    x, steps = dp.tensor(1.0), 0
    while x < 100.0:
        x = x * 2.0 if steps % 2 else x * 3.0
        steps += 1
    assert (x.item(), steps) == (108.0, 5)


def test_a_tensor_never_changes():
    w = dp.Parameter(np.ones(3, np.float32))
    seen, held = w.detach(), w.numpy()
    kept = w * 1.0
    w.assign(w * 5.0)
    assert w.tolist() == [5, 5, 5]
    assert seen.tolist() == kept.tolist() == held.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        held[0] = 3
    source = np.ones(3, np.float32)
    t = dp.tensor(source)
    source[:] = 9
    assert t.tolist() == [1, 1, 1]


def test_snapshots_survive_training():
    model = network(8, 7, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    snapshot, raw = model.state_dict(), model.parameters()[0].numpy()
    before, copied = raw.tobytes(), {k: v.tobytes() for k, v in snapshot.items()}
    for _ in range(3):
        F.cross_entropy(model(dp.tensor(X)), dp.tensor(Y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.parameters()[0].numpy().tobytes() != before == raw.tobytes()
    assert {k: v.tobytes() for k, v in snapshot.items()} == copied


def test_retain_graph_and_gradients_that_accumulate():
    w = dp.tensor(3.0, requires_grad=True)
    y = w * w
    y.backward(retain_graph=True)
    y.backward()
    assert w.grad.item() == 12.0


@pytest.mark.parametrize("eager", [False, True])
def test_what_an_earlier_backward_released_is_an_error_not_a_part_of_a_gradient(eager):
    def two_losses(between=lambda h: h, retain=False):
        hidden = between(weight * 3.0)
        first, second = hidden.sum(), (between(hidden) * hidden + weight).sum()
        first.backward(retain_graph=retain)
        second.backward()
        found, weight.grad = weight.grad, None
        return found * 1.0

    weight = dp.Parameter(np.array([1.0, 2.0], np.float32))
    dp.set_eager(eager)
    try:
        for run in (two_losses, two_losses, dp.compile(two_losses)):
            with pytest.raises(GraphError, match="releases the history"):
                run()
            weight.grad = None
        assert two_losses(retain=True).tolist() == [22.0, 40.0]
        for _ in range(2):  # a value of another piece, beside one that is the same but for this
            data, loss = dp.tensor([3.0, 6.0]), (weight * weight).sum()
            (data.sum() * weight).sum().backward()
            loss.backward()
            weight.grad = None
            loss.item()
            assert (loss + 1.0).item() == 6.0
            ((loss.detach() * weight).sum() + dp.tensor(loss.item())).backward()
            weight.grad = None
            with pytest.raises(GraphError, match=r"releases the history[\s\S]*detach"):
                (loss * weight).sum().backward()
            (dp.tensor(5.0) * weight).sum().backward()
            assert weight.grad.tolist() == [5.0, 5.0]
            weight.grad = None
    finally:
        dp.set_eager(False)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("looked", [False, True])
def test_what_is_computed_of_released_values_is_no_constant(eager, looked):
    weight = dp.Parameter(np.array([1.0, 2.0], np.float32))

    def released():
        hidden = weight * 3.0
        hidden.sum().backward()
        weight.grad = None
        if looked:
            hidden.numpy()
        return hidden

    dp.set_eager(eager)
    try:
        for _ in range(3):
            hidden = released()
            squares = hidden * hidden
            assert not squares.requires_grad and squares.tolist() == [9.0, 36.0]
            for loss in (squares.sum(), (squares + weight).sum(), (squares * 2.0 * weight).sum()):
                with pytest.raises(GraphError, match="releases the history"):
                    loss.backward()
                with pytest.raises(GraphError, match="releases the history"):
                    dp.partials(loss, [weight])
            labels = (hidden > 4.0).astype("float32")  # nothing flows through these
            (labels * weight).sum().backward()
            assert weight.grad.tolist() == [0.0, 1.0]
            weight.grad = None
            with dp.no_grad():
                kept = hidden * 2.0
            ((kept + squares.detach()) * weight).sum().backward()
            assert weight.grad.tolist() == [15.0, 48.0]
            weight.grad = None
        before = weight * 3.0
        loss = (before * before + weight).sum()
        before.sum().backward()
        weight.grad = None
        with pytest.raises(GraphError, match="releases the history"):
            dp.partials(loss, [weight])
    finally:
        dp.set_eager(False)


@pytest.mark.parametrize("eager", [False, True])
def test_a_leaf_ends_what_was_released(eager):
    weight = dp.Parameter(np.array([1.0, 2.0], np.float32))
    average = dp.Parameter(np.array([1.0, 1.0], np.float32), trainable=False)
    dp.set_eager(eager)
    try:
        for _ in range(2):
            hidden = weight * 3.0
            loss = hidden.sum()
            loss.backward()
            weight.grad = None
            assert dp.grad(lambda x: (x * x).sum())(hidden * 2.0).tolist() == [12.0, 24.0]
            leaf = (hidden * 2.0).requires_grad_()
            (leaf * leaf).sum().backward()
            assert leaf.grad.tolist() == [12.0, 24.0]
            average.assign(hidden * 2.0)
            (average * weight).sum().backward()
            assert weight.grad.tolist() == [6.0, 12.0]
            weight.grad = None
    finally:
        dp.set_eager(False)


@pytest.mark.usefixtures("natively")
def test_a_running_total_of_losses_recurs_although_backward_released_them():
    weight, total = dp.Parameter(np.array([1.0, 2.0], np.float32)), dp.tensor(0.0)
    for n in range(50):
        loss = (weight * float(n % 5)).sum()
        loss.backward()
        weight.grad = None
        total = total + loss
    assert total.item() == 300.0
    with pytest.raises(GraphError, match="releases the history"):
        (total * weight).sum().backward()


def test_backward_after_a_look_long_ago():
    w = dp.tensor([1.0, 2.0], requires_grad=True)
    hidden = dp.exp(w)
    hidden.numpy()
    loss = (hidden * hidden).sum()
    loss.item()
    loss.backward()
    assert np.abs(w.grad.numpy() - 2 * np.exp(2 * np.array([1.0, 2.0]))).max() < 1e-4


def test_a_failed_run_restores_parameters_optimizer_and_gradients():
    model = network(8, 7, 3)
    optimizer = optim.Adam(model.parameters(), lr=0.1)

    def step(labels):
        loss = F.cross_entropy(model(dp.tensor(X)), dp.tensor(labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def state():
        own = [p.numpy().tobytes() for p in model.parameters()]
        own += [p.numpy().tobytes() for p in optimizer.powers]
        return own + [m.numpy().tobytes() for pair in optimizer.moments.values() for m in pair]

    step(Y).item()
    before = state()
    with pytest.raises(dp.DiptychError, match="label 9"):
        step(np.full(5, 9)).item()
    assert state() == before
    once = [step(Y).item(), state()]
    fresh = network(8, 7, 3)
    model, optimizer = fresh, optim.Adam(fresh.parameters(), lr=0.1)
    step(Y).item()
    assert [step(Y).item(), state()] == once


def test_threads_train_models_of_their_own():
    def train(seed, out):
        generator = np.random.default_rng(seed)
        model = nn.Linear(8, 3)
        model.load_state_dict({
            "weight": generator.standard_normal((3, 8)).astype(np.float32),
            "bias": np.zeros(3, np.float32),
        })  # fmt: skip
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        for _ in range(30):
            loss = F.cross_entropy(model(dp.tensor(X)), dp.tensor(Y))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        out[seed] = model.weight.numpy().tobytes(), loss.item()

    alone, together = {}, {}
    for seed in range(4):
        train(seed, alone)
    workers = [threading.Thread(target=train, args=(seed, together)) for seed in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert together == alone


def test_a_pending_tensor_crosses_threads():
    x = dp.tensor(X) * 2.0
    seen = []
    worker = threading.Thread(target=lambda: seen.append((x + 1.0).numpy()))
    worker.start()
    worker.join()
    assert (seen[0] == X * 2 + 1).all()


def test_what_waits_in_another_thread_reads_the_weights_of_its_time():
    weight, kept = dp.Parameter(np.ones(600, np.float32)), []
    optimizer = optim.SGD([weight], lr=0.5)

    def step():
        weight.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def record():
        kept.append(weight * 2.0)  # not looked at

    for _ in range(4):
        step()
        weight.numpy()
    thread = threading.Thread(target=record)
    thread.start()
    thread.join()
    step()
    assert weight.numpy()[0] == -1.5 and kept[0].numpy()[0] == -2.0


def test_one_row_of_a_batch_has_the_bits_it_has_alone():
    model = nn.Sequential(nn.Linear(784, 100), nn.Tanh(), nn.Linear(100, 100), nn.ReLU(),
                          nn.Linear(100, 10))  # fmt: skip
    batch = rng.standard_normal((16, 784)).astype(np.float32)
    with dp.no_grad():
        whole = F.softmax(model(dp.tensor(batch))).numpy()
        for n in range(16):
            alone = F.softmax(model(dp.tensor(batch[n : n + 1]))).numpy()
            assert alone.tobytes() == whole[n : n + 1].tobytes()


DEBUGGED = """\
import numpy as np, diptych as dp
from diptych import nn, optim
dp.manual_seed(0)
layer = nn.Linear(3, 1)
optimizer = optim.SGD(layer.parameters(), lr=0.5)
before = layer.bias
score = layer(np.ones((1, 3), np.float32))
loss = (score * score).sum()
loss.backward()
optimizer.step()
optimizer.zero_grad()
after = layer(np.ones((1, 3), np.float32)) * 2
"""
LOOKS = {
    7: ["layer.bias"], 8: ["score"], 9: ["loss", "score"], 10: ["layer.bias.grad", "layer.bias"],
    11: ["layer.bias", "layer.bias.grad"], 12: ["layer.bias", "layer.bias.grad", "loss"],
}  # fmt: skip


def test_a_debugger_sees_the_values_of_the_written_order(tmp_path):
    """What pdb prints before each line is what an eager run prints there."""
    script = tmp_path / "script.py"
    script.write_text(DEBUGGED)
    commands = []
    for line in range(1, len(DEBUGGED.splitlines()) + 1):
        commands += [f"p 'SEEN', {line}, {what}" for what in LOOKS.get(line, [])] + ["n"]
    done = subprocess.run(
        [sys.executable, "-m", "pdb", str(script)],
        input="\n".join([*commands, "p 'SEEN', 13, after", "q", ""]), text=True,
        capture_output=True, timeout=100,
    )  # fmt: skip
    seen = [line.removeprefix("(Pdb) ") for line in done.stdout.splitlines() if "'SEEN'" in line]
    expected, lines = [], DEBUGGED.splitlines()
    namespace = {}
    dp.set_eager(True)
    try:
        for number, line in enumerate(lines, 1):
            for what in LOOKS.get(number, []):
                expected.append(repr(("SEEN", number, eval(what, namespace))))
            exec(line, namespace)
        expected.append(repr(("SEEN", 13, namespace["after"])))
    finally:
        dp.set_eager(False)
    assert seen == expected and len(seen) == 12


@pytest.mark.parametrize("calls", [5, 7])
def test_a_loop_with_history_that_never_looks_runs_whole_rounds(calls):
    """Wherever the loop is first suspected, it is cut where a round begins, and stays known."""
    weight = dp.Parameter(np.ones((4, 4), np.float32))
    x = np.ones((2, 4), np.float32)

    def rounds(count):
        for _ in range(count):
            y = dp.matmul(dp.tensor(x), weight)
            for _ in range(calls - 1):
                y = dp.tanh(y)
        return y

    held = rounds(300)
    with Count() as count:
        y = rounds(40)
    assert count.calls == 40 and count.compiles <= 1 and dp.PANEL.piece.point is not None
    assert held.numpy().tobytes() == y.numpy().tobytes()
    expected = np.full((2, 4), 4.0)
    for _ in range(calls - 1):
        expected = np.tanh(expected)
    assert np.abs(y.numpy() - expected).max() < 1e-6


def test_numpy_copies_where_it_is_asked_to():
    x = dp.tensor([1.0, 2.0]) + 1
    copy = np.array(x)
    copy[0] = 7
    assert x.tolist() == [2.0, 3.0]
    assert np.asarray(x, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, np.float64, copy=False)
