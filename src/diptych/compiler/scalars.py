"""Scalar operations of the kernel language as LLVM text, on one lane or on a vector of lanes."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

from diptych.compiler import fma64
from diptych.compiler.target import Target
from diptych.compiler.text import FunctionText
from diptych.dtypes import DType, bool_, f32, f64, i64
from diptych.kernel import expr as k

_TYPES = {"f32": "float", "f64": "double", "i32": "i32", "i64": "i64", "u8": "i8", "bool": "i1"}


def llvm_type(dtype: DType, lanes: int) -> str:
    scalar = _TYPES[dtype.name]
    return scalar if lanes == 1 else f"<{lanes} x {scalar}>"


def literal(value: Any, dtype: DType) -> str:
    """A constant, floats by their bits."""
    if dtype == bool_:
        return "true" if value else "false"
    if dtype.is_float:
        return f"0x{struct.pack('>d', float(value)).hex().upper()}"
    return str(int(value))


def rounded(op: str, x: k.Expr) -> k.Expr:
    """floor, ceil or rint of x in operations that every target has.

    Adding and taking away 2^(p-1), the first number whose neighbours are 1 apart, rounds to a whole
    number, ties to even. The sign of x is the sign of the result, of zeros too.
    """
    whole = 2.0**23 if x.dtype == f32 else 2.0**52  # from here on every number is whole, or NaN
    size = k.absolute(x)
    sign = k.bits(x) & (-(2 ** (x.dtype.bits - 1)))
    near = k.bits(k.bits((size + whole) - whole) | sign)
    if op == "floor":
        near = k.select(near > x, near - 1.0, near)
    elif op == "ceil":
        near = k.bits(k.bits(k.select(near < x, near + 1.0, near)) | sign)
    return k.select(size < whole, near, x)


@lru_cache(maxsize=8)
def _fma64(target: Target, lanes: int) -> tuple[str, frozenset[str]]:
    """The name of the function that is a fused multiply-add of f64, and what the module needs: in
    floats where that is exact for all lanes, else in integers, lane by lane."""
    text, declare = FunctionText(), {fma64.TEXT, *fma64.DECLARATIONS}
    scalars, type = Scalars(text, target, declare), llvm_type(f64, lanes)
    values = {name: f"%{name}" for name in "abc"}
    flag = exact = scalars.tree(fma64.IS_SHORT, values, lanes)
    if lanes > 1:
        reduce = f"@llvm.vector.reduce.and.v{lanes}i1"
        declare.add(f"declare i1 {reduce}(<{lanes} x i1>)")
        flag = text.value(f"call i1 {reduce}(<{lanes} x i1> {exact})")
    text.do(f"br i1 {flag}, label %short, label %long")
    text.label("short")
    with text.scope():
        text.do(f"ret {type} {scalars.tree(fma64.SHORT, values, lanes)}")
    text.label("long")
    result = "poison"
    for lane in range(lanes):
        each = [
            f"%{name}" if lanes == 1 else text.value(f"extractelement {type} %{name}, i64 {lane}")
            for name in "abc"
        ]
        given = ", ".join(f"double {x}" for x in each)
        one = text.value(f"call double @{fma64.NAME}({given})")
        if lanes > 1:
            one = text.value(f"insertelement {type} {result}, double {one}, i64 {lane}")
        result = one
    text.do(f"ret {type} {result}")
    name = f"{fma64.NAME}_{lanes}"
    head = f"define internal {type} @{name}({type} %a, {type} %b, {type} %c) {{"
    return name, frozenset([*declare, "\n".join([head, *text.lines, "}", ""])])


class Scalars:
    """Emits operations into a function; every value is (name, lanes)."""

    def __init__(self, text: FunctionText, target: Target, declare: set[str]) -> None:
        self.text, self.target, self.declare = text, target, declare

    def constant(self, value: Any, dtype: DType, lanes: int) -> str:
        one = literal(value, dtype)
        if lanes == 1:
            return one
        scalar = _TYPES[dtype.name]
        return "<" + ", ".join([f"{scalar} {one}"] * lanes) + ">"

    def splat(self, value: str, dtype: DType, lanes: int) -> str:
        if not value.startswith("%"):
            scalar = _TYPES[dtype.name]
            return "<" + ", ".join([f"{scalar} {value}"] * lanes) + ">"
        type = llvm_type(dtype, lanes)
        first = self.text.value(f"insertelement {type} poison, {_TYPES[dtype.name]} {value}, i64 0")
        return self.text.value(
            f"shufflevector {type} {first}, {type} poison, <{lanes} x i32> zeroinitializer"
        )

    def call(self, name: str, dtype: DType, lanes: int, args: list[str], extra: str = "") -> str:
        type = llvm_type(dtype, lanes)
        suffix = _TYPES[dtype.name].replace("float", "f32").replace("double", "f64")
        full = f"@llvm.{name}.{suffix if lanes == 1 else f'v{lanes}{suffix}'}"
        signature = ", ".join([type] * len(args)) + (", i1" if extra else "")
        self.declare.add(f"declare {type} {full}({signature})")
        given = ", ".join(f"{type} {a}" for a in args) + extra
        return self.text.value(f"call {type} {full}({given})")

    def apply(self, e: k.Expr, args: list[str], lanes: int) -> str:
        """One operation on operands that all have `lanes` lanes."""
        source = e.args[0].dtype
        type = llvm_type(source, lanes)
        if e.op in ("cast", "bits"):
            return self._convert(e, args[0], lanes)
        if e.op == "select":
            cond = llvm_type(bool_, lanes)
            kind = llvm_type(e.dtype, lanes)
            return self.text.value(f"select {cond} {args[0]}, {kind} {args[1]}, {kind} {args[2]}")
        if e.op in ("lt", "le", "eq", "ne"):
            return self.text.value(self._comparison(e.op, source, type, args))
        if source.is_float:
            return self._float(e.op, source, lanes, args)
        return self._integer(e.op, source, lanes, args)

    def _comparison(self, op: str, source: DType, type: str, args: list[str]) -> str:
        if source.is_float:
            code = {"lt": "olt", "le": "ole", "eq": "oeq", "ne": "une"}[op]
            return f"fcmp {code} {type} {args[0]}, {args[1]}"
        sign = "s" if source.kind == "int" else "u"
        code = {"lt": f"{sign}lt", "le": f"{sign}le"}.get(op, op)
        return f"icmp {code} {type} {args[0]}, {args[1]}"

    def _float(self, op: str, dtype: DType, lanes: int, args: list[str]) -> str:
        type = llvm_type(dtype, lanes)
        if op in ("add", "sub", "mul", "div"):
            return self.text.value(f"f{op} {type} {args[0]}, {args[1]}")
        if op == "neg":
            return self.text.value(f"fneg {type} {args[0]}")
        if op == "fma" and not self.target.has_fma:
            emulated = self.emulated_fma if dtype == f32 else self.emulated_fma64
            return emulated(args, lanes)
        if op in ("floor", "ceil", "rint") and not self.target.has_round:
            return self.tree(rounded(op, k.var("x", dtype)), {"x": args[0]}, lanes)
        name = {"abs": "fabs"}.get(op, op)
        return self.call(name, dtype, lanes, args)

    def emulated_fma(self, args: list[str], lanes: int) -> str:
        """The exact fused multiply-add of f32: product in f64 is exact, TwoSum, round to odd."""
        a, b, c = (k.cast(k.var(n, f32), f64) for n in "abc")
        p = a * b
        s = p + c
        bb = s - p
        e = (p - (s - bb)) + (c - bb)
        raw = k.bits(s)
        # s truncated toward s + e, with its last bit set: one step to zero where e points there.
        toward_zero = (raw ^ k.bits(e)) < 0
        moved = k.select(toward_zero, raw - 1, raw + 1)
        inexact = e.differs(0.0) & k.absolute(s).differs(float("inf")) & e.equals(e)
        even = (raw & 1).equals(0)
        odd = k.select(inexact & even, moved, raw)
        result = k.cast(k.bits(odd), f32)
        return self.tree(result, dict(zip("abc", args, strict=True)), lanes)

    def emulated_fma64(self, args: list[str], lanes: int) -> str:
        """The exact fused multiply-add of f64, by a function of the module."""
        function, needed = _fma64(self.target, lanes)
        self.declare.update(needed)
        type = llvm_type(f64, lanes)
        given = ", ".join(f"{type} {a}" for a in args)
        return self.text.value(f"call {type} @{function}({given})")

    def tree(self, root: k.Expr, values: dict[str, str], lanes: int) -> str:
        """A straight expression over named values."""
        done: dict[int, str] = {}
        for e in k.walk([root]):
            if e.op == "const":
                done[id(e)] = self.constant(e.attr, e.dtype, lanes)
            elif e.op == "var":
                done[id(e)] = values[e.attr]
            else:
                done[id(e)] = self.apply(e, [done[id(a)] for a in e.args], lanes)
        return done[id(root)]

    def _integer(self, op: str, dtype: DType, lanes: int, args: list[str]) -> str:
        type = llvm_type(dtype, lanes)
        if op in ("div", "rem"):
            return self._division(op, dtype, lanes, args)
        if op in ("minimum", "maximum"):
            sign = "s" if dtype.kind == "int" else "u"
            return self.call(f"{sign}{op[:3]}", dtype, lanes, args)
        if op == "neg":
            return self.text.value(f"sub {type} {self.constant(0, dtype, lanes)}, {args[0]}")
        if op == "not":
            ones = self.constant(True if dtype == bool_ else -1, dtype, lanes)
            return self.text.value(f"xor {type} {args[0]}, {ones}")
        return self.text.value(f"{op} {type} {args[0]}, {args[1]}")

    def _division(self, op: str, dtype: DType, lanes: int, args: list[str]) -> str:
        """Truncating; x/0 = 0 and x rem 0 = x; least/-1 wraps. Never a trap."""
        text, type = self.text, llvm_type(dtype, lanes)
        flag = llvm_type(bool_, lanes)
        sign = "s" if dtype.kind == "int" else "u"
        a, b = args
        if not b.startswith("%") and not b.startswith("<") and int(b) not in (0, -1):
            return text.value(f"{sign}{op} {type} {a}, {b}")
        zero = self.constant(0, dtype, lanes)
        one = self.constant(1, dtype, lanes)
        is_zero = text.value(f"icmp eq {type} {b}, {zero}")
        guard = is_zero
        is_minus = None
        if sign == "s":
            is_minus = text.value(f"icmp eq {type} {b}, {self.constant(-1, dtype, lanes)}")
            guard = text.value(f"or {flag} {is_zero}, {is_minus}")
        safe = text.value(f"select {flag} {guard}, {type} {one}, {type} {b}")
        result = text.value(f"{sign}{op} {type} {a}, {safe}")
        if is_minus is not None:
            wrapped = text.value(f"sub {type} {zero}, {a}") if op == "div" else zero
            result = text.value(f"select {flag} {is_minus}, {type} {wrapped}, {type} {result}")
        at_zero = zero if op == "div" else a
        return text.value(f"select {flag} {is_zero}, {type} {at_zero}, {type} {result}")

    def _convert(self, e: k.Expr, x: str, lanes: int) -> str:
        source, target = e.args[0].dtype, e.dtype
        a, b = llvm_type(source, lanes), llvm_type(target, lanes)
        if e.op == "bits":
            return self.text.value(f"bitcast {a} {x} to {b}")
        if source.is_float and target.is_float:
            code = "fpext" if target == f64 else "fptrunc"
        elif source.is_float:
            return self._saturating(source, target, x, lanes)
        elif target.is_float:
            code = "sitofp" if source.kind == "int" else "uitofp"
        elif source.bits == target.bits:
            return x
        elif target.bits < source.bits:
            code = "trunc"
        else:
            code = "sext" if source.kind == "int" else "zext"
        return self.text.value(f"{code} {a} {x} to {b}")

    def _saturating(self, source: DType, target: DType, x: str, lanes: int) -> str:
        a, b = llvm_type(source, lanes), llvm_type(target, lanes)
        sign = "s" if target.kind == "int" else "u"
        short = {"f32": "f32", "f64": "f64"}[source.name]
        whole = {"i32": "i32", "i64": "i64", "u8": "i8"}[target.name]
        if lanes > 1:
            short, whole = f"v{lanes}{short}", f"v{lanes}{whole}"
        name = f"@llvm.fpto{sign}i.sat.{whole}.{short}"
        self.declare.add(f"declare {b} {name}({a})")
        return self.text.value(f"call {b} {name}({a} {x})")

    def lane_numbers(self, lanes: int) -> str:
        return "<" + ", ".join(f"i64 {n}" for n in range(lanes)) + ">"

    def index_type(self, lanes: int) -> str:
        return llvm_type(i64, lanes)
