"""One line per operator: how to call it, on what shapes, drawn how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import diptych as dp
import diptych.nn.functional as F
from diptych.ops import elementwise as E
from diptych.ops import functions as fn
from diptych.ops import reduce as R


def normal(rng, shape):
    return (rng.standard_normal(shape) * 2).astype(np.float32)


def double(rng, shape):
    return rng.standard_normal(shape) * 50


def positive(rng, shape):
    return rng.uniform(0.1, 4.0, shape).astype(np.float32)


def unit(rng, shape):
    return rng.uniform(0.05, 0.95, shape).astype(np.float32)


def small(rng, shape):
    return rng.uniform(-0.9, 0.9, shape).astype(np.float32)


def flags(rng, shape):
    return rng.integers(0, 2, shape).astype(bool)


def ints(rng, shape):
    return rng.integers(-50, 50, shape)


def bytes_(rng, shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def below(n):
    return lambda rng, shape: rng.integers(0, n, shape)


@dataclass
class Case:
    """`call` on tensors of these shapes; `covers` names the operators it is the case of."""

    name: str
    call: Callable[..., Any]
    shapes: list[tuple[int, ...]]
    draw: Any = normal
    covers: list[str] = field(default_factory=list)
    smooth: bool = True  # finite differences apply

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, len(self.name)])
        draws = self.draw if isinstance(self.draw, list) else [self.draw] * len(self.shapes)
        return [d(rng, s) for d, s in zip(draws, self.shapes, strict=True)]


def one(name, call, draw=normal, shape=(3, 37), smooth=True):
    return Case(name, call, [shape], draw, [name], smooth)


def two(name, call, draw=normal, smooth=True):
    return Case(name, call, [(4, 19), (19,)], draw, [name], smooth)


CASES = [
    two("add", E.add), two("subtract", E.subtract), two("multiply", E.multiply),
    two("divide", E.divide, positive), two("minimum", E.minimum), two("maximum", E.maximum),
    two("floor_divide", E.floor_divide, ints, False), two("remainder", E.remainder, ints, False),
    Case("floor_divide_f32", E.floor_divide, [(40,), (40,)], normal, [], False),
    Case("remainder_f32", E.remainder, [(40,), (40,)], normal, []),
    Case("remainder_f64", E.remainder, [(4, 19), (19,)], double, []),
    Case("fma", E.fma, [(4, 19), (19,), (4, 1)], normal, ["fma"]),
    one("negative", E.negative), one("abs", fn.abs), one("sign", fn.sign, smooth=False),
    one("floor", fn.floor, smooth=False), one("ceil", fn.ceil, smooth=False),
    one("round", fn.round, smooth=False),
    one("exp", fn.exp), one("log", fn.log, positive), one("log1p", fn.log1p, positive),
    one("expm1", fn.expm1), one("tanh", fn.tanh), one("sigmoid", fn.sigmoid), one("erf", fn.erf),
    one("sin", fn.sin), one("cos", fn.cos), one("sqrt", fn.sqrt, positive),
    one("rsqrt", fn.rsqrt, positive),
    Case("pow", fn.pow, [(5, 7), (7,)], positive, ["pow"]),
    one("square", lambda x: fn.pow(x, 2)), one("clip", lambda x: E.clip(x, -1.0, 1.5)),
    Case("clip_both", E.clip, [(4, 19), (19,), (4, 1)]), two("clip_low", E.clip),
    two("clip_high", lambda x, high: E.clip(x, high=high)),
    two("less", E.less, smooth=False), two("less_equal", E.less_equal, ints, False),
    two("greater", E.greater, smooth=False), two("greater_equal", E.greater_equal, ints, False),
    two("equal", E.equal, below(3), False), two("not_equal", E.not_equal, flags, False),
    two("logical_and", E.logical_and, flags, False), two("logical_or", E.logical_or, ints, False),
    two("logical_xor", E.logical_xor, flags, False),
    one("logical_not", E.logical_not, flags, smooth=False),
    Case("where", E.where, [(4, 19), (4, 19), (19,)], [flags, normal, normal], ["where"]),
    one("cast", lambda x: E.cast(x, "f64")), one("cast_i32", lambda x: E.cast(x * 1e9, "i32"),
                                                 smooth=False),
    one("cast_u8", lambda x: E.cast(x * 200, "u8"), smooth=False),
    one("cast_bool", lambda x: E.cast(x, "bool"), smooth=False),
    one("from_u8", lambda x: E.cast(x, "f32") / 255.0, bytes_, smooth=False),
    one("identity", E.identity),
    one("stop_gradient", lambda x: E.stop_gradient(x) * x, smooth=False),
    one("sum", lambda x: R.reduce_sum(x, 1)), one("sum_leading", lambda x: R.reduce_sum(x, 0)),
    one("sum_all", R.reduce_sum, shape=(3, 700)), one("mean", R.mean),
    Case("sum_long", lambda x: R.reduce_sum(x, 0), [(2500, 5)]),
    Case("sum_middle", lambda x: R.reduce_sum(x, (0, 2), keepdims=True), [(3, 5, 7)]),
    one("prod", lambda x: R.prod(x, 1), positive, (4, 6)),
    one("max", lambda x: R.reduce_max(x, 1)), one("min", lambda x: R.reduce_min(x, 0)),
    one("max_all", R.reduce_max), one("argmax", lambda x: R.argmax(x, 1), smooth=False),
    one("argmin", lambda x: R.argmin(x, 0), smooth=False),
    one("argmax_all", R.argmax, below(5), smooth=False),
    one("any", lambda x: R.reduce_any(x, 1), flags, smooth=False),
    one("all", lambda x: R.reduce_all(x, 0), flags, smooth=False),
    one("reshape", lambda x: dp.reshape(x, 37, 3)), one("transpose", lambda x: dp.transpose(x)),
    Case("transpose_3", lambda x: dp.transpose(x, (1, 2, 0)), [(3, 5, 18)]),
    one("broadcast", lambda x: dp.broadcast_to(x, (5, 3, 37))),
    one("slice", lambda x: x[1:3, ::2]), one("slice_back", lambda x: x[::-1, 30:2:-3]),
    one("index", lambda x: x[1, 4]), one("new_axis", lambda x: x[:, None, ..., 3]),
    one("place", lambda x: dp.pad(x, [(1, 2), (0, 3)])),
    Case("concat", lambda a, b: dp.concat([a, b], 1), [(3, 5), (3, 18)], normal, ["concat"]),
    Case("stack", lambda a, b: dp.stack([a, b], 1), [(3, 5), (3, 5)]),
    Case("gather", lambda x, i: dp.gather(x, i), [(6, 9), (4, 2)], [normal, below(6)], ["gather"]),
    Case("gather_1", lambda x, i: dp.gather(x, i, 1), [(6, 9), (4,)], [normal, below(9)]),
    Case("scatter_add", lambda i, u: dp.scatter_add(i, u, 6), [(11,), (11, 5)],
         [below(6), normal], ["scatter_add"]),
    Case("one_hot", lambda i: dp.one_hot(i, 7), [(11,)], below(7), [], False),
    Case("arange", lambda: dp.arange(3, 40, 4), [], normal, ["arange"], False),
    Case("arange_f32", lambda: dp.arange(0.0, 1.0, 0.1), [], normal, [], False),
    Case("matmul", dp.matmul, [(7, 13), (13, 21)], normal, ["contract"]),
    Case("matmul_batched", dp.matmul, [(2, 1, 5, 6), (3, 6, 33)]),
    Case("matmul_vector", dp.matmul, [(13,), (13, 5)]),
    Case("matmul_dot", dp.matmul, [(40,), (40,)]),
    Case("matmul_long", dp.matmul, [(3, 2100), (2100, 17)]),
    Case("contract_sums_a_side", lambda a, b: dp.contract(a, b, "mk,knj->jm"), [(3, 4), (4, 5, 2)]),
    Case("contract_sums_alone", lambda a, b: dp.contract(a, b, "ik,k->"), [(3, 4), (4,)]),
    Case("matmul_transposed", lambda a, b: dp.matmul(a.T, b.T), [(13, 7), (21, 13)]),
    Case("linear", F.linear, [(5, 13), (9, 13), (9,)], normal, ["linear"]),
    Case("uniform", lambda: dp.uniform((3, 11)), [], normal, ["uniform"], False),
    Case("dropout", lambda x: F.dropout(x, 0.3), [(9, 21)], normal,
         ["dropout_with"]),
    one("relu", F.relu), one("leaky_relu", F.leaky_relu), one("elu", F.elu), one("gelu", F.gelu),
    one("silu", F.silu), one("softplus", F.softplus), one("softmax", F.softmax),
    one("softmax_0", lambda x: F.softmax(x, axis=0)), one("log_softmax", F.log_softmax),
    Case("cross_entropy", F.cross_entropy, [(8, 10), (8,)], [normal, below(10)],
         ["cross_entropy"]),
    Case("nll_loss", F.nll_loss, [(8, 10), (8,)], [normal, below(10)],
         ["nll_loss", "pick_label"]),
    Case("cross_entropy_on_probabilities", F.cross_entropy_on_probabilities, [(8, 10), (8,)],
         [unit, below(10)], ["cross_entropy_on_probabilities"]),
    Case("mse_loss", F.mse_loss, [(5, 9), (5, 9)], normal, ["mse_loss"]),
    Case("l1_loss", F.l1_loss, [(5, 9), (5, 9)], normal, ["l1_loss"]),
    Case("binary_cross_entropy", F.binary_cross_entropy, [(5, 9), (5, 9)], unit,
         ["binary_cross_entropy"]),
    Case("binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits,
         [(5, 9), (5, 9)], [normal, unit], ["binary_cross_entropy_with_logits"]),
    Case("permutation", lambda: dp.permutation(37), [], [], ["words", "rank"],
         smooth=False),
    Case("accuracy", F.accuracy, [(8, 10), (8,)], [normal, below(10)], ["accuracy"], False),
]  # fmt: skip
