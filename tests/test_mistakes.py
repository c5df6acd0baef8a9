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
