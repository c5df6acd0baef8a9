"""The fused multiply-add of f64 where the processor has none.

`SHORT` is exact where no exponent is extreme (`IS_SHORT`): a product and sums whose errors are
kept, the last sum rounded to odd before it is added (Boldo and Melquiond, "Emulation of FMA and
correctly rounded sums", 2008). It works on vectors.

Everything else is one LLVM function in integers. a * b is exact in 106 bits. It and c are put into
128 bits each, with their first bits at places 124 or 125; the one of the lower exponent is moved
down, what falls off is kept as a last bit of 1. The sum is then exact but for that bit, which lies
far below the place of rounding: bits fall off where exponents differ by more than 20, and then the
sum has its first bit at place 123 or above. The sum is moved to 63 bits in the same way and rounded
once, to nearest even, to 53 bits or, of a subnormal result, to as many as there are.
"""

from __future__ import annotations

from diptych.dtypes import f64
from diptych.kernel import double
from diptych.kernel import expr as k

NAME = "diptych_fma64"
SMALL, LARGE = 2.0**-800, 2.0**960  # between them products, their errors and sums are exact


def _short() -> tuple[k.Expr, k.Expr]:
    """a * b + c for the variables a, b, c, and whether it is exact."""
    a, b, c = (k.var(name, f64) for name in "abc")
    p, e = double.two_product(a, b)
    high, low = double.two_sum(c, e)
    top, rest = double.two_sum(p, high)
    result = top + double.rounded_to_odd(*double.two_sum(low, rest))
    exact = (k.absolute(p) > SMALL) & (k.absolute(p) < LARGE)  # p is not 0, whose sign would go
    for x in (a, b, c):
        exact = exact & (k.absolute(x) < LARGE)
    return result, exact


SHORT, IS_SHORT = _short()

DECLARATIONS = (
    "declare i64 @llvm.ctlz.i64(i64, i1)",
    "declare i128 @llvm.ctlz.i128(i128, i1)",
    "declare i64 @llvm.smax.i64(i64, i64)",
    "declare i64 @llvm.smin.i64(i64, i64)",
)


def _unpacked(x: str) -> str:
    """LLVM text: %x as %x.m * 2^%x.e, %x.m of 53 bits, or 0 where x is 0; %x.s is its sign bit."""
    return f"""  %{x}.r = bitcast double %{x} to i64
  %{x}.s = and i64 %{x}.r, -9223372036854775808
  %{x}.f = and i64 %{x}.r, 4503599627370495
  %{x}.x = lshr i64 %{x}.r, 52
  %{x}.b = and i64 %{x}.x, 2047
  %{x}.sub = icmp eq i64 %{x}.b, 0
  %{x}.one = or i64 %{x}.f, 4503599627370496
  %{x}.raw = select i1 %{x}.sub, i64 %{x}.f, i64 %{x}.one
  %{x}.z = call i64 @llvm.ctlz.i64(i64 %{x}.raw, i1 false)
  %{x}.up0 = sub i64 %{x}.z, 11
  %{x}.up = and i64 %{x}.up0, 63
  %{x}.m = shl i64 %{x}.raw, %{x}.up
  %{x}.least = call i64 @llvm.smax.i64(i64 %{x}.b, i64 1)
  %{x}.e0 = sub i64 %{x}.least, 1075
  %{x}.e = sub i64 %{x}.e0, %{x}.up
"""


def _lowered(x: str, by: str) -> str:
    """LLVM text: the i128 %x moved down by `by` bits, %x.low, its last bit 1 where any fell off."""
    return f"""  %{x}.by0 = call i64 @llvm.smax.i64(i64 {by}, i64 0)
  %{x}.by64 = call i64 @llvm.smin.i64(i64 %{x}.by0, i64 127)
  %{x}.by = zext i64 %{x}.by64 to i128
  %{x}.down = lshr i128 %{x}, %{x}.by
  %{x}.back = shl i128 %{x}.down, %{x}.by
  %{x}.lost = icmp ne i128 %{x}.back, %{x}
  %{x}.bit = zext i1 %{x}.lost to i128
  %{x}.low = or i128 %{x}.down, %{x}.bit
"""


TEXT = f"""define internal double @{NAME}(double %a, double %b, double %c) {{
entry:
{_unpacked("a")}{_unpacked("b")}{_unpacked("c")}  %a.special = icmp eq i64 %a.b, 2047
  %b.special = icmp eq i64 %b.b, 2047
  %a.zero = icmp eq i64 %a.raw, 0
  %b.zero = icmp eq i64 %b.raw, 0
  %ab.special = or i1 %a.special, %b.special
  %ab.zero = or i1 %a.zero, %b.zero
  %plain = or i1 %ab.special, %ab.zero
  br i1 %plain, label %two, label %finite
two:
  %two.p = fmul double %a, %b
  %two.s = fadd double %two.p, %c
  ret double %two.s
finite:
  %c.special = icmp eq i64 %c.b, 2047
  br i1 %c.special, label %third, label %exact
third:
  ret double %c
exact:
  %p.s = xor i64 %a.s, %b.s
  %a.w = zext i64 %a.m to i128
  %b.w = zext i64 %b.m to i128
  %c.w = zext i64 %c.m to i128
  %ab = mul i128 %a.w, %b.w
  %p = shl i128 %ab, 20
  %q = shl i128 %c.w, 72
  %ab.e = add i64 %a.e, %b.e
  %p.e = sub i64 %ab.e, 20
  %q.e0 = sub i64 %c.e, 72
  %c.zero = icmp eq i64 %c.raw, 0
  %q.e = select i1 %c.zero, i64 %p.e, i64 %q.e0
  %top = call i64 @llvm.smax.i64(i64 %p.e, i64 %q.e)
  %p.d = sub i64 %top, %p.e
  %q.d = sub i64 %top, %q.e
{_lowered("p", "%p.d")}{_lowered("q", "%q.d")}  %alike = icmp eq i64 %p.s, %c.s
  %more = icmp uge i128 %p.low, %q.low
  %sum = add i128 %p.low, %q.low
  %pq = sub i128 %p.low, %q.low
  %qp = sub i128 %q.low, %p.low
  %difference = select i1 %more, i128 %pq, i128 %qp
  %t = select i1 %alike, i128 %sum, i128 %difference
  %t.s0 = select i1 %more, i64 %p.s, i64 %c.s
  %t.zero = icmp eq i128 %t, 0
  %t.s = select i1 %t.zero, i64 0, i64 %t.s0
  %t.z0 = call i128 @llvm.ctlz.i128(i128 %t, i1 false)
  %t.z = trunc i128 %t.z0 to i64
  %t.d = sub i64 65, %t.z
  %t.up0 = sub i64 0, %t.d
  %t.up1 = call i64 @llvm.smax.i64(i64 %t.up0, i64 0)
  %t.up = call i64 @llvm.smin.i64(i64 %t.up1, i64 63)
{_lowered("t", "%t.d")}  %u.whole = trunc i128 %t.low to i64
  %u = shl i64 %u.whole, %t.up
  %u.e = add i64 %top, %t.d
  %unit0 = add i64 %u.e, 10
  %unit = call i64 @llvm.smax.i64(i64 %unit0, i64 -1074)
  %u.d = sub i64 %unit, %u.e
  %gone = icmp sgt i64 %u.d, 63
  %u.by = call i64 @llvm.smin.i64(i64 %u.d, i64 63)
  %kept = lshr i64 %u, %u.by
  %back = shl i64 %kept, %u.by
  %rest = sub i64 %u, %back
  %by1 = sub i64 %u.by, 1
  %half = shl i64 1, %by1
  %over = icmp ugt i64 %rest, %half
  %tie = icmp eq i64 %rest, %half
  %odd0 = and i64 %kept, 1
  %odd = icmp ne i64 %odd0, 0
  %even = and i1 %tie, %odd
  %away = or i1 %over, %even
  %one = zext i1 %away to i64
  %near0 = add i64 %kept, %one
  %near = select i1 %gone, i64 0, i64 %near0
  %field0 = add i64 %unit, 1074
  %field1 = call i64 @llvm.smin.i64(i64 %field0, i64 2047)
  %field = shl i64 %field1, 52
  %size0 = add i64 %field, %near
  %large = icmp ugt i64 %size0, 9218868437227405312
  %size1 = select i1 %large, i64 9218868437227405312, i64 %size0
  %size = select i1 %t.zero, i64 0, i64 %size1
  %signed = or i64 %size, %t.s
  %result = bitcast i64 %signed to double
  ret double %result
}}
"""
