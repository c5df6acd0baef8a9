"""What users ask of differentiation: grad, value_and_grad, partials, no_grad, in both panels."""

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim
from diptych.errors import DiptychError, DtypeError, GraphError

X = np.array([0.5, -1.25, 2.0], np.float32)


def cube(x):
    return (x * x * x).sum()


@pytest.mark.parametrize("wrap", [lambda f: f, dp.compile], ids=["dynamic", "compiled"])
def test_grad_to_third_order(wrap):
    first = dp.grad(cube)
    second = dp.grad(lambda x: first(x).sum())
    third = dp.grad(lambda x: second(x).sum())
    for order, expected in [(first, 3 * X * X), (second, 6 * X), (third, 6 * np.ones(3))]:
        assert np.allclose(wrap(order)(dp.tensor(X)).numpy(), expected, rtol=1e-6)


def test_value_and_grad_has_the_value_of_the_function_and_passes_signed_zeros():
    value, slope = dp.value_and_grad(lambda x, y: (x / y).sum(), 1)(1.0, dp.tensor([-0.0]))
    assert value.item() == -np.inf and slope.numpy()[0] == -np.inf
    value, slope = dp.value_and_grad(cube)(X)
    assert value.item() == cube(dp.tensor(X)).item()
    with dp.no_grad():
        assert dp.grad(cube)(X).numpy().tolist() == slope.numpy().tolist()
    with pytest.raises(DtypeError, match="i64"):
        dp.grad(lambda n: n.sum())(np.arange(3))


def test_grad_reaches_parameters_as_well():
    model = nn.Linear(3, 1)

    def penalty(x):
        return (dp.grad(lambda v: (model(v) ** 2).sum())(x) ** 2).sum()

    penalty(dp.tensor(X)).backward()
    weight = model.weight.detach()
    score = (weight * X).sum() + model.bias.detach()
    slope = 2 * score * weight
    by_hand = 2 * (slope * (2 * score + 0 * weight)) + 2 * (slope * 2 * weight).sum() * X
    assert np.allclose(model.weight.grad.numpy(), by_hand.numpy(), rtol=1e-4)


def test_partials_of_any_node_of_a_program():
    with dp.Program() as program:
        a, b = dp.data("a", []), dp.data("b", [])
        c = 2 * a
        y = c + 3 * b
        slopes = dp.partials(y, [a, b, c, y])
    found = program.run({"a": np.float32(3), "b": np.float32(4)}, [y, *slopes])
    assert [float(v) for v in found] == [18, 2, 3, 1, 1]


def test_partials_after_minimize_in_a_program():
    dp.manual_seed(0)
    with dp.Program() as program:
        x = dp.data("x", [None, 3])
        hidden = F.elu(nn.Linear(3, 4)(x))
        loss = (hidden * hidden).sum()
        optim.SGD(program.parameters(), lr=0.1).minimize(loss)
        slope = dp.partials(loss, [hidden])[0]
    executor = dp.Executor()
    executor.run(program.startup)
    h, s = executor.run(program, {"x": X[None]}, [hidden, slope])
    assert (s == 2 * h).all() and h.any()


def test_partials_where_no_history_leads_say_so():
    a, b = dp.tensor(3.0), dp.tensor(4.0, requires_grad=True)
    with pytest.raises(GraphError, match="requires_grad"):
        dp.partials(a * b, [a])
    assert dp.partials(b * b, [b])[0].item() == 8
    assert dp.partials(b * 1, [dp.tensor(1.0, requires_grad=True)])[0].item() == 0
    y = b * b
    y.backward()
    with pytest.raises(DiptychError, match="retain_graph"):
        dp.partials(y, [b])


def test_backward_without_a_leaf_says_so_in_both_panels():
    with pytest.raises(GraphError, match="depends on a parameter"):
        dp.tensor(X).sum().backward()
    with dp.Program(), pytest.raises(GraphError, match="depends on a parameter"):
        dp.data("x", [3]).sum().backward()
