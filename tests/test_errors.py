"""Bad input: an error of three lines that names the author's line, in both panels."""

import inspect

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim
from diptych.errors import (
    DeviceError,
    DtypeError,
    FeedError,
    FileFormatError,
    GraphError,
    MissingFileError,
    ObservedWhileRecording,
    ShapeError,
    StartupError,
    UnwritableFileError,
    ValueRangeError,
)

X = np.ones((4, 6), np.float32)


def check(caught, line, *parts):
    """Rule, facts with the line, cure."""
    text = str(caught.value).splitlines()
    assert len(text) == 3, caught.value
    assert text[1].startswith("  got  ") and text[2].startswith("  try  ")
    assert text[1].endswith(f"(test_errors.py:{line})"), (text[1], line)
    for part in parts:
        assert part in str(caught.value)


def following():
    """The line after the one that calls."""
    return inspect.currentframe().f_back.f_lineno + 1


PANELS = ["dynamic", "compiled", "program"]


def failing(panel, call, *arrays):
    """Run `call` in a panel."""
    if panel == "dynamic":
        call(*[dp.tensor(a) for a in arrays])
    elif panel == "compiled":
        dp.compile(call)(*arrays)
    else:
        with dp.Program():
            call(*[
                dp.placeholder(f"x{n}", a.shape, str(dp.tensor(a).dtype))
                for n, a in enumerate(arrays)
            ])  # fmt: skip


@pytest.mark.parametrize("panel", PANELS)
def test_shapes(panel):
    def call(x):
        return dp.matmul(x, x)

    with pytest.raises(ShapeError) as caught:
        failing(panel, call, X)
    check(caught, call.__code__.co_firstlineno + 1, "matmul", "f32[4,6]")


@pytest.mark.parametrize("panel", PANELS)
def test_dtypes(panel):
    def call(x, y):
        return x + y

    with pytest.raises(DtypeError) as caught:
        failing(panel, call, X, np.ones((4, 6), np.int64))
    check(caught, call.__code__.co_firstlineno + 1, "f32 and i64", "astype")


@pytest.mark.parametrize("panel", PANELS)
def test_a_layer_of_another_width(panel):
    model = nn.Linear(5, 2)

    def call(x):
        return model(x)

    with pytest.raises(ShapeError) as caught:
        failing(panel, call, X)
    check(caught, call.__code__.co_firstlineno + 1, "linear", "f32[4,6]")


def program():
    with dp.Program() as made:
        x = dp.placeholder("x", [None, 6])
        out = nn.Linear(6, 3)(x)
    return made, out


def test_missing_unknown_and_misshapen_feeds():
    made, out = program()
    executor = dp.Executor()
    executor.run(made.startup)
    with pytest.raises(FeedError) as caught:
        line = following()
        executor.run(made, {}, [out])
    check(caught, line, "'x' is missing")
    with pytest.raises(FeedError) as caught:
        line = following()
        executor.run(made, {"x": X, "y": X}, [out])
    check(caught, line, "unknown ['y']", "the program has ['x']")
    with pytest.raises(FeedError) as caught:
        line = following()
        executor.run(made, {"x": X[:, :5]}, [out])
    check(caught, line, "f32[N,6]", "[4, 5]")
    with pytest.raises(FeedError) as caught:
        line = following()
        executor.run(made, {"x": X.astype(np.float64)}, [out])
    check(caught, line, "is f32, fed float64")
    with pytest.raises(FeedError) as caught:
        line = following()
        executor.run(made, {"x": X}, ["nothing"])
    check(caught, line, "'nothing'", "linear")


def test_feeds_and_fetches_that_are_not_what_run_takes(tmp_path):
    made, out = program()
    executor = dp.Executor()
    executor.run(made.startup)
    for feed, fetch in (([X], [out]), ({"x": X}, out), ({"x": X}, "linear")):
        with pytest.raises(FeedError) as caught:
            line = following()
            executor.run(made, feed, fetch)
        check(caught, line, "a list of what to fetch")
    with pytest.raises(FeedError) as caught:
        line = following()
        dp.save(made, tmp_path / "m", ["x"], out)
    check(caught, line, "are lists")
    with pytest.raises(FeedError) as caught:
        line = following()
        dp.save(nn.Linear(2, 2), tmp_path / "m", ["x"], [out])
    check(caught, line, "is a program")


def test_placeholders_of_odd_sizes():
    with dp.Program():
        assert dp.data("a", [np.int64(3), None, -1, "M", 4]).shape[0] == 3
        assert str(dp.data("b", None).type) == "f32[N]"
        for shape in ([2.5], [-2], [[3]]):
            with pytest.raises(ShapeError) as caught:
                line = following()
                dp.data("c", shape)
            check(caught, line, "a size is")
        with pytest.raises(FeedError) as caught:
            line = following()
            dp.data(5, [2])
        check(caught, line, "5")


def test_use_before_startup():
    made, out = program()
    with pytest.raises(StartupError) as caught:
        line = following()
        dp.Executor().run(made, {"x": X}, [out])
    check(caught, line, "startup")
    (weight, _) = made.parameters()
    with pytest.raises(StartupError) as caught:
        line = following()
        weight.numpy()
    check(caught, line, "startup")
    with pytest.raises(StartupError) as caught:
        line = following()
        weight + 1.0
    check(caught, line, "startup")


@pytest.mark.parametrize("label", [3, -1, 2**40])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_label_out_of_range(label, device):
    scores, labels = np.zeros((4, 3), np.float32), np.array([0, 1, label, 2])
    dp.use_device(device)
    try:
        with pytest.raises(ValueRangeError) as caught:
            line = following()
            F.cross_entropy(dp.tensor(scores), dp.tensor(labels)).item()
        check(caught, line, "a label lies from 0 to 2", f"label {label}")
        call = dp.compile(lambda x, y: F.cross_entropy(x, y))
        with pytest.raises(ValueRangeError, match=r"test_errors\.py"):
            call(scores, labels)
    finally:
        dp.use_device("cpu")


def test_a_position_out_of_range():
    with pytest.raises(ValueRangeError) as caught:
        line = following()
        dp.gather(dp.tensor(X), dp.tensor([0, 9])).numpy()
    check(caught, line, "a position lies from 0 to 3", "position 9")
    with pytest.raises(ValueRangeError) as caught:
        line = following()
        dp.gather(dp.tensor(X[:0]), dp.tensor([0])).numpy()
    check(caught, line, "an empty axis has no position", "position 0")


def test_a_slice_from_half_a_place():
    with pytest.raises(ShapeError) as caught:
        line = following()
        dp.tensor(X)[0.5:]
    check(caught, line, "a bound of a slice is a whole number", "0.5")


def test_a_value_read_while_recording():
    def call(x):
        return x * float(x.sum())

    for panel in ("compiled", "program"):
        with pytest.raises(ObservedWhileRecording) as caught:
            failing(panel, call, X)
        check(caught, call.__code__.co_firstlineno + 1, "where(...)")


def test_a_tensor_of_a_program_used_outside():
    _, out = program()
    with pytest.raises(StartupError) as caught:
        line = following()
        out + 1.0
    check(caught, line, "fetch it")


def test_a_device_that_is_not_there():
    with pytest.raises(DeviceError) as caught:
        line = following()
        dp.use_device("cuda")
    check(caught, line, "'cuda'", "cpu and reference")
    made, out = program()
    executor = dp.Executor("gpu")
    executor.run(made.startup)
    with pytest.raises(DeviceError) as caught:
        line = following()
        executor.run(made, {"x": X}, [out])
    check(caught, line, "'gpu'")


def test_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        line = following()
        dp.load(tmp_path / "m")
    check(caught, line, "not there")
    (tmp_path / "m").write_bytes(b"12345678901234567890")
    with pytest.raises(FileFormatError) as caught:
        line = following()
        dp.load(tmp_path / "m")
    check(caught, line, "safetensors")
    with pytest.raises(MissingFileError) as caught:
        line = following()
        dp.data.mnist("train", tmp_path)
    assert "train-images-idx3-ubyte" in str(caught.value) and f":{line}" in str(caught.value)


def test_backward_twice_and_from_nothing():
    x = dp.tensor(2.0, requires_grad=True)
    y = x * x
    y.backward()
    with pytest.raises(dp.DiptychError) as caught:
        line = following()
        y.backward()
    check(caught, line, "retain_graph=True")
    with pytest.raises(dp.DiptychError) as caught:
        line = following()
        dp.tensor(1.0).backward()
    check(caught, line, "no_grad")
    with pytest.raises(ShapeError) as caught:
        line = following()
        (dp.tensor([1.0, 2.0], requires_grad=True) * 2.0).backward()
    check(caught, line, "take the mean first")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[9],
        lambda x: x[:, :, None, 0],
        lambda x: x.reshape(5, 5),
        lambda x: x.sum(2),
        lambda x: dp.concat([x, x[:, :2]], 0),
        lambda x: x.transpose(0, 0),
        lambda x: x[..., ...],
        lambda x: F.softmax(x, axis=5),
        lambda x: dp.one_hot(x, 3),
        lambda x: x & x,
        lambda x: dp.pad(x, [(1, 1)]),
        lambda x: x["a"],
        lambda x: dp.clip(x, "a", 2),
        lambda x: F.dropout(x, 1.5),
        lambda x: dp.exp(x > 0),
        lambda x: dp.stack([x, x[0]]),
        lambda x: dp.broadcast_to(x, (4, 7)),
        lambda x: x.astype("f16"),
        lambda x: dp.expand_dims(x, 7),
        lambda x: dp.squeeze(x, 0),
        lambda x: x @ 3.0,
        lambda x: dp.uniform((-1,)),
        lambda x: x.item(),
        lambda x: F.mse_loss(x, x[0]),
        lambda x: dp.tensor("no"),
        lambda x: dp.tensor([[1.0], [2.0, 3.0]]),
        lambda x: dp.tensor(object()),
        lambda x: x + "a",
        lambda x: x + None,
        lambda x: dp.where(x, x, x),
        lambda x: dp.argmax(x, 4),
        lambda x: F.cross_entropy(x, x),
        lambda x: x.item(),
        lambda x: dp.gather(x, x),
        lambda x: dp.tensor(np.array([1j])),
        lambda x: F.softmax(x, dim=0),
        lambda x: F.softmax(x, 0),
        lambda x: F.elu(x, aplha=2.0),
        lambda x: F.elu(x, alpha=x),
        lambda x: F.relu(),
        lambda x: F.relu(None),
        lambda x: F.linear(x, x[0]),
        lambda x: dp.contract(x, x, "ab"),
        lambda x: dp.contract(x, x, "abc,bd->ad"),
        lambda x: dp.contract(x[:, :4], x[:, :4], "aa,ab->b"),
        lambda x: x.sum("a"),
        lambda x: x.sum(1.5),
        lambda x: x.reshape("a"),
        lambda x: x.transpose(0, 7),
        lambda x: dp.pad(x, [1, 2]),
        lambda x: dp.pad(x, [(-1, 0), (0, 0)]),
        lambda x: dp.broadcast_to(x, (-1, 4, 6)),
        lambda x: dp.scatter_add(dp.tensor([0]), x[:1], "a"),
        lambda x: dp.one_hot(dp.tensor([0]), -1),
        lambda x: dp.uniform(2.5),
        lambda x: dp.permutation(2.5),
        lambda x: dp.arange(0.0, float("inf")),
        lambda x: dp.bernoulli(1.5, (2,)),
        lambda x: dp.normal((2,), 0.0, -1.0),
        lambda x: dp.tensor([1, 2], requires_grad=True),
        lambda x: dp.grad(dp.sin, 3)(x),
        lambda x: dp.grad(lambda x: 3.0)(x),
        lambda x: setattr(x, "grad", x[0]),
        lambda x: setattr(x, "grad", 3),
        lambda x: nn.Linear(2.5, 2),
        lambda x: optim.SGD([x], 0.1),
        lambda x: optim.SGD(nn.Linear(2, 2).weight, 0.1),
        lambda x: optim.SGD(nn.Linear(2, 2).parameters(), 0.1, momentum=-1),
        lambda x: optim.SGD(nn.Linear(2, 2).parameters(), 0.1, nesterov=True),
        lambda x: optim.Adam(nn.Linear(2, 2).parameters(), betas=(1.0, 0.9)),
        lambda x: optim.AdamW(nn.Linear(2, 2).parameters(), weight_decay="a"),
        lambda x: optim.StepLR(optim.SGD(nn.Linear(2, 2).parameters(), 0.1), 0),
        lambda x: optim.CosineLR(optim.SGD(nn.Linear(2, 2).parameters(), 0.1), 0),
        lambda x: dp.tensor([1, 2]) ** 2.0,
        lambda x: x.flatten(5),
        lambda x: x.sum((0, 0)),
        lambda x: x.mean((0, -2)),
        lambda x: x[:0].reshape(0, -1),
        lambda x: x[0, 0].sum(0),
    ],
)
def test_bad_calls_are_errors_of_diptych(call):
    with pytest.raises(dp.DiptychError, match=r"\(test_errors\.py:\d+\)") as caught:
        call(dp.tensor(X))
    assert len(str(caught.value).splitlines()) == 3


def test_every_error_has_a_rule_the_facts_and_a_cure():
    """Calls of the errors in the source: none leaves the cure out."""
    import ast
    from pathlib import Path

    import diptych.errors

    names = {n for n, v in vars(diptych.errors).items() if isinstance(v, type)} - {"InternalError"}
    found = 0
    for path in Path(dp.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                call = node.exc
                if getattr(call.func, "id", "") in names:
                    found += 1
                    assert len(call.args) == 3, f"{path.name}:{node.lineno}"
                    cure = call.args[2]
                    empty = isinstance(cure, ast.Constant) and not cure.value
                    assert not empty, f"{path.name}:{node.lineno}"
    assert found > 100


def test_assignment_to_a_part_and_masks_and_steps():
    x = dp.tensor([1.0, 2.0])
    with pytest.raises(GraphError) as caught:
        line = following()
        x[0] = 1
    check(caught, line, "where")
    with pytest.raises(DtypeError) as caught:
        line = following()
        x[x > 1]
    check(caught, line, "mask")
    for wrong in (lambda: x[::0], lambda: dp.arange(1, 5, 0)):
        with pytest.raises(ShapeError, match="moves on"):
            wrong()
    with pytest.raises(DtypeError, match="300 is outside of u8"):
        dp.tensor(np.array([250], np.uint8)) + 300


def test_files_that_cannot_be_written_leave_what_was_there(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    path = tmp_path / "weights.safetensors"
    dp.save_state(model.state_dict(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UnwritableFileError) as caught:
        line = following()
        dp.save_state({"a": np.ones(9)}, path)
    check(caught, line, "No space left", "unchanged")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(UnwritableFileError, match="No such file"):
        dp.save_state({"a": np.ones(9)}, tmp_path / "missing" / "x")


def test_the_cure_of_a_wrong_dtype_or_label_is_one_that_numpy_knows():
    layer, rows = dp.nn.Linear(3, 2), np.ones((4, 3))
    with pytest.raises(dp.DiptychError) as caught:
        layer(rows)
    assert "f64[4,3] into weight f32[2,3]" in str(caught.value)
    assert ".astype('float32')" in str(caught.value)
    scores = layer(rows.astype("float32"))
    for labels, cure in (
        (np.zeros(4, np.float32), ".astype('int64')"),
        (np.zeros((4, 1), np.int64), ".reshape(-1)"),
        (np.eye(4, 2), "argmax(1)"),
        (np.zeros(3, np.int64), "one class number for every row"),
    ):
        with pytest.raises(dp.DiptychError) as caught:
            F.cross_entropy(scores, labels)
        assert cure in str(caught.value)


@pytest.mark.parametrize("panel", PANELS[:2])
@pytest.mark.parametrize("index", [3, -1])
def test_a_position_of_one_hot_lies_inside(panel, index):
    def call(i):
        return dp.one_hot(i, 3)

    with pytest.raises(ValueRangeError) as caught:
        if panel == "dynamic":
            call(index).numpy()
        else:
            dp.compile(call)(np.array(index))
    check(caught, call.__code__.co_firstlineno + 1, "position", str(index))


def test_a_number_has_no_axes():
    with pytest.raises(ShapeError) as caught:
        line = following()
        dp.max(dp.tensor(1.0), axis=0)
    check(caught, line, "max takes an axis", "a number, which has none")
