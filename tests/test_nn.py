"""Modules, initialisers, state dicts and optimizers."""

import collections
import copy
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim
from diptych.errors import DtypeError, FileFormatError, MissingFileError, ShapeError
from diptych.nn import init

rng = np.random.default_rng(0)
X = rng.standard_normal((6, 4)).astype(np.float32)
Y = rng.integers(0, 3, 6)


class Net(nn.Module):
    def __init__(self):
        self.hidden = nn.Linear(4, 5)
        self.tail = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3, bias=False))
        self.scale = dp.Parameter(np.ones((), np.float32))

    def forward(self, x):
        return self.tail(self.hidden(x)) * self.scale


def test_names_modes_and_repr():
    model = Net()
    assert [n for n, _ in model.named_parameters()] == [
        "hidden.weight", "hidden.bias", "tail.2.weight", "scale",
    ]  # fmt: skip
    assert [type(m).__name__ for m in model.modules()] == [
        "Net", "Linear", "Sequential", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip
    assert model.eval() is model and not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())
    assert repr(model) == (
        "Net(\n  (hidden): Linear(4 -> 5)\n  (tail): Sequential(\n    (0): ReLU()\n"
        "    (1): Dropout(0.5)\n    (2): Linear(5 -> 3, no bias)\n  )\n)"
    )


def test_sequential_is_a_list_of_modules():
    model = nn.Sequential(nn.Linear(4, 3)).append(nn.ReLU())
    assert len(model) == 2 and isinstance(model[1], nn.ReLU) and next(iter(model)) is model[0]
    assert model[0].weight.shape == (3, 4)


def test_a_shared_parameter_is_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert len(model.parameters()) == 3


@pytest.mark.parametrize("layer", [
    nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.Tanh(),
    nn.Sigmoid(), nn.Softmax(), nn.LogSoftmax(), nn.Identity(), nn.Flatten(),
], ids=lambda m: type(m).__name__)  # fmt: skip
def test_layers_in_both_panels(layer):
    assert (
        dp.compile(lambda x: layer(x))(X).numpy().tobytes() == layer(dp.tensor(X)).numpy().tobytes()
    )
    assert repr(layer).startswith(type(layer).__name__)


def test_a_state_dict_loads_whole_or_not_at_all():
    model, other = Net(), Net()
    state = model.state_dict()
    other.load_state_dict(state)
    assert {k: v.tobytes() for k, v in other.state_dict().items()} == {
        k: v.tobytes() for k, v in state.items()
    }
    before = {k: v.tobytes() for k, v in model.state_dict().items()}
    for bad, error in [
        ({**state, "extra": X}, ShapeError), ({"hidden.weight": X}, ShapeError),
        ({**state, "scale": np.ones(2, np.float32)}, ShapeError),
        ({**state, "scale": [[1.0], [2.0, 3.0]]}, ShapeError),
        ({**{k: v + 1 for k, v in state.items()}, "scale": np.ones((), np.float64)}, DtypeError),
    ]:  # fmt: skip
        with pytest.raises(error):
            model.load_state_dict(bad)
        assert {k: v.tobytes() for k, v in model.state_dict().items()} == before


def test_a_state_dict_of_pytorch_loads(tmp_path):
    """Names and layouts as torch.nn.Sequential(Linear, ReLU, Linear).state_dict() has them."""
    state = {
        "0.weight": rng.standard_normal((5, 4)).astype(np.float32),
        "0.bias": np.ones(5, np.float32),
        "2.weight": rng.standard_normal((3, 5)).astype(np.float32),
        "2.bias": np.ones(3, np.float32),
    }
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model.load_state_dict(dp.load_state(tmp_path / "model.safetensors"))
    hidden = np.maximum(X @ state["0.weight"].T + 1, 0)
    expected = hidden @ state["2.weight"].T + 1
    assert np.allclose(model(dp.tensor(X)).numpy(), expected, atol=1e-5)
    dp.save_state(model.state_dict(), tmp_path / "again.safetensors")
    again = dp.load_state(tmp_path / "again.safetensors")
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in state.items()}


def test_states_that_are_missing_or_broken(tmp_path):
    with pytest.raises(MissingFileError, match="nothing"):
        dp.load_state(tmp_path / "nothing")
    (tmp_path / "bad").write_bytes(b"\x80\x04pickle")
    with pytest.raises(FileFormatError, match="bad"):
        dp.load_state(tmp_path / "bad")


def test_initialisers_have_their_distributions():
    dp.manual_seed(0)
    shape, n = (200, 300), 60_000
    draws = {
        "uniform": (init.uniform(shape, -1.0, 3.0), 1.0, 4 / 12**0.5),
        "normal": (init.normal(shape, 2.0, 0.5), 2.0, 0.5),
        "kaiming_uniform": (init.kaiming_uniform(shape), 0.0, 1 / 900**0.5),
        "kaiming_normal": (init.kaiming_normal(shape), 0.0, (2 / 300) ** 0.5),
        "xavier_uniform": (init.xavier_uniform(shape), 0.0, (2 / 500) ** 0.5),
        "xavier_normal": (init.xavier_normal(shape), 0.0, (2 / 500) ** 0.5),
    }
    for name, (values, mean, std) in draws.items():
        assert values.dtype == np.float32 and values.shape == shape, name
        assert abs(values.mean() - mean) < 5 * std / n**0.5, name
        assert abs(values.std() / std - 1) < 0.02, name
    assert (init.constant((2, 2), 3.0) == 3.0).all()
    with pytest.raises(ShapeError, match="two axes"):
        init.kaiming_normal((3,))
    with pytest.raises(ShapeError, match="features"):
        nn.Linear(0, 3)
    for shape, why in (((3.5, 3), "whole number"), ((-3, 3), "0 or more"), (3, "two axes")):
        with pytest.raises(ShapeError, match=why):
            init.kaiming_normal(shape)


@pytest.mark.parametrize("draw", ("normal", "uniform"))
@pytest.mark.parametrize("many", (1, 1 << 30), ids=("compiled", "reference"))
@pytest.mark.parametrize("shape", ((5, 7), (), (3, 0), (2, 3, 129)), ids=str)
def test_weights_are_the_numbers_that_dp_draws(shape, many, draw, monkeypatch):
    monkeypatch.setattr(init, f"MANY_{draw.upper()}", many)
    dp.manual_seed(3)
    weights = getattr(init, draw)(shape, -1.0, 3.0)
    dp.manual_seed(3)
    assert weights.shape == shape and weights.dtype == np.float32
    assert weights.tobytes() == getattr(dp, draw)(shape, -1.0, 3.0).numpy().tobytes()


def test_large_normal_weights_are_drawn_by_one_executable():
    assert init.normal((2 * init.MANY_NORMAL,)).std() > 0.9
    with dp.no_recompile():
        for shape in ((init.MANY_NORMAL,), (300, 400), (2 * init.MANY_NORMAL,)):
            calls = engine.STATISTICS.calls
            assert init.normal(shape).std() > 0.9
            assert engine.STATISTICS.calls == calls + 1


@pytest.mark.parametrize("device", ("cpu", "reference"))
def test_binary_cross_entropy_where_probabilities_are_0_and_1(device):
    """As PyTorch 2.13 has these numbers."""
    dp.use_device(device)
    try:
        p = dp.tensor([0.0, 1.0, 1.0, 0.0], requires_grad=True)
        target = dp.tensor([0.0, 1.0, 0.0, 1.0])
        loss = F.binary_cross_entropy(p, target)
        loss.backward()
        assert loss.item() == 50.0
        assert p.grad.numpy() == pytest.approx([0.0, 0.0, 2.5e11, -2.5e11], rel=1e-6)
        x = dp.tensor([-20.0, 20.0, 20.0, -120.0], requires_grad=True)
        loss = F.binary_cross_entropy_with_logits(x, target)
        loss.backward()
        assert loss.item() == 35.0
        expected = [0.25 / (1 + np.exp(20.0)), 0.0, 0.25, -0.25]
        assert x.grad.numpy() == pytest.approx(expected, rel=1e-6)
        x.grad = None
        F.binary_cross_entropy(F.sigmoid(x), target).backward()
        assert np.isfinite(x.grad.numpy()).all()
    finally:
        dp.use_device("cpu")


def test_permutations():
    dp.manual_seed(0)
    drawn = [dp.permutation(50).tolist() for _ in range(20)]
    assert all(sorted(p) == list(range(50)) for p in drawn)
    assert len({tuple(p) for p in drawn}) == 20
    firsts = np.bincount([dp.permutation(4).tolist()[0] for _ in range(400)], minlength=4)
    assert firsts.min() > 60


MAKE = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: optim.AdamW(p, 0.01, weight_decay=0.1),
}


def in_numpy(name, p, grads):
    """The same in f64 as PyTorch documents it."""
    v = m = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        if name in ("momentum", "adam"):
            g = g + (0.01 if name == "momentum" else 0.1) * p
        if name == "sgd":
            p = p - 0.1 * g
        elif name in ("momentum", "nesterov"):
            v = 0.9 * v + g
            p = p - 0.1 * (g + 0.9 * v if name == "nesterov" else v)
        else:
            if name == "adamw":
                p = p - 0.01 * 0.1 * p
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


@pytest.mark.parametrize("name", MAKE)
def test_optimizers_follow_their_formulas(name):
    start = rng.standard_normal(7)
    grads = rng.standard_normal((20, 7))
    parameter = dp.Parameter(start)
    optimizer = MAKE[name]([parameter])
    for g in grads:
        parameter.grad = dp.tensor(g)
        optimizer.step()
    assert np.abs(parameter.numpy() - in_numpy(name, start, grads)).max() < 1e-12


@pytest.mark.parametrize("name", MAKE)
def test_training_resumes_to_the_same_bits(name, tmp_path):
    def steps(model, optimizer, count):
        for _ in range(count):
            F.cross_entropy(model(dp.tensor(X)), dp.tensor(Y)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [v.tobytes() for v in model.state_dict().values()]

    dp.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = MAKE[name](model.parameters())
    steps(model, optimizer, 3)
    dp.save_state(model.state_dict(), tmp_path / "model")
    dp.save_state(optimizer.state_dict(), tmp_path / "optimizer")
    expected = steps(model, optimizer, 4)
    again = nn.Linear(4, 3)
    again.load_state_dict(dp.load_state(tmp_path / "model"))
    fresh = MAKE[name](again.parameters())
    fresh.lr = 7.0
    fresh.load_state_dict(dp.load_state(tmp_path / "optimizer"))
    assert steps(again, fresh, 4) == expected


def test_bad_optimizers():
    parameters = nn.Linear(2, 2).parameters()
    with pytest.raises(dp.DiptychError, match="needs parameters"):
        optim.SGD([])
    with pytest.raises(dp.DiptychError, match="not negative"):
        optim.SGD(parameters, lr=-1.0)
    with pytest.raises(ShapeError, match="one like it"):
        optim.SGD(parameters).load_state_dict({"lr": 0.1, "velocity.9": X})


def test_a_layer_that_is_not_there_says_what_is():
    with pytest.raises(
        AttributeError, match=r"(?s)no attribute 'Conv2d'.*Linear.* Module for your own"
    ):
        nn.Conv2d(1, 2, 3)
    assert not hasattr(nn, "LSTM")


def test_copies_and_pickles_of_models_are_their_own():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    twin = copy.deepcopy(model)
    again = pickle.loads(pickle.dumps(model))
    before = model.state_dict()["0.weight"].tobytes()
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    model(np.ones((1, 3), np.float32)).sum().backward()
    optimizer.step()
    assert model.state_dict()["0.weight"].tobytes() != before
    for other in (twin, again):
        assert other.state_dict()["0.weight"].tobytes() == before
        assert [p.trainable for p in other.parameters()] == [True, True]


def test_layers_in_a_list_are_found():
    class Deep(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(3, 3) for _ in range(2)]

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model = Deep()
    names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert [n for n, _ in model.named_parameters()] == names
    assert repr(model).splitlines()[1] == "  (layers.0): Linear(3 -> 3)"


class Branches(nn.Module):
    """Layers in containers of every kind; those of `late` come after it is made."""

    def __init__(self, wrapped):
        list_, dict_ = (nn.ModuleList, nn.ModuleDict) if wrapped else (list, dict)
        self.heads = dict_({"left": nn.Linear(4, 3), "right": nn.Linear(4, 3, bias=False)})
        self.layers = list_([nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2), nn.Tanh())])
        self.late = dict_({})
        scales = [dp.Parameter(np.ones(2, np.float32))]
        self.scales = nn.ParameterList(scales) if wrapped else scales
        shifts = {"last": dp.Parameter(np.zeros(2, np.float32))}
        self.shifts = nn.ParameterDict(shifts) if wrapped else shifts
        self.sizes = {"plain": 3, 5: [1, {2}]}

    def forward(self, x):
        x = self.heads["left"](x) + self.heads["right"](x)
        for layer in self.layers:
            x = layer(x)
        for layer in self.late.values():
            x = layer(x)
        return x * self.scales[0] + self.shifts["last"]


BRANCHES = [
    "heads.left.weight", "heads.left.bias", "heads.right.weight", "layers.0.weight",
    "layers.0.bias", "layers.1.0.weight", "layers.1.0.bias", "late.x.weight", "late.x.bias",
    "scales.0", "shifts.last",
]  # fmt: skip


@pytest.mark.parametrize("wrapped", (True, False), ids=("nn", "plain"))
def test_layers_in_containers_are_trained_and_saved(wrapped):
    dp.manual_seed(0)
    model = Branches(wrapped)
    step = dp.compile(lambda x: model(x).sum())
    first = step(X).item()
    model.late["x"] = nn.Linear(2, 2)
    assert [n for n, _ in model.named_parameters()] == BRANCHES
    assert step(X).item() == model(X).sum().item() != first
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    before = model.state_dict()
    (model(X) * model(X)).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert all(before[n].tobytes() != after[n].tobytes() for n in BRANCHES)
    other = Branches(not wrapped)
    other.late["x"] = nn.Linear(2, 2)
    other.load_state_dict(after)
    assert other(X).numpy().tobytes() == model(X).numpy().tobytes()
    assert not any(m.training for m in model.eval().modules())
    twin = copy.deepcopy(model)
    assert twin(X).numpy().tobytes() == model(X).numpy().tobytes()
    model.layers.append(nn.ReLU())
    assert step(X).item() == model(X).sum().item()
    assert "(heads" in repr(model) and "Linear(3 -> 3)" in repr(model)


def test_containers_nest_and_may_hold_themselves():
    class Deep(nn.Module):
        def __init__(self):
            self.grid = {"rows": [[nn.Linear(1, 1, bias=False)], (nn.Linear(1, 1, bias=False),)]}
            self.grid["itself"] = self.grid
            self.shared = [self.grid["rows"]]

    names = [n for n, _ in Deep().named_parameters()]
    rows = ["0.0.weight", "1.0.weight"]
    assert names == [f"grid.rows.{n}" for n in rows] + [f"shared.0.{n}" for n in rows]
    assert len(Deep().parameters()) == 2


@pytest.mark.parametrize(("value", "said"), [
    ({nn.ReLU()}, "a set"), ({"a": nn.ReLU()}.values(), "dict_values"),
    ([frozenset([dp.Parameter(X)])], "frozenset"), (collections.deque([nn.ReLU()]), "deque"),
    ({1: nn.ReLU()}, r"inner\[1\]"), ({"a.b": [nn.ReLU()]}, r"inner\['a.b'\]"),
    ({"": nn.ReLU()}, r"inner\[''\]"),
], ids=["set", "values", "frozenset", "deque", "number", "dot", "empty"])  # fmt: skip
def test_layers_that_have_no_name_are_an_error(value, said):
    class Lost(nn.Module):
        def __init__(self):
            self.inner = value

    for use in (Lost().parameters, Lost().state_dict, Lost().eval, lambda: repr(Lost())):
        with pytest.raises(dp.DiptychError, match=said) as caught:
            use()
        assert len(str(caught.value).splitlines()) == 3


def test_module_lists_and_dicts_are_lists_and_dicts():
    a, b, c = nn.ReLU(), nn.Tanh(), nn.Linear(2, 1)
    layers = nn.ModuleList([a]).append(b).extend([c])
    assert len(layers) == 3 and list(layers) == [a, b, c] and layers[-1] is c and b in layers
    assert [*layers[1:]] == [b, c] and isinstance(layers[1:], nn.ModuleList)
    layers.insert(0, c)
    layers[1] = b
    del layers[2]
    assert list(layers) == [c, b, c] and layers.pop() is c
    both = layers + [a]  # noqa: RUF005
    assert list(both) == [c, b, a] and layers is layers.extend([])
    assert repr(nn.ModuleList([c])) == "ModuleList(\n  (0): Linear(2 -> 1)\n)"
    by_name = nn.ModuleDict([("a", a)])
    by_name["c"] = c
    by_name.update({"b": b})
    assert list(by_name) == list(by_name.keys()) == ["a", "c", "b"] and "c" in by_name
    assert [*by_name.values()] == [a, c, b] and dict(by_name.items())["b"] is b
    assert by_name.pop("a") is a and by_name.get("a") is None and len(by_name) == 2
    del by_name["b"]
    assert list(by_name.state_dict()) == ["c.weight", "c.bias"]
    by_name.clear()
    assert not by_name.parameters()
    for bad in (
        lambda: nn.ModuleList([nn.Linear]), lambda: nn.ModuleList(a), lambda: layers(X),
        lambda: nn.ModuleDict({"a": F.relu}), lambda: nn.ModuleDict({"a.b": a}),
        lambda: nn.ParameterList([dp.tensor(X)]), lambda: nn.ParameterDict({"a": X}),
        lambda: nn.ParameterList(dp.Parameter(X)), lambda: by_name.update({3: a}),
    ):  # fmt: skip
        with pytest.raises(dp.DiptychError, match="test_nn") as caught:
            bad()
        assert len(str(caught.value).splitlines()) == 3


def test_modules_take_what_their_forward_takes():
    class Scaled(nn.Module):
        def forward(self, x, *, by=1.0):
            return x * by

    assert Scaled()(dp.tensor(2.0), by=3.0).item() == 6.0
    for layer in (nn.ReLU(), nn.Linear(2, 2), nn.Sequential(nn.ReLU())):
        with pytest.raises(TypeError, match="takes 2 positional arguments but 3"):
            layer(dp.tensor([1.0, 2.0]), 5)
    assert optim.clip_grad_norm_([], 1.0).item() == 0.0
