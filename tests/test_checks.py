"""The lines of the native checks one by one: each holds, fails, and lets an interrupt through."""

import sys

import numpy as np
import pytest

import diptych as dp
from diptych.runtime import checks, steady
from diptych.runtime.call import TABLE, address
from diptych.runtime.code import Code, host_target

X, Y = np.ones((5, 6), np.float32), np.arange(5)


class Thing:
    kind = 7


def function(made, inputs=0, code=0, live=(), makers=()):
    """What calls native code that does nothing but return `code`, where the checks hold: it gives
    its inputs, and after them what the makers make."""
    triple = host_target("native").triple
    text = f'target triple = "{triple}"\ndefine i64 @f(ptr %t, ptr %a) {{\n  ret i64 {code}\n}}\n'
    entry = Code(text, host_target("native"), ["f"])
    outputs = inputs + len(makers)
    words = [entry.address("f"), inputs, outputs, 0, inputs + outputs]
    frame = np.array([*words, *[0] * (inputs + outputs + 1)], np.int64)
    assert len(words) == TABLE
    places = [*[(n, None) for n in range(inputs)], *[(steady.NEW, make) for make in makers]]
    made = steady.steady_call(made, address(frame), live, places, outputs)
    return lambda *args, kept=(entry, frame): made(0, *args)


def test_every_line_of_the_checks_holds_and_fails():
    thing, array = Thing(), np.ones((2, 3), np.float32)
    parameter = dp.Parameter(np.ones(4, np.float32))
    thing.one, thing.many, thing.named = object(), [object(), object()], {"a": thing, "b": array}
    inside, held = object(), object()
    cell = (lambda: inside).__closure__[0]
    made = checks.Checks()
    made.item(vars(thing), "one", thing.one)
    made.absent(vars(thing), "other")
    made.attribute(thing, "kind", Thing.kind)
    made.attribute(cell, "cell_contents", inside)
    made.elements(thing.many, 2, list(thing.many))
    made.entries(thing.named, 2, list(thing.named.items()))
    made.true(lambda: thing.kind < 8)
    made.argument(array, True)
    made.argument(Y, False)
    made.value(parameter, True)
    holds = function(made, 2)

    def same():
        found = holds(array, Y)
        assert found is None or (len(found) == 2 and found[0] is array)
        assert found is None or found[1] is parameter.node.value
        return found is not None

    def differs(change, back):
        change()
        assert not same()
        back()
        assert same()

    assert same() and holds(array) is None and holds(array, Y, Y) is None and holds() is None
    assert holds(Y, array) is None and holds(None, Y) is None and holds(array, 3) is None
    one, many, named = thing.one, list(thing.many), dict(thing.named)
    differs(lambda: setattr(thing, "one", object()), lambda: setattr(thing, "one", one))
    differs(lambda: delattr(thing, "one"), lambda: setattr(thing, "one", one))
    differs(lambda: setattr(thing, "other", 1), lambda: delattr(thing, "other"))
    differs(lambda: setattr(Thing, "kind", 8), lambda: setattr(Thing, "kind", 7))
    differs(lambda: delattr(Thing, "kind"), lambda: setattr(Thing, "kind", 7))
    kept = inside
    differs(
        lambda: setattr(cell, "cell_contents", held), lambda: setattr(cell, "cell_contents", kept)
    )
    differs(lambda: thing.many.reverse(), lambda: thing.many.reverse())
    differs(lambda: thing.many.append(1), lambda: thing.many.pop())
    differs(lambda: thing.many.clear(), lambda: thing.many.extend(many))
    differs(lambda: thing.named.update(a=1), lambda: thing.named.update(a=thing))
    differs(lambda: thing.named.update(c=1), lambda: thing.named.pop("c"))
    differs(thing.named.clear, lambda: thing.named.update(named))
    differs(lambda: thing.named.update(a=thing.named.pop("a")),
            lambda: thing.named.update(b=thing.named.pop("b")))  # fmt: skip
    node, values = parameter.node, [parameter.node.value]
    assert not same()
    values.clear()
    assert not same()
    del node
    assert same()


def test_errors_in_a_check():
    def failing(raised):
        def fail():
            raise raised

        made = checks.Checks()
        made.argument(X, True)
        made.true(fail)
        return function(made, 1)

    for raised in (KeyError("a"), KeyboardInterrupt()):
        with pytest.raises(type(raised)):
            failing(raised)(X)

    class Odd:
        def __init__(self, raised):
            self.raised = raised

        @property
        def value(self):
            raise self.raised

    for raised in (AttributeError("a"), ZeroDivisionError()):
        made = checks.Checks()
        made.attribute(Odd(raised), "value", None)
        assert function(made)() is None
    made = checks.Checks()
    made.attribute(Odd(KeyboardInterrupt()), "value", None)
    with pytest.raises(KeyboardInterrupt):
        function(made)()


def test_arguments_that_are_objects_lists_and_dicts():
    thing, other = Thing(), Thing()
    made = checks.Checks()
    made.same_argument(thing)
    made.dict_argument({"x": X, "y": Y})
    made.list_argument([thing, other])
    call = function(made, 2)

    def inputs(first=thing, feed=None, fetch=None):
        return call(first, feed or {"y": Y, "x": X}, [thing, other] if fetch is None else fetch)

    found = inputs()
    assert found[0] is X and found[1] is Y
    assert inputs(other) is None and inputs(None) is None
    for fetch in ([thing], [other, thing], [thing, other, thing], [], (thing, other), None, 5):
        assert call(thing, {"x": X, "y": Y}, fetch) is None

    class Dict(dict):
        pass

    for feed in (
        {"x": X}, {"x": X, "z": Y}, {"x": Y, "y": X}, {"x": X, "y": Y, "z": Y}, {"x": X, "y": 3},
        {"x": X, "y": None}, {"x": X, "y": Y.astype("i4")}, {"x": X[:1], "y": Y},
        {"x": X.T, "y": Y}, Dict(x=X, y=Y), [X, Y], None, {}, X,
    ):  # fmt: skip
        assert call(thing, feed, [thing, other]) is None, feed
    assert inputs() is not None and call(thing, {"x": X, "y": Y}) is None


def test_a_call_reads_numbers_makes_memory_and_tells_which_check_failed():
    made, read = checks.Checks(), []
    made.argument(X, True)

    def number():
        read.append(np.float32(len(read)).reshape(()))
        return read[-1]

    call = function(made, 2, live=[number], makers=[lambda: np.zeros(3)])
    for n in range(3):
        x, value, new = call(X)
        assert x is X and value is read[n] and new.tolist() == [0, 0, 0]
    assert call(Y) is None and len(read) == 3
    made = checks.Checks()
    made.argument(X, True)
    assert function(made, 1, code=7)(X) == 7


@pytest.mark.parametrize("place", ["live", "makers"])
def test_an_error_in_a_call_leaves_nothing_held(place):
    def fail():
        raise KeyboardInterrupt

    made = checks.Checks()
    made.argument(X, True)
    count = {"live": 2, "makers": 1}[place]
    call, before = function(made, count, **{place: [fail]}), sys.getrefcount(X)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            call(X)
    assert sys.getrefcount(X) == before


def test_slots_are_found():
    class Slots:
        __slots__ = ("first", "second")

    class Both(Slots):
        pass

    for kind in (Slots, Both):
        places = [checks.slot(kind, name) for name in Slots.__slots__]
        assert sorted(places) == sorted(set(places))
    with pytest.raises(LookupError):
        checks.slot(Thing, "kind")  # lies in a dict


def test_another_layout_is_noticed(monkeypatch):
    array = np.zeros((3, 5), np.float32)[:, ::2]
    assert checks._laid_out([array.copy()[:, ::2]]) and not checks._laid_out([array])
    for name in ("RANK", "DATA", "DIMS", "STRIDES", "DESCR"):
        right = getattr(checks, name)
        monkeypatch.setattr(checks, name, right - 8 if name != "DESCR" else right + 8)
        assert not checks._laid_out([array.copy()[:, ::2]])
        monkeypatch.setattr(checks, name, right)
