"""Draw a case: which calls, at which sizes, under which settings, from one seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import diptych as dp
from diptych.dtypes import Dim, TensorType, bind
from diptych.errors import DeviceError, DiptychError, GraphError, InternalError
from diptych.graph.node import Node
from diptych.ops.contract import Contract
from diptych.runtime.code import host_target
from fuzz.case import MODES, NAME, Case, made_optimizer, namespace, placeholder

SIZES = (1, 2, 3, 7, 10, 16, 17, 32, 63, 64, 65, 100, 127, 128, 129, 200, 256, 257, 300, 512, 784,
         1000, 1024, 1025, 1536, 2000)  # fmt: skip
MOST_SIZE = 2000
MOST = 1e8  # multiply-adds of a case, about
LARGEST = 1 << 22  # elements of one value
# What the choice of tiles and layouts goes by, of other processors.
ZEN4 = "lanes=16 registers=32 has_masks=1 fma_per_cycle=1 loads_per_cycle=1 broadcast=0.5"
XEON = "lanes=16 registers=32 has_masks=1 fma_per_cycle=2 loads_per_cycle=1 broadcast=1.0"
AVX2 = "lanes=8 registers=16 has_masks=0 fma_per_cycle=2 loads_per_cycle=2 broadcast=0.5"
NEON = "lanes=4 registers=32 has_masks=0 fma_per_cycle=2 loads_per_cycle=2 broadcast=0.5"
ODD = "lanes=4 registers=16 has_masks=0 fma_per_cycle=2 loads_per_cycle=1 broadcast=1.0"
LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")

# What an element of a result costs the reference, in multiply-adds.
COST = {"exp": 30, "log": 40, "tanh": 40, "sigmoid": 40, "erf": 100, "sin": 160, "cos": 160,
        "expm1": 40, "log1p": 40, "pow": 600, "softmax": 40, "log_softmax": 40, "gelu": 110,
        "silu": 45, "elu": 45, "softplus": 80, "cross_entropy": 40, "scatter_add": 20, "prod": 80,
        "binary_cross_entropy_with_logits": 100}  # fmt: skip
# What a term costs it where terms are taken one by one.
ONE_BY_ONE = {"max": 1000, "min": 1000, "argmax": 2000, "argmin": 2000, "prod": 200}

SMOOTH = ("dp.exp({} * 0.1)", "dp.tanh({})", "dp.sigmoid({})", "F.relu({})", "F.relu({})",
          "-{}", "dp.abs({})", "dp.sqrt(dp.abs({}))", "dp.rsqrt({} * {} + 1.0)", "{} * {}",
          "dp.sin({})", "dp.erf({})", "dp.log({} * {} + 0.5)", "F.gelu({})", "F.silu({})",
          "F.elu({})", "F.softplus({})", "F.leaky_relu({})", "dp.clip({}, -0.5, 0.75)",
          "dp.floor({} * 4.0)", "dp.sign({})", "dp.expm1({})", "dp.log1p(dp.abs({}))",
          "{} ** 2", "1.0 / ({} * {} + 1.0)", "dp.stop_gradient({})")  # fmt: skip
PAIRS = ("{} + {}", "{} - {}", "{} * {}", "{} * {}", "dp.maximum({}, {})", "dp.minimum({}, {})",
         "{} / (dp.abs({}) + 1.0)", "dp.where({} < {}, {}, 0.5)")  # fmt: skip
OPTIMIZERS = ("SGD(parameters, lr=0.5)", "SGD(parameters, lr=0.1, momentum=0.9)",
              "SGD(parameters, lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.01)",
              "Adam(parameters, lr=0.01)", "AdamW(parameters, lr=0.01)")  # fmt: skip


class Recording:
    """The lines of a case, recorded in a program that is never run: their types and their cost."""

    def __init__(self, rounds: Sequence[int]) -> None:
        self.sizes = {"N": max(rounds)}
        self.program = dp.Program()
        self.values: dict[str, dp.Tensor] = {}
        self.parameters: list[dp.Parameter] = []
        self.scope: dict[str, Any] = namespace()
        self.counted = 0

    def add(self, line: str) -> None:
        """Record a line of a step, an input or a parameter."""
        name, equals, expression = line.partition(" = ")
        with self.program:
            if not equals:
                if not line.startswith("return"):
                    exec(line, self.scope)
                return
            if name == "optimizer":
                value: Any = made_optimizer(Case((line,)), self.parameters)
            elif name[0] == "x":
                value = placeholder(name, expression)
                value.node.needs_grad = False
            elif name[0] == "w":
                shape = eval(f"shaped{expression[len('parameter') :]}", {"shaped": _empty})
                value = dp.Parameter(shape)
                self.parameters.append(value)
            else:
                value = eval(expression, self.scope)
        if value is None:
            raise GraphError("a line of a case has a value", line, "leave it out")
        if name == "x0" and value.shape:
            self.scope["N"] = value.shape[0]
        self.scope[name] = value
        if isinstance(value, dp.Tensor):
            self.values[name] = value

    def cost(self) -> float:
        """Multiply-adds, about, of what was recorded since the last time this was asked."""
        new, self.counted = self.program.recorded[self.counted :], len(self.program.recorded)
        return sum(map(self._cost, new))

    def _cost(self, node: Node) -> float:
        per_element = 20 if node.type.dtype.bits == 64 and node.type.dtype.is_float else 1
        inputs = [i.type for i in node.inputs]
        if isinstance(node.op, Contract):
            terms = math.prod(self.bound(d) for d in node.op.sizes(*inputs).values())
            return float(terms * per_element)
        size = max(map(self.elements, [node.type, *inputs]))
        if node.op.name in ONE_BY_ONE:
            size += ONE_BY_ONE[node.op.name] * size // max(self.elements(node.type), 1)
        if node.op.name == "linear":
            return float(self.elements(inputs[0]) * self.bound(inputs[1].shape[0]) * per_element)
        return float(size * max(COST.get(node.op.name, 1), per_element))

    def bound(self, size: Any) -> int:
        return bind(size, self.sizes) if isinstance(size, Dim) else int(size)

    def elements(self, type: TensorType) -> int:
        return math.prod(map(self.bound, type.shape))


def _empty(*shape: int, dtype: str = "f32") -> Any:
    return np.empty(shape, dp.dtypes.as_dtype(dtype).numpy)


def recorded(case: Case) -> Recording:
    """The recording of a whole case; what cannot be recorded is an error."""
    recording = Recording(case.rounds)
    for line in case.lines:
        recording.add(line)
    return recording


class Draw:
    """Draws lines one by one; a line that diptych refuses, or that costs too much, is dropped."""

    def __init__(self, *seed: int, **fixed: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.settings = self.drawn_settings(int(seed[-1]) % (1 << 31)) | fixed
        self.symbolic = self.chance(0.5)
        wide = self.chance(0.6)  # sides of products are laid out anew from 256 KiB on
        first = self.size(MOST_SIZE, wide and self.chance(0.5))
        rounds = [first] * int(self.pick([1, 1, 2, 2, 3]))
        if self.symbolic and len(rounds) > 1 and self.settings["mode"] != "scan":
            rounds[1] = int(self.pick([1, 2, first // 2 or 1, self.size(MOST_SIZE)]))
        self.rounds = tuple(rounds)
        self.sizes = [self.size(MOST_SIZE, wide) for _ in range(int(self.pick([2, 3, 4])))]
        self.dtype = "f64" if self.chance(0.08) else "f32"
        self.budget = min(10 ** self.rng.uniform(6, 8.3), MOST) / len(rounds)
        self.recording = Recording(self.rounds)
        self.lines: list[str] = []
        self.leaves: list[str] = []
        self.spent = 0.0

    def drawn_settings(self, seed: int) -> dict[str, Any]:
        targets = [*map("native {}".format, (ZEN4, XEON, AVX2, NEON, ODD)), *levels()]
        return {
            "mode": self.pick(MODES),
            "threads": int(self.pick([1, 2, 2, 3])),
            "target": "native" if self.chance(0.4) else self.pick(targets),
            "tiers": int(self.chance(0.6)),
            "seed": seed,
        }

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def size(self, most: int, wide: bool = False) -> int:
        """A size from 1 to `most`: one that people use, or any, small as often as large; a wide one
        is 100 or more."""
        if self.chance(0.7):
            return int(self.pick([s for s in SIZES if (100 if wide else 1) <= s <= most]))
        least = 100 if wide else 1
        return int(least * (most / least) ** self.rng.random())

    # ---- lines -----------------------------------------------------------------------------

    def add(self, expression: str) -> str:
        """The name of a new value, or nothing where the line was dropped."""
        name = f"v{len(self.lines)}"
        try:
            self.recording.add(f"{name} = {expression}")
        except InternalError:
            raise
        except DiptychError:
            return ""
        value = self.recording.values[name]
        cost = self.recording.cost()
        dear = 3 * cost > self.budget - self.spent  # twice more for the gradients
        if dear or self.recording.elements(value.type) > LARGEST or 0 in value.shape:
            del self.recording.values[name]
            return ""
        self.spent += 3 * cost
        self.lines.append(f"{name} = {expression}")
        return name

    def leaf(self, kind: str, *shape: Any, first: str = "") -> str:
        """The name of a new input or parameter; nothing where it cannot have this shape."""
        symbolic = [n for n, d in enumerate(shape) if isinstance(d, Dim)]
        rows = symbolic == [0] and str(shape[0]) == "N"
        parameter = kind == "parameter"
        if (symbolic and not rows) or (parameter and symbolic):
            return ""
        if self.settings["mode"] == "scan" and not parameter and not self.leads(shape):
            return ""
        if math.prod(map(self.recording.bound, shape)) > LARGEST:
            return ""
        name = f"{'w' if parameter else 'x'}{len(self.leaves)}" if self.leaves else "x0"
        dtype = [f'dtype="{self.dtype}"'] if self.dtype != "f32" else []
        arguments = ", ".join(
            [*filter(None, [first]), *map(str, shape), *([] if kind == "below" else dtype)]
        )
        self.leaves.append(f"{name} = {kind}({arguments})")
        self.recording.add(self.leaves[-1])
        return name

    def leads(self, shape: Sequence[Any]) -> bool:
        """Whether the first axis is that of the rows of a batch."""
        return bool(shape) and self.recording.bound(shape[0]) == self.rounds[0]

    def rows(self) -> Any:
        """The size of a batch, as a line writes it."""
        return Dim.symbol("N") if self.symbolic else self.rounds[0]

    # ---- choosing values -------------------------------------------------------------------

    def value(self, name: str) -> dp.Tensor:
        return self.recording.values[name]

    def shape(self, name: str) -> tuple[Any, ...]:
        return tuple(self.value(name).shape)

    def names(self, fits: Callable[[dp.Tensor], bool]) -> list[str]:
        return [n for n, v in self.recording.values.items() if fits(v)]

    def floats(self, least: int = 0, most: int = 9) -> list[str]:
        return self.names(lambda v: v.dtype.name == self.dtype and least <= len(v.shape) <= most)

    def recent(self, names: Sequence[str]) -> str:
        """One of these names, the last ones more often; nothing of none."""
        return self.pick([*names, *names[-3:], *names[-3:]]) if names else ""

    def like(self, x: str) -> str:
        """A value that broadcasts with x: another one, a new leaf, or a number."""
        shape = self.shape(x)
        kind = self.pick(["normal", "parameter"])
        there = [n for n in self.floats() if self.shape(n) == shape and n != x]
        options = [
            lambda: self.recent(there),
            lambda: self.recent(there),
            lambda: self.leaf(kind, *shape),
            lambda: self.leaf(kind, *shape[-1:]),
            lambda: self.leaf(kind, *shape[:-1], 1) if shape else "",
            lambda: str(self.pick([0.5, 2.0, -1.25, 3.0])),
        ]
        return self.pick(options)() or "0.75"

    def weight(self, out: Any, into: Any) -> str:
        """A parameter (out, into), often one that is there."""
        there = self.names(
            lambda v: (
                isinstance(v, dp.Parameter)
                and len(v.shape) == 2
                and v.shape[1] == into
                and v.dtype.name == self.dtype
            )
        )
        if there and self.chance(0.4):
            return self.pick(there)
        return self.leaf("parameter", out, into)

    # ---- steps -----------------------------------------------------------------------------

    def product(self) -> str:
        x = self.recent(self.floats(1))
        return self.product_of(x) if x else ""

    def product_of(self, x: str) -> str:
        shape = self.shape(x)
        k, out = shape[-1], self.pick(self.sizes)
        kind = self.pick(
            ["linear", "linear", "linear", "right", "right", "turned", "left", "self", "vector",
             "contract", "contract"]
        )  # fmt: skip
        if kind == "linear":
            return self.linear(x, out)
        if kind == "right":
            return self.times(x, out)
        if kind == "turned":
            there = self.recent([n for n in self.floats(2, 2) if self.shape(n)[1] == k])
            return self.add(f"dp.matmul({x}, {there}.T)") if there else ""
        if kind == "left" and len(shape) == 2:
            there = self.recent([n for n in self.floats(2, 2) if self.shape(n)[0] == shape[0]])
            return self.add(f"dp.matmul({x}.T, {there})") if there else ""
        if kind == "self" and len(shape) == 2:
            return self.add(f"dp.matmul({x}, {x}.T)" if self.chance(0.5) else f"{x}.T @ {x}")
        if kind == "vector":
            y = self.leaf(self.pick(["parameter", "normal"]), k)
            return self.add(f"dp.matmul({x}, {y})") if y else ""
        return self.contraction(x)

    def linear(self, x: str, out: int) -> str:
        """F.linear, with a bias or without."""
        w = self.weight(out, self.shape(x)[-1])
        if not w:
            return ""
        bias = self.leaf("parameter", self.shape(w)[0]) if self.chance(0.4) else ""
        return self.add(f"F.linear({x}, {w}{', ' if bias else ''}{bias})")

    def times(self, x: str, out: int) -> str:
        """x @ y, y as it lies."""
        k = self.shape(x)[-1]
        there = [n for n in self.floats(2) if n != x and self.shape(n)[-2] == k]
        y = self.recent([n for n in there if self.shape(n)[-1] == out] or there)
        if not y or self.chance(0.5):
            y = self.leaf(self.pick(["parameter", "normal"]), k, out)
        return self.add(f"dp.matmul({x}, {y})") if y else ""

    def contraction(self, x: str) -> str:
        """Letters at random: shared or not, kept or summed over, in any order."""
        shape = self.shape(x)
        left = "abcd"[: len(shape)]
        if len(shape) > 3:
            return ""
        shared = [c for c in left if self.chance(0.6)] or [left[-1]]
        sizes = dict(zip(left, shape)) | {c: self.pick(self.sizes) for c in "xy"}
        right = list(self.rng.permutation([*shared, *"xy"[: int(self.pick([0, 1, 1, 2]))]]))
        there = [n for n in self.floats() if self.shape(n) == tuple(sizes[c] for c in right)]
        y = self.recent(there) or self.leaf(
            self.pick(["parameter", "normal"]), *[sizes[c] for c in right]
        )
        if not y:
            return ""
        every = list(dict.fromkeys([*left, *right]))
        both = [c for c in every if c in left and c in right]
        out = [c for c in every if self.chance(0.25 if c in both else 0.9)]
        out = list(self.rng.permutation(out)) if self.chance(0.4) else out
        return self.add(f'dp.contract({x}, {y}, "{left},{"".join(right)}->{"".join(out)}")')

    def function(self) -> str:
        x = self.recent(self.floats())
        return self.add(self.pick(SMOOTH).format(x, x)) if x else ""

    def pair(self) -> str:
        x = self.recent(self.floats())
        if not x:
            return ""
        y = self.like(x)
        form = self.pick(PAIRS)
        if form.count("{}") == 3:
            return self.add(form.format(x, y, x))
        return self.add(form.format(*((x, y) if self.chance(0.7) else (y, x))))

    def products(self) -> str:
        """Two or three products of one shape, combined: gates, sums, recurrences."""
        x = self.recent(self.floats(1, 3))
        if not x:
            return ""
        out, made = self.pick(self.sizes), []
        for _ in range(int(self.pick([2, 2, 3]))):
            own = x if self.chance(0.6) else self.like(x)
            own = own if own[0] in "xwv" and self.shape(own) == self.shape(x) else x
            v = self.linear(own, out) if self.chance(0.5) else self.times(own, out)
            if v and self.chance(0.3):
                v = self.add(f"{v} * {self.like(v)}" if self.chance(0.6) else f"dp.sigmoid({v})")
            made.append(v)
        if not all(made):
            return ""
        total = made[0]
        for other in made[1:]:
            total = self.add(self.pick(["{} + {}", "{} * {}", "{} - {}"]).format(total, other))
            if not total:
                return ""
        return total

    def view(self) -> str:
        x = self.recent(self.floats(1, 4))
        if not x:
            return ""
        shape = self.shape(x)
        rank = len(shape)
        axis = int(self.rng.integers(rank))
        size = self.recording.bound(shape[axis])
        whole = [":"] * rank
        at = int(self.rng.integers(size))
        kind = self.pick(
            ["transpose", "transpose", "flat", "split", "cut", "cut", "flip", "stride", "pad",
             "concat", "stack", "spread", "axis", "row", "pieces"]
        )  # fmt: skip
        if kind == "transpose":
            return self.add(f"dp.transpose({x}, {tuple(map(int, self.rng.permutation(rank)))})")
        if kind == "flat" and rank > 1:
            merged = self.pick([f"({shape[0]}, -1)", f"(-1, {shape[-1]})", "(-1,)"])
            return self.add(f"dp.reshape({x}, {merged})")
        if kind == "split":
            divisors = [d for d in (2, 3, 4, 7, 8, 16, 28, 32, 64) if shape[-1] == int(d)
                        or (not isinstance(shape[-1], Dim) and shape[-1] % d == 0)]  # fmt: skip
            d = self.pick([1, *divisors])
            if isinstance(shape[-1], Dim):
                return ""
            sizes = [*map(str, shape[:-1]), str(d), str(shape[-1] // d)]
            return self.add(f"dp.reshape({x}, ({', '.join(sizes)}))")
        if kind in ("cut", "flip", "stride", "row"):
            end = int(self.rng.integers(at, size)) + 1
            whole[axis] = {
                "cut": self.pick([f"{at}:", f":{end}", f"{at}:{end}"]),
                "flip": "::-1",
                "stride": self.pick(["::2", f"{at}::3", "::-2"]),
                "row": str(at),
            }[kind]
            return self.add(f"{x}[{', '.join(whole)}]")
        if kind == "pad":
            widths = [(0, 0)] * rank
            widths[axis] = (int(self.pick([0, 1, 3])), int(self.pick([1, 2, 17])))
            return self.add(f"dp.pad({x}, {widths})")
        if kind in ("concat", "stack"):
            y = self.like(x)
            y = y if y[0] in "xwv" and len(self.shape(y)) == rank else x
            return self.add(f"dp.{kind}([{x}, {y}], {axis})")
        if kind == "pieces":  # apart, and together the other way round
            whole[axis] = f"{at}:"
            first = self.add(f"{x}[{', '.join(whole)}]")
            whole[axis] = f":{at}"
            second = self.add(f"{x}[{', '.join(whole)}]") if first else ""
            return self.add(f"dp.concat([{first}, {second}], {axis})") if second else ""
        if kind == "spread":
            return self.add(f"dp.broadcast_to({x}, ({self.pick([2, 3, 5])}, *{x}.shape))")
        return self.add(f"{x}[{', '.join([*whole[:axis], 'None', *whole[axis:]])}]")

    def reduction(self) -> str:
        x = self.recent(self.floats(1))
        if not x:
            return ""
        rank = len(self.shape(x))
        axes = [n for n in range(rank) if self.chance(0.5)] or [rank - 1]
        axis = str(axes[0] if len(axes) == 1 else tuple(axes))
        keep = self.chance(0.5)
        kind = self.pick(["sum", "sum", "mean", "max", "min", "prod", "softmax", "log_softmax"])
        sizes = [self.recording.bound(self.shape(x)[n]) for n in axes]
        if kind in ("softmax", "log_softmax"):
            return self.add(f"F.{kind}({x}, axis={axes[0]})")
        if kind == "prod" and math.prod(sizes) > 40:
            return ""
        made = self.add(f"dp.{kind}({x}, {axis}, keepdims={keep})")
        return self.add(f"{x} - {made}") if made and keep and self.chance(0.5) else made

    def choice(self) -> str:
        """Rows by positions, and what is added up at positions."""
        x = self.recent(self.floats(1, 3))
        if not x:
            return ""
        rows, many = self.shape(x)[0], self.pick([self.rows(), self.pick(self.sizes)])
        if isinstance(rows, Dim):
            return ""
        kind = self.pick(["gather", "gather", "scatter", "one_hot", "table"])
        if kind == "scatter":
            to = self.pick(self.sizes)
            i = self.leaf("below", rows, first=str(to))
            return self.add(f"dp.scatter_add({i}, {x}, {to})") if i else ""
        i = self.leaf("below", many, first=str(rows))
        if not i:
            return ""
        if kind == "one_hot":
            return self.add(f'dp.matmul(dp.one_hot({i}, {rows}, dtype="{self.dtype}"), {x})')
        if kind == "table":  # embeddings, and the same table for the result
            w = self.weight(rows, self.pick(self.sizes))
            v = self.add(f"dp.gather({w}, {i})") if w and self.shape(w)[0] == rows else ""
            return self.add(f"F.linear({v}, {w})") if v else ""
        return self.add(f"dp.gather({x}, {i})")

    def attention(self) -> str:
        x = self.recent(self.floats(2, 3))
        if not x:
            return ""
        size, rank = self.pick(self.sizes), len(self.shape(x))
        q, k, v = [self.linear(x, size) for _ in range(3)]
        if not (q and k and v):
            return ""
        turned = f"dp.transpose({k}, {(1, 0) if rank == 2 else (0, 2, 1)})"
        scores = self.add(f"dp.matmul({q}, {turned})")
        scores = scores and self.add(f"F.softmax({scores} * 0.125, axis={rank - 1})")
        return self.add(f"dp.matmul({scores}, {v})") if scores else ""

    def heads(self) -> str:
        """(batch, places, width) from rows, and heads in front of the places."""
        x = self.recent(self.floats(2, 2))
        if not x:
            return ""
        n, d = self.shape(x)
        if isinstance(d, Dim) or d % 4:
            return ""
        v = self.add(f"dp.reshape({x}, ({n}, 4, {d // 4}))")
        return self.add(f"dp.transpose({v}, (1, 0, 2))") if v else ""

    def recurrence(self) -> str:
        """A few steps of h = tanh(x u + h w), with the same weights."""
        x = self.recent(self.floats(2, 2))
        if not x:
            return ""
        size = self.pick(self.sizes)
        h = self.linear(x, size)
        u, w = self.weight(size, self.shape(x)[1]), self.leaf("parameter", size, size)
        for _ in range(int(self.pick([1, 2, 3]))):
            if not (h and u and w):
                return ""
            a = self.add(f"F.linear({x}, {u})")
            b = self.add(f"F.linear({h}, {w})") if a else ""
            s = self.add(f"{a} + {b}") if b else ""
            h = self.add(f"dp.tanh({s})") if s else ""
        return h

    def norm(self) -> str:
        x = self.recent(self.floats(1, 3))
        if not x:
            return ""
        last = len(self.shape(x)) - 1
        m = self.add(f"dp.mean({x}, {last}, keepdims=True)")
        c = m and self.add(f"{x} - {m}")
        s = c and self.add(f"dp.mean({c} * {c}, {last}, keepdims=True)")
        return self.add(f"{c} * dp.rsqrt({s} + 0.01)") if s else ""

    def twins(self) -> str:
        """The same layers on two inputs."""
        x = self.recent(self.floats(2, 2))
        y = self.leaf("normal", *self.shape(x)) if x else ""
        if not y:
            return ""
        for out in [self.pick(self.sizes) for _ in range(int(self.pick([1, 2])))]:
            w = self.leaf("parameter", out, self.shape(x)[1])
            x, y = (self.add(f"F.linear({v}, {w})") if v and w else "" for v in (x, y))
            if not (x and y):
                return ""
            f = self.pick(["F.relu({})", "dp.tanh({})", "{} * 0.5"])
            x, y = self.add(f.format(x)), self.add(f.format(y))
            if not (x and y):
                return ""
        return self.add(f"{x} - {y}")

    def integer(self) -> str:
        """Values that are no floats."""
        x = self.recent(self.floats())
        i = self.recent(self.names(lambda v: v.dtype.is_integer))
        if not x:
            return ""
        forms = [f"{x} > 0.25", f'dp.cast({x} * 9.0, "i32")', f"dp.argmax({x}, 0)"]
        if i:
            forms += [f"{i} * 3 - 7", f"{i} % 5", f"{i} // 3", f"dp.sum({i}, 0)", f"dp.max({i})",
                      f'dp.cast({i}, "{self.dtype}") * 0.5', f"{i} * {i}"]  # fmt: skip
        return self.add(self.pick(forms))

    def changed(self) -> str:
        """A conversion there and back."""
        x = self.recent(self.floats())
        other = "f64" if self.dtype == "f32" else "f32"
        return self.add(f'dp.cast(dp.cast({x}, "{other}") * 0.3, "{self.dtype}")') if x else ""

    STEPS = ((product, 8), (products, 4), (function, 4), (pair, 4), (view, 6), (reduction, 3),
             (choice, 2), (attention, 1), (recurrence, 1), (norm, 1), (twins, 1), (heads, 1),
             (integer, 1), (changed, 0.5))  # fmt: skip

    PRODUCTS = ((product, 4), (products, 4), (twins, 1), (recurrence, 1), (attention, 1))

    @staticmethod
    def one_of(steps: Sequence[tuple[Any, float]]) -> Callable[[Draw], str]:
        """A step that is one of these, drawn by their weights each time."""
        weights = np.array([weight for _, weight in steps]) / sum(weight for _, weight in steps)
        return lambda draw: steps[int(draw.rng.choice(len(steps), p=weights))][0](draw)

    # ---- losses ----------------------------------------------------------------------------

    def loss(self, v: str) -> str:
        """A number of a value."""
        shape = self.shape(v)
        kind = self.pick(["sum", "mean", "weighted", "weighted", "square", "labels", "mse", "l1"])
        if kind == "labels" and len(shape) == 2 and not isinstance(shape[1], Dim):
            labels = self.leaf("below", shape[0], first=str(shape[1]))
            if labels:
                return self.add(f"F.cross_entropy({v}, {labels})")
        if kind in ("weighted", "mse", "l1"):
            other = self.leaf("normal", *shape)
            other = other or self.recent([n for n in self.floats() if self.shape(n) == shape])
            if kind == "weighted":
                return self.add(f"({v} * {other}).sum()")
            return self.add(f"F.{kind}_loss({v}, {other})")
        if kind == "square":
            return self.add(f"({v} * {v}).sum()")
        return self.add(f"dp.{kind if kind in ('sum', 'mean') else 'mean'}({v})")

    def losses(self) -> list[str]:
        """Losses of the last values that depend on a parameter."""
        there = [n for n in self.floats() if n[0] == "v" and self.value(n).requires_grad]
        used = set(NAME.findall(" ".join(line.partition(" = ")[2] for line in self.lines)))
        ends = [n for n in there if n not in used] or there[-1:]
        chosen = [n for n in ends if self.chance(0.7)] or ends[-1:]
        return [made for n in chosen[-4:] if (made := self.loss(n))]

    def gradients(self, losses: list[str]) -> list[str]:
        """The lines that ask for gradients, and use them."""
        if not losses or self.chance(0.1):
            return []
        if len(losses) > 1 and self.chance(0.5):  # of several, one
            for other in losses[1:]:
                losses = [self.add(f"{losses[0]} + {other}") or losses[0]]
        parameters = [leaf.partition(" = ")[0] for leaf in self.leaves if leaf[0] == "w"]
        if self.chance(0.12):  # gradients of gradients
            for w in parameters[:2]:
                g = self.add(f"dp.partials({losses[-1]}, [{w}])[0]")
                second = self.add(f"({g} * {g}).sum()") if g else ""
                losses += [second] if second and self.value(second).requires_grad else []
        lines = [f"{v}.backward(retain_graph=True)" for v in losses[:-1]]
        lines.append(f"{losses[-1]}.backward()")
        for line in lines:
            self.recording.add(line)
        scan = self.settings["mode"] == "scan"
        if scan or self.chance(0.5):
            if self.chance(0.3):
                for n, w in enumerate(parameters[: int(self.pick([1, 2]))]):
                    lines += self.gradient(f"v{len(self.lines) + n}", w)
            self.leaves.append(f"optimizer = optim.{self.pick(OPTIMIZERS)}")
            lines.append("optimizer.step()")
            if scan or self.chance(0.7):
                lines.append("optimizer.zero_grad()")
        return lines

    def gradient(self, name: str, parameter: str) -> list[str]:
        """A line that has the gradient of a parameter as a value, where there is one."""
        try:
            self.recording.add(f"{name} = {parameter}.grad")
        except GraphError:
            return []
        return [f"{name} = {parameter}.grad"]

    # ---- the case --------------------------------------------------------------------------

    def case(self) -> Case:
        kind = self.pick(["normal", "unit", "special"])
        extra = [self.pick(self.sizes) for _ in range(int(self.pick([1, 1, 1, 2])))]
        kind = kind if self.chance(0.5) else "normal"
        if not self.leaf(kind, self.rows(), *extra):
            self.leaf(kind, self.rows(), extra[0])
        if self.chance(0.2):
            self.leaf("whole", self.rows(), self.pick(self.sizes))
        steps = [Draw.one_of(self.PRODUCTS)] if self.chance(0.85) else []
        steps += [Draw.one_of(self.STEPS)] * int(self.pick([1, 2, 3, 4, 6, 8, 12]))
        for step in steps:
            any(step(self) for _ in range(4))  # until one succeeds
        if not self.lines:
            self.budget = math.inf
            self.add("x0 * 2.0")
        after = self.gradients(self.losses())
        used = set(NAME.findall(" ".join(line.partition(" = ")[2] for line in self.lines)))
        values = [line.partition(" = ")[0] for line in self.lines]
        results = [v for v in values if v not in used or self.chance(0.15)]
        results += [line.partition(" = ")[0] for line in after if ".grad" in line and " = " in line]
        lines = [*self.leaves, *self.lines, *after]
        lines += [f"return ({', '.join(results)},)"] if results else []
        return Case(tuple(lines), self.rounds, **self.settings)


def levels() -> list[str]:
    """The values of DIPTYCH_CPU that this host has."""
    found = []
    for name in LEVELS:
        try:
            host_target(name)
        except DeviceError:
            continue
        found.append(name)
    return found


def drawn(*seed: int, **fixed: Any) -> Case:
    """The case of a seed; `fixed` are settings that are not drawn."""
    return Draw(*seed, **fixed).case()
