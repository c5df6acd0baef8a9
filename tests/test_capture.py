"""Compiled functions: guards, what may not freeze, and whole training steps of every kind."""

import copy
import gc
import os
import pickle
import random
import weakref

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim
from diptych.errors import FrozenValueError, GraphError, ObservedWhileRecording

rng = np.random.default_rng(0)
X = rng.standard_normal((7, 6)).astype(np.float32)
Y = rng.integers(0, 3, 7)
FACTOR = 2.0
KEPT = []
HERE = r"\(test_capture\.py:\d+\)"


def times_factor(x):
    return x * FACTOR


def captures(compiled):
    return sum(len(c) for c in compiled.captures.values())


def test_a_changed_global_makes_a_new_capture(monkeypatch):
    call = dp.compile(times_factor)
    assert call(np.float32(3)).item() == 6.0
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    assert call(np.float32(3)).item() == 15.0
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert call(np.float32(3)).item() == 6.0
    assert captures(call) == 2


def test_a_global_of_a_function_that_is_called():
    def outer(x):
        return times_factor(x) + 1.0

    call = dp.compile(outer)
    assert call(np.float32(3)).item() == 7.0
    global FACTOR
    FACTOR = 4.0
    try:
        assert call(np.float32(3)).item() == 13.0
    finally:
        FACTOR = 2.0


def test_a_changed_closure_and_a_changed_attribute():
    class Settings:
        alpha = 1.0

        def __init__(self):
            self.beta = 3.0

    settings, scale = Settings(), 2.0

    @dp.compile
    def call(x):
        return x * scale * settings.beta

    assert call(np.float32(1)).item() == 6.0
    scale = 5.0
    assert call(np.float32(1)).item() == 15.0
    settings.beta = 1.0
    assert call(np.float32(1)).item() == 5.0


def test_the_modes_are_guarded():
    dp.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))
    call = dp.compile(lambda x: model(x))
    call(X)
    model.eval()
    with dp.no_grad():
        assert call(X).numpy().tobytes() == model(dp.tensor(X)).numpy().tobytes()
    model.train()
    assert call(X).numpy().tobytes() != call(X).numpy().tobytes()
    assert captures(call) == 2


def test_a_replaced_parameter_and_a_changed_model():
    dp.manual_seed(0)
    model = nn.Linear(6, 2)
    call = dp.compile(lambda x: model(x))
    first = call(X).numpy()
    model.weight = dp.Parameter(model.weight.numpy() * 2)
    assert call(X).numpy().tobytes() == model(dp.tensor(X)).numpy().tobytes() != first.tobytes()


def test_types_of_arguments_nested_arguments_and_keywords():
    @dp.compile
    def call(batch, *, scale):
        return {"sum": batch["a"] + batch["b"][0], "scaled": [batch["a"] * scale]}

    for dtype in (np.float32, np.float64):
        a, b = np.arange(3, dtype=dtype), np.ones(3, dtype)
        out = call({"a": a, "b": (b,)}, scale=2)
        assert out["sum"].tolist() == [1, 2, 3] and out["scaled"][0].tolist() == [0, 2, 4]
    assert captures(call) == 2


@pytest.mark.parametrize("draw", [
    lambda: random.random(), lambda: np.random.rand(), lambda: random.gauss(0, 1),
    lambda: np.random.normal(size=3), lambda: random.shuffle([1, 2, 3]),
])  # fmt: skip
def test_python_and_numpy_random_numbers_are_errors(draw):
    @dp.compile
    def call(x):
        draw()
        return x

    with pytest.raises(FrozenValueError, match=rf"drawn once[\s\S]*{HERE}[\s\S]*dp.uniform"):
        call(X)


def test_a_numpy_generator_is_watched_too():
    generator = np.random.default_rng(0)

    @dp.compile
    def call(x):
        noise = generator.standard_normal(6).astype(np.float32)
        return x + noise

    with pytest.raises(FrozenValueError, match="random numbers") as caught:
        call(X)
    line = int(str(caught.value).split("test_capture.py:")[1].split(")")[0])
    assert line == call.function.__code__.co_firstlineno + 2


def test_list_append_is_an_error_that_names_the_line():
    @dp.compile
    def call(x):
        y = x * 2.0
        KEPT.append(y)
        return y

    with pytest.raises(FrozenValueError, match=rf"changed once[\s\S]*KEPT[\s\S]*{HERE}") as caught:
        call(X)
    line = int(str(caught.value).split("test_capture.py:")[1].split(")")[0])
    assert line == call.function.__code__.co_firstlineno + 3
    KEPT.clear()


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState])
def test_a_generator_made_inside_without_a_seed_is_an_error(make):
    with pytest.raises(FrozenValueError, match=rf"draws a seed for itself[\s\S]*{HERE}"):
        dp.compile(lambda x: x + make().normal())(X)
    make()  # outside it is as ever
    seeded = dp.compile(lambda x: x + np.random.default_rng(3).normal())
    assert seeded(X).tolist() == (X + np.random.default_rng(3).normal()).tolist()


def test_one_line_functions_are_named_by_their_line():
    for call in (lambda x: x * random.random(), lambda x: [KEPT.append(1), x * 2.0][1]):
        with pytest.raises(FrozenValueError, match=HERE):
            dp.compile(call)(X)
    KEPT.clear()


def test_a_seed_and_a_learning_rate_set_inside_are_errors():
    optimizer = optim.SGD(nn.Linear(6, 3).parameters(), lr=0.1)

    def seeded(x):
        dp.manual_seed(3)
        return x + dp.uniform((6,))

    def slower(x):
        optimizer.lr *= 0.5
        return x * 1.0

    with pytest.raises(FrozenValueError, match="a seed is set outside"):
        dp.compile(seeded)(X)
    with pytest.raises(FrozenValueError, match=r"SGD\.lr changed"):
        dp.compile(slower)(X)
    assert optimizer.lr == 0.1


WEIGHTS = np.ones(6, np.float32)


def test_arrays_that_change_in_place():
    call = dp.compile(lambda x: x * WEIGHTS)
    first = call(X).numpy()
    WEIGHTS[2] = 5.0
    try:
        assert call(X).tolist() == (X * WEIGHTS).tolist() != first.tolist()
    finally:
        WEIGHTS[2] = 1.0
    assert call(X).tolist() == X.tolist() and captures(call) == 2

    def writes(x):
        WEIGHTS[0] = 7.0
        return x * WEIGHTS

    with pytest.raises(FrozenValueError, match="global WEIGHTS changed"):
        dp.compile(writes)(X)
    WEIGHTS[0] = 1.0


def test_class_attributes_are_guarded():
    class Net(nn.Module):
        scale = 2.0

        def forward(self, *inputs):
            return inputs[0] * self.scale

    class Counter:
        count = 0

    net, counter = Net(), Counter()
    call = dp.compile(lambda x: net(x))
    assert call(np.float32(3)).item() == 6.0
    Net.scale = 4.0
    assert call(np.float32(3)).item() == 12.0
    net.scale = 5.0
    assert call(np.float32(3)).item() == 15.0

    @dp.compile
    def counts(x):
        counter.count += 1
        return x * counter.count

    with pytest.raises(FrozenValueError, match=r"Counter\.count changed"):
        counts(X)


def test_a_tensor_hidden_where_nobody_watches_is_found():
    class Box:
        pass

    box = Box()

    @dp.compile
    def call(x):
        setattr(box, "kept", x + 1.0)  # noqa: B010
        return x

    with pytest.raises(FrozenValueError, match=rf"lives on only where it is returned[\s\S]*{HERE}"):
        call(X)


def test_a_counter_is_an_error():
    count = 0

    @dp.compile
    def call(x):
        nonlocal count
        count += 1
        return x * count

    with pytest.raises(FrozenValueError, match="variable count changed"):
        call(X)


def test_reading_a_value_is_an_error():
    for look in (float, bool, lambda t: t.numpy(), lambda t: t.item(), lambda t: t.tolist()):

        @dp.compile
        def call(x, look=look):
            look(x.sum())
            return x

        with pytest.raises(ObservedWhileRecording, match=HERE):
            call(X)


def test_results_that_are_not_tensors_and_models_made_inside():
    with pytest.raises(FrozenValueError, match="returns tensors"):
        dp.compile(lambda x: 3.0)(X)
    with pytest.raises(FrozenValueError, match="made once"):
        dp.compile(lambda x: nn.Linear(6, 2)(x))(X)


def test_a_failed_capture_restores_all_state():
    dp.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    before = {k: v.tobytes() for k, v in model.state_dict().items()}

    @dp.compile
    def step(x, y):
        optimizer.minimize(F.cross_entropy(model(x), y))
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        step(X, Y)
    assert optimizer.moments == {} and optimizer.powers == []
    assert {k: v.tobytes() for k, v in model.state_dict().items()} == before
    assert model.weight.grad is None


def test_backward_through_a_result_is_an_error():
    model = nn.Linear(6, 3)
    out = dp.compile(lambda x: model(x))(X)
    with pytest.raises(GraphError, match="call backward inside it"):
        out.sum().backward()


def test_gradients_that_are_there_are_added_to():
    def run(mode):
        dp.manual_seed(0)
        model = nn.Linear(6, 3)

        def accumulate(x, y):
            F.cross_entropy(model(x), y).backward()

        def both(x, y):
            accumulate(x, y)
            return model.weight.grad.sum()

        call = (
            dp.compile(both) if mode == "static" else lambda x, y: both(dp.tensor(x), dp.tensor(y))
        )
        for _ in range(3):
            total = call(X, Y)
        return total.item(), model.weight.grad.numpy().tobytes(), model.bias.grad.numpy().tobytes()

    assert run("static") == run("dynamic")


def test_check_finds_what_guards_cannot_see(monkeypatch):
    monkeypatch.setenv("SCALE_OF_A_TEST", "1.0")

    @dp.compile(check=3)
    def call(x):
        return x * float(os.environ["SCALE_OF_A_TEST"])

    for _ in range(2):
        call(X)
    monkeypatch.setenv("SCALE_OF_A_TEST", "2.0")
    with pytest.raises(FrozenValueError, match=rf"same graph every time[\s\S]*{HERE}"):
        call(X)


def test_check_does_not_disturb_training():
    def train(check):
        dp.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2), nn.Linear(5, 3))
        optimizer = optim.Adam(model.parameters(), lr=0.1)

        @dp.compile(check=check)
        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            optimizer.minimize(loss)
            return loss

        return [step(X, Y).item() for _ in range(6)]

    assert train(0) == train(2)


def gan(mode):
    """Two models and two optimizers that step in turn; the first's gradients reach the second."""
    dp.manual_seed(4)
    maker = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
    judge = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 1))
    for_maker = optim.Adam(maker.parameters(), lr=0.01)
    for_judge = optim.SGD(judge.parameters(), lr=0.05, momentum=0.5)
    schedule = optim.StepLR(for_judge, 2, 0.5)

    def probability(x):
        return dp.sigmoid(judge(x))

    def step(real, noise):
        for_judge.zero_grad()
        fake = maker(noise)
        real_loss = F.binary_cross_entropy(
            probability(real), dp.tensor(np.ones((7, 1), np.float32))
        )
        fake_out = probability(fake.detach())
        fake_loss = F.binary_cross_entropy(fake_out, fake_out.detach() * 0.0)
        judge_loss = real_loss + fake_loss
        judge_loss.backward()
        optim.clip_grad_norm_(judge.parameters(), 0.7)
        for_judge.step()
        for_maker.zero_grad()
        out = probability(fake)
        maker_loss = F.binary_cross_entropy(out, out.detach() * 0.0 + 1.0)
        maker_loss.backward()
        for_maker.step()
        return judge_loss, maker_loss

    run = dp.compile(step) if mode == "static" else step
    draw = np.random.default_rng(3)
    losses = []
    for _ in range(5):
        noise = draw.standard_normal((7, 4)).astype(np.float32)
        losses += [loss.item() for loss in run(dp.tensor(X), dp.tensor(noise))]
        schedule.step()
    states = [*maker.state_dict().values(), *judge.state_dict().values()]
    return losses, [s.tobytes() for s in states], run


def test_a_gan_has_the_same_bits_in_both_panels():
    static, dynamic = gan("static"), gan("dynamic")
    assert static[:2] == dynamic[:2]
    assert captures(static[2]) == 2  # without and with the gradients that the maker leaves


def test_one_native_call_a_step():
    dp.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    @dp.compile
    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    x, y = dp.tensor(X), dp.tensor(Y)
    step(x, y)
    calls, compiles = engine.STATISTICS.calls, engine.STATISTICS.compiles
    for _ in range(5):
        step(x, y).item()
    assert engine.STATISTICS.calls == calls + 5
    assert engine.STATISTICS.compiles <= compiles + 1  # the layout of results of the first


def test_what_was_recorded_before_a_step_keeps_the_weights_it_read():
    dp.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.5)

    @dp.compile
    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    for _ in range(3):
        before = model.weight.numpy().copy()
        waiting, scores = model.weight * 1.0, model(dp.tensor(X)).sum()
        scores.item()
        step(X, Y)
        assert waiting.numpy().tobytes() == before.tobytes()
        expected = (np.ones((1, 7)) @ X.astype(np.float64)).astype(np.float32)
        scores.backward()
        assert np.abs(model.weight.grad.numpy() - expected).max() < 1e-5
        model.weight.grad = model.bias.grad = None


def test_arguments_of_another_layout_kind_or_type_are_told_from_the_last():
    call = dp.compile(lambda a, b: a * 2.0 + b)
    x, y = X[:4, :4].copy(), X[1:5, :4].copy()
    for a, b in [
        (x, y), (x.T, y), (x, y[::-1]), (x[:2], y[:2]), (dp.tensor(x), y), (x, dp.tensor(y)),
        (x, y), (x.astype(np.float64), y.astype(np.float64)), (np.float32(2), np.float32(3)),
        (x, y),
    ]:  # fmt: skip
        expected = np.asarray(a) * 2 + np.asarray(b)
        assert call(a, b).numpy().tobytes() == np.ascontiguousarray(expected).tobytes()
    w = dp.tensor(x, requires_grad=True)
    double = dp.compile(lambda a: (a * 2.0).detach() * 1.0 if a.requires_grad else a * 3.0)
    assert double(dp.tensor(x)).numpy().tobytes() == (x * 3).tobytes()
    assert double(w).numpy().tobytes() == (x * 2).tobytes()


STEP_NAMED = """
import diptych as dp
from diptych import nn, optim

model = nn.Linear(6, 3)
optimizer = optim.SGD(model.parameters(), lr=0.5)

@dp.compile
def NAME(x):
    loss = model(x).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss

for step in range(4):
    NAME(x)
captures = [len(c) for c in NAME.captures.values()]
"""


def test_a_global_with_the_name_of_a_method_is_not_the_method():
    dp.manual_seed(0)
    counted = {"x": X}
    exec(compile(STEP_NAMED.replace("NAME", "train_step"), "<counted>", "exec"), counted)
    assert counted["captures"] == [1]
    named = {"x": X}
    source = STEP_NAMED.replace("NAME", "step").replace("for step in", "for _ in")
    exec(compile(source, "<named>", "exec"), named)
    assert named["captures"] == [1]


def test_a_compiled_function_inside_a_compiled_one_is_no_reason_to_capture_anew():
    inner = dp.compile(lambda x: x * 2.0)
    outer = dp.compile(lambda x: inner(x) + 1.0)
    for _ in range(3):
        inner(X)
        assert outer(X).numpy().tobytes() == (X * 2 + 1).tobytes()
    assert [len(c) for c in outer.captures.values()] == [1]


def test_a_tensor_of_a_tensor_is_its_value_in_both_panels():
    weights = dp.tensor(X, requires_grad=True)

    def call(x):
        return dp.tensor(dp.tensor(x) * 2.0, "f64") + dp.tensor(weights)

    both = call(dp.tensor(X)), dp.compile(call)(X)
    assert both[0].dtype == both[1].dtype and not both[0].requires_grad
    assert both[0].numpy().tobytes() == both[1].numpy().tobytes()


def test_a_method_of_one_object_counts():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    fast = dp.compile(lambda x: model(x))
    x = np.ones((2, 3), np.float32)
    for _ in range(5):
        before = fast(x).numpy()
    plain = model.forward
    model.forward = lambda x: plain(x) + 1.0
    assert np.array_equal(fast(x).numpy(), before + 1.0)
    del model.forward
    assert np.array_equal(fast(x).numpy(), before)


class Base:
    """A trainer, whose step is compiled where its class is written."""

    scale = 1.0

    def __init__(self, seed, rate=0.1):
        dp.manual_seed(seed)
        self.model = nn.Linear(6, 3)
        self.optimizer = optim.SGD(self.model.parameters(), rate, momentum=0.9)
        self.factor = 1.0

    def loss(self, x, y):
        return F.cross_entropy(self.model(x), y) * self.factor * self.scale

    @dp.compile
    def step(self, x, y):
        """Train."""
        self.optimizer.minimize(self.loss(x, y))
        return self.loss(x, y)

    def bits(self):
        return [p.numpy().tobytes() for p in self.model.parameters()]


class Heir(Base):
    @dp.compile
    def step(self, x, y):
        before = super().step(x, y)
        return super().step(x, y) - before


class Module(nn.Module):
    def __init__(self):
        self.weight = dp.Parameter(np.ones(6, np.float32))
        self.factor = 2.0

    @dp.compile
    def forward(self, x):
        return x * self.weight * self.factor

    @dp.compile
    def twice(self, x):
        return self.forward(x) * 2.0


def steps_of(kinds):
    made = [kind(seed) for seed, kind in enumerate(kinds)]
    losses = []
    for n in range(6):
        for one in made:
            losses.append(one.step(X, Y).numpy().tobytes())
            one.factor = [1.0, 1.0, 3.0][n % 3]
    return made, (losses, [one.bits() for one in made])


def test_a_compiled_method_is_captured_once_for_each_object(monkeypatch):
    kinds = [Base, Base, Heir, Heir]
    made, found = steps_of(kinds)
    assert [captures(one.step) for one in made] == [2] * 4  # by their factors
    assert made[0].step is made[0].step is not made[1].step
    assert Base.step.__doc__ == made[0].step.__doc__ == "Train." and captures(Base.step) == 0
    plain = Base.step.function

    def twice(self, x, y):
        before = plain(self, x, y)
        return plain(self, x, y) - before

    monkeypatch.setattr(Base, "step", plain)
    monkeypatch.setattr(Heir, "step", twice)
    assert found == steps_of(kinds)[1]


def test_what_a_compiled_method_depends_on(monkeypatch):
    one, other = Base(0), Base(0)

    def first(trainer):
        trainer.model.load_state_dict(start)
        trainer.optimizer = optim.SGD(trainer.model.parameters(), 0.1)
        return trainer.step(X, Y).item()

    start = one.model.state_dict()
    usual = first(one)
    one.factor = 2.0
    assert first(one) != usual == first(other)  # of one object
    monkeypatch.setattr(Base, "scale", 3.0)  # of all
    assert first(other) != usual
    monkeypatch.setattr(Base, "loss", lambda self, x, y: self.model(x).sum())
    assert first(one) == first(other) != usual


def test_compiled_methods_end_with_their_object_and_are_not_copied():
    one = Base(0)
    for _ in range(6):
        one.step(X, Y)
    copies = [copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))]
    for made in copies:
        made.factor = 2.0
        assert captures(made.step) == 0 and made.step is made.step
    after = [[made.step(X, Y).item(), made.bits()] for made in copies[1:]]
    assert after[0] == after[1] and one.step is not copies[0].step and captures(one.step) == 1
    seen = weakref.ref(one), weakref.ref(one.step), weakref.ref(one.model)
    del one, copies, made
    gc.collect()
    assert [s() for s in seen] == [None] * 3


def test_compiled_methods_of_a_module_and_of_other_kinds():
    model = Module()
    x = X[:, :6]
    for _ in range(5):
        assert model(x).numpy().tobytes() == (x * 2).tobytes()
        assert model.twice(x).numpy().tobytes() == (x * 4).tobytes()
    model.weight.assign(model.weight * 2.0)
    assert model.twice(x).numpy().tobytes() == (x * 8).tobytes()
    assert captures(model.forward) == captures(model.twice) == 1
    assert list(model.state_dict()) == ["weight"] and "compiled" not in repr(model)
    model.factor = 1.0
    assert model.twice(x).numpy().tobytes() == (x * 4).tobytes()

    class Kinds:
        factor = 2.0

        @staticmethod
        @dp.compile
        def static(x):
            return x * 2.0

        @dp.compile
        @staticmethod
        def also(x):
            return x * 3.0

        @classmethod
        @dp.compile
        def of_class(cls, x):
            return x * cls.factor

    class Other(Kinds):
        factor = 5.0

    for it in (Kinds, Kinds()):
        assert it.static(X).tolist() == (X * 2).tolist() == it.of_class(X).tolist()
        assert it.also(X).tolist() == (X * np.float32(3)).tolist()
    assert Other.of_class(X).tolist() == (X * 5).tolist()

    class Slots:
        __slots__ = ("factor",)

        @dp.compile
        def scaled(self, x):
            return x * self.factor

    slots = Slots()
    slots.factor = 2.0
    with pytest.raises(FrozenValueError, match=r"no __dict__[\s\S]*instance.method"):
        slots.scaled(X)


def test_a_method_of_an_object_is_compiled_and_scanned():
    loader = dp.data.DataLoader(dp.data.arrays(X, Y), 2, drop_last=True)
    one, other, third = Base(0), Base(0), Base(0)
    fast = dp.compile(type(other).step.function.__get__(other))
    losses = [(one.step(x, y).item(), fast(x, y).item()) for x, y in loader]
    assert all(a == b for a, b in losses) and one.bits() == other.bits()
    loader.epoch = 0
    (scanned,) = dp.scan(third.step, loader)
    assert scanned.tolist() == [a for a, _ in losses] and third.bits() == one.bits()


def test_an_object_is_not_taken_for_one_that_ended():
    """What it was named by, its place in memory, goes to the next one."""

    class Scale:
        def __init__(self, factor):
            self.factor = factor

    def times(factor):
        return lambda x: x * factor

    scaled = dp.compile(lambda x, scale: x * scale.factor)
    called = dp.compile(lambda x, function: function(x))
    for compiled, make in ((scaled, Scale), (called, times)):
        found = [compiled(X, make(float(n))).numpy().tobytes() for n in range(1, 20)]
        assert found == [(X * np.float32(n)).tobytes() for n in range(1, 20)]


class Holder:
    """A value as an attribute."""

    w = dp.tensor([1.0, 4.0], requires_grad=True)


W = dp.tensor([1.0, 4.0], requires_grad=True)
OUTSIDE = {
    "a tensor of a module": (lambda p: W * p, ()),
    "an attribute": (lambda p: Holder.w * p, ()),
    "an argument": (lambda p, w: w * p, (W,)),
    "a parameter as an argument": (lambda p, w: w * p, (dp.Parameter(W.numpy()),)),
    "parameters in a list": (lambda p, ws: ws[0] * p, ([dp.Parameter(W.numpy())],)),
    "a result of another function": (lambda p, w: w * p, (dp.compile(lambda: W * 2.0)(),)),
}


@pytest.mark.parametrize(("made", "given"), OUTSIDE.values(), ids=list(OUTSIDE))
def test_a_gradient_that_a_program_cannot_give_is_an_error(made, given):
    """The plain function adds it to the grad of the value; the program would leave it out."""
    p = dp.Parameter(np.array([2.0, 3.0], np.float32))

    def step(*given):
        loss = made(p, *given).sum()
        loss.backward()
        return loss

    with pytest.raises(GraphError, match="is an argument or a value from outside") as caught:
        dp.compile(step)(*given)
    assert "test_capture.py" in str(caught.value) and p.grad is None
    detached = dp.compile(lambda *given: made(p, *given).detach().sum())
    assert detached(*given).item() in (14.0, 28.0)


def test_partials_of_what_a_program_is_given():
    p = dp.Parameter(np.array([2.0, 3.0], np.float32))
    of = dp.compile(lambda w: dp.partials((w * p).sum(), [w])[0])
    assert of(W).tolist() == [2.0, 3.0]

    def frozen(w):
        (w.detach() * p).sum().backward()

    dp.compile(frozen)(W)
    assert p.grad.tolist() == [1.0, 4.0]
