"""What a newcomer gets wrong: nothing is silent, and the error says what to write instead."""

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim
from diptych.cli import main

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
    ids=str,
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
    for record in (lambda: exec(code, {"p": p}), lambda: dp.compile(lambda: exec(code, {"p": p}))()):
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
