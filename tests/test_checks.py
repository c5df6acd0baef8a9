"""The lines of the native checks one by one: each holds, fails, and lets an interrupt through."""

import numpy as np
import pytest

import diptych as dp
from diptych.runtime import checks

X, Y = np.ones((5, 6), np.float32), np.arange(5)


class Thing:
    kind = 7


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
    holds = made.function()

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
    def function(raised):
        def fail():
            raise raised

        made = checks.Checks()
        made.argument(X, True)
        made.true(fail)
        return made.function()

    for raised in (KeyError("a"), KeyboardInterrupt()):
        with pytest.raises(type(raised)):
            function(raised)(X)

    class Odd:
        def __init__(self, raised):
            self.raised = raised

        @property
        def value(self):
            raise self.raised

    for raised in (AttributeError("a"), ZeroDivisionError()):
        made = checks.Checks()
        made.attribute(Odd(raised), "value", None)
        assert made.function()() is None
    made = checks.Checks()
    made.attribute(Odd(KeyboardInterrupt()), "value", None)
    with pytest.raises(KeyboardInterrupt):
        made.function()()


def test_another_layout_is_noticed(monkeypatch):
    array = np.zeros((3, 5), np.float32)[:, ::2]
    assert checks._laid_out([array.copy()[:, ::2]]) and not checks._laid_out([array])
    for name in ("RANK", "DATA", "DIMS", "STRIDES", "DESCR"):
        right = getattr(checks, name)
        monkeypatch.setattr(checks, name, right - 8 if name != "DESCR" else right + 8)
        assert not checks._laid_out([array.copy()[:, ::2]])
        monkeypatch.setattr(checks, name, right)
