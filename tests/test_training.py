"""Whole training runs: every optimizer, in both panels and on the reference, the same bits."""

import hashlib

import numpy as np
import pytest
from networks import step_of

import diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim
from diptych.errors import GraphError

rng = np.random.default_rng(0)
IMAGES = rng.standard_normal((8, 12, 20)).astype(np.float32)
LABELS = rng.integers(0, 10, (8, 12))

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.01, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, 0.01),
}


def train(make, mode, clip=False, dropout=0.0, schedule=False):
    dp.use_device("reference" if mode == "reference" else "cpu")
    dp.set_eager(mode == "eager")
    try:
        return _train(make, mode, clip, dropout, schedule)
    finally:
        dp.set_eager(False)
        dp.use_device("cpu")


def _train(make, mode, clip, dropout, schedule):
    dp.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Dropout(dropout), nn.Linear(24, 10))
    optimizer = make(model.parameters())
    scheduler = optim.CosineLR(optimizer, 8) if schedule else None

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if clip:
            optim.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = dp.compile(step) if mode == "static" else step
    for n, (x, y) in enumerate(zip(IMAGES, LABELS, strict=True)):
        rows = 12 if n < 7 else 5  # a ragged last batch
        loss = run(dp.tensor(x[:rows]), dp.tensor(y[:rows]))
        if scheduler:
            scheduler.step()
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.tobytes())
    return float(loss), digest.hexdigest()


@pytest.mark.parametrize("mode", ["static", "eager", "reference"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_agree_between_modes(name, mode):
    assert train(OPTIMIZERS[name], mode) == train(OPTIMIZERS[name], "dynamic")


@pytest.mark.parametrize("mode", ["static", "eager", "reference"])
@pytest.mark.parametrize("how", [{"clip": True}, {"dropout": 0.4}, {"schedule": True}], ids=str)
def test_clipping_dropout_and_schedules_agree_between_modes(how, mode):
    make = OPTIMIZERS["sgd"]
    result = train(make, "dynamic", **how)
    assert train(make, mode, **how) == result
    assert train(make, "dynamic") != result


def test_a_schedule_inside_capture_is_an_error():
    model = nn.Linear(3, 2)
    scheduler = optim.StepLR(optim.SGD(model.parameters(), 0.1), 2)

    @dp.compile
    def step(x):
        scheduler.step()
        return model(x)

    with pytest.raises(dp.DiptychError, match="outside of a compiled function"):
        step(np.ones((1, 3), np.float32))


def test_adam_follows_its_formula_in_f64():
    p = dp.Parameter(np.array([0.5, -1.0], np.float64))
    optimizer = optim.Adam([p], 0.1)
    value, m, v = np.array([0.5, -1.0]), np.zeros(2), np.zeros(2)
    for t in range(1, 6):
        (p * p).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        g = 2 * value
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        value = value - 0.1 / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert np.abs(p.numpy() - value).max() < 1e-14


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("rows", [101, 103])  # the last batch smaller, and larger, than its number
def test_scan_has_the_bits_of_the_loader_loop(name, dropout, rows):
    images = rng.integers(0, 17, (rows, 20)).astype(np.uint8)
    dataset = dp.data.ArrayDataset(images, rng.integers(0, 10, rows), scale=16.0, shift=-0.5)

    def run(mode):
        dp.manual_seed(5)
        layers = [nn.Linear(20, 9), nn.ReLU(), nn.Dropout(dropout), nn.Linear(9, 10)]
        model = nn.Sequential(nn.Dropout(dropout), *layers)  # two streams of random numbers
        optimizer = OPTIMIZERS[name](model.parameters())
        loader = dp.data.DataLoader(dataset, 16, shuffle=True, seed=2)

        @dp.compile
        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            optimizer.minimize(loss)
            return loss

        losses = []
        for _ in range(2):
            if mode == "scan":
                losses += dp.scan(step, loader)[0].tolist()
            else:
                losses += [float(step(x, y)) for x, y in loader]
        return losses, [v.tobytes() for v in model.state_dict().values()]

    expected = run("loop")
    assert run("scan") == expected
    dp.use_device("reference")
    try:
        assert run("scan") == expected
    finally:
        dp.use_device("cpu")


def test_scan_says_what_it_cannot_take():
    images, labels = np.ones((10, 3), np.float32), np.zeros(10, np.int64)
    per_row = dp.compile(lambda x, y: x.sum(1))
    with pytest.raises(dp.DiptychError, match="one shape in every step"):
        dp.scan(per_row, dp.data.DataLoader(dp.data.arrays(images, labels), 4))
    with pytest.raises(dp.DiptychError, match="a DataLoader of arrays"):
        dp.scan(per_row, [images])


def test_scan_of_another_data_set_of_the_same_length():
    """Scale and types are part of what is compiled, whatever the identity of the data set."""
    images, labels = np.full((6, 3), 10, np.uint8), np.zeros(6, np.int64)
    step = dp.compile(lambda x, y: x.sum())
    for scale in (1.0, 2.0, 5.0):
        loader = dp.data.DataLoader(dp.data.arrays(images, labels, scale=scale), 2)
        assert dp.scan(step, loader)[0].tolist() == [60 / scale] * 3


def test_scan_follows_the_modes():
    images, labels = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
    loader = dp.data.DataLoader(dp.data.arrays(images, labels), 4)
    model = nn.Linear(3, 2)

    def step(x, y):
        loss = F.mse_loss(model(x), y)
        loss.backward()
        model.weight.grad = model.bias.grad = None
        return loss

    scanned = dp.compile(step)
    dp.scan(scanned, loader)
    with dp.no_grad(), pytest.raises(GraphError, match="depends on a parameter"):
        dp.scan(scanned, loader)


def test_scan_writes_over_no_value_that_somebody_has():
    images, labels = np.ones((8, 3), np.float32), np.arange(8) % 2
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    step = dp.compile(step_of(model, optimizer))
    view = model.weight.numpy()
    before = view.tobytes()
    dp.scan(step, dp.data.DataLoader(dp.data.arrays(images, labels), 4))
    assert view.tobytes() == before != model.weight.numpy().tobytes()
    after = model.weight.numpy().tobytes()
    labels[7] = 2  # in the second batch
    with pytest.raises(dp.DiptychError, match="label 2"):
        dp.scan(step, dp.data.DataLoader(dp.data.arrays(images, labels), 4))
    assert model.weight.numpy().tobytes() == after


def test_gradients_are_clipped_by_the_formula():
    p, limit, one = dp.Parameter(np.zeros(2, np.float32)), np.float32(1e-6), np.float32(1.0)
    for size in (3e-6, 3.0, 0.1, 1e-8):
        g = np.float32([size, size * 4 / 3])
        p.grad = dp.tensor(g)
        norm = optim.clip_grad_norm_([p], 1e-6)
        length = np.sqrt(g[0] * g[0] + g[1] * g[1])
        scale = np.minimum(limit / (length + limit), one)
        assert norm.numpy().tobytes() == length.tobytes()
        assert p.grad.numpy().tobytes() == (g * scale).tobytes()


def test_moments_below_a_bound_become_zero():
    p = dp.Parameter(np.ones(2, np.float32))
    adam = optim.Adam([p], lr=0.1, betas=(0.5, 0.5))
    p.grad = dp.tensor(np.float32([2.0**-40, 2.0**-60]))
    adam.step()
    m, v = adam.moments[p]
    assert m.tolist() == [2.0**-41, 2.0**-61] and v.tolist() == [2.0**-81, 0.0]
    p.grad = dp.tensor(np.float32([2.0**-102, 2.0**-39]))
    for _ in range(70):
        adam.step()
    assert m.tolist()[0] == v.tolist()[0] == 0.0


def test_a_scan_that_failed_is_compiled_for_any_size_when_it_works():
    images, labels = np.ones((11, 3), np.float32), np.zeros(11, np.int64)
    loader = dp.data.DataLoader(dp.data.arrays(images, labels), 4)
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), 0.1)
    step = dp.compile(step_of(model, optimizer))
    F.cross_entropy(model(images), labels).backward()
    with pytest.raises(dp.DiptychError, match="begins without gradients"):
        dp.scan(step, loader)
    optimizer.zero_grad()
    dp.scan(step, loader)
    assert len(step.scans) == 1  # for batches of 4 and of 3
