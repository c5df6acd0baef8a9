"""The same training step in both panels: the same bits, one native call a step."""

import hashlib

import numpy as np
import pytest
from networks import network, step_of

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, optim

STEPS = 30
rng = np.random.default_rng(0)
IMAGES = rng.standard_normal((STEPS, 16, 20)).astype(np.float32)
LABELS = rng.integers(0, 10, (STEPS, 16))


def trainee():
    model = network(20, 33, 10)
    return model, optim.SGD(model.parameters(), lr=0.1)


def fingerprint(model):
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.tobytes())
    return digest.hexdigest()


def train_dynamic(**how):
    model, optimizer = trainee()
    step = step_of(model, optimizer, **how)
    for images, labels in zip(IMAGES, LABELS, strict=True):
        loss = step(dp.tensor(images), dp.tensor(labels))
    return fingerprint(model), float(loss)


def train_compiled(zero_first=False):
    model, optimizer = trainee()
    step = dp.compile(step_of(model, optimizer, zero_first))
    for images, labels in zip(IMAGES, LABELS, strict=True):
        loss = step(images, labels)
    return fingerprint(model), float(loss)


def train_static():
    with dp.Program() as program:
        images, labels = dp.placeholder("x", [None, 20]), dp.placeholder("y", [None], "i64")
        model, optimizer = trainee()
        loss = F.cross_entropy(model(images), labels)
        optimizer.minimize(loss)
    executor = dp.Executor()
    executor.run(program.startup)
    for x, y in zip(IMAGES, LABELS, strict=True):
        (value,) = executor.run(program, {"x": x, "y": y}, [loss])
    return fingerprint(model), float(value)


EXPECTED = train_dynamic()


@pytest.mark.parametrize("how", [{"zero_first": True}, {"look": True}], ids=str)
def test_idioms_of_the_dynamic_panel_agree(how):
    assert train_dynamic(**how) == EXPECTED


@pytest.mark.parametrize("zero_first", [False, True])
def test_compiled_step_has_the_bits_of_the_dynamic_panel(zero_first):
    assert train_compiled(zero_first) == EXPECTED


def test_static_program_has_the_bits_of_the_dynamic_panel():
    assert train_static() == EXPECTED


def test_reference_device_has_the_same_bits():
    dp.use_device("reference")
    try:
        assert train_dynamic() == EXPECTED
    finally:
        dp.use_device("cpu")


def test_eager_has_the_same_bits_and_more_calls():
    before = engine.STATISTICS.calls
    dp.set_eager(True)
    try:
        assert train_dynamic() == EXPECTED
    finally:
        dp.set_eager(False)
    assert engine.STATISTICS.calls - before > 10 * STEPS


@pytest.mark.parametrize("zero_first", [False, True])
def test_one_native_call_a_step(zero_first):
    before = engine.STATISTICS.calls
    train_dynamic(zero_first=zero_first)
    assert engine.STATISTICS.calls - before == STEPS


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_parameters_that_take_each_others_place(device):
    dp.use_device(device)
    try:
        a, b = dp.Parameter(np.zeros(3, np.float32)), dp.Parameter(np.ones(3, np.float32))

        @dp.compile
        def swap():
            old = a.detach()
            a.assign(b.detach())
            b.assign(old)
            return old

        returned = [swap() for _ in range(4)]
        assert [r.numpy().tolist() for r in returned] == [[n % 2] * 3 for n in range(4)]
        assert (a.numpy().tolist(), b.numpy().tolist()) == ([0] * 3, [1] * 3)
    finally:
        dp.use_device("cpu")


def test_article_sum():
    a, b = dp.tensor(3.0, requires_grad=True), dp.tensor(4.0, requires_grad=True)
    y = 2 * a + 3 * b
    y.backward()
    assert (y.item(), a.grad.item(), b.grad.item()) == (18.0, 2.0, 3.0)


def test_label_out_of_range_names_the_line_and_keeps_the_weights():
    model, optimizer = trainee()
    step = step_of(model, optimizer)
    before = fingerprint(model)
    with pytest.raises(dp.DiptychError, match=r"label 10 .*networks.py"):  # at the call
        step(dp.tensor(IMAGES[0]), dp.tensor(np.full(16, 10)))
    with pytest.raises(dp.DiptychError, match=r"label 10 .*networks.py"):  # labels computed
        float(step(dp.tensor(IMAGES[0]), dp.tensor(np.full(16, 9)) + 1))
    assert fingerprint(model) == before


def test_reading_during_capture_names_the_line():
    @dp.compile
    def step(x):
        return x * 2 if x.sum() > 0 else x

    with pytest.raises(dp.DiptychError, match=r"where\(\.\.\.\)"):
        step(np.ones(3, np.float32))


class Scalar:
    """What has the shape and the dtype of an array, and is none."""

    shape, dtype = (), np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
        return np.array(3, np.float32)


@pytest.mark.parametrize("value", [np.float32(3), Scalar()])
def test_what_only_looks_like_an_array_is_fed_after_one(value):
    with dp.Program() as program:
        doubled = dp.data("x", []) * 2
    executor = dp.Executor()
    for fed in (np.array(3, np.float32), value, value):
        assert executor.run(program, {"x": fed}, [doubled])[0] == 6


def test_a_run_that_is_watched_after_one_that_was_not():
    with dp.Program() as program:
        out = dp.data("x", [2]) * 2.0
    executor, seen = dp.Executor(), []
    for watch in (None, None, lambda name, where, value: seen.append(name)):
        executor.run(program, {"x": np.ones(2, np.float32)}, [out], watch)
    assert seen == [out.node.label]


OPTIMIZERS = {
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, 0.01),
}


def trained_by_parts(make, panels, look):
    """Parts of training on the same parameters, each in one of the panels: d, or c for a compiled
    function. Between them gradients may be looked at."""
    model = network(20, 9, 10)
    optimizer = make(model.parameters())
    place = iter(range(STEPS))
    step = step_of(model, optimizer)

    def accumulate(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    def update(images, labels):
        optimizer.step()
        optimizer.zero_grad()

    parts = [accumulate, accumulate, update, step, accumulate, step, accumulate]
    compiled = {part: dp.compile(part) for part in set(parts)}
    losses = []
    for part, panel in zip(parts, panels, strict=True):
        n = next(place)
        losses.append((compiled[part] if panel == "c" else part)(IMAGES[n], LABELS[n]))
        if look:
            assert all(p.grad is None or p.grad.numpy().any() for p in model.parameters())
    gradients = [p.grad.numpy().tobytes() for p in model.parameters()]
    return fingerprint(model), gradients, [float(loss) for loss in losses if loss is not None]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("look", [False, True])
def test_parts_of_a_step_are_of_either_panel(name, look):
    dp.set_eager(True)
    try:
        expected = trained_by_parts(OPTIMIZERS[name], "d" * 7, False)
    finally:
        dp.set_eager(False)
    every_pair = ("dcdcdcd", "cdcdcdc", "ddccddc", "ccddccd", "dccddcc", "cddccdd", "ccccccc")
    for panels in every_pair:
        assert trained_by_parts(OPTIMIZERS[name], panels, look) == expected, panels


@pytest.mark.parametrize("look", [False, True])
def test_a_program_leaves_gradients_of_the_dynamic_panel_as_they_were(look):
    with dp.Program() as program:
        images, labels = dp.placeholder("x", [None, 20]), dp.placeholder("y", [None], "i64")
        model, optimizer = trainee()
        optimizer.minimize(F.cross_entropy(model(images), labels))
    executor = dp.Executor()
    executor.run(program.startup)
    before = [p.numpy().copy() for p in model.parameters()]
    F.cross_entropy(model(IMAGES[0]), LABELS[0]).backward()
    if look:
        assert all(p.grad.numpy().any() for p in model.parameters())
    executor.run(program, {"x": IMAGES[1], "y": LABELS[1]}, [])
    with pytest.raises(dp.DiptychError, match="a gradient from outside a program"), dp.Program():
        F.cross_entropy(model(dp.placeholder("x", [16, 20])), LABELS[0]).backward()
    after, found = fingerprint(model), [p.grad.numpy().tobytes() for p in model.parameters()]
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert parameter.numpy().tobytes() != value.tobytes()
        parameter.assign(value)
        parameter.grad = None
    F.cross_entropy(model(IMAGES[0]), LABELS[0]).backward()
    assert found == [p.grad.numpy().tobytes() for p in model.parameters()]
    optimizer.zero_grad()
    step_of(model, optimizer)(IMAGES[1], LABELS[1])
    assert fingerprint(model) == after


@pytest.mark.parametrize("look", [False, True])
def test_a_scan_takes_no_gradients_from_before(look):
    def trained(scanned, forgets):
        model, optimizer = trainee()
        loader = dp.data.DataLoader(dp.data.arrays(IMAGES[0], LABELS[0]), 4)
        step = step_of(model, optimizer, forgets)
        both = dp.compile(lambda x, y: (step(x, y), optimizer.zero_grad())[0])
        F.cross_entropy(model(IMAGES[1]), LABELS[1]).backward()
        if look:
            assert all(p.grad.numpy().any() for p in model.parameters())
        if not scanned:
            for x, y in loader:
                both(x, y)
        elif forgets:  # at the beginning of every step: then they are not read
            dp.scan(both, loader)
        else:
            start = fingerprint(model)
            with pytest.raises(dp.DiptychError, match=r"begins without gradients[\s\S]*zero_grad"):
                dp.scan(both, loader)
            assert fingerprint(model) == start and model[0].weight.grad is not None
            optimizer.zero_grad()
            dp.scan(both, loader)
        assert all(p.grad is None for p in model.parameters())
        return fingerprint(model)

    assert trained(True, True) == trained(False, True)
    assert trained(True, False) != trained(False, False)


def test_random_numbers_that_nobody_uses_take_their_stream_too():
    def draws(x, y):
        dp.uniform((2,))
        return x + dp.uniform((2,)), dp.normal((2,))

    loader = dp.data.DataLoader(dp.data.arrays(np.zeros((4, 2), "f4"), np.zeros(4, "i8")), 2)
    with dp.Program() as program:
        x = dp.placeholder("x", [2, 2])
        both = draws(x, None)
        F.dropout(x, 0.5)

    def found(run):
        dp.manual_seed(0)
        results = [run() for _ in range(2)]
        return [r.tolist() for r in results], dp.default_generator().stream

    (batch, _), *_ = loader
    expected = found(lambda: draws(batch, None)[0])
    assert expected[1] == 6
    two, one = dp.compile(draws), dp.compile(lambda x, y: draws(x, y)[0])
    assert found(lambda: two(batch, None)[0]) == found(lambda: one(batch, None)) == expected
    dp.manual_seed(0)
    assert dp.scan(dp.compile(draws), loader)[0].tolist() == expected[0]
    test, executor = program.clone(for_test=True), dp.Executor()
    for fetch in ([both[0]], [both[0], both[1]]):  # what else is looked at changes nothing
        assert found(lambda f=fetch: executor.run(test, {"x": batch}, f)[0]) == expected
    assert found(lambda: executor.run(program, {"x": batch}, [both[0]])[0])[1] == 8  # dropout too
