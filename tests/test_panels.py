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
