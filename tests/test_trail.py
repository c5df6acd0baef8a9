"""The dynamic panel's memory is invisible: random programs give what an eager run gives."""

import gc
import threading
import weakref

import numpy as np
import pytest
from networks import network

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim
from diptych.errors import DiptychError, StartupError, ValueRangeError
from diptych.trail import SHAPES

X = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 5)

pytestmark = pytest.mark.usefixtures("recorded")


class Machine:
    """A state of handles that numbered actions change; everything looked at is logged."""

    def __init__(self, seed):
        self.draw = np.random.default_rng(seed)
        dp.manual_seed(seed)
        self.layers = [nn.Linear(3, 3), nn.Linear(3, 3)]
        self.parameters = [p for layer in self.layers for p in layer.parameters()]
        kind = self.draw.integers(0, 4)
        self.optimizer = [
            lambda p: optim.SGD(p, lr=0.1),
            lambda p: optim.SGD(p, lr=0.1, momentum=0.5),
            lambda p: optim.Adam(p, lr=0.1),
            lambda p: optim.SGD(p[::-1], lr=0.05),
        ][kind](self.parameters)
        self.handles = [self.fresh() for _ in range(3)]
        self.views, self.log = [], []

    def fresh(self):
        return dp.tensor(self.draw.standard_normal((2, 3)).astype(np.float32))

    def pick(self, n):
        return self.handles[n % len(self.handles)]

    def look(self, value):
        self.log.append(np.array(value.numpy()).tobytes())

    def keep(self, handle):
        self.handles = [*self.handles[-4:], handle]

    def act(self, action, n, m):
        a, b = self.pick(n), self.pick(m)
        p = self.parameters[n % 4]
        if action == "binary":
            self.keep([dp.add, dp.multiply, dp.subtract, dp.maximum][m % 4](a, b))
        elif action == "unary":
            self.keep([F.relu, F.tanh, dp.negative, lambda x: x * 0.5 + n][m % 4](a))
        elif action == "layer":
            self.keep(self.layers[n % 2](b))
        elif action == "fresh":
            self.keep(self.fresh())
        elif action == "array":
            self.keep(a + self.draw.standard_normal((2, 3)).astype(np.float32))
        elif action == "look":
            self.look(a)
        elif action == "view":
            self.views = [*self.views[-2:], (p.numpy(), p.numpy().tobytes())]
        elif action == "drop":
            self.handles = self.handles[1:] or [self.fresh()]
        elif action == "backward":
            (a * a).mean().backward(retain_graph=m % 3 == 0)
        elif action == "again":
            F.softmax(a).max().backward()
        elif action == "gradient":
            if p.grad is not None:
                self.look(p.grad)
        elif action == "keep gradient":
            if p.grad is not None and p.grad.shape == (3,):
                self.keep(a * p.grad)
        elif action == "step":
            self.optimizer.step()
        elif action == "zero":
            self.optimizer.zero_grad()
        elif action == "clip":
            self.look(optim.clip_grad_norm_(self.parameters, 0.5))
        elif action == "parameter":
            self.look(p)
        elif action == "assign":
            p.assign(p * 0.5 if m % 2 else np.full(p.shape, 0.25, np.float32))
        elif action == "detach":
            self.keep(a.detach())
        elif action == "without":
            with dp.no_grad():
                self.keep(self.layers[n % 2](b) * 2.0)
        elif action == "leaf":
            self.keep(self.fresh().requires_grad_() * a)
        elif action == "late leaf":
            self.keep((b * 1.5).detach().requires_grad_() * a)
        elif action == "partials":
            self.keep(dp.grad(lambda x: (x * x * a.detach()).sum())(b.detach()))
        elif action == "broken":
            dp.matmul(a, b)
        elif action == "labels":
            self.look(F.cross_entropy(a, np.array([n % 4, 1])))

    def run(self, actions):
        for action, n, m in actions:
            try:
                self.act(action, n, m)
            except DiptychError as problem:
                self.log.append(str(problem).split("    (")[0])
        for held, value in self.views:
            self.log.append(held.tobytes() == value)


ACTIONS = [
    "binary", "unary", "layer", "layer", "fresh", "array", "look", "view", "drop", "backward",
    "backward", "again", "gradient", "keep gradient", "step", "step", "zero", "zero", "clip",
    "parameter", "assign", "detach", "without", "leaf", "late leaf", "partials", "broken", "labels",
]  # fmt: skip


def program(seed):
    draw = np.random.default_rng(seed)
    picked = draw.choice(ACTIONS, 12)
    return [(str(a), int(draw.integers(12)), int(draw.integers(12))) for a in picked]


def outcome(seed, eager):
    """What a program that runs five times logs, and what everything is at its end."""
    dp.set_eager(eager)
    try:
        machine = Machine(seed)
        for _ in range(5):
            machine.run(program(seed))
        for value in [*machine.parameters, *machine.handles]:
            machine.look(value)
        return machine.log
    finally:
        dp.set_eager(False)


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_programs_give_what_an_eager_run_gives(first):
    for seed in range(first, first + 10):
        assert outcome(seed, False) == outcome(seed, True), program(seed)


def test_a_step_that_recurs_adds_nothing_to_what_is_remembered():
    model = network(8, 7, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def iteration(n):
        loss = F.cross_entropy(model(X + np.float32(n)), Y)
        loss.backward()
        optimizer.lr = 0.1 / (n + 1)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    for n in range(4):
        iteration(n)
    points, compiles = dp.PANEL.trail.points, engine.STATISTICS.compiles
    known = len(dp.PANEL.runner.cache)
    for n in range(20):
        iteration(n)
    assert dp.PANEL.piece.point is not None  # nothing led off the trail
    assert (dp.PANEL.trail.points, engine.STATISTICS.compiles) == (points, compiles)
    assert len(dp.PANEL.runner.cache) == known


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("diptych.trail.MOST", 50)
    x = dp.tensor(X)
    for n in range(1, 40):
        y = x
        for _ in range(n % 13):
            y = F.relu(y)
        y.numpy()
        dp.PANEL.run()
        assert n == 1 or dp.PANEL.trail.points <= 50 + 12


def test_copies_for_shapes_that_do_not_come_back_are_let_go():
    before = [weakref.ref(dp.tensor(np.ones(300 + n, np.float32)).node.value) for n in range(200)]
    assert sum(r() is not None for r in before) <= SHAPES
    assert len(dp.PANEL.trail.forms) <= SHAPES


def test_history_that_is_alive_keeps_the_weights_it_read():
    layer = nn.Linear(8, 3)
    optimizer = optim.SGD(layer.parameters(), lr=0.5)
    x = dp.tensor(X)

    def gradient(value):
        optimizer.zero_grad()
        value.backward()
        found = layer.bias.grad.numpy().tobytes()
        optimizer.zero_grad()
        return found

    expected = gradient((F.tanh(layer(x)) * layer(x)).mean())
    for _ in range(3):
        value = (F.tanh(layer(x)) * layer(x)).mean()
        value.item()  # looked at: its history is there, outside of the piece of the step
        layer(x).sum().backward()
        optimizer.step()
        layer.weight.numpy()
        assert gradient(value) == expected
        layer.load_state_dict({"weight": layer.weight.numpy(), "bias": layer.bias.numpy()})
        expected = gradient((F.tanh(layer(x)) * layer(x)).mean())


def test_history_that_begins_to_read_a_weight_keeps_it():
    """A step that was made in place many times, and then while a gradient may read its weights."""

    def run(eager):
        dp.set_eager(eager)
        model = network(8, 7, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.5)
        found = []
        for n in range(8):
            value = F.tanh(model(dp.tensor(X))).mean() if n == 5 else None
            if value is not None:
                value.item()
            F.cross_entropy(model(dp.tensor(X)), dp.tensor(Y)).backward()
            optimizer.step()
            optimizer.zero_grad()
            model[0].bias.numpy()
            if value is not None:
                value.backward()
                found = [p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None]
                optimizer.zero_grad()
        dp.set_eager(False)
        return found

    assert run(False) == run(True) != []


def test_steps_after_a_look_still_update_in_place():
    """History that backward released reads nothing any more."""
    model = network(8, 7, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    places = set()
    for _ in range(5):
        loss = F.cross_entropy(model(X), Y)
        loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.parameters()[0].numpy()
        places.add(model.parameters()[0].node.value.__array_interface__["data"][0])
    assert len(places) == 1


def test_an_error_names_the_line_of_this_call_not_of_the_one_that_compiled():
    def scores(x, labels):
        return F.cross_entropy(x, labels * 1)  # computed: checked when it runs

    x = dp.tensor(np.ones((2, 3), np.float32))
    with pytest.raises(ValueRangeError) as first:
        scores(x, dp.tensor([0, 7])).item()
    again = lambda x, labels: F.cross_entropy(x, labels * 1)  # noqa: E731
    with pytest.raises(ValueRangeError, match="label 9") as second:
        again(x, dp.tensor([0, 9])).item()
    lines = [str(e.value).split("test_trail.py:")[1].split(")")[0] for e in (first, second)]
    assert int(lines[1]) - int(lines[0]) == 5


def test_a_call_that_fails_leaves_no_trace():
    x, bad = dp.tensor(np.ones((2, 3), np.float32)), dp.tensor(np.ones((2, 4), np.float32))
    values = []
    for broken in (False, True, False, True):
        y = F.relu(x)
        if broken:
            with pytest.raises(DiptychError, match="broadcast"):
                dp.add(y, bad)
            with pytest.raises(DiptychError, match="label 3"):
                F.cross_entropy(y, np.array([3, 1]))
        values.append((y * bad[:, :3]).numpy().tobytes())
    assert len(set(values)) == 1 and dp.PANEL.piece.point is dp.PANEL.trail.root


def test_a_call_whose_second_input_has_no_value_leaves_no_trace():
    x, other = dp.tensor(X), dp.tensor(X + 1.0)
    right = F.relu(x).numpy().tobytes()
    with dp.Program():
        placeholder = dp.data("x", [5, 8])
    with pytest.raises(StartupError, match="no value outside"):
        dp.add(other, placeholder)
    assert F.relu(x).numpy().tobytes() == right


def test_a_step_that_fails_half_way_leaves_no_trace():
    def run(broken):
        model, losses = network(8, 7, 3), []
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        for n in range(4):
            loss = F.cross_entropy(model(dp.tensor(X)), dp.tensor(Y))
            loss.backward()
            if broken and n == 2:
                vars(optimizer)["lr"] = "fast"  # past the check, so that the step fails half way
                with pytest.raises(ValueError, match="fast"):
                    optimizer.step()
                optimizer.lr = 0.1
            losses.append(loss * dp.tensor(2.0))
            optimizer.step()
            optimizer.zero_grad()
        return [loss.item() for loss in losses], model.state_dict()["0.weight"].tobytes()

    assert run(False) == run(True) == run(False)


def test_what_nobody_holds_is_let_go():
    model = network(8, 7, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    loss = F.cross_entropy(model(X), Y)
    loss.backward()
    optimizer.step()
    reference = weakref.ref(model)
    del model, optimizer
    assert loss.item() > 0
    gc.collect()
    assert reference() is None


def test_gradients_of_one_thread_are_read_by_another():
    model = network(8, 7, 3)
    for _ in range(3):
        F.cross_entropy(model(X), Y).backward()
        seen = []
        worker = threading.Thread(
            target=lambda seen=seen: seen.append(model.parameters()[1].grad.numpy().tobytes())
        )
        worker.start()
        worker.join()
        assert seen == [model.parameters()[1].grad.numpy().tobytes()]
        for p in model.parameters():
            p.grad = None


def test_a_plan_that_turns_weights_does_not_disturb_what_has_read_them():
    """A program that only reads a weight may lay it out anew, also while a piece waits."""
    images = np.random.default_rng(2).standard_normal((1, 64)).astype(np.float32)
    for _ in range(2):
        model = nn.Linear(64, 96)
        with dp.Program() as program:
            scores = model(dp.data("image", [None, 64]))
        with dp.no_grad():
            before, alone = model.weight.node.value.strides, model(images).numpy().tobytes()
            waiting = model(images)
            (found,) = dp.Executor().run(program, {"image": images}, [scores])
        assert model.weight.node.value.strides != before  # else nothing is tested
        assert waiting.numpy().tobytes() == found.tobytes() == alone


def test_a_value_that_waits_may_be_replaced_by_an_array():
    w = dp.Parameter(np.ones(3, np.float32))
    for n, replaced in enumerate([True, False, True, False, False, True]):
        w.assign(w * 2.0)
        if replaced:
            w.assign(np.full(3, n, np.float32))
            expected = [n] * 3
        else:
            expected = [expected[0] * 2 if n else 2.0] * 3
        (dp.tensor(X) * 2.0).numpy()
        assert w.tolist() == expected
