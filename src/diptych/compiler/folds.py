"""How each kind of fold starts, steps and ends, as LLVM text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.compiler.scalars import llvm_type
from diptych.dtypes import bool_, f64, i32, i64
from diptych.errors import InternalError
from diptych.kernel import expr as k

if TYPE_CHECKING:
    from diptych.compiler.emit_llvm import KernelEmitter


class FoldRule:
    """sum, prod, max, min, any, all, argmax, argmin, contract, scatter."""

    def __init__(self, emitter: KernelEmitter, fold: k.Expr) -> None:
        self.emitter, self.fold = emitter, fold
        self.kind: str = fold.attr[0]
        self.source = fold.args[-1].dtype
        self.blocked = self.kind in ("sum", "contract") and self.source.is_float

    def type(self, lanes: int) -> str:
        value = llvm_type(self.source, lanes)
        if self.kind.startswith("arg"):
            return f"{{ {value}, {llvm_type(i64, lanes)} }}"
        return value

    def _constant(self, value: float, lanes: int) -> str:
        return self.emitter.scalars.constant(value, self.source, lanes)

    def empty(self) -> str:
        """The value of a fold over nothing."""
        if self.kind in ("sum", "contract", "scatter", "any", "prod", "all"):
            return self._constant({"prod": 1, "all": True}.get(self.kind, 0), 1)
        raise InternalError(f"{self.kind} of nothing")

    def sum_start(self, lanes: int) -> str:
        """x + -0 is x for every x, so a sum that starts from -0 starts from its first term."""
        return self._constant(-0.0 if self.source.is_float else 0, lanes)

    def start(self, lanes: int) -> str:
        if self.kind == "sum":
            return self.sum_start(lanes)
        if self.kind in ("contract", "scatter"):
            return self._constant(0, lanes)
        if self.kind == "prod":
            return self._constant(1, lanes)
        if self.kind in ("any", "all"):
            return self._constant(self.kind == "all", lanes)
        least = self._least() if self.kind in ("max", "argmax") else self._greatest()
        if not self.kind.startswith("arg"):
            return self._constant(least, lanes)
        value = f"{llvm_type(self.source, lanes)} {self._constant(least, lanes)}"
        place = f"{llvm_type(i64, lanes)} {self.emitter.scalars.constant(0, i64, lanes)}"
        return f"{{ {value}, {place} }}"

    def _least(self) -> float:
        if self.source.is_float:
            return float("-inf")
        return 0 if self.source.kind != "int" else -float(2 ** (self.source.bits - 1))

    def _greatest(self) -> float:
        if self.source.is_float:
            return float("inf")
        bits = self.source.bits
        return 2 ** (bits - 1) - 1 if self.source.kind == "int" else 2**bits - 1  # type: ignore[no-any-return]

    def addition(self) -> str:
        return "fadd" if self.source.is_float else "add"

    def step(self, before: str, args: list[str], lanes: int, at: dict[str, str]) -> str:
        """The accumulator after one more term."""
        emitter, type = self.emitter, llvm_type(self.source, lanes)
        value = args[-1]
        if self.kind.startswith("arg"):
            return self._arg_step(before, value, lanes, at)
        if self.kind == "contract":
            operation = k.Expr("fma", self.fold.args[:1] * 3, self.source)
            return emitter.scalars.apply(operation, [args[0], args[1], before], lanes)
        if self.kind == "scatter":
            total = emitter.text.value(f"{self.addition()} {type} {before}, {value}")
            flag = llvm_type(bool_, lanes)
            return emitter.text.value(f"select {flag} {args[0]}, {type} {total}, {type} {before}")
        name = {
            "sum": "add",
            "prod": "mul",
            "max": "maximum",
            "min": "minimum",
            "any": "or",
            "all": "and",
        }[self.kind]
        operation = k.Expr(name, (self.fold.args[0],) * 2, self.source)
        return emitter.scalars.apply(operation, [before, value], lanes)

    def _arg_step(self, before: str, value: str, lanes: int, at: dict[str, str]) -> str:
        """A later value wins only where it is greater, or the first NaN."""
        text = self.emitter.text
        pair, type = self.type(lanes), llvm_type(self.source, lanes)
        flag, index = llvm_type(bool_, lanes), llvm_type(i64, lanes)
        best = text.value(f"extractvalue {pair} {before}, 0")
        place = text.value(f"extractvalue {pair} {before}, 1")
        up = self.kind == "argmax"
        if self.source.is_float:
            wins = text.value(f"fcmp {'ogt' if up else 'olt'} {type} {value}, {best}")
            wins = self._or_zero_of_other_sign(wins, value, best, lanes)
            is_nan = text.value(f"fcmp uno {type} {value}, {value}")
            was_nan = text.value(f"fcmp ord {type} {best}, {best}")
            first = text.value(f"and {flag} {is_nan}, {was_nan}")
            wins = text.value(f"or {flag} {wins}, {first}")
        else:
            sign = "s" if self.source.kind == "int" else "u"
            wins = text.value(f"icmp {sign}{'gt' if up else 'lt'} {type} {value}, {best}")
        position = self._position(at)
        wide = position if lanes == 1 else self.emitter.scalars.splat(position, i64, lanes)
        new_best = text.value(f"select {flag} {wins}, {type} {value}, {type} {best}")
        new_place = text.value(f"select {flag} {wins}, {index} {wide}, {index} {place}")
        half = text.value(f"insertvalue {pair} poison, {type} {new_best}, 0")
        return text.value(f"insertvalue {pair} {half}, {index} {new_place}, 1")

    def _or_zero_of_other_sign(self, wins: str, value: str, best: str, lanes: int) -> str:
        """-0 < +0: equal floats are compared as integers, which tells the zeros apart."""
        text, type, flag = self.emitter.text, llvm_type(self.source, lanes), llvm_type(bool_, lanes)
        whole = llvm_type(i64 if self.source == f64 else i32, lanes)
        equal = text.value(f"fcmp oeq {type} {value}, {best}")
        a = text.value(f"bitcast {type} {value} to {whole}")
        b = text.value(f"bitcast {type} {best} to {whole}")
        order = text.value(f"icmp {'sgt' if self.kind == 'argmax' else 'slt'} {whole} {a}, {b}")
        zeros = text.value(f"and {flag} {equal}, {order}")
        return text.value(f"or {flag} {wins}, {zeros}")

    def _position(self, at: dict[str, str]) -> str:
        emitter, text, total = self.emitter, self.emitter.text, "0"
        for loop in self.fold.attr[1]:
            scaled = text.value(f"mul nsw i64 {total}, {emitter.size(loop.extent)}")
            total = text.value(f"add nsw i64 {scaled}, {at[loop.name]}")
        return total

    def result(self, final: str, lanes: int) -> str:
        if self.kind.startswith("arg"):
            return self.emitter.text.value(f"extractvalue {self.type(lanes)} {final}, 1")
        return final
