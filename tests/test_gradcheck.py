"""The check of gradients that users have: what it accepts, and what it catches."""

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import nn
from diptych.errors import DtypeError, GradientError, GraphError
from diptych.ops.base import ALL

X = np.random.default_rng(0).standard_normal((3, 4))


@pytest.fixture(autouse=True)
def names():
    before = dict(ALL)
    yield
    ALL.clear()
    ALL.update(before)


def exponential(factor=1.0, second=True):
    """exp with a rule that may be wrong by a factor, or right to first order only."""

    @dp.operator
    def own_exp(x):
        return dp.exp(x)

    @own_exp.with_gradient
    def rule(g, node):
        slope = node if second else dp.stop_gradient(node)
        return [g * slope * factor]

    return own_exp


def test_right_gradients_pass_in_silence():
    dp.gradcheck(exponential(), [X])
    dp.gradcheck(lambda x, y: (x @ y, dp.sum(x * x)), [dp.tensor(X), X.T.astype("f4")])
    dp.gradcheck(dp.sin, [0.5], directions=3)
    dp.gradcheck(F.cross_entropy, [X, np.array([0, 3, 1])])
    model = nn.Linear(4, 2)
    dp.gradcheck(lambda x, w, b: dp.tanh(F.linear(x, w, b)), [X, model.weight, model.bias])


def check(caught, *parts):
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "test_gradcheck.py" in lines[1]
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("factor", [1.001, 0.0, -1.0])
def test_a_wrong_gradient_is_caught_at_first_order(factor):
    with pytest.raises(GradientError) as caught:
        dp.gradcheck(exponential(factor), [X], order=1)
    check(caught, "first gradient of own_exp")


def test_a_wrong_gradient_of_the_gradient_is_caught_at_second_order():
    wrong = exponential(second=False)
    dp.gradcheck(wrong, [X], order=1)
    with pytest.raises(GradientError) as caught:
        dp.gradcheck(wrong, [X])
    check(caught, "second gradient of own_exp")


def test_a_gradient_that_is_cut_off_is_caught():
    def cut(x):
        return x.detach() * x

    with pytest.raises(GradientError) as caught:
        dp.gradcheck(cut, [X])
    check(caught, "first gradient of cut")
    dp.gradcheck(dp.floor, [X])  # right: it is constant around X


def test_one_wrong_input_of_several_is_caught():
    @dp.operator
    def product(x, y):
        return x * y

    @product.with_gradient
    def rule(g, node):
        return [g * node.inputs[1], g * node.inputs[1]]

    with pytest.raises(GradientError):
        dp.gradcheck(product, [X, X + 1])


def test_random_operators_draw_the_same_numbers():
    dp.manual_seed(3)
    dp.gradcheck(lambda x: F.dropout(x, 0.5) * dp.normal((3, 4)).astype("f64"), [X])
    after = dp.uniform((4,)).tolist()
    dp.manual_seed(3)
    F.dropout(dp.tensor(X), 0.5), dp.normal((3, 4))
    assert dp.uniform((4,)).tolist() == after


@pytest.mark.parametrize("call, error", [
    (lambda: dp.gradcheck(dp.exp, [np.arange(3)]), GraphError),
    (lambda: dp.gradcheck(dp.exp, []), GraphError),
    (lambda: dp.gradcheck(dp.exp, [X], order=3), GraphError),
    (lambda: dp.gradcheck(lambda x: x.astype("f32"), [X]), DtypeError),
    (lambda: dp.gradcheck(lambda x: 3.0, [X]), DtypeError),
])  # fmt: skip
def test_what_cannot_be_checked_is_an_error(call, error):
    with pytest.raises(error) as caught:
        call()
    check(caught)


def test_one_argument_needs_no_list():
    dp.gradcheck(lambda x: dp.tanh(x).sum(), np.ones(3) / 3)
