"""What a newcomer gets wrong: nothing is silent, and the error says what to write instead."""

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import nn

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
