"""A case: a small program of diptych calls as text, and how it is run on a device.

The lines of a case are Python. `x0 = normal(N, 784)` is an input, drawn anew for every round;
`w0 = parameter(100, 784)` is a parameter. The other lines are one step, run once a round. The
settings stand before the lines, as comments.
"""

from __future__ import annotations

import dataclasses
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, optim
from diptych.dtypes import as_dtype
from diptych.dynamic import PANEL
from diptych.errors import InternalError, MissingNameError
from diptych.runtime.code import host_target

Array = np.ndarray[Any, Any]
Results = dict[str, Array]  # "round 0: v3" -> its value
MODES = ("eager", "dynamic", "looks", "natively", "compiled", "program", "scan")
NAME = re.compile(r"\b[xwv]\d+\b")


@dataclass(frozen=True)
class Case:
    """`rounds` are the sizes of N, a round for each; `target` is a CPU and facts that it is given
    instead of its own, as in `native lanes=8`."""

    lines: tuple[str, ...]
    rounds: tuple[int, ...] = (1,)
    mode: str = "dynamic"
    threads: int = 1
    target: str = "native"
    tiers: int = 0
    seed: int = 0

    def __str__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if f.name != "lines"]
        head = [f"# {f.name} = {getattr(self, f.name)!r}" for f in fields]
        return "\n".join([*head, *self.lines]) + "\n"

    @staticmethod
    def parse(text: str) -> Case:
        """Read the text of a case; comments that are no settings are passed over."""
        known = {f.name for f in dataclasses.fields(Case)}
        settings, lines = {}, []
        for line in filter(None, map(str.strip, text.splitlines())):
            name, equals, value = line.lstrip("# ").partition(" = ")
            if not line.startswith("#"):
                lines.append(line)
            elif equals and name in known:
                settings[name] = eval(value, {})
        case = Case(tuple(lines), **settings)
        if not case.body() or case.mode not in MODES:
            raise ValueError(f"no case: mode {case.mode!r}, {len(case.body())} lines of a step")
        return case

    def leaves(self, letter: str) -> list[tuple[str, str]]:
        """(name, expression) of the inputs, `x`, or of the parameters, `w`."""
        return [
            (m[1], m[2]) for line in self.lines if (m := re.match(rf"({letter}\d+) = (.*)", line))
        ]

    def optimizer(self) -> str:
        """The expression that makes the optimizer; empty where there is none."""
        found = [line for line in self.lines if line.startswith("optimizer = ")]
        return found[0].partition(" = ")[2] if found else ""

    def body(self) -> list[str]:
        """The lines of the step."""
        return [line for line in self.lines if not re.match(r"[xw]\d+ = |optimizer = ", line)]

    def results(self) -> list[str]:
        """The names of the values that the step returns."""
        last = self.lines[-1] if self.lines else ""
        return NAME.findall(last) if last.startswith("return") else []

    def source(self) -> str:
        """The step as a Python function of the inputs."""
        lines = self.body() or ["pass"]
        if self.mode == "looks":
            seen = [f"look('{v}', {v})" if v else "" for v in map(_looked_at, lines)]
            lines = [s for pair in zip(lines, seen) for s in pair if s]
        if any(re.search(r"\bN\b", line) for line in lines):
            lines.insert(0, "N = x0.shape[0]")
        inputs = ", ".join(name for name, _ in self.leaves("x"))
        return "\n    ".join([f"def step({inputs}):", *lines]) + "\n"


def _looked_at(line: str) -> str:
    """The value of a line that is looked at in the mode `looks`: every third or so."""
    name = line.partition(" = ")[0]
    return name if re.fullmatch(r"v\d+", name) and zlib.crc32(line.encode()) % 3 == 0 else ""


# ---- values of leaves ----------------------------------------------------------------------


class Values:
    """What the expressions of leaves mean: arrays, drawn from one generator."""

    def __init__(self, *seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int, dtype: str = "f32") -> Array:
        return self.rng.standard_normal(shape, as_dtype(dtype).numpy)

    def unit(self, *shape: int, dtype: str = "f32") -> Array:
        return self.rng.uniform(0.05, 0.95, shape).astype(as_dtype(dtype).numpy)

    def special(self, *shape: int, dtype: str = "f32") -> Array:
        """Here and there zeros of both signs, infinities, NaN and subnormals."""
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-42, 1.0, 3e38])
        values = np.where(
            self.rng.random(shape) < 0.02, self.rng.choice(odd, shape), self.normal(*shape)
        )
        return values.astype(as_dtype(dtype).numpy)

    def below(self, limit: int, *shape: int) -> Array:
        return self.rng.integers(0, limit, shape)

    def whole(self, *shape: int, dtype: str = "i32") -> Array:
        return self.rng.integers(-50 if dtype[0] == "i" else 0, 50, shape).astype(
            as_dtype(dtype).numpy
        )

    def parameter(self, *shape: int, dtype: str = "f32") -> Array:
        """Numbers that keep the size of what they are multiplied with."""
        scale = np.sqrt(shape[-1] if shape else 1)
        return (self.normal(*shape, dtype=dtype) / scale).astype(as_dtype(dtype).numpy)


LEAVES = ("normal", "unit", "special", "below", "whole", "parameter")


def array(expression: str, size: int, *seed: int) -> Array:
    """The value of a leaf where N is `size`."""
    values = Values(*seed)
    return eval(expression, {"N": size, **{name: getattr(values, name) for name in LEAVES}})


def placeholder(name: str, expression: str) -> dp.Tensor:
    """A placeholder of the program that is being recorded, like the leaf."""
    dtypes = {"below": "i64", "whole": "i32"}

    def made(kind: str) -> Callable[..., dp.Tensor]:
        first = 1 if kind == "below" else 0

        def make(*shape: Any, dtype: str = dtypes.get(kind, "f32")) -> dp.Tensor:
            return dp.placeholder(name, list(shape[first:]), dtype)

        return make

    return eval(expression, {"N": "N", **{kind: made(kind) for kind in LEAVES}})


# ---- settings ------------------------------------------------------------------------------


def forget() -> None:
    """Make the dynamic panel as it is in a new process, so that no case depends on others."""
    dp.finish_compiling()
    dp.set_eager(False)
    vars(PANEL).clear()
    PANEL.__init__()  # type: ignore[misc]


def set_target(text: str) -> None:
    """Compile for a CPU, with other facts for the choice of tiles, lanes and layouts."""
    name, *facts = text.split()
    given = {key: float(value) for key, _, value in (f.partition("=") for f in facts)}
    types = {"has_fma": bool, "has_masks": bool, "broadcast": float}
    changed: Any = {key: types.get(key, int)(value) for key, value in given.items()}
    os.environ["DIPTYCH_CPU"] = name
    engine.host_target = lambda name: dataclasses.replace(host_target(name), **changed)  # type: ignore[attr-defined]


# ---- running -------------------------------------------------------------------------------


class Run:
    """One run of a case: all rounds, on one device. The reference runs every call at once."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.found = case, Results()
        forget()
        set_target(case.target)
        os.environ["DIPTYCH_TIERS"] = str(case.tiers)
        dp.use_device(device)
        dp.set_threads(case.threads)
        dp.manual_seed(case.seed)
        self.mode = "eager" if device == "reference" else case.mode
        dp.set_eager(self.mode == "eager")
        if self.mode == "natively":
            PANEL.learn()
        self.parameters = {
            name: dp.Parameter(array(expression, 0, case.seed, n))
            for n, (name, expression) in enumerate(case.leaves("w"))
        }
        self.optimizer = made_optimizer(case, list(self.parameters.values()))
        scope = {**namespace(), **self.parameters, "optimizer": self.optimizer, "look": self.look}
        exec(compile(case.source(), "<case>", "exec"), scope)
        self.step = scope["step"]

    def look(self, name: str, value: Any) -> None:
        self.note(f"{name} looked at", value)

    def note(self, name: str, value: Any) -> None:
        self.found[f"round {self.round}: {name}"] = np.asarray(value)

    def inputs(self, number: int) -> dict[str, Array]:
        """The inputs of a round."""
        return {
            name: array(expression, self.case.rounds[number], self.case.seed, 1 + number, n)
            for n, (name, expression) in enumerate(self.case.leaves("x"))
        }

    def all(self) -> Results:
        """Run every round and return everything that can be seen of it."""
        with np.errstate(all="ignore"):
            {"program": self.program, "scan": self.scan}.get(self.mode, self.calls)()
        return self.found

    def calls(self) -> None:
        step = dp.compile(self.step) if self.mode == "compiled" else self.step
        for number in range(len(self.case.rounds)):
            self.round = number
            if self.case.mode == "program":  # whose gradients are those of one run
                self.forget_gradients()
            given: Any = list(self.inputs(number).values())
            made = step(*(given if self.mode == "compiled" else map(dp.tensor, given)))
            for name, value in zip(self.case.results(), made or ()):
                self.note(name, value.numpy())
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:
                    self.note(f"gradient of {name}", parameter.grad.numpy())
            self.note_state()

    def forget_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def note_state(self) -> None:
        """Parameters, and what the optimizer keeps."""
        for name, parameter in self.parameters.items():
            self.note(name, parameter.numpy())
        for n, state in enumerate(self.optimizer.state() if self.optimizer else []):
            self.note(f"state {n} of the optimizer", state.numpy())

    def program(self) -> None:
        with dp.Program() as program:
            feeds = [placeholder(*leaf) for leaf in self.case.leaves("x")]
            made = dict(zip(self.case.results(), self.step(*feeds) or ()))
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:
                    made[f"gradient of {name}"] = parameter.grad
        dp.Executor().run(program.startup)  # what the optimizer keeps
        for number in range(len(self.case.rounds)):
            self.round = number
            found = program.run(self.inputs(number), list(made.values()))
            for name, value in zip(made, found):
                self.note(name, value)
            self.note_state()

    def scan(self) -> None:
        """All rounds as the batches of one epoch: they have one size, and N rows each."""
        rounds = range(len(self.case.rounds))
        rows = [list(self.inputs(n).values()) for n in rounds]
        arrays = [np.concatenate(parts) for parts in zip(*rows)]
        stacked = dp.scan(dp.compile(self.step), Rows(arrays, self.case.rounds[0]))
        for name, values in zip(self.case.results(), stacked):
            for number in rounds:
                self.round = number
                self.note(name, values[number])
        self.round = rounds[-1]
        self.note_state()


class Rows:
    """A loader, and its data set, of any number of arrays, in their order."""

    scale, shift, epoch, drop_last = 1.0, 0.0, 0, False

    def __init__(self, arrays: Sequence[Array], batch_size: int) -> None:
        self.listed, self.batch_size, self.dataset = tuple(arrays), batch_size, self

    def __getitem__(self, rows: Any) -> tuple[Array, ...]:
        return tuple([a[rows] for a in self.listed])

    def arrays(self) -> tuple[Array, ...]:
        return self.listed

    def order(self, epoch: int) -> Array:
        return np.arange(len(self.listed[0]))


def namespace() -> dict[str, Any]:
    """The names that the lines of a step may use."""
    return {"dp": dp, "F": F, "np": np}


def made_optimizer(case: Case, parameters: list[dp.Parameter]) -> Any:
    text = case.optimizer()
    return eval(text, {"optim": optim, "parameters": parameters}) if text else None


# ---- comparing -----------------------------------------------------------------------------


def difference(found: Results, expected: Results, every: bool = True) -> str:
    """How the first result that differs does; empty where all bits are equal, any NaN for any NaN.
    With `every` both have the same results."""
    missing = sorted(set(expected) ^ set(found)) if every else sorted(set(found) - set(expected))
    if missing:
        return f"{missing[0]}: on one device alone"
    for name in found:
        a, b = found[name], expected[name]
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{name}: {a.dtype}{list(a.shape)} for {b.dtype}{list(b.shape)}"
        wrong = ~same_bits(a, b)
        if wrong.any():
            at = tuple(map(int, np.argwhere(wrong)[0]))
            count = f"{wrong.sum():,} of {wrong.size:,} wrong"
            return f"{name}: {count}, the first at {at}, {a[at]!r} for {b[at]!r}"
    return ""


def same_bits(a: Array, b: Array) -> Array:
    """Where two arrays of one type have the same bits, or are both NaN."""
    if a.dtype.kind != "f":
        return np.asarray(a == b)
    raw = f"i{a.dtype.itemsize}"
    a, b = np.ascontiguousarray(a).reshape(a.shape), np.ascontiguousarray(b).reshape(b.shape)
    return np.asarray((a.view(raw) == b.view(raw)) | (np.isnan(a) & np.isnan(b)))


def tried(case: Case, device: str) -> tuple[Results | None, Exception | None]:
    """The results of a run, or the error that ended it."""
    try:
        return Run(case, device).all(), None
    except Exception as problem:
        return None, problem


def check(case: Case) -> str:
    """What is wrong with a case on `cpu`; empty where nothing is. A case that the reference refuses
    must be refused."""
    expected, refusal = tried(case, "reference")
    found, problem = tried(case, "cpu")
    forget()
    if found is None or expected is None:
        ours = isinstance(problem, InternalError | MissingNameError)
        if type(problem) is type(refusal) and isinstance(problem, dp.DiptychError) and not ours:
            return ""
        device = "cpu" if problem else "reference alone"
        error = problem or refusal
        return f"{type(error).__name__} on {device}: {error}"
    return difference(found, expected, every=case.mode != "scan")
