"""Programs and their saved form: the same bits, any batch size, whole or not at all."""

import os
import subprocess
import sys

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import nn, optim
from diptych.errors import (
    DtypeError,
    FeedError,
    FileFormatError,
    MissingFileError,
    StartupError,
)

rng = np.random.default_rng(0)
X = rng.standard_normal((9, 20)).astype(np.float32)
Y = rng.integers(0, 10, 9)


def trained(dropout=0.3):
    """A program with updates and dropout, its scores, and its executor after some steps."""
    with dp.Program() as program:
        dp.manual_seed(5)
        x, y = dp.placeholder("x", [None, 20]), dp.placeholder("y", [None], "i64")
        model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 10))
        scores = model(x)
        optim.SGD(model.parameters(), lr=0.1).minimize(F.cross_entropy(scores, y))
    executor = dp.Executor()
    executor.run(program.startup)
    for _ in range(3):
        executor.run(program, {"x": X, "y": Y})
    return program, scores, executor, model


def test_a_test_clone_has_no_updates_and_no_dropout():
    program, scores, executor, model = trained()
    test = program.clone(for_test=True)
    before = [v.tobytes() for v in model.state_dict().values()]
    (a,) = executor.run(test, {"x": X}, [scores])
    (b,) = executor.run(test, {"x": X}, [scores])
    assert a.tobytes() == b.tobytes()
    assert [v.tobytes() for v in model.state_dict().values()] == before
    model.eval()
    with dp.no_grad():
        assert model(dp.tensor(X)).numpy().tobytes() == a.tobytes()


def test_a_batch_of_no_rows_trains_and_answers():
    program, scores, executor, model = trained(0.0)
    empty = {"x": X[:0], "y": Y[:0]}
    assert executor.run(program.clone(for_test=True), empty, [scores])[0].shape == (0, 10)
    dp.use_device("reference")
    try:
        assert executor.run(program.clone(for_test=True), empty, [scores])[0].shape == (0, 10)
    finally:
        dp.use_device("cpu")
    before = [v.tobytes() for v in model.state_dict().values()]
    assert executor.run(program, empty, [scores])[0].shape == (0, 10)
    assert [v.tobytes() for v in model.state_dict().values()] == before


def test_saved_and_loaded_without_the_authors_code(tmp_path):
    program, scores, executor, _ = trained()
    test = program.clone(for_test=True)
    path = tmp_path / "model.safetensors"
    dp.save(test, path, ["x"], [scores])
    expected = executor.run(test, {"x": X}, [scores])[0]
    np.save(tmp_path / "x.npy", X)
    code = (
        "import sys, numpy as np, diptych as dp\n"
        f"program = dp.load({str(path)!r})\n"
        f"x = np.load({str(tmp_path / 'x.npy')!r})\n"
        "whole = program.run({'x': x})[0]\n"
        "rows = [program.run({'x': x[n : n + 1]})[0] for n in range(len(x))]\n"
        "assert np.concatenate(rows).tobytes() == whole.tobytes()\n"
        "sys.stdout.buffer.write(whole.tobytes())\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout == expected.tobytes()


def test_a_loaded_program_has_the_lines_and_names_of_its_author(tmp_path):
    program, scores, *_ = trained()
    dp.save(program.clone(for_test=True), tmp_path / "m", ["x"], [scores])
    loaded = dp.load(tmp_path / "m")
    text = repr(loaded.trace({"x": X[:1]}))
    assert "test_save.py:" in text and "relu" in text


def test_saving_again_after_loading_is_the_same_file(tmp_path):
    program, scores, *_ = trained()
    dp.save(program.clone(for_test=True), tmp_path / "a", ["x"], [scores])
    loaded = dp.load(tmp_path / "a")
    dp.save(loaded, tmp_path / "b", ["x"], loaded.outputs)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_cannot_be_saved(tmp_path):
    program, scores, *_ = trained()
    with pytest.raises(FeedError, match="random numbers"):
        dp.save(program, tmp_path / "m", ["x"], [scores])
    test = program.clone(for_test=True)
    with pytest.raises(FeedError, match=r"missing \['x'\]"):
        dp.save(test, tmp_path / "m", [], [scores])
    with pytest.raises(FeedError, match="unknown 'z'"):
        dp.save(test, tmp_path / "m", ["z"], [scores])
    with pytest.raises(FeedError, match="outputs"):
        dp.save(test, tmp_path / "m", ["x"], [])
    with dp.Program() as fresh:
        x = dp.placeholder("x", [None, 3])
        out = nn.Linear(3, 2)(x)
    with pytest.raises(StartupError, match="startup"):
        dp.save(fresh, tmp_path / "m", ["x"], [out])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    program, scores, *_ = trained()
    test = program.clone(for_test=True)
    path = tmp_path / "m"
    dp.save(test, path, ["x"], [scores])
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        dp.save(test, path, ["x"], [scores])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(MissingFileError, match=r"nothing_here.*\(test_save.py"):
        dp.load(tmp_path / "nothing_here")
    program, scores, *_ = trained()
    path = tmp_path / "m"
    dp.save(program.clone(for_test=True), path, ["x"], [scores])
    whole = path.read_bytes()
    for broken in [b"", b"hello", whole[:50], whole[:-5], whole.replace(b"relu", b"evil")]:
        path.write_bytes(broken)
        with pytest.raises(FileFormatError, match=r"test_save\.py"):
            dp.load(path)


def saved_files(folder):
    """A file of each kind that diptych writes, and the function that reads it."""
    program, scores, _, model = trained()
    dp.save(program.clone(for_test=True), folder / "program", ["x"], [scores])
    dp.save_state(model.state_dict(), folder / "state")
    descent = optim.Adam(model.parameters())
    dp.save_state(descent.state_dict(), folder / "optimizer")
    return [
        (folder / "program", dp.load),
        (folder / "state", dp.load_state),
        (folder / "optimizer", dp.load_state),
    ]


def test_a_flipped_byte_anywhere_is_an_error(tmp_path):
    for path, read in saved_files(tmp_path):
        whole = path.read_bytes()
        read(path)
        header = 8 + int.from_bytes(whole[:8], "little")
        rest = range(header, len(whole), max(1, (len(whole) - header) // 200))
        for place in [*range(header), *rest]:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(damaged)
            with pytest.raises(FileFormatError) as caught:
                read(path)
            assert len(str(caught.value).splitlines()) == 3, place
        path.write_bytes(whole)
        read(path)


def test_random_damage_is_an_error_or_nothing(tmp_path):
    for path, read in saved_files(tmp_path):
        whole = path.read_bytes()
        before = dp.load_state(path)
        for _ in range(200):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), rng.integers(1, 4)):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                read(path)
                after = dp.load_state(path)
            except FileFormatError:
                continue
            assert {n: a.tobytes() for n, a in after.items()} == {
                n: a.tobytes() for n, a in before.items()
            }


def test_files_without_a_digest_are_of_others_or_old(tmp_path):
    from safetensors.numpy import save_file

    program, scores, executor, model = trained()
    test = program.clone(for_test=True)
    dp.save(test, tmp_path / "m", ["x"], [scores])
    metadata, arrays = stored(tmp_path / "m")
    del metadata["diptych.blake2b"]
    save_file(arrays, tmp_path / "new", metadata)
    with pytest.raises(FileFormatError, match="missing"):
        dp.load(tmp_path / "new")
    metadata["diptych"] = metadata["diptych"].replace("program 2", "program 1")
    save_file(arrays, tmp_path / "old", metadata)
    (expected,) = executor.run(test, {"x": X}, [scores])
    assert dp.load(tmp_path / "old").run({"x": X})[0].tobytes() == expected.tobytes()
    save_file(arrays, tmp_path / "other", {"format": "pt"})
    assert set(dp.load_state(tmp_path / "other")) == set(arrays)
    with pytest.raises(FileFormatError, match=r"file of weights[\s\S]*dp\.load_state"):
        dp.load(tmp_path / "other")
    dp.save_state(model.state_dict(), tmp_path / "state")
    with pytest.raises(FileFormatError, match=r"diptych state 1[\s\S]*dp\.load_state"):
        dp.load(tmp_path / "state")


def stored(path):
    import safetensors

    with safetensors.safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        return dict(file.metadata()), {name: file.get_tensor(name) for name in names}


def test_arrays_that_no_file_can_have_are_errors_of_three_lines(tmp_path):
    for value in (np.ones(2, np.complex128), np.ones(2, "V4"), [[1], [2, 3]], "text", None):
        with pytest.raises(DtypeError, match=r"test_save\.py") as caught:
            dp.save_state({"a": value}, tmp_path / "s")
        assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(DtypeError, match="any name but __metadata__"):
        dp.save_state({"__metadata__": np.ones(2)}, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    big = np.arange(6, dtype=">f4").reshape(2, 3)[:, ::-1]
    state = {
        "big": big, "": np.float32(2), "é\n": np.ones((0, 3)), "f16": np.ones(3, np.float16),
        "bool": np.array([True, False, True]), "c": np.ones(2, np.complex64), "list": [1, 2],
    }  # fmt: skip
    dp.save_state(state, tmp_path / "s")
    loaded = dp.load_state(tmp_path / "s")
    assert set(loaded) == set(state)
    for name, value in state.items():
        assert loaded[name].dtype == np.asarray(value).dtype.newbyteorder("=")
        assert loaded[name].tolist() == np.asarray(value).tolist()
    with pytest.raises(MissingFileError, match="''"):
        dp.load_state("")


def test_watch_and_trace_show_every_value():
    program, scores, executor, _ = trained(0.0)
    rows = []

    def watch(name, where, value):
        rows.append((name, str(where), value))

    executor.run(program.clone(for_test=True), {"x": X, "y": Y}, [scores], watch)
    names = [name for name, _, _ in rows]
    assert {"linear", "relu", "linear_1", "cross_entropy"} <= set(names)
    assert all(where.startswith("test_save.py:") for _, where, _ in rows)
    trace = program.trace({"x": X, "y": Y})
    assert (trace["relu"] >= 0).all()
    assert "minimize(F.cross_entropy(scores, y))" in repr(trace)
    with pytest.raises(FeedError, match="nodes of its program"):
        trace["nothing"]


def test_a_model_built_outside_a_program_keeps_its_weights_unless_startup_runs():
    dp.manual_seed(1)
    model = nn.Linear(3, 2)
    before = model.weight.numpy().tobytes()
    with dp.Program() as program:
        x = dp.placeholder("x", [None, 3])
        out = model(x)
    executor = dp.Executor()
    executor.run(program.startup)
    executor.run(program, {"x": np.ones((1, 3), np.float32)}, [out])
    assert model.weight.numpy().tobytes() == before


def test_operators_of_other_authors_are_saved_as_what_they_are_made_of(tmp_path):
    from diptych.ops.base import ALL

    @dp.operator
    def swish_of_tests(x, *, beta=1.0):
        """x * sigmoid(beta * x)."""
        return dp.multiply(x, dp.sigmoid(dp.multiply(x, beta)))

    try:
        with dp.Program() as program:
            x = dp.data("x", [None, 3])
            y = swish_of_tests(x, beta=2.0)
        assert y.node.op.name == "swish_of_tests"
        dp.save(program, tmp_path / "p", ["x"], [y])
    finally:
        del ALL["swish_of_tests"]
    value = np.array([[0.5, -1.0, 2.0]], np.float32)
    (found,) = dp.load(tmp_path / "p").run({"x": value})
    x = dp.tensor(value)
    assert found.tobytes() == (x * dp.sigmoid(x * 2.0)).numpy().tobytes()
    with pytest.raises(dp.DiptychError, match="name of its own"):

        @dp.operator
        def relu(x):
            return x


RULES = {
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, 0.05),
}
SCHEDULES = {
    "steps": lambda o: optim.StepLR(o, every=2, gamma=0.3),
    "cosine": lambda o: optim.CosineLR(o, total=5),
}


class Run:
    """A training run, and all that it goes on from."""

    def __init__(self, rule, schedule, seed):
        dp.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 3))
        optimizer = RULES[rule](self.model.parameters())
        rng = np.random.default_rng(0)
        rows = dp.data.arrays(rng.standard_normal((22, 6)).astype("f4"), rng.integers(0, 3, 22))
        loader = dp.data.DataLoader(rows, 4, shuffle=True, seed=seed)
        self.parts = {
            "model": self.model,
            "optimizer": optimizer,
            "schedule": SCHEDULES[schedule](optimizer),
            "loader": loader,
            "generator": dp.default_generator(),
        }

        def step(x, y):
            loss = F.cross_entropy(self.model(x), y)
            optimizer.minimize(loss)
            return loss

        self.step = {"dynamic": step, "compiled": dp.compile(step), "scan": dp.compile(step)}

    def train(self, mode, epochs):
        losses = []
        for _ in range(epochs):
            if mode == "scan":
                losses += dp.scan(self.step[mode], self.parts["loader"])[0].tolist()
            else:
                losses += [self.step[mode](x, y).item() for x, y in self.parts["loader"]]
            self.parts["schedule"].step()
        return losses, self.parts["optimizer"].lr, [p.tolist() for p in self.model.parameters()]

    def state(self):
        each = {part: owner.state_dict() for part, owner in self.parts.items()}
        return {f"{part} {name}": a for part, state in each.items() for name, a in state.items()}

    def load(self, state, order):
        for part in order:
            own = {n.split()[1]: a for n, a in state.items() if n.split()[0] == part}
            self.parts[part].load_state_dict(own)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_that_is_resumed_has_the_bits_of_one_that_was_not(rule, schedule, tmp_path):
    modes = ["dynamic", "compiled", "scan"]
    whole = Run(rule, schedule, 1)
    start = whole.train("dynamic", 3)
    dp.save_state(whole.state(), tmp_path / "run.safetensors")
    expected = whole.train("dynamic", 3)
    for mode in modes:
        other = Run(rule, schedule, 2)
        assert other.train(mode, 1)[0] != start[0][:6]
        order = list(other.parts)
        other.load(
            dp.load_state(tmp_path / "run.safetensors"), order if mode == "scan" else order[::-1]
        )
        assert other.train(mode, 3) == expected, mode


def test_states_of_numbers_say_what_they_take():
    run = Run("adam", "steps", 1)
    run.train("dynamic", 1)
    before = run.state()
    for part in ("schedule", "loader", "generator"):
        good = run.parts[part].state_dict()
        name = list(good)[1]
        for bad in ({}, {**good, "more": 1}, {**good, name: np.zeros(2)}, {**good, name: 0.5}):
            with pytest.raises(DtypeError, match=rf"the state of a {part}[\s\S]*state_dict"):
                run.parts[part].load_state_dict(bad)
        with pytest.raises(DtypeError, match=r"dp.load_state\('run'\)"):
            run.parts[part].load_state_dict("run")
    with pytest.raises(dp.DiptychError, match="learning rate"):
        run.parts["schedule"].load_state_dict({"base": -1.0, "count": 3})
    after = run.state()
    assert {n: a.tobytes() for n, a in after.items()} == {n: a.tobytes() for n, a in before.items()}
