"""Targets: the same bits for every CPU level, and proof that the level is used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import diptych as dp
from diptych import engine, nn
from diptych.compiler.target import describe
from diptych.errors import DeviceError, MissingExtraError
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


@pytest.mark.skipif(shutil.which("cc") is None, reason="linking needs a C compiler")
def test_a_library_for_this_machine(tmp_path):
    import ctypes

    program, out = linear_program()
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    (expected,) = program.run({"x": x}, [out])
    dp.export_library(program, tmp_path / "m.so", ["x"], [out], sizes={"N": 4})
    library = ctypes.CDLL(str(tmp_path / "m.so"))
    library.diptych_arena_bytes.restype = ctypes.c_int64
    arena, result = (ctypes.c_char * library.diptych_arena_bytes())(), np.zeros((4, 3), np.float32)
    code = library.diptych_call(
        (ctypes.c_void_p * 1)(x.ctypes.data), (ctypes.c_void_p * 1)(result.ctypes.data), arena
    )
    assert code == 0 and result.tobytes() == expected.tobytes()


def test_an_object_for_aarch64_needs_no_tools(tmp_path):
    program, out = linear_program()
    dp.export_library(program, tmp_path / "m.o", ["x"], [out], {"N": 4}, "aarch64")
    data = (tmp_path / "m.o").read_bytes()
    assert data[:4] == b"\x7fELF" and data[18] == 0xB7  # EM_AARCH64
    with pytest.raises(dp.DiptychError, match="known sizes"):
        dp.export_library(program, tmp_path / "n.o", ["x"], [out], {}, "aarch64")


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
