"""A step that is recorded once is the step that is recorded call by call, to the last bit."""

import copy
import gc
import pickle

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim, rehearsal
from diptych.dynamic import PANEL, set_eager
from diptych.errors import GraphError

RULES = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "decay": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())

pytestmark = pytest.mark.usefixtures("recorded")


class Run:
    """Some steps of a small network; `between` is called before a step with all there is."""

    def __init__(self, rule, between=lambda run, n: None, steps=6):
        dp.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4))
        self.parameters = self.model.parameters()
        self.optimizer = rule(self.parameters)
        rng = np.random.default_rng(2)
        self.losses = []
        for n in range(steps):
            x = rng.standard_normal((5, 7), np.float32)
            self.loss = F.cross_entropy(self.model(dp.tensor(x)), dp.tensor(rng.integers(0, 4, 5)))
            self.loss.backward()
            between(self, n)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(self.loss)

    def bits(self):
        state = {**self.model.state_dict(), **self.optimizer.state_dict()}
        return [loss.item() for loss in self.losses], {k: v.tobytes() for k, v in state.items()}


def eagerly(rule, between=lambda run, n: None):
    set_eager(True)
    try:
        run = Run(rule, between)
        assert run.optimizer.rehearsed is None
        return run.bits()
    finally:
        set_eager(False)


@every_rule
def test_a_rehearsed_step_gives_the_bits_of_its_calls(rule):
    run = Run(rule)
    assert run.optimizer.rehearsed is not None
    assert run.bits() == eagerly(rule)


@every_rule
def test_a_step_is_one_node_for_each_new_value(rule):
    def between(run, n):
        run.before = len(PANEL.piece.nodes)

    run = Run(rule, between)
    step = run.optimizer.rehearsed
    added = len(PANEL.piece.nodes) - run.before
    assert added <= len(step.state) + len(step.numbers()) + len(step.assigned)


@every_rule
@pytest.mark.parametrize("grads", ["read", "clipped", "accumulated"])
def test_gradients_that_were_looked_at_or_changed(rule, grads):
    def between(run, n):
        if grads == "read":
            run.seen = [p.grad.numpy().sum() for p in run.parameters[:2]]
        elif grads == "clipped":
            optim.clip_grad_norm_(run.parameters, 0.1)
        else:
            (run.model(dp.tensor(np.ones((2, 7), np.float32))) ** 2).sum().backward()

    run = Run(rule, between)
    assert run.optimizer.rehearsed is not None
    assert run.bits() == eagerly(rule, between)


@every_rule
def test_numbers_may_change_and_nothing_is_compiled_anew(rule):
    def between(run, n):
        if n == 3:
            run.compiled = engine.STATISTICS.compiles
        for name in ("lr", "weight_decay", "momentum", "eps"):
            if getattr(run.optimizer, name, 0):
                setattr(run.optimizer, name, getattr(run.optimizer, name) * 0.9)
        if hasattr(run.optimizer, "betas"):
            run.optimizer.betas = (0.9 - n / 100, 0.99)

    run = Run(rule, between)
    found = run.bits()
    assert engine.STATISTICS.compiles == run.compiled
    assert found == eagerly(rule, between)


def test_an_interrupt_while_a_rate_is_read(monkeypatch):
    """The steps after it have the new rate."""

    def interrupt(value, type):
        raise KeyboardInterrupt

    def between(run, n):
        if n == 3:
            run.optimizer.lr = 0.3
            if run.optimizer.rehearsed is not None:
                with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    patch.setattr(rehearsal, "leaf", interrupt)
                    run.optimizer.rehearsed.numbers()

    assert Run(RULES["sgd"], between).bits() == eagerly(RULES["sgd"], between)


def test_what_is_switched_on_later_counts():
    def between(run, n):
        if n == 2:
            run.optimizer.weight_decay = 0.1
        if n == 4:
            run.optimizer.momentum = 0.9

    assert Run(RULES["sgd"], between).bits() == eagerly(RULES["sgd"], between)


@every_rule
def test_state_that_is_loaded_or_held(rule):
    def between(run, n):
        if n == 2:
            run.saved = run.optimizer.state_dict()
        if n == 4:
            run.optimizer.load_state_dict(run.saved)
        if n == 3:
            run.held = [p.numpy() for p in run.optimizer.state()]
            run.copies = [h.copy() for h in run.held]

    run = Run(rule, between)
    assert all(np.array_equal(a, b) for a, b in zip(run.held, run.copies, strict=True))
    assert run.bits() == eagerly(rule, between)


@every_rule
def test_state_that_is_replaced(rule):
    def between(run, n):
        if n == 3 and hasattr(run.optimizer, "moments"):
            run.optimizer.moments.clear()
        if n == 3 and hasattr(run.optimizer, "velocity"):
            run.optimizer.velocity.clear()
        if n == 4:  # as many as there were
            for p in run.parameters:
                for of in ("velocity", "moments"):
                    state = getattr(run.optimizer, of, {})
                    if p in state:
                        state[p] = copy.deepcopy(state[p])

    assert Run(rule, between).bits() == eagerly(rule, between)


@every_rule
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_and_pickles_go_on_to_the_same_bits(rule, copied):
    run = Run(rule)
    model, other = copied((run.model, run.optimizer))
    assert other.rehearsed is None
    assert all(p is q for p, q in zip(other.parameters, model.parameters(), strict=True))
    x = dp.tensor(np.ones((5, 7), np.float32))
    for net, optimizer in ((run.model, run.optimizer), (model, other)):
        for _ in range(2):
            net(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, its in ((run.model, model), (run.optimizer, other)):
        state = its.state_dict()
        assert {k: v.tobytes() for k, v in mine.state_dict().items()} == {
            k: v.tobytes() for k, v in state.items()
        }


@every_rule
def test_a_shallow_copy_steps_by_itself(rule):
    run = Run(rule)
    twin = copy.copy(run.optimizer)
    twin.lr = 0.0
    before = [p.numpy().copy() for p in run.parameters]
    run.model(dp.tensor(np.ones((5, 7), np.float32))).sum().backward()
    twin.step()
    for p, b in zip(run.parameters, before, strict=True):
        assert np.array_equal(p.numpy(), b)


def test_betas_that_change_in_place_count():
    def between(run, n):
        if n == 3:
            run.optimizer.betas[0] = 0.5

    def rule(p):
        return optim.Adam(p, lr=0.01, betas=[0.9, 0.99])

    assert Run(rule, between).bits() == eagerly(rule, between) != Run(rule).bits()


def test_some_parameters_without_gradients():
    def between(run, n):
        run.parameters[n % 3].grad = None

    for rule in RULES.values():
        run = Run(rule, between)
        assert run.optimizer.rehearsed is None
        assert run.bits() == eagerly(rule, between)


@every_rule
def test_a_gradient_that_is_set_is_the_one_that_counts(rule):
    def between(run, n):
        p = run.parameters[1 + n % 3]
        p.grad = dp.tensor(np.full(p.shape, 0.5, np.float32))

    assert Run(rule, between).bits() == eagerly(rule, between)


@every_rule
@pytest.mark.parametrize("count", [1, 2])
def test_a_loop_leaves_nothing_to_the_garbage_collector(rule, count):
    threads_before = dp.threads()
    dp.set_threads(count)
    objects = {}

    def counted(run, n):
        if n in (19, 39):
            objects[n] = len(gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        Run(rule, counted, steps=40)
    finally:
        gc.enable()
        dp.set_threads(threads_before)
    assert objects[39] - objects[19] < 20 + 20 * 4  # a loss each step, which the test keeps


def test_an_optimizer_of_the_author_is_recorded_call_by_call():
    calls = []

    class Loud(optim.SGD):
        def update(self, parameter, grad):
            calls.append(parameter)
            super().update(parameter, grad)

    run = Run(lambda p: Loud(p, lr=0.1))
    assert run.optimizer.rehearsed is None
    assert len(calls) == 6 * 4
    assert run.bits() == eagerly(RULES["sgd"])


def test_two_optimizers_and_two_steps_in_a_row():
    def rule(parameters):
        return Both(optim.Adam(parameters[:2], lr=0.01), optim.SGD(parameters[2:], lr=0.1))

    class Both(optim.Optimizer):
        def __init__(self, *parts):
            super().__init__([p for part in parts for p in part.parameters], 0.0)
            self.parts = parts

        def step(self):
            for part in (*self.parts, self.parts[1]):
                part.step()

        def update(self, parameter, grad):
            raise AssertionError

    assert Run(rule).bits() == eagerly(rule)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("warm", [0, 3])
def test_a_step_whose_rule_fails_is_not_made(warm, rule, looks, eager):
    class Failing(rule):
        fails = False

        def update(self, parameter, grad):
            if self.fails and parameter is self.parameters[-1]:
                raise ValueError("a rule")
            super().update(parameter, grad)
            if looks:
                parameter.numpy()

    def trained(failures):
        parameters = [dp.Parameter(np.arange(3, dtype=np.float32) + k) for k in range(3)]
        settings = {"momentum": 0.9} if rule is optim.SGD else {}
        optimizer = Failing(parameters, lr=0.1, **settings)
        for n in range(warm + 3):
            sum(((p * p).sum() for p in parameters), dp.tensor(0.0)).backward()
            if n == warm and failures:
                before = [p.numpy().tobytes() for p in parameters]
                optimizer.fails = True
                with pytest.raises(ValueError, match="a rule"):
                    optimizer.step()
                optimizer.fails = False
                assert [p.numpy().tobytes() for p in parameters] == before
                grads = [(p.grad * 1.0).tolist() for p in parameters]
                assert grads == [(p * 2.0).tolist() for p in parameters]
            optimizer.step()
            optimizer.zero_grad()
        state = {k: v.tobytes() for k, v in optimizer.state_dict().items()}
        return [p.numpy().tobytes() for p in parameters], state

    set_eager(eager)
    try:
        assert trained(True) == trained(False)
    finally:
        set_eager(False)


def test_half_precision_beside_single():
    def run():
        a = dp.Parameter(np.linspace(-1, 1, 6, dtype=np.float32))
        b = dp.Parameter(np.linspace(-1, 1, 6, dtype=np.float64))
        optimizer = optim.Adam([a, b], lr=0.01)
        for _ in range(4):
            ((a * a).sum() + (b * b * b).sum().astype("f32")).backward()
            optimizer.step()
            optimizer.zero_grad()
        return a.numpy().tobytes() + b.numpy().tobytes()

    fast = run()
    set_eager(True)
    try:
        assert fast == run()
    finally:
        set_eager(False)


def test_a_gradient_that_another_thread_forgot_is_an_error():
    weight, bias = (dp.Parameter(np.ones(3, np.float32)) for _ in range(2))
    optimizer = optim.SGD([weight, bias], lr=0.5)
    weight.grad = dp.tensor(np.ones(3, np.float32))
    bias.grad = dp.tensor(np.ones(3, np.float32))
    optimizer.step()
    found = dp.PANEL.with_gradients(optimizer.parameters)
    bias.grad = None  # as another thread does between these two lines
    with pytest.raises(GraphError, match="one thread at a time"):
        dp.PANEL.advance(optimizer, found)
    bias.grad = dp.tensor(np.ones(3, np.float32))
    optimizer.step()
    assert weight.numpy().tolist() == bias.numpy().tolist() == [0.0] * 3
