"""Values, gradients and errors against the tables of facts from outside: on both devices, in both
panels. The numbers are somebody else's, hence the tolerance; the four runs have the same bits."""

import functools
import re
from operator import attrgetter

import numpy as np
import pytest
from outside_arrays import ARRAYS
from outside_elements import ELEMENTS
from outside_rules import OWN_RULES, REFUSED

import diptych as dp
from diptych.ops.base import plain_array

TOGETHER = 40  # lines that are computed in one graph: it is compiled once
RUNS = [(panel, device) for panel in ("dynamic", "compiled") for device in ("cpu", "reference")]


def chunks(table, size=TOGETHER):
    return [tuple(table[n : n + size]) for n in range(0, len(table), size)]


PARTS = [part for table in (ELEMENTS, ARRAYS, OWN_RULES) for part in chunks(table)]
PLACE = {case.name: (part, n) for part in PARTS for n, case in enumerate(part)}
CASES = [case for part in PARTS for case in part]


@pytest.fixture(autouse=True)
def same_device():
    yield
    dp.use_device("cpu")


def leaves_of(case):
    arrays = [plain_array(a) for a in case.inputs]
    return [dp.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]


def floats(leaves):
    return list(filter(attrgetter("requires_grad"), leaves))


def cotangent(value):
    """1, 2, 3, ... in row-major order."""
    return dp.arange(1, value.size + 1, dtype=value.dtype).reshape(value.shape)


def by_backward(part, leaves):
    """The values of lines, and their slopes as backward accumulates them."""
    values = [case.call(*given) for case, given in zip(part, leaves, strict=True)]
    for value in values:
        if value.requires_grad:
            value.backward(cotangent(value))
    return [
        [value, *[leaf.grad for leaf in floats(given)]]
        for value, given in zip(values, leaves, strict=True)
    ]


def by_partials(part, leaves):
    """The same by partials, in one compiled function."""

    def differentiated(case, given):
        value = case.call(*given)
        if not value.requires_grad:
            return [value]
        return [value, *dp.partials((value * cotangent(value)).sum(), floats(given))]

    return dp.compile(lambda leaves: [*map(differentiated, part, leaves)])(leaves)


@functools.cache
def computed(panel, device, part):
    """The value and the slopes of every line of a part; a slope that nothing reaches is 0."""
    dp.use_device(device)
    dp.manual_seed(0)
    leaves = [leaves_of(case) for case in part]
    results = (by_backward if panel == "dynamic" else by_partials)(part, leaves)
    for line, given in zip(results, leaves, strict=True):
        line += [None] * (1 + len(floats(given)) - len(line))
        for n, leaf in enumerate(floats(given), 1):
            line[n] = np.zeros(leaf.shape, leaf.dtype.numpy) if line[n] is None else line[n].numpy()
        line[0] = line[0].numpy()
    return results


def agree(found, expected, signed=True):
    """Shape, dtype, places of NaN and, where `signed`, signs of zeros exactly; numbers nearly."""
    expected = plain_array(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if found.dtype.kind == "f":
        digits = 5e-6 if found.dtype == np.float32 else 1e-11
        np.testing.assert_allclose(found, expected, rtol=digits, atol=0)
        both = (found == 0) & (expected == 0) & signed
        assert (np.signbit(found) == np.signbit(expected))[both].all()
    else:
        assert found.tolist() == expected.tolist()


def bits(array):
    """The bits, where all NaNs are one."""
    return np.where(np.isnan(array), np.nan, array).tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_facts_from_outside(case):
    part, place = PLACE[case.name]
    runs = [computed(panel, device, part)[place] for panel, device in RUNS]
    value, *slopes = runs[0]
    agree(value, case.value)
    arrays = [plain_array(a) for a in case.inputs]
    types = [a.dtype for a in arrays if a.dtype.kind == "f"]
    if not case.slopes:
        assert not any(s.any() for s in slopes)
    else:
        for slope, expected, dtype in zip(slopes, case.slopes, types, strict=True):
            agree(slope, plain_array(expected).astype(dtype), signed=False)
    for other in runs[1:]:
        assert [bits(a) for a in other] == [bits(a) for a in runs[0]]


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.name)
@pytest.mark.parametrize(("panel", "device"), RUNS)
def test_what_is_refused(case, panel, device):
    dp.use_device(device)
    given = [dp.tensor(plain_array(a)) for a in case.inputs]
    call = case.call if panel == "dynamic" else dp.compile(case.call)
    with pytest.raises(case.error) as caught:
        call(*given).numpy()
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and re.search(r"outside\w*\.py:\d+\)$", lines[1]), lines


def test_every_line_has_a_name_of_its_own():
    names = [c.name for c in CASES + REFUSED]
    assert len(names) == len(set(names))
