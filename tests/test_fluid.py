"""paddle.fluid 1.8.5 on diptych: its numbers, its files, its errors, and the runner."""

import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diptych import fluid
from diptych.errors import FileFormatError, UnwritableFileError
from diptych.fluid import dataset, dygraph, files, framework, run
from diptych.fluid.core import EnforceNotMet

GOLDEN = Path(__file__).parent / "golden" / "fluid"
FOUND = json.loads((GOLDEN / "losses.json").read_text())
NAMES = ["sgd_0.001", "sgd_0.1", "momentum_0.01_0.9", "nesterov_0.01_0.9", "adam_0.001"]
ARTICLE = Path(__file__).parent.parent / "examples" / "article"
STEPS, BATCH, SEED = 40, 8, FOUND["seed"]


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Programs, names and scope of a new process."""
    monkeypatch.chdir(tmp_path)
    state, parameters = framework.STATE, framework.SCOPE.parameters
    before = state.main, state.startup, state.names, dict(parameters)
    state.main, state.startup = framework.Program(), framework.Program()
    state.names = framework.UniqueNames()
    yield
    state.main, state.startup, state.names = before[:3]
    parameters.clear()
    parameters.update(before[3])
    files.MAPPED.clear()
    dataset.SETTINGS.source = "mnist"


def batches():
    """As scripts/make_fluid_golden.py draws them."""
    state = 12345
    for _ in range(STEPS):
        numbers = []
        for _ in range(BATCH * 17):
            state = 48271 * state % 2147483647
            numbers.append(state)
        table = np.array(numbers).reshape(BATCH, 17)
        images = (table[:, :16] % 255).astype("float32") / np.float32(127) - np.float32(1)
        labels = (table[:, :16].sum(1) // 7 + table[:, 16] % 2) % 3
        yield images.reshape(BATCH, 1, 4, 4), labels.astype("int64")[:, None]


def optimizer(name, **more):
    kind, *numbers = name.split("_")
    numbers = [float(n) for n in numbers]
    if kind == "sgd":
        return fluid.optimizer.SGDOptimizer(*numbers, **more)
    if kind == "adam":
        return fluid.optimizer.Adam(*numbers, **more)
    return fluid.optimizer.Momentum(*numbers, use_nesterov=kind == "nesterov", **more)


def network():
    image = fluid.layers.data(name="image", shape=[1, 4, 4], dtype="float32")
    label = fluid.layers.data(name="label", shape=[1], dtype="int64")
    hidden = fluid.layers.fc(input=image, size=6, act="relu")
    predict = fluid.layers.fc(input=hidden, size=3, act="softmax")
    cost = fluid.layers.mean(fluid.layers.cross_entropy(input=predict, label=label))
    return predict, cost, fluid.layers.accuracy(input=predict, label=label)


def scope_values():
    names = ["fc_0.w_0", "fc_0.b_0", "fc_1.w_0", "fc_1.b_0"]
    return [np.array(fluid.global_scope().find_var(n).get_tensor()).tobytes() for n in names]


def train_static(name):
    fluid.default_startup_program().random_seed = SEED
    _, cost, acc = network()
    optimizer(name).minimize(cost)
    executor = fluid.Executor(fluid.CPUPlace())
    assert executor.run(fluid.default_startup_program()) == []
    start, steps = scope_values(), []
    for x, y in batches():
        c, a, g = executor.run(
            feed={"image": x, "label": y}, fetch_list=[cost, acc.name, "fc_1.b_0@GRAD"]
        )
        assert c.shape == a.shape == (1,) and c.dtype == np.float32
        steps.append([float(c[0]), float(a[0]), g.tolist()])
    return start, steps, scope_values()


class Network(dygraph.Layer):
    def __init__(self):
        super().__init__()
        self.hidden = dygraph.Linear(16, 6, act="relu")
        self.out = dygraph.Linear(6, 3, act="softmax")

    def forward(self, x):
        return self.out(self.hidden(fluid.layers.reshape(x, [x.shape[0], -1])))


def train_dynamic(name):
    with fluid.dygraph.guard():
        fluid.default_main_program().random_seed = SEED
        model, steps = Network(), []
        update = optimizer(name, parameter_list=model.parameters())
        start = [p.numpy().tobytes() for p in model.parameters()]
        for x, y in batches():
            label = dygraph.to_variable(y)
            predict = model(dygraph.to_variable(x))
            cost = fluid.layers.mean(fluid.layers.cross_entropy(predict, label))
            acc = fluid.layers.accuracy(predict, label)
            cost.backward()
            gradient = model.out.bias.gradient().tolist()
            steps.append([float(cost.numpy()[0]), float(acc.numpy()[0]), gradient])
            update.minimize(cost)
            model.clear_gradients()
        return start, steps, [p.numpy().tobytes() for p in model.parameters()]


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


@pytest.mark.parametrize("name", ["apart", "together"])
def test_an_inference_model_of_1_8_5_loads(name):
    more = {"params_filename": "weights"} if name == "together" else {}
    executor = fluid.Executor()
    program, feeds, fetches = fluid.io.load_inference_model(GOLDEN / name, executor, **more)
    assert feeds == ["image"]
    *_, (x, _) = batches()
    (out,) = executor.run(program, feed={"image": x}, fetch_list=fetches)
    assert np.abs(out - np.load(GOLDEN / "output.npy")).max() < 1e-6


@pytest.mark.parametrize("together", [None, "weights"])
def test_inference_models_come_back(together):
    train_static("sgd_0.1")
    predict = fluid.default_main_program().var("fc_1.tmp_2")
    executor = fluid.Executor()
    names = fluid.io.save_inference_model(
        "model", ["image"], [predict], executor, params_filename=together
    )
    assert names == ["save_infer_model/scale_0.tmp_0"]
    assert Path("model/__model__").exists()
    for n in ("fc_0.b_0", "fc_1.w_0"):
        same = (GOLDEN / "apart" / n).stat().st_size
        assert together or Path("model", n).stat().st_size == same
    *_, (x, y) = batches()
    (before,) = executor.run(
        fluid.default_main_program().clone(for_test=True), {"image": x, "label": y}, [predict]
    )
    framework.SCOPE.parameters.clear()
    program, feeds, fetches = fluid.io.load_inference_model("model", executor, None, together)
    (after,) = executor.run(program, feed={feeds[0]: x}, fetch_list=fetches)
    assert after.tobytes() == before.tobytes()


def test_broken_inference_models():
    executor = fluid.Executor()
    with pytest.raises(ValueError, match="no directory"):
        fluid.io.load_inference_model("nothing", executor)
    whole = {p.name: p.read_bytes() for p in (GOLDEN / "apart").iterdir()}
    Path("m").mkdir()
    for name in ("__model__", "fc_0.w_0"):
        for cut in (0, 7, 20, len(whole[name]) - 3):
            for n, data in whole.items():
                Path("m", n).write_bytes(data[:cut] if n == name else data)
            with pytest.raises((FileFormatError, EnforceNotMet)):
                fluid.io.load_inference_model("m", executor)


def test_dygraph_weights_of_1_8_5_load_and_ours_have_its_format():
    weights, state = fluid.load_dygraph(str(GOLDEN / "network"))
    expected = np.load(GOLDEN / "network.npz")
    assert state is None and set(weights) == set(expected)
    assert all(weights[n].tobytes() == expected[n].tobytes() for n in weights)
    with fluid.dygraph.guard():
        model = Network()
        model.set_dict(weights)
        assert model.hidden.weight.numpy().tobytes() == expected["hidden.weight"].tobytes()
        fluid.save_dygraph(model.state_dict(), "network")
    ours, theirs = Path("network.pdparams").read_bytes(), GOLDEN / "network.pdparams"
    assert ours[:2] == theirs.read_bytes()[:2] == b"\x80\x02"
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in ours and b"_core" not in ours
    again, _ = fluid.load_dygraph("network.pdparams", keep_name_table=True)
    names = again.pop("StructuredToParameterName@@")
    assert names["hidden.weight"] == "linear_0.w_0"
    assert all(again[n].tobytes() == weights[n].tobytes() for n in weights)
    with pytest.raises(RuntimeError, match="not exists"):
        fluid.load_dygraph("missing")


@pytest.mark.parametrize("name", ["momentum_0.01_0.9", "adam_0.001", "sgd_0.1"])
def test_training_goes_on_from_saved_files(name):
    """Weights and accumulators, under 1.8.5's names, lead on to the same bits."""

    def steps(model, update, some):
        for x, y in some:
            predict = model(dygraph.to_variable(x))
            cost = fluid.layers.cross_entropy(predict, dygraph.to_variable(y))
            fluid.layers.mean(cost).backward()
            update.minimize(cost)
            model.clear_gradients()
        return [p.numpy().tobytes() for p in model.parameters()]

    data = list(batches())
    with fluid.dygraph.guard():
        model = Network()
        update = optimizer(name, parameter_list=model.parameters())
        assert update.state_dict() == {}
        steps(model, update, data[:5])
        state = update.state_dict()
        fluid.save_dygraph(model.state_dict(), "network")
        if state:
            fluid.save_dygraph(state, "network")
        end = steps(model, update, data[5:])
    kinds = {"adam": {"beta1_pow_acc", "beta2_pow_acc", "moment1", "moment2"},
             "momentum": {"velocity"}, "sgd": set()}[name.partition("_")[0]]  # fmt: skip
    assert set(state) == {f"linear_{n}.{p}_0_{k}_0" for n in (0, 1) for p in "wb" for k in kinds}
    if name.startswith("adam"):  # as 1.8.5 has it after five steps
        assert abs(state["linear_1.b_0_beta1_pow_acc_0"] - 0.9**6) < 1e-6
    with fluid.dygraph.guard():
        model = Network()
        update = optimizer(name, parameter_list=model.parameters())
        weights, state = fluid.load_dygraph("network")
        model.set_dict(weights)
        if state:
            update.set_dict(state)
            state.pop("linear_0.w_0_velocity_0", None)
            state.pop("linear_0.w_0_moment1_0", None)
            with pytest.raises(RuntimeError, match="not found"):
                optimizer(name, parameter_list=model.parameters()).set_dict(state)
        assert steps(model, update, data[5:]) == end


class Harm:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


def test_loading_runs_no_code():
    for content in ({"a": Harm()}, [1, 2], {"a": {1, 2}}, {"a": np.array([{}], object)}):
        Path("w.pdparams").write_bytes(pickle.dumps(content, 2))
        with pytest.raises(FileFormatError):
            fluid.load_dygraph("w")
    Path("w.pdparams").write_bytes(b"\x80\x02}q\x00")
    with pytest.raises(FileFormatError):
        fluid.load_dygraph("w")
    assert not Path("harm.txt").exists()


# ---- what users meet ---------------------------------------------------------------------------


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


def outcome(capsys, *arguments):
    code = run.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", ["fluid_static", "fluid_dynamic"])
def test_the_examples_run_on_the_bundled_digits(name, capsys):
    code, out, err = outcome(capsys, "--data", "digits", "--seed", 3, ARTICLE / f"{name}.py")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 2 and float(lines[1].rsplit(" ", 1)[1]) > 0.75
    assert "paddle" not in sys.modules and "int" not in vars(np)
    saved = "digits.inference/__model__" if name == "fluid_static" else "digits.pdparams"
    assert Path(saved).exists()
    if name == "fluid_dynamic":
        static = outcome(capsys, "--data", "digits", "--seed", 3, ARTICLE / "fluid_static.py")[1]
        assert static == out  # both modes, the same numbers


@pytest.mark.parametrize("name", ["diptych_static", "diptych_dynamic"])
def test_the_same_in_diptych(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name])  # the examples read their own arguments
    runpy.run_path(str(ARTICLE / f"{name}.py"))
    both = capsys.readouterr().out
    runpy.run_path(str(ARTICLE / "diptych_dynamic.py"))
    assert both == capsys.readouterr().out and "test accuracy 0.8" in both


def script(text, name="script.py"):
    Path(name).write_text(text)
    return name


def test_modules_are_real_entries_of_this_process_only(capsys):
    path = script(
        "import paddle, sys\n"
        "import paddle.fluid as fluid, paddle.fluid.layers as layers\n"
        "from paddle import fluid as again\n"
        "from paddle.fluid.dygraph.nn import Linear\n"
        "from paddle.fluid.dygraph.base import to_variable\n"
        "import paddle.dataset.mnist as mnist\n"
        "import numpy as np\n"
        "print(sys.argv[1:], np.int is int, np.float(3), again is fluid, paddle.__version__)\n"
        "assert 'paddle.fluid.layers' in sys.modules\n"
    )
    code, out, _ = outcome(capsys, path, "one", "--two")
    assert code == 0 and out == "['one', '--two'] True 3.0 True 1.8.5\n"
    assert not [m for m in sys.modules if m.split(".")[0] == "paddle"]
    assert subprocess.run([sys.executable, "-m", "diptych", "fluid", path]).returncode == 0
    assert subprocess.run([sys.executable, "-m", "diptych.fluid", "missing.py"]).returncode == 1


def test_paths_are_probed_before_training_and_mapped(capsys, monkeypatch):
    path = script(
        "import paddle.fluid as fluid\n"
        "folder = '/nobody/here/model'\n"
        "print('trained')\n"
        "with fluid.dygraph.guard():\n"
        "    layer = fluid.dygraph.Linear(2, 1)\n"
        "    fluid.save_dygraph(layer.state_dict(), folder)\n"
    )
    monkeypatch.setattr(os, "access", lambda place, mode: str(place) != "/")
    code, out, err = outcome(capsys, path)
    assert code == 1 and "trained" not in out
    assert "/nobody/here/model" in err and "--map" in err
    code, out, err = outcome(capsys, "--map", "/nobody=./mine", path)
    assert code == 0 and Path("mine/here/model.pdparams").exists()
    assert outcome(capsys, "--map", "wrong", path)[0] == 1


def rescued(place):
    (folder,) = Path(place).glob("diptych-rescue-*")
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_failed_save_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    Path("file").write_text("in the way")
    files.MAPPED[:] = [("/data", "file")]
    with fluid.dygraph.guard():
        weights = Network().state_dict()
        with pytest.raises(UnwritableFileError, match=r"Not a directory.*diptych-rescue") as caught:
            fluid.save_dygraph(weights, "/data/model/network")
    assert f"--map /data/model/network={tmp_path}/home/network SCRIPT" in str(caught.value)
    files.MAPPED.clear()
    fluid.save_dygraph(weights, "network")
    assert rescued(".") == {"network.pdparams": Path("network.pdparams").read_bytes()}


@pytest.mark.parametrize("full", [["model"], ["model", "diptych-rescue"]])
def test_a_full_disk_loses_no_file_of_a_model(full, tmp_path, monkeypatch):
    """All files of a model go to one place: here, or at home where the disk here is full too."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "work"):
        Path(name).mkdir()
    monkeypatch.chdir("work")
    whole = files.write_whole

    def write_whole(path, data):
        place = path.absolute().relative_to(tmp_path).as_posix()
        if len(data) > 50 and place.startswith(tuple(f"work/{f}" for f in full)):
            raise OSError(28, "No space left on device")
        whole(path, data)

    train_static("sgd_0.1")
    predict = fluid.default_main_program().var("fc_1.tmp_2")
    save = lambda: fluid.io.save_inference_model("model", ["image"], [predict], None)  # noqa: E731
    monkeypatch.setattr(files, "write_whole", write_whole)
    with pytest.raises(UnwritableFileError, match="No space left"):
        save()
    found = rescued("." if len(full) == 1 else tmp_path / "home")
    assert not list(Path(".").glob("diptych-rescue-*")) or len(full) == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    save()
    saved = {p.name: p.read_bytes() for p in Path("model").iterdir()}
    assert set(found) == set(saved) and all(
        found[n] == saved[n]
        for n in saved
        if n != "__model__"  # its target has another name
    )


@pytest.mark.parametrize("kind", ["file", "closed"])
def test_a_folder_that_cannot_be_made_is_found_before_training(kind, capsys, monkeypatch):
    path = script(
        "import paddle.fluid as fluid\n"
        "print('trained')\n"
        "fluid.io.save_inference_model('/home/aistudio/model', [], [], None)\n"
    )
    Path("place").write_text("in the way")
    if kind == "closed":
        monkeypatch.setattr(Path, "exists", lambda self: raise_(PermissionError(13, "denied")))
    code, out, err = outcome(capsys, "--map", "/home/aistudio=./place", path)
    assert code == 1 and "trained" not in out
    assert ("place is a file" if kind == "file" else "not yours to look into") in err
    assert "(script.py:3)" in err


def raise_(problem):
    raise problem


def test_a_gpu_that_is_not_there(capsys):
    path = script("import paddle.fluid as fluid\nplace = fluid.CUDAPlace(0)\nprint('ran')\n")
    with pytest.raises(EnforceNotMet, match="--device cpu"):
        run.main([path])
    capsys.readouterr()
    code, out, err = outcome(capsys, "--device", "cpu", path)
    assert code == 0 and out == "ran\n" and "is the CPU here" in err


def test_mnist_that_is_missing_or_broken_says_what_to_do(tmp_path, monkeypatch, capsys):
    import urllib.request

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIPTYCH_DATA", raising=False)
    path = script("import paddle\npaddle.dataset.mnist.train()\n")
    code, _, err = outcome(capsys, path)
    assert code == 1 and "train-images-idx3-ubyte.gz" in err and "--data digits" in err
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        Path(name).write_bytes(b"broken")
    monkeypatch.setenv("DIPTYCH_DATA", str(tmp_path))
    code, _, err = outcome(capsys, path)
    assert code == 1 and "gzip" in err and str(tmp_path) in err


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
