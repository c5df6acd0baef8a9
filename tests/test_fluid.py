"""paddle.fluid 1.8.5 on diptych: its numbers, its operators, its errors."""

import numpy as np
import pytest
from fluid_model import (
    FOUND,
    NAMES,
    Network,
    batches,
    network,
    scope_values,
    train_dynamic,
    train_static,
)

from diptych import fluid
from diptych.fluid import dataset, dygraph, framework
from diptych.fluid.core import EnforceNotMet

pytestmark = pytest.mark.usefixtures("fluid_process")


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_1_8_5_in_both_modes(name):
    """Initial weights to the bit, losses and gradients to 1e-5; both modes end in the same bits."""
    start, steps, end = train_static(name)
    assert start == [bytes.fromhex(h) for h in FOUND[f"static_{name}"]["start"].values()]
    begin, moves, final = train_dynamic(name)
    assert (begin, final) == (start, end) and moves == steps
    for key in (f"static_{name}", f"dynamic_{name}"):
        for (c, a, g), (cost, acc, gradient) in zip(steps, FOUND[key]["steps"], strict=True):
            assert abs(c - cost) < 1e-5 and abs(a - acc) < 1e-7
            assert np.abs(np.subtract(g, gradient)).max() < 1e-5


def test_names_shapes_and_the_feeder():
    predict, cost, acc = network()
    assert predict.shape == (-1, 3) and cost.shape == acc.shape == (1,)
    names = list(fluid.default_main_program().variables)
    for name in ("fc_0.w_0", "fc_0.tmp_2", "cross_entropy2_0.tmp_0", "mean_0.tmp_0",
                 "accuracy_0.tmp_0"):  # fmt: skip
        assert name in names
    feeder = fluid.DataFeeder(["image", "label"], fluid.CPUPlace())
    fed = feeder.feed([(np.zeros(16, np.float32), 1), (np.ones(16, np.float32), 2.7)])
    assert fed["image"].shape() == [2, 1, 4, 4] and np.array(fed["label"]).tolist() == [[1], [2]]
    with pytest.raises(AssertionError, match="number of fields"):
        feeder.feed([(np.zeros(16, np.float32),)])
    with pytest.raises(ValueError):
        feeder.feed([(np.zeros(15, np.float32), 1)])
    with pytest.raises(ValueError, match="created before"):
        fluid.layers.data(name="image", shape=[3])


def test_a_flat_batch_feeds_pictures_and_a_startup_resets():
    train_static("sgd_0.1")
    executor = fluid.Executor()
    _, cost = None, fluid.default_main_program().var("mean_0.tmp_0")
    test = fluid.default_main_program().clone(for_test=True)
    *_, (x, y) = batches()
    (flat,) = executor.run(test, {"image": x.reshape(8, 16), "label": y}, cost)
    (square,) = executor.run(test, {"image": x, "label": y}, [cost])
    assert flat == square
    executor.run(fluid.default_startup_program())
    assert scope_values()[0].hex() == FOUND["static_sgd_0.1"]["start"]["fc_0.w_0"]


def test_dygraph_gradients_are_those_of_the_last_backward():
    with fluid.dygraph.guard():
        layer = dygraph.Linear(2, 1)
        x = dygraph.to_variable(np.ones((3, 2), np.float32))
        assert layer.weight.gradient() is None
        for _ in range(3):
            fluid.layers.mean(layer(x)).backward()
        assert layer.weight.gradient().tolist() == [[1.0], [1.0]]
        layer.clear_gradients()
        assert layer.weight.gradient().tolist() == [[0.0], [0.0]]
        layer.eval()
        loss = fluid.layers.mean(layer(x))
        assert loss.stop_gradient
        layer.train()
        assert layer.full_name() == "linear_0" and Network().full_name() == "network_0"
        assert bool(loss) and len(x) == 3 and x[0, 1].shape == [1]
    assert not fluid.in_dygraph_mode()


A, B = np.array([[7, -7, 3]], np.int64), np.array([[2, 2, -2]], np.int64)
F, G = np.array([[7.5, -7.5, 3]], np.float32), np.array([[2, 2, -2]], np.float32)
ARITHMETIC = {  # what 1.8.5 gives: of integers A and B, of floats F and G
    "x + y": ([9, -5, 1], [9.5, -5.5, 1]), "x - y": ([5, -9, 5], [5.5, -9.5, 5]),
    "x * y": ([14, -14, -6], [15, -15, -6]), "x / y": ([3, -3, -1], [3.75, -3.75, -1.5]),
    "x % y": ([1, -1, 1], [1.5, 0.5, -1]), "x ** y": ([49, 49, 0], [56.25, 56.25, 1 / 9]),
    "x + 2": ([9, -5, 5], [9.5, -5.5, 5]), "2 - x": ([-5, 9, -1], [-5.5, 9.5, -1]),
    "2 * x": ([14, -14, 6], [15, -15, 6]), "x / 2": ([3, -3, 1], [3.75, -3.75, 1.5]),
    "2 / x": ([0, 0, 0], [2 / 7.5, -2 / 7.5, 2 / 3]), "-x": ([-7, 7, -3], [-7.5, 7.5, -3]),
    "x % 2": ([1, -1, 1], [1.5, 0.5, 1]), "x ** 2": ([49, 49, 9], [56.25, 56.25, 9]),
    "2 ** x": ([128, 0, 8], [2**7.5, 2**-7.5, 8]), "x < y": ([0, 1, 0], [0, 1, 0]),
    "x == x": ([1, 1, 1], [1, 1, 1]), "x >= 3": ([1, 0, 1], [1, 0, 1]),
    "2 > x": ([0, 1, 0], [0, 1, 0]), "x != 3": ([1, 1, 0], [1, 1, 0]),
    "x <= y": ([0, 1, 0], [0, 1, 0]),
}  # fmt: skip


@pytest.mark.parametrize("text", ARITHMETIC)
def test_pythons_operators_in_both_modes(text):
    for (x, y), want in zip(((A, B), (F, G)), ARITHMETIC[text], strict=True):
        with fluid.dygraph.guard():
            given = {"x": dygraph.to_variable(x), "y": dygraph.to_variable(y)}
            dynamic = eval(text, given).numpy()
        place = {n: fluid.layers.data(f"{n}{x.dtype}", [3], dtype=x.dtype.name) for n in "xy"}
        feed = {place["x"].name: x, place["y"].name: y}
        feed = feed if "y" in text else {place["x"].name: x}
        (static,) = fluid.Executor().run(feed=feed, fetch_list=[eval(text, dict(place))])
        assert static.tobytes() == dynamic.tobytes() and static.dtype == dynamic.dtype
        assert static.dtype == (bool if any(c in text for c in "<>!=") else x.dtype)
        assert np.abs(static.astype("f8") - [want]).max() < 1e-4
        framework.STATE.main = framework.Program()


def test_operators_that_1_8_5_refuses():
    with fluid.dygraph.guard():
        x, f = dygraph.to_variable(A), dygraph.to_variable(F)
        assert (x // 2).numpy().tolist() == [[3, -3, 1]] and [len(r.shape) for r in x] == [1]
        for wrong, error in ((lambda: x + 2.5, AssertionError), (lambda: f + x, TypeError),
                             (lambda: f // 2, EnforceNotMet), (lambda: f + "a", TypeError),
                             (lambda: f + f[:, :2], EnforceNotMet)):  # fmt: skip
            with pytest.raises(error):
                wrong()
        assert len({x, f}) == 2


def test_the_learning_rate_is_a_variable_of_the_scope():
    _, cost, _ = network()
    fluid.optimizer.SGD(0.25).minimize(cost)
    executor = fluid.Executor()
    executor.run(fluid.default_startup_program())
    rate = fluid.global_scope().find_var("learning_rate_0").get_tensor()
    assert np.array(rate).tolist() == [0.25]
    names = [p.name for p in fluid.default_main_program().all_parameters()]
    assert names == ["fc_0.w_0", "fc_0.b_0", "fc_1.w_0", "fc_1.b_0"]
    before, ((x, y), *_) = scope_values(), batches()
    rate.set(np.zeros(1, np.float32))
    executor.run(feed={"image": x, "label": y})
    assert scope_values() == before


def test_errors_of_programs():
    executor = fluid.Executor()
    with pytest.warns(UserWarning, match="empty"):
        assert executor.run(fluid.Program()) == []
    _, cost, _ = network()
    sgd = fluid.optimizer.SGD(0.1)
    (x, y), *_ = batches()
    feed = {"image": x, "label": y}
    with pytest.raises(EnforceNotMet, match="startup"):
        executor.run(feed=feed, fetch_list=[cost])
    sgd.minimize(cost)
    executor.run(fluid.default_startup_program())
    with pytest.raises(EnforceNotMet, match="'image' is missing"):
        executor.run(feed={"label": y}, fetch_list=[cost])
    with pytest.raises(EnforceNotMet, match="instead of its name"):
        executor.run(feed=feed, fetch_list=["nothing"])
    with pytest.raises(EnforceNotMet, match="float64"):
        executor.run(feed={"image": x.astype("f8"), "label": y}, fetch_list=[cost])
    with pytest.raises(EnforceNotMet, match="label 3"):
        executor.run(feed={"image": x, "label": y * 0 + 3}, fetch_list=[cost])
    with pytest.raises(EnforceNotMet):
        executor.run(feed={"image": x[:4], "label": y}, fetch_list=[cost])
    with pytest.raises(RuntimeError, match="LoD"):
        executor.run(feed={"image": x.tolist(), "label": y}, fetch_list=[cost])
    for bad in ({"program": 3}, {"feed": 3}, {"feed": feed, "fetch_list": [3]}):
        with pytest.raises(TypeError):
            executor.run(**bad)
    with pytest.warns(UserWarning, match="'more'"):
        executor.run(feed={**feed, "more": x}, fetch_list=[cost])
    with pytest.raises(AssertionError, match="mean"):
        fluid.optimizer.SGD(0.1).minimize(fluid.default_main_program().var("fc_1.tmp_2"))
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.run(feed=feed)


def test_other_errors():
    with pytest.raises(TypeError, match="float"):
        fluid.optimizer.SGD(1)
    with pytest.raises(EnforceNotMet, match="--device cpu"):
        fluid.CUDAPlace(0)
    with pytest.raises(AssertionError):
        fluid.cuda_places()
    with pytest.raises(AssertionError, match="guard"):
        dygraph.to_variable(np.ones(2))
    with pytest.raises(ValueError, match="registered"):
        network()
        fluid.layers.fc(fluid.default_main_program().var("fc_0.tmp_2"), 3, act="nothing")
    with pytest.raises(TypeError):
        fluid.layers.fc(np.ones((2, 3)), 3)
    with pytest.raises(AttributeError, match="no ParamAttr yet"):
        fluid.ParamAttr()
    with fluid.dygraph.guard():
        with pytest.raises(TypeError):
            dygraph.to_variable([1.0])
        with pytest.raises(AttributeError, match="parameter_list"):
            fluid.optimizer.SGD(0.1)
        with pytest.raises(AttributeError):
            fluid.layers.fc(dygraph.to_variable(np.ones((2, 3), np.float32)), 3, act="nothing")
        layer = dygraph.Linear(3, 2)
        with pytest.raises(EnforceNotMet):
            layer(dygraph.to_variable(np.ones((2, 4), np.float32)))
        with pytest.raises(AssertionError):
            bool(dygraph.to_variable(np.ones(2, np.float32)))


# ---- the runner --------------------------------------------------------------------------------


def test_batches_of_readers():
    reader = dataset.batch(lambda: iter(range(5)), 2.0)
    assert list(reader()) == [[0, 1], [2, 3], [4]] == list(reader())
    assert list(dataset.batch(lambda: iter(range(5)), 2, drop_last=True)()) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="positive"):
        dataset.batch(reader, 0)
    dataset.SETTINGS.source = "digits"
    image, label = next(dataset.test()())
    assert image.shape == (784,) and image.dtype == np.float32 and type(label) is int
    assert image.min() >= -1 and image.max() <= 1
