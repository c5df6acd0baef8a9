"""Targets: the same bits for every CPU level, and proof that the level is used."""

import math
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from hard import triples

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, nn, optim
from diptych.compiler.target import describe
from diptych.errors import DeviceError, MissingExtraError
from diptych.kernel.scalar import fma
from diptych.runtime.code import host_target

HOST = host_target("native")
LEVELS = ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4"]
X86 = pytest.mark.skipif(not HOST.triple.startswith("x86_64"), reason="levels of x86-64")

TRAIN = """
import hashlib, re, numpy as np, diptych as dp
from diptych import nn, optim, engine
import diptych.nn.functional as F
images, labels = dp.data.digits("train").batch(slice(0, 160))
dp.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 37), nn.Tanh(), nn.Dropout(0.1), nn.Linear(37, 10))
optimizer = optim.Adam(model.parameters(), lr=0.01)
for n in range(0, 160, 16):
    loss = F.cross_entropy(model(dp.tensor(images[n:n+16])), dp.tensor(labels[n:n+16]))
    loss.backward(); optimizer.step(); optimizer.zero_grad(); loss.item()
state = b"".join(v.tobytes() for v in model.state_dict().values())
assembly = next(iter(dp.PANEL.cache.values())).assembly()
found = {r for r in ("xmm", "ymm", "zmm") if re.search(r"%" + r + r"\\d", assembly)}
print(hashlib.sha256(state).hexdigest(), max(found, default="none"), engine.STATISTICS.calls)
"""


def train(**settings):
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    digest, registers, calls = done.stdout.split()
    return digest, registers, int(calls)


def supported(level):
    try:
        host_target(level)
    except DeviceError:
        return False
    return True


@X86
def test_every_level_gives_the_same_weights_with_its_own_registers():
    expected = {"x86-64": "xmm", "x86-64-v2": "xmm", "x86-64-v3": "ymm", "x86-64-v4": "zmm"}
    found = {level: train(DIPTYCH_CPU=level) for level in LEVELS if supported(level)}
    assert len({digest for digest, *_ in found.values()}) == 1
    for level, (_, registers, _) in found.items():
        assert registers == expected[level]
    eager = train(DIPTYCH_EAGER="1")
    alone = train(DIPTYCH_THREADS="1")
    assert eager[0] == alone[0] == found["x86-64"][0]
    assert eager[2] > 5 * alone[2]


HARD = """
import numpy as np, diptych as dp
from hard import numbers, same, triples
rng = np.random.default_rng([SEED])
for dtype in (np.float32, np.float64):
    a, b, c = triples(rng, 40_000, dtype)
    x = numbers(rng, 40_000, dtype)
    rows, columns = (numbers(rng, n * 31, dtype) for n in (40, 23))
    rows[::7], columns[::11] = -0.0, 1e-30
    def run(device):
        dp.use_device(device)
        made = {"fma": dp.fma(a, b, c), "fma, one": dp.fma(a[:1], b[:1], c[:1])}
        made |= {f.__name__: f(dp.tensor(x)) for f in (dp.floor, dp.ceil, dp.round)}
        made["matmul"] = dp.matmul(rows.reshape(40, 31), columns.reshape(31, 23))
        return {name: value.numpy() for name, value in made.items()}
    with np.errstate(all="ignore"):
        expected = run("reference")
    for name, value in run("cpu").items():
        assert same(value, expected[name]), (name, dtype)
    for name, f in (("floor", np.floor), ("ceil", np.ceil), ("round", np.rint)):
        assert same(expected[name], f(x)), name
"""


@X86
@pytest.mark.parametrize("level", LEVELS)
def test_hard_numbers_have_the_bits_of_the_reference_on_every_level(level):
    if not supported(level):
        pytest.skip(f"not a level of this machine: {level}")
    seed = int.from_bytes(os.urandom(4), "little")
    code = HARD.replace("SEED", f"7, {seed}")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "DIPTYCH_CPU": level, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"


def exact_fma(a, b, c):
    """a * b + c by rationals, rounded once by Python; None where they do not apply."""
    if not all(map(math.isfinite, (a, b, c))):
        return None
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c if 0.0 in (a, b) else 0.0
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def test_the_reference_rounds_a_fused_multiply_add_once():
    a, b, c = triples(np.random.default_rng(0), 20_000, np.float64)
    hard = [
        (-0.0, 5.0, -0.0), (5e-324, 1.0, -5e-324), (5e-324, 1.0, 5e-324), (3.0, 0.0, -0.0),
        (1e308, 10.0, -math.inf), (2.0**-1000, 2.0**-74, -0.0), (-1e-300, 1e-300, 0.0),
    ]  # fmt: skip
    rows = [*hard, *zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    with np.errstate(all="ignore"):
        found = fma(*np.array(rows).T)
    assert found[4] == -math.inf
    for row, value in zip(rows, found.tolist(), strict=True):
        expected = exact_fma(*row)
        if expected is not None:
            assert value == expected and math.copysign(1, value) == math.copysign(1, expected), row


@X86
def test_more_than_the_host_has_and_unknown_names_are_errors():
    lacking = {"avx2": True, "fma": True}
    with pytest.raises(DeviceError, match="x86-64-v4 needs"):
        describe("x86-64-v4", HOST.triple, "some cpu", lacking)
    with pytest.raises(DeviceError, match="x86-64-v3"):
        describe("pentium", HOST.triple, "some cpu", lacking)
    with pytest.raises(DeviceError, match="is for x86-64"):
        describe("x86-64-v3", "aarch64-unknown-linux-gnu", "some cpu", lacking)


FLUSHING = """
import ctypes, numpy as np, llvmlite.binding as llvm
import diptych as dp
dp.set_threads(2)
small = np.full(70_000, 1e-39, np.float32)
expected = (small * np.float32(0.5)).sum(dtype=np.float64)
big = dp.tensor(np.full((256, 256), 1e-22, np.float32))
matrix = dp.matmul(big, big).numpy().tobytes()
text = '''
define void @set(i32 %value) {
  %p = alloca i32
  store i32 %value, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  ret void
}
define i32 @get() {
  %p = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  %v = load i32, ptr %p
  ret i32 %v
}
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse.stmxcsr(ptr)
'''
engine = llvm.create_mcjit_compiler(
    llvm.parse_assembly(text), llvm.Target.from_default_triple().create_target_machine())
put = ctypes.CFUNCTYPE(None, ctypes.c_int32)(engine.get_function_address("set"))
get = ctypes.CFUNCTYPE(ctypes.c_int32)(engine.get_function_address("get"))
x = dp.tensor(small)
put(0xFFC0)  # flush to zero, denormals are zero, round toward zero
assert (get() & 0xFFC0) == 0xFFC0
result = (x * 0.5).numpy()
again = dp.matmul(big, big).numpy().tobytes()
dp.set_threads(3)  # threads begin with the modes of who makes them
many = [dp.matmul(big, big).numpy().tobytes() for _ in range(50)]
kept = get() & 0xFFC0
put(0x1F80)
assert set(many) == {matrix}
assert kept == 0xFFC0, hex(kept)
assert result.astype(np.float64).sum() == expected and expected > 0
assert again == matrix
"""


@X86
def test_modes_of_the_process_are_set_and_restored():
    done = subprocess.run([sys.executable, "-c", FLUSHING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def linear_program():
    dp.manual_seed(0)
    model = nn.Linear(6, 3)
    with dp.Program() as program:
        out = model(dp.placeholder("x", [None, 6]))
    return program, out


CC = pytest.mark.skipif(shutil.which("cc") is None, reason="linking needs a C compiler")


def run_library(path, name, inputs, output):
    """Call an exported library; its code, and the output array."""
    import ctypes

    library = ctypes.CDLL(str(path))
    bytes_, call = getattr(library, f"{name}_arena_bytes"), getattr(library, f"{name}_call")
    bytes_.restype = ctypes.c_int64
    arena = np.zeros(bytes_() + 64, np.uint8)
    at = arena.ctypes.data + -arena.ctypes.data % 64
    code = call(
        (ctypes.c_void_p * len(inputs))(*[a.ctypes.data for a in inputs]),
        (ctypes.c_void_p * 1)(output.ctypes.data),
        ctypes.c_void_p(at),
    )
    return code, output


@CC
def test_a_library_for_this_machine(tmp_path):
    program, out = linear_program()
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    (expected,) = program.run({"x": x}, [out])
    dp.export_library(program, tmp_path / "libm.so", ["x"], [out], sizes={"N": 4})
    code, result = run_library(tmp_path / "libm.so", "m", [x], np.zeros((4, 3), np.float32))
    assert code == 0 and result.tobytes() == expected.tobytes()


def symbols(data):
    """Names in the symbol table of an ELF file: (defined and public, undefined)."""
    start, entry, count = (
        int.from_bytes(data[at : at + n], "little") for at, n in ((40, 8), (58, 2), (60, 2))
    )
    heads = [data[start + n * entry :][:64] for n in range(count)]
    kind, offset, size, link = (
        [int.from_bytes(head[at : at + n], "little") for head in heads]
        for at, n in ((4, 4), (24, 8), (32, 8), (40, 4))
    )
    (table,) = [n for n in range(count) if kind[n] == 2]  # SHT_SYMTAB
    names = offset[link[table]]
    public, undefined = set(), set()
    for at in range(offset[table] + 24, offset[table] + size[table], 24):
        name = data[names + int.from_bytes(data[at : at + 4], "little") :].split(b"\0", 1)[0]
        if int.from_bytes(data[at + 6 : at + 8], "little") == 0:
            undefined.add(name.decode())
        elif data[at + 4] >> 4:
            public.add(name.decode())
    return public, undefined


def test_an_object_for_aarch64_needs_no_tools(tmp_path):
    program, out = linear_program()
    dp.export_library(program, tmp_path / "m.o", ["x"], [out], {"N": 4}, "aarch64")
    data = (tmp_path / "m.o").read_bytes()
    assert data[:4] == b"\x7fELF" and data[18] == 0xB7  # EM_AARCH64
    assert symbols(data) == ({"m_call", "m_arena_bytes"}, set())
    with pytest.raises(dp.DiptychError, match="known sizes"):
        dp.export_library(program, tmp_path / "n.o", ["x"], [out], {}, "aarch64")


def every_case():
    """A program with an output for every operator, in f32 and in f64; its feeds."""
    feeds, outputs = {}, []
    with dp.Program() as program:
        for case in CASES:
            if case.name in ("uniform", "dropout", "permutation"):  # of random numbers
                continue
            for dtype in ("f4", "f8"):
                inputs = [a.astype(dtype) if a.dtype == np.float32 else a for a in case.inputs()]
                if dtype == "f8" and not any(a.dtype == np.float64 for a in inputs):
                    continue
                names = [f"{case.name}_{dtype}_{n}" for n in range(len(inputs))]
                given = zip(names, inputs, strict=True)
                made = [dp.placeholder(n, list(a.shape), a.dtype.name) for n, a in given]
                feeds |= dict(zip(names, inputs, strict=True))
                outputs.append(case.call(*made))
    return program, feeds, outputs


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v2", "aarch64"])
@pytest.mark.slow
def test_what_is_exported_needs_nothing_else(target, tmp_path):
    if target != "aarch64" and not (HOST.triple.startswith("x86_64") and supported(target)):
        pytest.skip(f"not a level of this machine: {target}")
    program, feeds, outputs = every_case()
    dp.export_library(program, tmp_path / "all.o", list(feeds), outputs, {}, target)
    public, undefined = symbols((tmp_path / "all.o").read_bytes())
    assert public == {"all_call", "all_arena_bytes"} and undefined == set()


@CC
@X86
@pytest.mark.parametrize("level", [level for level in LEVELS if level != "x86-64-v4"])
def test_a_library_for_an_older_processor_has_the_bits_of_this_one(level, tmp_path):
    if not supported(level):
        pytest.skip(f"not a level of this machine: {level}")
    draw = np.random.default_rng(3)
    x, y = draw.standard_normal((4, 40)) * 3, draw.standard_normal((40, 5))
    with dp.Program() as program:
        a, b = dp.placeholder("a", [None, 40], "f64"), dp.placeholder("b", [40, 5], "f64")
        rough = dp.floor(a) + dp.ceil(a) * dp.round(a.astype("f32") * 3).astype("f64")
        out = dp.matmul(a * rough, b)
    (expected,) = program.run({"a": x, "b": y}, [out])
    path = tmp_path / "libold.so"
    dp.export_library(program, path, ["a", "b"], [out], {"N": 4}, level, name="old_one")
    code, result = run_library(path, "old_one", [x, y], np.zeros((4, 5)))
    assert code == 0 and result.tobytes() == expected.tobytes()
    dynamic = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True)
    assert dynamic.returncode or "NEEDED" not in dynamic.stdout


TWO = r"""
#include <stdint.h>
#include <stdio.h>
int64_t first_arena_bytes(void), second_arena_bytes(void);
int64_t first_call(const void *const *, void *const *, void *);
int64_t second_call(const void *const *, void *const *, void *);
int main(void) {
    static _Alignas(64) char arena[1 << 20];
    float in[6] = {1, -2, 3, 0.5f, 7, 9}, a[3], b[3];
    const void *inputs[] = {in};
    void *to_a[] = {a}, *to_b[] = {b};
    if (first_arena_bytes() > (1 << 20) || second_arena_bytes() > (1 << 20)) return 2;
    if (first_call(inputs, to_a, arena) || second_call(inputs, to_b, arena)) return 3;
    return fwrite(a, 4, 3, stdout) + fwrite(b, 4, 3, stdout) == 6 ? 0 : 4;
}
"""


@CC
def test_two_programs_in_one(tmp_path):
    x = np.array([[1, -2, 3, 0.5, 7, 9]], np.float32)
    expected = b""
    for name in ("first", "second"):
        dp.manual_seed(len(name))
        model = nn.Linear(6, 3)
        with dp.Program() as program:
            out = model(dp.placeholder("x", [None, 6]))
        expected += program.run({"x": x}, [out])[0].tobytes()
        dp.export_library(program, tmp_path / f"{name}.o", ["x"], [out], {"N": 1})
    (tmp_path / "main.c").write_text(TWO)
    link = ["cc", "main.c", "first.o", "second.o", "-o", "main"]
    subprocess.run(link, cwd=tmp_path, check=True)
    done = subprocess.run([str(tmp_path / "main")], capture_output=True, check=True)
    assert done.stdout == expected


def test_what_is_no_library_is_an_error_before_a_file_is_written(tmp_path):
    program, out = linear_program()
    given = dict(inputs=["x"], outputs=[out], sizes={"N": 4}, target="aarch64")
    cases = [
        ("m.dll", {}, "'m.dll'"), ("m", {}, "'m'"), ("m.dylib", {}, "m.so"), ("m.O", {}, "m.O"),
        ("my-net.o", {}, "'my-net'"), ("2.o", {}, "'2'"), ("m.v2.o", {}, "'m.v2'"),
        ("m.o", {"name": ""}, "C identifier"), ("m.o", {"name": "é"}, "'é'"),
        ("m.o", {"name": "a\n"}, "C identifier"),
        ("m.o", {"sizes": {"N": 0}}, "1 or more"), ("m.o", {"sizes": {"N": -1}}, "1 or more"),
        ("m.o", {"sizes": {"N": 2.5}}, "whole number"), ("m.o", {"sizes": {"M": 4}}, "known sizes"),
    ]  # fmt: skip
    for file, more, said in cases:
        with pytest.raises(dp.DiptychError, match=r"\(test_targets\.py") as caught:
            dp.export_library(program, tmp_path / file, **{**given, **more})
        assert said in str(caught.value) and len(str(caught.value).splitlines()) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_trains_is_exported_without_its_training_only(tmp_path):
    dp.manual_seed(0)
    with dp.Program() as program:
        x, y = dp.placeholder("x", [None, 6]), dp.placeholder("y", [None], "i64")
        model = nn.Linear(6, 3)
        scores = model(x)
        optim.SGD(model.parameters(), lr=0.1).minimize(F.cross_entropy(scores, y))
    dp.Executor().run(program.startup)
    with pytest.raises(dp.DiptychError, match=r"does not train[\s\S]*clone\(for_test=True\)"):
        dp.export_library(program, tmp_path / "m.o", ["x"], [scores], {"N": 4}, "aarch64")
    assert not (tmp_path / "m.o").exists()
    test = program.clone(for_test=True)
    dp.export_library(test, tmp_path / "m.o", ["x"], [scores], {"N": 4}, "aarch64")


def test_without_a_linker_the_error_says_what_to_install(tmp_path, monkeypatch):
    program, out = linear_program()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="install lld or gcc"):
        dp.export_library(program, tmp_path / "m.so", ["x"], [out], {"N": 4}, "aarch64")


@pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-gcc")),
    reason="needs qemu-user and gcc for aarch64",
)
def test_the_network_on_aarch64_has_the_same_bits():
    script = Path(__file__).parent.parent / "scripts/check_aarch64.py"
    assert subprocess.run([sys.executable, str(script)]).returncode == 0


def test_a_cache_that_is_damaged_or_shared_or_full(tmp_path):
    code = (
        "import diptych as dp, numpy as np\n"
        "print((dp.tensor(np.arange(5.0)) * 3.0 + 1.0).sum().item())\n"
    )

    def run(**more):
        env = {**os.environ, "DIPTYCH_CACHE": str(tmp_path), **more}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, "loaded" in done.stderr

    assert run(DIPTYCH_DEBUG="1") == ("35.0\n", False)
    assert run(DIPTYCH_DEBUG="1") == ("35.0\n", True)
    entries = [p for p in tmp_path.rglob("*.o")]
    assert entries
    for damage in (b"", b"garbage", None):
        for path in entries:
            path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
        assert run(DIPTYCH_DEBUG="1") == ("35.0\n", False)
        assert run(DIPTYCH_DEBUG="1") == ("35.0\n", True)
    for path in entries:
        path.unlink()
    env = {**os.environ, "DIPTYCH_CACHE": str(tmp_path)}
    together = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
                for _ in range(4)]  # fmt: skip
    assert {p.communicate()[0] for p in together} == {b"35.0\n"}
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(DIPTYCH_CACHE=str(blocked / "below"))[0] == "35.0\n"
    assert run(DIPTYCH_CACHE="")[0] == "35.0\n"


def test_the_engine_shows_its_assembly():
    dp.tensor([1.0, 2.0]).sum().item()
    found = next(e for e in dp.PANEL.cache.values() if isinstance(e, engine.Executable))
    assert "diptych_run" in found.assembly()
