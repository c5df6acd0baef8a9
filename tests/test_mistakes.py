"""What a newcomer gets wrong: nothing is silent, and the error says what to write instead."""

import copy
import signal
import subprocess
import sys

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import data, nn, optim
from diptych.cli import main
from diptych.errors import DiptychError

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
Y = np.arange(6) % 3


def fails(call, *words):
    """An error of three lines that names the line in this file and has all the words."""
    with pytest.raises(dp.DiptychError, match=r"\(test_mistakes\.py:\d+\)") as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 3, message
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize(
    ("part", "cure"),
    [
        (F.relu, "nn.ReLU()"),
        (F.log_softmax, "nn.LogSoftmax()"),
        (dp.tanh, "nn.Tanh()"),
        (nn.ReLU, "ReLU(...)"),
        (lambda x: x * 2, "a Module whose forward calls it"),
        (None, "nn.ReLU()"),
        (5, "nn.ReLU()"),
        ([nn.Linear(3, 3), F.relu], "nn.ReLU()"),
    ],
)
def test_sequential_drops_nothing(part, cure):
    fails(lambda: nn.Sequential(nn.Linear(4, 3), part), "Sequential takes modules", cure)
    model = nn.Sequential(nn.Linear(4, 3))
    fails(lambda: model.append(part), cure)
    assert len(model) == 1


def test_a_parameter_of_a_module_stays_one():
    model = nn.Linear(4, 3)
    shape = (3, 4)
    for value in (np.zeros(shape), dp.tensor(np.zeros(shape)), 0.0, model.weight * 2.0):
        fails(lambda v=value: setattr(model, "weight", v), "weight.assign(", "dp.Parameter(")
    assert [n for n, _ in model.named_parameters()] == ["weight", "bias"]
    model.weight = dp.Parameter(np.zeros(shape, np.float32))
    model.bias = None
    assert not model(X).numpy().any()
    del model.weight
    model.weight = model.forward
    assert model.parameters() == []


@pytest.mark.parametrize("sign", ["+", "-", "*", "/", "//", "%", "**", "@", "&", "|", "^"])
def test_a_parameter_is_not_changed_in_place(sign):
    p = dp.Parameter(np.eye(2, dtype=np.float32))
    code = compile(f"p {sign}= p", __file__, "exec")
    for record in (
        lambda: exec(code, {"p": p}),
        lambda: dp.compile(lambda: exec(code, {"p": p}))(),
    ):
        fails(record, f"{sign}= on a parameter f32[2,2]", f"p.assign(p {sign} ...)")
    x = dp.tensor([1.0])
    x += 1.0
    assert x.item() == 2.0


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.0, dp.f32), ([1.0, 2.0], dp.f32), (((1.0,), (2,)), dp.f32), (3, dp.i64), ([1], dp.i64),
        (True, dp.bool_), (np.float64(1), dp.f64), (np.ones(2), dp.f64),
        (np.ones(2, np.float32), dp.f32), (dp.tensor(np.ones(2)), dp.f64),
    ],
    ids=str,
)  # fmt: skip
def test_parameters_and_tensors_have_one_rule_for_dtypes(value, dtype):
    assert dp.tensor(value).dtype == dp.Parameter(value).dtype == dtype
    if dtype.is_float:
        assert dp.tensor(value, requires_grad=True).dtype == dtype
    assert dp.tensor([0.1], dtype="f64").item() == 0.1


MAKE = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
}


class Two:
    """Two layers of one optimizer; a step uses the second only when it is told so."""

    def __init__(self, name):
        dp.manual_seed(0)
        self.layers = nn.Linear(4, 3), nn.Linear(4, 3)
        self.optimizer = MAKE[name]([p for layer in self.layers for p in layer.parameters()])

    def step(self, both):
        scores = self.layers[0](X) + (self.layers[1](X) if both else 0.0)
        F.cross_entropy(scores, Y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self):
        return [v.tobytes() for layer in self.layers for v in layer.state_dict().values()]


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", MAKE)
def test_an_optimizer_resumes_where_a_parameter_never_got_a_gradient(name, first):
    """Also from before the first step, and into one that has state of its own."""
    one, same, other = Two(name), Two(name), Two(name)
    for _ in range(first):
        one.step(both=False)
    state = one.optimizer.state_dict()
    for _ in range(3):
        other.step(both=True)  # its own state is to be forgotten
    one.optimizer.load_state_dict(state)
    for two in (same, other):
        for layer, source in zip(two.layers, one.layers, strict=True):
            layer.load_state_dict(source.state_dict())
        two.optimizer.load_state_dict(state)
    for both in (False, True, True):
        for two in (one, same, other):
            two.step(both)
        assert one.weights() == same.weights() == other.weights()


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_failing_load_leaves_the_optimizer_as_it_was(name):
    two, whole = Two(name), Two(name)
    two.step(both=False)
    whole.step(both=True)
    before, good = two.optimizer.state_dict(), whole.optimizer.state_dict()
    slot = max(n for n in good if n != "lr")
    rest = {n: v for n, v in good.items() if n != "lr"}
    bad = [
        rest, {**rest, "lr": "fast"}, {**good, "more.1": X}, {**good, slot: X},
        {**good, slot: good[slot].astype(np.float64)},
    ]  # fmt: skip
    if name == "adam":  # what is made at once comes at once
        bad += [{n: v for n, v in good.items() if n != lost} for lost in ("v.1", "power.0")]
    for state in bad:
        fails(lambda s=state: two.optimizer.load_state_dict(s), "the state of one like it")
        after = two.optimizer.state_dict()
        assert {n: v.tobytes() for n, v in after.items()} == {
            n: v.tobytes() for n, v in before.items()
        }


def test_no_epoch_is_evaluated_as_well(capsys):
    assert main(["digits", "--epochs", "0"]) == 0
    out = capsys.readouterr().out
    assert "0.0000" not in out and "the same to the last bit" in out


LAYER = nn.Linear(4, 3)
ROWS = data.DataLoader(list(zip(X, Y, strict=True)), 4)


def mse(x, y):
    return F.mse_loss(LAYER(x), y)


CALLS = [
    # optimizers and their state
    (lambda: optim.SGD(LAYER), "a Linear", "model.parameters()"),
    (lambda: optim.SGD(nn.Sequential(LAYER)), "a Sequential", "model.parameters()"),
    (lambda: optim.SGD(LAYER.parameters), "a method", "model.parameters()"),
    (lambda: optim.SGD(None), "a NoneType", "model.parameters()"),
    (lambda: optim.SGD([]), "an empty list", "model.parameters()"),
    (lambda: optim.SGD([*LAYER.parameters(), LAYER.weight]), "there twice", "dict.fromkeys"),
    (lambda: optim.SGD(LAYER.named_parameters()), "a tuple", "model.parameters()"),
    (lambda: optim.SGD([{"params": LAYER.parameters()}]), "a dict", "for each group"),
    (lambda: dp.save_state(LAYER, "no"), "a Linear", ".state_dict()"),
    (lambda: dp.save_state({"a": object()}, "no"), "'a' is a object", "numbers"),
    (lambda: dp.save_state({3: X}, "no"), "3 is a ndarray", "by name"),
    (lambda: LAYER.load_state_dict("file"), "a str", "dp.load_state('file')"),
    (lambda: optim.SGD([LAYER.weight]).load_state_dict("file"), "dp.load_state('file')"),
    # scan and gradients
    (lambda: dp.scan(dp.compile(mse), [(X, Y)]), "a list", "data.arrays"),
    (lambda: dp.scan(dp.compile(mse), ROWS), "a DataLoader of a list", "data.arrays"),
    (lambda: dp.scan(dp.compile(mse), data.digits()), "a ArrayDataset", "DataLoader("),
    (lambda: dp.grad(mse, argument=(0, 1)), "argument=(0, 1)", "dp.partials(result, [a, b])"),
    (lambda: dp.grad(3.0), "of a float", "of a function"),
    (lambda: setattr(LAYER.weight, "requires_grad", False), "trainable=False)"),
    (lambda: setattr(LAYER.weight, "trainable", False), "trainable=False)"),
    (lambda: LAYER.weight.requires_grad_(False), "trainable=False)"),
    (lambda: setattr(dp.tensor(1.0), "requires_grad", True), "x.requires_grad_()"),
    (lambda: setattr(LAYER.weight, "grad", np.zeros((3, 4))), "a ndarray", "dp.tensor(...) of f32"),
    # values
    (lambda: dp.tensor(1.0) == None, "None", "`x is None`"),  # noqa: E711
    (lambda: dp.tensor(1.0) + None, "None", "where it comes from"),
    (lambda: dp.tensor([1.0, None]), "None"),
    (lambda: dp.tensor(X.astype(">f4")), "'>f4'", ".astype('float32')"),
    (lambda: LAYER(X.astype(">f4")), "'>f4'", ".astype('float32')"),
    (lambda: dp.Parameter(Y.astype(">i8")), "'>i8'", ".astype('int64')"),
    (lambda: dp.tensor(X.astype(np.float16)), "float16", ".astype('float32')"),
    (lambda: dp.tensor(X.astype(np.int16)), "int16", ".astype('int32')"),
    (lambda: dp.tensor(X + 1j), "complex", ".real"),
    (lambda: dp.tensor(X, dtype="foo"), "'foo'", "'f32'"),
    (lambda: dp.tensor([2**70]), str(2**70), "i64", "a float"),
    (lambda: dp.tensor(2**63), str(2**63), "i64", "a float"),
    (lambda: dp.tensor(["a", "b"]), "numbers for names"),
    (lambda: dp.tensor(1.0) == "a", "numbers for names"),
    (lambda: dp.tensor(np.array([object()])), "make numbers of it"),
    (lambda: dp.tensor([[1.0, 2.0], [3.0]]), "a row of 2 beside a row of 1", "pad"),
    (lambda: LAYER([[[1], [2]], [[1], [2, 3]]]), "a row of 1 beside a row of 2"),
    (lambda: dp.tensor([1.0, [2.0]]), "a number beside a row of 1"),
    (lambda: dp.tensor([dp.tensor([1.0]), dp.tensor([1.0, 2.0])]), "a row of 1 beside a row of 2"),
    # losses
    (lambda: F.binary_cross_entropy([0.5, 0.2], [1, 0]), "binary_cross_entropy takes f32", "i64"),
    (lambda: F.mse_loss([0.5, 0.2], [True, False]), "mse_loss takes f32", "bool[2]"),
    (lambda: F.l1_loss([1, 0], [0.5, 0.2]), "l1_loss takes f32", "i64[2]"),
    (lambda: F.softmax(X, dim=1), "'dim'", "write axis="),
    (lambda: F.cross_entropy(X, Y, reduction="sum"), "'reduction'", "the mean"),
    # data
    (lambda: data.DataLoader({"x": X}, 4), "a dict", "data.arrays(images, labels)"),
    (lambda: data.DataLoader(iter(X), 4), "__len__ and __getitem__"),
    (lambda: data.DataLoader(data.digits(), 4.5), "4.5", "whole number"),
    (lambda: data.DataLoader(data.digits(), "4"), "'4'", "whole number"),
    (lambda: data.DataLoader(data.digits(), 4, prefetch=1.5), "1.5", "whole number"),
    (lambda: data.ArrayDataset(X, ["a"] * 6), "numbers for names"),
    (lambda: data.arrays(X, np.array([None] * 6)), "labels", "object [6]"),
    (lambda: data.arrays(X, 3), "labels", "(n, ...)"),
    (lambda: data.arrays([[1, 2], [3]], [0, 1]), "a row of 2 beside a row of 1"),
]


@pytest.mark.parametrize("n", range(len(CALLS)))
def test_the_error_says_what_to_write_instead(n, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, *words = CALLS[n]
    fails(call, *words)
    assert not list(tmp_path.iterdir())


NAMES = [
    (dp.tensor(X), "view", "x.reshape"),
    (dp.tensor(X), "permute", "x.transpose"),
    (dp.tensor(X), "float", ".astype('f32')"),
    (dp.Parameter(X), "data", "p.assign"),
    (dp.tensor(X), "add_", "x = x + y"),
    (LAYER, "zero_grad", "optimizer.zero_grad()"),
    (LAYER, "cuda", "dp.use_device"),
    (LAYER, "requires_grad_", "trainable=False"),
    (optim.SGD(LAYER.parameters()), "param_groups", "optimizer.lr"),
    (dp, "float32", "dp.f32"),
    (dp, "zeros", "np.zeros"),
    (dp, "tensr", "tensor"),
    (dp, "nothing_like_it", "dir(diptych)"),
    (nn, "Conv2d", "Module for your own"),
    (nn, "Parameter", "dp.Parameter"),
    (nn, "CrossEntropyLoss", "F.cross_entropy"),
    (F, "conv2d", "cross_entropy, "),
    (optim, "RMSprop", "SGD, Adam, AdamW"),
    (optim, "lr_scheduler", "StepLR"),
    (data, "TensorDataset", "data.arrays"),
]


@pytest.mark.parametrize(("thing", "name", "cure"), NAMES, ids=[n for _, n, _ in NAMES])
def test_names_of_pytorch_are_not_there_and_say_what_is(thing, name, cure):
    assert not hasattr(thing, name) and getattr(thing, name, 5) == 5
    fails(lambda: getattr(thing, name), name, cure)


def test_an_attribute_of_the_author_may_have_a_name_of_pytorch():
    class Net(nn.Module):
        def __init__(self):
            self.double = LAYER

        def to(self, x):
            return self.double(x)

        forward = to

    net = Net()
    assert [n for n, _ in net.named_parameters()] == ["double.weight", "double.bias"]
    assert dp.compile(net.to)(X).numpy().tobytes() == LAYER(X).numpy().tobytes()


def test_data_sets_of_lists_and_tensors_are_those_of_arrays():
    expected = data.arrays(X, Y).batch(slice(None))
    for images, labels in [(X.tolist(), Y.tolist()), (dp.tensor(X), dp.tensor(Y))]:
        for make in (data.ArrayDataset, data.arrays):
            for given, right in zip(make(images, labels).batch(slice(None)), expected, strict=True):
                assert (given.dtype, given.tobytes()) == (right.dtype, right.tobytes())


def test_a_frozen_layer_stays_as_it_is_and_lets_gradients_through():
    dp.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 3)
    second.weight = dp.Parameter(second.weight, trainable=False)
    second.bias = dp.Parameter(second.bias, trainable=False)
    assert second.weight.order == nn.Linear(4, 3).weight.order
    before = [layer.state_dict() for layer in (first, second)]
    optimizer = optim.Adam([*first.parameters(), *second.parameters()])
    F.cross_entropy(second(first(X)), Y).backward()
    assert second.weight.grad is None
    optimizer.step()
    moved = [
        any(old[n].tobytes() != v.tobytes() for n, v in layer.state_dict().items())
        for old, layer in zip(before, (first, second), strict=True)
    ]
    assert moved == [True, False]


def test_data_that_is_not_there(capsys):
    assert main(["digits", "--data", "nowhere"]) == 1
    assert "--data nowhere" in (said := capsys.readouterr().err) and "try  --data digits" in said


def test_an_interrupted_command_says_so_in_one_line():
    code = (
        "import signal, sys; from diptych.cli import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell may have it ignored
        "sys.exit(main(['digits', '--mode', 'dynamic', '--epochs', '100000']))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            while "epoch 2 " not in run.stdout.readline():
                assert run.poll() is None
            run.send_signal(signal.SIGINT)
            _, said = run.communicate(timeout=180)
        finally:
            run.kill()
    assert (run.returncode, said) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "rate", [None, float("nan"), -1.0, "0.1", [0.1], np.ones(1), dp.tensor(0.1)]
)
@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam])
def test_a_learning_rate_is_checked_where_it_is_set(rule, rate):
    layer = nn.Linear(3, 2)
    with pytest.raises(DiptychError, match="a learning rate is a number"):
        rule(layer.parameters(), lr=rate)
    optimizer = rule(layer.parameters(), lr=0.25)
    with pytest.raises(DiptychError, match=r"a learning rate is a number.*\n.*test_mistakes"):
        optimizer.lr = rate
    assert optimizer.lr == 0.25 == copy.deepcopy(optimizer).lr
    optimizer.lr = np.float32(0.5)
    assert type(optimizer.lr) is float
