"""What an author may change between two calls of a compiled function, wherever it is kept."""

import collections
import enum
import functools
import types
from dataclasses import dataclass

import numpy as np
import pytest

import diptych as dp
from diptych import nn
from diptych.errors import FrozenValueError
from diptych.static.reached import LARGE

X = np.ones(3, np.float32)
CALLS = 6  # of a capture: from the fourth on native code looks whether all is as it was


class Plain:
    shared = 2.0

    def __init__(self):
        self._factor, self.bias = 2.0, 1.0

    def method(self):
        return self._factor

    @property
    def property_(self):
        return self._factor

    @functools.cached_property
    def cached(self):
        return Late.factor

    @classmethod
    def of_the_class(cls):
        return cls.shared

    @staticmethod
    def static():
        return Late.factor

    def __getitem__(self, key):
        return self._factor

    def __call__(self, x):
        return x * self._factor


class Late:
    factor = 2.0


class Heir(Late):
    pass


class Below(Plain):
    shared = 5.0

    def method(self):
        return super().method()

    def of_super(self):
        return super().shared

    @dp.compile
    def compiled(self, x):
        return x * self._factor


class Made:
    def __init__(self):
        self.factor = Late.factor


@dataclass(slots=True)
class Slots:
    factor: float = 2.0


class Choice(enum.Enum):
    SMALL = 2.0
    LARGE = 3.0


class Net(nn.Module):
    def __init__(self):
        self.factors = [[2.0]]

    @property
    def factor(self):
        return self.factors[0][0]

    def forward(self, x):
        return x * self.factor


PLAIN, BELOW, SLOTS, SPACE = Plain(), Below(), Slots(), types.SimpleNamespace(factor=2.0)
NESTED = {"a": {"b": [2.0]}}
CHOICES, MEMBERS, ARRAY = {"now": Choice.SMALL}, {1, 2}, np.array([2.0], np.float32)
MODULE = types.ModuleType("settings_of_the_author")
MODULE.FACTOR, MODULE.helper = 2.0, lambda x: x * Late.factor
ORDERED, NET = collections.OrderedDict(inner={"factor": 2.0}), Net()
max = 2.0  # a global may have the name of a builtin


def helper(x):
    return x * SPACE.factor


helper.factor = 2.0


def by_default(x, factors=(NESTED["a"],)):
    return x * factors[0]["b"][0]


def by_keyword(x, *, net=NET):
    return net(x)


def helper_first(x):
    y = helper(x)
    return y + SPACE.zero


SPACE.zero = 0.0
ON = PLAIN


def put(holder, name):
    """Set an attribute, or an element, to 3 and back."""
    if isinstance(holder, dict | list | np.ndarray):
        return lambda value: holder.__setitem__(name, value)
    return lambda value: setattr(holder, name, value)


def replace(members, old, new):
    members.discard(old)
    members.add(new)


CASES = {
    "a method": (lambda x: x * ON.method(), put(PLAIN, "_factor")),
    "a property": (lambda x: x * ON.property_, put(PLAIN, "_factor")),
    "a method of super": (lambda x: x * BELOW.method(), put(BELOW, "_factor")),
    "a value of super": (lambda x: x * BELOW.of_super(), put(Plain, "shared")),
    "a compiled method": (BELOW.compiled, put(BELOW, "_factor")),
    "a compiled method that is called": (lambda x: BELOW.compiled(x), put(BELOW, "_factor")),
    "a class method": (lambda x: x * ON.of_the_class(), put(Plain, "shared")),
    "a static method": (lambda x: x * ON.static(), put(Late, "factor")),
    "an element": (lambda x: x * ON["factor"], put(PLAIN, "_factor")),
    "getattr": (lambda x: x * getattr(ON, "_factor"), put(PLAIN, "_factor")),  # noqa: B009
    "an object that is called": (PLAIN, put(PLAIN, "_factor")),
    "a bound method": (Plain.__call__.__get__(PLAIN), put(PLAIN, "_factor")),
    "a class": (lambda x: x * Heir.factor, put(Late, "factor")),
    "an object made inside": (lambda x: x * Made().factor, put(Late, "factor")),
    "slots": (lambda x: x * SLOTS.factor, put(SLOTS, "factor")),
    "a name space": (lambda x: x * SPACE.factor, put(SPACE, "factor")),
    "a name that only a helper has": (helper_first, put(SPACE, "factor")),
    "an attribute of a function": (lambda x: x * helper.factor, put(helper, "factor")),
    "a module": (lambda x: x * MODULE.FACTOR, put(MODULE, "FACTOR")),
    "a function of a module": (lambda x: MODULE.helper(x), put(Late, "factor")),
    "containers in containers": (lambda x: x * NESTED["a"]["b"][0], put(NESTED["a"]["b"], 0)),
    "an ordered dict": (lambda x: x * ORDERED["inner"]["factor"], put(ORDERED["inner"], "factor")),
    "a value by default": (by_default, put(NESTED["a"]["b"], 0)),
    "a keyword by default": (by_keyword, put(NET.factors[0], 0)),
    "a part of a module": (lambda x: NET(x), put(NET.factors[0], 0)),
    "a partial function": (functools.partial(lambda o, x: x * o.bias, PLAIN), put(PLAIN, "bias")),
    "keywords of a partial function": (
        functools.partial(lambda x, o: x * o["b"][0], o=NESTED["a"]), put(NESTED["a"]["b"], 0),
    ),
    "a member of a set": (
        lambda x: x * (3.0 if 3 in MEMBERS else 2.0),
        lambda value: replace(MEMBERS, *((2, 3) if value == 3.0 else (3, 2))),
    ),
    "a choice": (
        lambda x: x * CHOICES["now"].value, lambda v: CHOICES.__setitem__("now", Choice(v)),
    ),
    "an array that Python reads": (lambda x: x * float(ARRAY[0]), put(ARRAY, 0)),
    "an element of an array": (lambda x: x * ARRAY[0], put(ARRAY, 0)),
    "the name of a builtin": (lambda x: x * max, put(globals(), "max")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_change_is_seen(case):
    function, change = case
    call = dp.compile(function)
    before = [PLAIN.bias, PLAIN._factor]
    change(2.0)
    try:
        for value in (2.0, 3.0, 2.0):
            change(value)
            for _ in range(CALLS):
                assert call(X).tolist() == [value] * 3
        assert sum(map(len, call.captures.values())) == 2
        assert call.last.steady is not None
    finally:
        change(2.0)
        PLAIN.bias, PLAIN._factor = before


def test_a_large_array_that_an_operator_reads_is_compared():
    table = np.ones((LARGE // 4 + 1,), np.float32)
    call = dp.compile(lambda x: x * table[-1:] + table.sum() - table[:-1].sum())
    held = [table]
    assert call(X).tolist() == [2.0] * 3
    table[-1] = 2.0
    assert held and call(X).tolist() == [4.0] * 3


def test_a_method_of_a_trainer_follows_the_mode_of_its_model():
    class Trainer:
        def __init__(self):
            self.model, self.epoch = nn.Dropout(0.5), 0

        def step(self, x):
            return self.forward(x)

        def forward(self, x):
            return self.model(x)

        def fit(self):
            for _ in range(CALLS):
                self.epoch += 1
                call(X)

    trainer = Trainer()
    call = dp.compile(trainer.step)
    trainer.model.eval()
    trainer.fit()
    assert call(X).tolist() == [1.0] * 3
    assert sum(map(len, call.captures.values())) == 1  # what the step does not name may change
    trainer.model.train()
    assert set(call(np.ones(64, np.float32)).tolist()) == {0.0, 2.0}
    assert set(call(X).tolist()) <= {0.0, 2.0}


def test_what_a_method_changes_is_an_error():
    class Counter:
        def __init__(self):
            self.count, self.log = 0, {"values": []}

        def counts(self, x):
            self.count += 1
            return x

        def logs(self, x):
            self.log["values"].append(1)
            return x

    counter = Counter()
    with pytest.raises(FrozenValueError, match=r"Counter\.count changed"):
        dp.compile(counter.counts)(X)
    with pytest.raises(FrozenValueError, match="inside of a list changed"):
        dp.compile(counter.logs)(X)


def test_a_sequential_that_grows_is_captured_anew():
    model = nn.Sequential(nn.Linear(3, 3))
    step = dp.compile(lambda x: model(x).sum())
    x = np.full((2, 3), -1.0, np.float32)

    def same():
        assert step(x).item() == model(x).sum().item()

    same()
    model.append(nn.ReLU())
    same()
    setattr(model, "1", nn.Sigmoid())
    same()
    model.append([nn.Tanh()])
    same()
    getattr(model, "2").append(nn.Linear(3, 2))
    same()
    delattr(model, "1")
    same()
    with dp.no_recompile():
        same()


def test_module_dicts_and_lists_that_change_are_captured_anew():
    named, listed = nn.ModuleDict(), nn.ModuleList()

    def run(x):
        for layer in [*named.values(), *listed]:
            x = layer(x)
        return x.sum()

    step = dp.compile(run)
    x = np.full((2, 3), -1.0, np.float32)
    changes = [
        lambda: None, lambda: named.update({"a": nn.Linear(3, 3)}),
        lambda: named.update({"b": nn.ReLU()}), lambda: listed.append(nn.Linear(3, 2)),
        lambda: named.update({"a": nn.Linear(3, 3)}), lambda: listed.insert(0, nn.Sigmoid()),
        lambda: named.update({"a": named.pop("a")}), lambda: listed.pop(), named.clear,
    ]  # fmt: skip
    for change in changes:
        change()
        assert step(x).item() == run(x).item()
