"""The call of a step that finds everything as it was: the native checks, and the way through Python
that decides where anything is different, give the same results and see the same changes."""

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim
from diptych.errors import DtypeError, FeedError, ValueRangeError
from diptych.runtime import call, checks, steady
from diptych.static.executor import STREAK, Plan

rng = np.random.default_rng(0)
X = rng.standard_normal((5, 6)).astype(np.float32)
Y = rng.integers(0, 3, 5)
FACTOR = 2.0


@pytest.fixture(params=[True, False], ids=["native", "python"])
def native(request, monkeypatch):
    """Whether calls are checked in native code."""
    if not request.param:
        monkeypatch.setattr(steady, "_maker", lambda: None)
    return request.param


@pytest.fixture
def looks(monkeypatch):
    """A list that grows by one wherever Python looks at a call."""
    found, run = [], Plan.call
    monkeypatch.setattr(Plan, "call", lambda *a: found.append(1) or run(*a))
    return found


@pytest.fixture(params=["captured", "program"])
def add_to(request):
    """A function of an array that adds it to a parameter and gives twice the sum, as an array."""
    total = dp.Parameter(np.zeros((2, 3), np.float32))

    def step(x):
        total.assign(total + x)
        return total * 2.0

    if request.param == "captured":
        fast = dp.compile(step)
        return total, lambda x: fast(x).numpy()
    with dp.Program() as program:
        twice = step(dp.data("x", [2, 3]))
    executor = dp.Executor()
    return total, lambda x: executor.run(program, {"x": x}, [twice])[0]


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def network(seed=0):
    dp.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3))


def train(wrap, make=lambda p: optim.SGD(p, lr=0.1), steps=12, between=lambda n, o, m: None):
    """The bits of all losses and weights."""
    model = network()
    optimizer = make(model.parameters())

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run, found = wrap(step), []
    for n in range(steps):
        between(n, optimizer, model)
        found.append(run(X, Y).numpy().tobytes())
    return found, [v.tobytes() for v in model.state_dict().values()]


def dynamic(step):
    return lambda x, y: step(dp.tensor(x), dp.tensor(y))


def rates(n, optimizer, model):
    optimizer.lr = [0.1, 0.1, 0.2, 0.0, -0.0, 0.3][n % 6]


def modes(n, optimizer, model):
    model.train(n % 6 < 3)


def views(n, optimizer, model, held=[]):  # noqa: B006  (lives across steps)
    held[:] = [model.parameters()[0].numpy()] if n % 4 == 3 else []


def waiting(n, optimizer, model):
    if n % 5 == 4:
        first = model.parameters()[0]
        first.assign(first * 0.5)


@pytest.mark.parametrize("between", [lambda *_: None, rates, modes, views, waiting])
@pytest.mark.parametrize("make", [
    lambda p: optim.SGD(p, lr=0.1), lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: optim.Adam(p, lr=0.01),
], ids=["sgd", "momentum", "adam"])  # fmt: skip
def test_a_step_has_the_bits_of_the_dynamic_panel(native, between, make):
    assert train(dp.compile, make, between=between) == train(dynamic, make, between=between)


def test_a_learning_rate_of_zero_has_a_sign(native):
    weight = dp.Parameter(-0.0 * ones(1))
    optimizer = optim.SGD([weight], lr=0.0)

    @dp.compile
    def step(x):
        (weight * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(6):
        step(ones(1))  # fma(-0.0, 1, -0.0)
    assert np.signbit(weight.numpy()).all()
    optimizer.lr = -0.0
    step(ones(1))
    assert not np.signbit(weight.numpy()).any()


def test_python_looks_at_the_first_calls_only(native, looks, add_to):
    _, run = add_to
    for n in range(1, 21):
        assert run(ones(2, 3)).tolist() == np.full((2, 3), 2 * n).tolist()
    assert len(looks) == (STREAK if native else 20)


def test_a_step_of_training_is_checked_in_native_code(looks):
    train(dp.compile, steps=20)
    assert len(looks) == STREAK


def test_a_held_array_is_not_written(native, looks, add_to):
    total, run = add_to
    for _ in range(6):
        run(ones(2, 3))
    held = total.numpy()
    run(ones(2, 3))
    assert held.tolist() == np.full((2, 3), 6).tolist()
    assert total.numpy().tolist() == np.full((2, 3), 7).tolist()
    del held
    before = len(looks)
    for _ in range(3):
        run(ones(2, 3))
    assert total.numpy().tolist() == np.full((2, 3), 10).tolist()
    assert len(looks) == before + (0 if native else 3)


def test_a_handle_of_the_old_value_keeps_it(native, add_to):
    total, run = add_to
    for _ in range(5):
        run(ones(2, 3))
    before = total + 0.0  # waits, and reads the parameter as it is now
    run(ones(2, 3))
    assert before.tolist() == np.full((2, 3), 5).tolist()
    assert total.tolist() == np.full((2, 3), 6).tolist()


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize("other", [
    np.ones((3, 2), np.float32).T, np.ones((4, 6), np.float32)[::2, ::2],
    np.ones((2, 3), np.float32)[::-1, ::-1], np.ones((2, 3), np.float32).view(Sub),
    np.broadcast_to(np.float32(1), (2, 3)),
    dp.tensor(np.ones((2, 3), np.float32)), np.ones(25, np.uint8)[1:].view(np.float32) * 0 + 1,
], ids=["turned", "gaps", "backwards", "subclass", "stride 0", "tensor", "flat"])  # fmt: skip
def test_arguments_that_lie_elsewhere_or_otherwise(native, add_to, other):
    _, run = add_to
    for _ in range(5):
        run(ones(2, 3))
    if np.shape(other) != (2, 3):
        other = np.reshape(other, (2, 3))
    for n in range(6, 11):
        assert run(other).tolist() == np.full((2, 3), 2 * n).tolist()
    assert run(ones(2, 3)).tolist() == np.full((2, 3), 22).tolist()


def test_arguments_that_are_read_only_or_unaligned(native, looks, add_to):
    _, run = add_to
    for _ in range(5):
        run(ones(2, 3))
    fixed = ones(2, 3)
    fixed.flags.writeable = False
    assert run(fixed).tolist() == np.full((2, 3), 12).tolist()
    odd = np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3)
    odd[...] = 1
    assert run(odd).tolist() == np.full((2, 3), 14).tolist()


def test_a_dtype_of_the_other_byte_order_is_an_error(native, add_to):
    _, run = add_to
    for _ in range(5):
        run(ones(2, 3))
    with pytest.raises(DtypeError):
        run(ones(2, 3).astype(">f4"))
    assert run(ones(2, 3)).tolist() == np.full((2, 3), 12).tolist()


def test_arguments_of_another_type_are_another_capture(native):
    fast = dp.compile(lambda x: x + 1)
    for _ in range(5):
        fast(ones(2, 3))
    shapes = [(), (6,), (1, 1), (0, 3), (2, 3, 1)]
    others = [ones(2, 3, dtype=np.float64), ones(2, 3, dtype=np.int32), np.float32(1)]
    for x in [*[ones(*s) for s in shapes], *others]:
        for _ in range(5):
            found = fast(x)
            assert found.shape == x.shape and found.dtype.numpy == x.dtype
            assert found.numpy().tobytes() == (x + x.dtype.type(1)).tobytes()
        assert fast(ones(2, 3)).tolist() == np.full((2, 3), 2).tolist()


def test_more_arguments_fewer_and_by_name(native):
    fast = dp.compile(lambda x, y=None: x + 1 if y is None else x + y)
    for _ in range(5):
        assert fast(X).tolist() == (X + 1).tolist()
    assert fast(X, X).tolist() == (X + X).tolist()
    assert fast(X, y=X).tolist() == (X + X).tolist()
    assert fast(X).tolist() == (X + 1).tolist()
    with pytest.raises(TypeError):
        fast()


def test_an_argument_that_is_not_read_still_has_its_type(native):
    fast = dp.compile(lambda x, y: x + float(y.ndim))
    for _ in range(5):
        assert fast(ones(2), ones(1)).tolist() == [2, 2]
    assert fast(ones(2), ones(1, 1)).tolist() == [3, 3]


def test_whatever_a_function_names_may_change(native, monkeypatch):
    class Settings:
        shared = 1.0

        def __init__(self):
            self.own, self.listed, self.named = 1.0, [1.0, 2.0], {"a": 1.0, "b": 2.0}

    settings, closed, array = Settings(), 1.0, ones(2)

    @dp.compile
    def fast(x):
        first, *_ = settings.named.values()
        numbers = settings.own * settings.shared * settings.listed[0] * first
        return x * array * (numbers * closed * FACTOR)

    def check(expected):
        for _ in range(STREAK + 2):
            assert fast(ones(2)).tolist() == [expected, expected]

    check(2.0)
    settings.own = 3.0
    check(6.0)
    Settings.shared = 2.0
    check(12.0)
    settings.shared = 1.0
    check(6.0)
    settings.listed[0] = 2.0
    check(12.0)
    settings.listed.insert(0, 1.0)
    check(6.0)
    settings.named["a"] = 2.0
    check(12.0)
    settings.named["a"] = settings.named.pop("a")  # the same entries in another order
    check(12.0)
    settings.named = {"a": 1.0}
    check(6.0)
    closed = 5.0
    check(30.0)
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    check(15.0)
    array[...] = 2
    check(30.0)
    array = 3 * ones(2)
    check(45.0)


def test_an_equal_number_is_no_change(native, looks):
    class Settings:
        scale = 2.5

    settings = Settings()
    fast = dp.compile(lambda x: x * settings.scale)
    for _ in range(5):
        fast(X)
    settings.scale = float("2.5")
    assert fast(X).tolist() == (X * np.float32(2.5)).tolist()
    assert [len(c) for c in fast.captures.values()] == [1]


def test_replaced_parameters_and_layers(native):
    model = network().eval()
    fast = dp.compile(lambda x: model(x))

    def check():
        for _ in range(STREAK + 2):
            assert fast(X).numpy().tobytes() == model(dp.tensor(X)).numpy().tobytes()

    check()
    first = vars(model)["0"]
    first.weight = dp.Parameter(first.weight.numpy() * 2)
    check()
    first.weight.assign(first.weight.numpy() * 2)
    check()
    vars(model)["3"].bias = None
    check()
    vars(model)["1"].slope = 3  # one attribute more
    check()


def test_the_modes_and_gradients_that_are_there(native):
    weight = dp.Parameter(ones(2))

    @dp.compile
    def fast(x):
        loss = (weight * x).sum()
        if loss.requires_grad:
            loss.backward()
        return loss

    for n in range(1, 7):
        fast(ones(2))
        assert weight.grad.tolist() == [n, n]
    for _ in range(6):
        weight.grad = None
        fast(ones(2))
        assert weight.grad.tolist() == [1, 1]
    with dp.no_grad():
        for _ in range(5):
            assert fast(ones(2)).item() == 2
    assert weight.grad.tolist() == [1, 1]


def test_sizes_that_change_for_a_batch(native):
    fast = dp.compile(lambda x: (x * 2.0).sum(axis=0))
    for size in [4] * 6 + [3] + [4] * 6 + [3] * 6 + [1, 4, 7, 4, 4, 4, 4]:
        assert fast(ones(size, 2)).tolist() == [2 * size, 2 * size]


def test_random_numbers_go_on_whoever_looks(native):
    def drawn(at):
        dp.manual_seed(5)
        fast, found = dp.compile(lambda x: x + dp.uniform((2,))), []
        for n in range(10):
            x = np.ones((2, 2), np.float32)[0] if n != at else np.ones((2, 2), np.float32)[:, 0]
            found.append(fast(x).tolist())
        return found

    assert drawn(None) == drawn(6) != []
    assert len(set(map(str, drawn(None)))) == 10


def test_the_reference_device_is_asked_for_in_between(native, looks, add_to):
    _, run = add_to
    for _ in range(5):
        run(ones(2, 3))
    dp.use_device("reference")
    before = len(looks)
    try:
        for n in range(6, 11):
            assert run(ones(2, 3)).tolist() == np.full((2, 3), 2 * n).tolist()
        assert len(looks) == before + 5
    finally:
        dp.use_device("cpu")
    assert run(ones(2, 3)).tolist() == np.full((2, 3), 22).tolist()


def test_feeds_that_are_missing_unknown_or_in_another_order(native):
    with dp.Program() as program:
        a, b = dp.data("a", [2]), dp.data("b", [2])
        c = a - b
    executor = dp.Executor()
    for _ in range(6):
        assert executor.run(program, {"a": ones(2), "b": 2 * ones(2)}, [c])[0].tolist() == [-1, -1]
    assert executor.run(program, {"b": 2 * ones(2), "a": ones(2)}, [c])[0].tolist() == [-1, -1]
    tensors = {"b": dp.tensor([2, 2.0]), "a": dp.tensor([1, 1.0])}
    assert executor.run(program, tensors, ["subtract"])[0].tolist() == [-1, -1]
    for wrong in ({"c": ones(2)}, {"a": ones(3), "b": ones(3)}, {"b": ones(2, dtype=np.int64)}):
        with pytest.raises(FeedError):
            executor.run(program, {"a": ones(2), **wrong}, [c])
    with pytest.raises(FeedError):
        executor.run(program, {"a": ones(2)}, [c])
    with pytest.raises(DtypeError):
        executor.run(program, {"a": ones(2), "b": None}, [c])
    with pytest.raises(FeedError):
        executor.run(None, {}, [])
    assert executor.run(program, {"a": ones(2), "b": 2 * ones(2)}, [c])[0].tolist() == [-1, -1]


def test_two_threads_add_to_one_parameter(native, add_to):
    total, run = add_to
    problems = []

    def work():
        try:
            for _ in range(400):
                run(ones(2, 3))
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems
    assert total.tolist() == np.full((2, 3), 1200).tolist()


def test_a_failed_call_changes_nothing(native):
    table = dp.Parameter(ones(3))

    @dp.compile
    def fast(n):
        found = dp.gather(table, n).sum()
        table.assign(table + 1.0)
        return found

    good, bad = np.array([0, 2]), np.array([0, 3])
    for n in range(1, 6):
        assert fast(good).item() == 2 * n
    for _ in range(5):
        with pytest.raises(ValueRangeError):
            fast(bad)
    assert fast(good).item() == 12 and table.tolist() == [7, 7, 7]


def test_ten_thousand_calls_keep_no_references():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    fast, other, bad = dp.compile(step), np.asfortranarray(X), np.full_like(Y, 3)

    def work(calls):
        for _ in range(calls):
            fast(X, Y)
        for _ in range(calls // 10):
            fast(other, Y)  # the checks fail, and Python looks
        for _ in range(calls // 10):
            with pytest.raises(ValueRangeError):
                fast(X, bad)

    work(100)
    own = [X, Y, other, bad, vars(model), model, optimizer, step, fast.last, *model.parameters()]
    shared = [None, 0, True, X.dtype, Y.dtype, np.ndarray, Exception, "node", "value"]

    def counts():
        gc.collect()
        nodes = [p.node for p in model.parameters()]
        held = [list(map(sys.getrefcount, found)) for found in (own, nodes, shared)]
        return [*held, [sys.getrefcount(n.value) for n in nodes]]

    before = counts()
    work(10_000)
    after = counts()
    assert after[:2] == before[:2] and after[3] == before[3]
    assert max(abs(a - b) for a, b in zip(after[2], before[2], strict=True)) < 500


def test_a_dropped_step_frees_what_it_reached():
    class Model(nn.Module):
        def __init__(self):
            self.weight = dp.Parameter(ones(3))

    model = Model()
    fast = dp.compile(lambda x, m=model: x * m.weight)
    del model
    for _ in range(6):
        fast(ones(3))
    assert fast.last.steady is not None
    seen = weakref.ref(fast.last), weakref.ref(fast.function.__defaults__[0])
    del fast
    gc.collect()
    assert [s() for s in seen] == [None, None]


def test_a_process_may_end_in_a_call():
    """A daemon is in a native call when the interpreter goes."""
    code = """if True:
        import threading, time, numpy as np, diptych as dp
        w = dp.Parameter(np.ones((300, 300), np.float32))
        fast = dp.compile(lambda x: x @ w)
        x = np.ones((300, 300), np.float32)
        def work():
            while True:
                fast(x)
        fast(x)
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
        print("end", flush=True)
    """
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        assert (done.returncode, done.stdout.strip()) == (0, b"end"), done.stderr


def test_without_a_trampoline_there_are_no_checks(monkeypatch, looks, add_to):
    """As on an interpreter whose objects are laid out in another way."""
    monkeypatch.setattr(checks, "trampoline", lambda: None)
    for known in (checks.reads_right, steady._maker):
        known.cache_clear()
    try:
        _, run = add_to
        for n in range(1, 8):
            assert run(ones(2, 3)).tolist() == np.full((2, 3), 2 * n).tolist()
        assert len(looks) == 7
    finally:
        for known in (checks.reads_right, steady._maker):
            known.cache_clear()


def test_a_native_call_lets_others_run():
    """The trampoline gives the interpreter away: a thread goes on while a long call lasts."""
    weight = dp.Parameter(rng.standard_normal((1500, 1500)).astype(np.float32))
    fast, x = dp.compile(lambda x: x @ weight), rng.standard_normal((1500, 1500)).astype(np.float32)
    fast(x)
    count, stop = [0], threading.Event()

    def work():
        while not stop.is_set():
            count[0] += 1

    other = threading.Thread(target=work)
    other.start()
    before = count[0]
    for _ in range(3):
        fast(x)
    meanwhile = count[0] - before
    stop.set()
    other.join()
    assert call.trampoline() is None or meanwhile > 100


def test_programs_and_fetches_that_alternate(looks):
    """Each has a call of its own; what was recorded since, or another list or dict, is seen."""
    weight = dp.Parameter(ones(2, 3))
    with dp.Program() as first:
        x = dp.data("x", [2, 3])
        double, sum_ = x * 2.0 * weight, x + weight
    with dp.Program() as second:
        triple = dp.data("x", [2, 3]) * 3.0
    executor, given = dp.Executor(), ones(2, 3)
    for _ in range(3 * STREAK):
        (a,) = executor.run(first, {"x": given}, [double])
        b, c = executor.run(first, {"x": given}, [sum_, double])
        (d,) = executor.run(second, {"x": given}, [triple])
        assert [v.flat[0] for v in (a, b, c, d)] == [2, 2, 2, 3]
    assert len(looks) == 3 * STREAK
    with first:
        half = double * 0.25
    for fetch in ([half], ["multiply"], (half,)):
        assert executor.run(first, {"x": given}, fetch)[0].shape == (2, 3)
    with pytest.raises(FeedError):
        executor.run(second, {"y": given}, [triple])
    with pytest.raises(FeedError):
        executor.run(second, {"x": given, "y": given}, [triple])


def test_a_program_that_was_run_often_is_let_go():
    weight = dp.Parameter(ones(2, 3))
    with dp.Program() as program:
        out = dp.data("x", [2, 3]) * weight
    for _ in range(3 * STREAK):
        program.run({"x": ones(2, 3)}, [out])
    gone = weakref.ref(program)
    del program, out
    gc.collect()
    assert gone() is None


# Another Python: its counts of references are higher by a number.
COUNTED = """
import sys

real, more = sys.getrefcount, int(sys.argv[1])
sys.getrefcount = lambda it: real(it) + more

import numpy as np
import diptych as dp
from diptych.runtime import memory
from diptych.runtime.call import address

make = memory.maker((5000,), np.dtype("f4"), True)
first, second = (address(make()) for _ in range(2))
third = make()
assert address(third) == first and address(make()) == second and address(make()) != first

own = dp.compile(lambda x: x * np.ones(3, np.float32))
assert own(np.ones(3, np.float32)).tolist() == [1.0] * 3
assert [c.guard.arrays for found in own.captures.values() for c in found] == [[]]
table = np.ones(1 << 19, np.float32)  # too large to be looked at before it is used
held = dp.compile(lambda x: (x + table).sum())
assert held(np.zeros(1, np.float32)).item() == 1 << 19
table[0] = 2.0
assert held(np.zeros(1, np.float32)).item() == (1 << 19) + 1

for wrap in (dp.compile, lambda function: function):
    p = dp.Parameter(np.zeros(5000, np.float32))

    @wrap
    def step():
        p.assign(p + 1.0)

    places = []
    for _ in range(4):
        step()
        p.numpy()
        places.append(address(p.node.value))
    assert len(set(places)) == 1, places
    view = p.numpy()
    step()
    assert p.numpy()[0] == 5.0 and view[0] == 4.0
print("as ever")
"""


@pytest.mark.parametrize("more", [0, -1, 3])
def test_counts_of_references_are_relative(more):
    command = [sys.executable, "-c", COUNTED, str(more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "as ever\n", done.stderr
