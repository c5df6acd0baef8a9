"""Random programs at the sizes that people use, for a minute, and the machine that draws them."""

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fuzz.case import Case, difference, same_bits
from fuzz.child import Child
from fuzz.draw import drawn, recorded
from fuzz.program import as_program
from fuzz.shrink import is_sound, needed, renamed, without

SEED, CASES = 14, 25  # of the cases that are the same in every run
SECONDS = 12.0  # for cases of a seed that is drawn

SUM = Case(
    ("x0 = normal(N, 784)", "w0 = parameter(100, 784)", "v0 = F.linear(x0, w0)", "v1 = dp.sum(v0)",
     "v1.backward()", "return (v0,)"),
    (128, 96),
)  # fmt: skip


ALONE = {
    **os.environ,
    "DIPTYCH_CACHE": "",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}  # for a process in which `fuzz` is imported


@pytest.fixture
def child():
    made = Child(limit=60.0)
    yield made
    made.stop()


def problem_of(child, *seed):
    case = drawn(*seed)
    found = child.check(str(case))
    replay = f"make fuzz MORE='--seed {seed[0]} --first {seed[1]} --cases 1'"
    return f"{found}\n{replay}\n{case}" if found else ""


def test_the_same_cases_in_every_run(child):
    problems = [problem_of(child, SEED, n) for n in range(CASES)]
    assert not any(problems), "\n".join(problems)


def test_cases_of_a_seed_that_is_drawn(child):
    seed, end, number = secrets.randbelow(1 << 31), time.monotonic() + SECONDS, 0
    print(f"seed {seed}")
    while time.monotonic() < end:
        problem = problem_of(child, seed, number)
        assert not problem, problem
        number += 1
    print(f"{number} cases")


def test_a_case_is_a_function_of_its_seed_and_its_text_reads_back():
    for number in range(30):
        case = drawn(7, number)
        assert case == drawn(7, number)
        assert Case.parse(str(case)) == case
        assert is_sound(case)
    assert drawn(7, 0) != drawn(7, 1) != drawn(8, 1)
    for text in ("", str(SUM).replace("'dynamic'", "'dynmic'")):
        with pytest.raises(ValueError, match="no case"):
            Case.parse(text)


def test_cases_are_of_the_sizes_that_people_use():
    """Sides of 256 KiB and more, several products, gradients, a parameter in several places."""
    cases = [drawn(9, number) for number in range(60)]
    texts = ["\n".join(case.lines) for case in cases]
    costs = [recorded(case).cost() for case in cases]
    assert sum(cost > 1e6 for cost in costs) > 20 and max(costs) < 1e9
    assert sum(text.count("linear") + text.count("matmul") > 2 for text in texts) > 15
    assert sum(".backward()" in text for text in texts) > 40
    assert len({case.mode for case in cases}) == 7 and len({case.target for case in cases}) > 5


def test_a_process_that_crashes_or_hangs_is_a_finding(child):
    def found(line):
        return child.check(str(Case(("x0 = normal(2)", line, "return (v0,)"))))

    assert found("v0 = x0 * 2.0") == ""
    assert found("v0 = __import__('os').abort()") == "crashes: SIGABRT"
    child.limit = 1.0
    assert found("v0 = __import__('time').sleep(9)").startswith("hangs")
    child.limit = 60.0
    assert found("v0 = x0 + 1.0") == ""
    assert found("v0 = undefined") == "NameError on cpu: name 'undefined' is not defined"
    assert found("v0 = dp.reshape(x0, (3,))") == ""  # refused by both
    ours = "v0 = (_ for _ in ()).throw(__import__('diptych.errors').errors.InternalError('ours'))"
    assert found(ours).startswith("InternalError")
    assert found("v0 = dp.renamed(x0)").startswith("MissingNameError")


def test_a_difference_names_the_result_and_the_place():
    a = np.array([0.0, 1.0, np.nan, 2.0], np.float32)
    b = np.array([-0.0, 1.0, -np.nan, 2.0], np.float32)
    assert same_bits(a, b).tolist() == [False, True, True, True]
    assert difference({"v": a}, {"v": a}) == ""
    assert difference({"v": a}, {"v": b}).startswith("v: 1 of 4 wrong, the first at (0,)")
    assert difference({"v": a}, {}) == "v: on one device alone"
    assert difference({}, {"v": a}, every=False) == ""
    assert "f32" not in difference({"v": a}, {"v": a.astype("f8")})


def test_lines_go_with_what_needs_them():
    assert without(SUM.lines, range(2, 3)) == list(SUM.lines[:2])
    assert without(SUM.lines, range(5, 6)) == list(SUM.lines[:5])
    assert needed((*SUM.lines[:4], "return (v0,)")) == [*SUM.lines[:3], "return (v0,)"]
    lines = ("x0 = normal(2)", "w7 = parameter(2)", "v3 = x0 * w7", "return (v3,)")
    assert renamed(Case(lines)).lines[1:] == ("w0 = parameter(2)", "v0 = x0 * w0", "return (v0,)")


PLANTED = """
import dataclasses
from diptych.ops.shape import Slice
from fuzz.case import check
from fuzz.draw import drawn
from fuzz.shrink import shrunk

right = Slice.lower

def lower(self, out, x):
    if len(self.sizes) != 2 or not isinstance(self.sizes[1], int) or self.sizes[1] < 40:
        return right(self, out, x)
    last, step = self.starts[1] + self.steps[1] * (self.sizes[1] - 1), -self.steps[1]
    turned = dataclasses.replace(self, starts=(self.starts[0], last), steps=(self.steps[0], step))
    return right(turned, out, x)

Slice.lower = lower
def fails(case):
    return any(":" in line for line in case.lines) and "wrong" in check(case)

cases = (drawn(3, number, mode="dynamic") for number in range(200))
print(shrunk(next(filter(fails, cases)), fails, 40.0))
"""


def test_a_wrong_stride_is_found_and_made_small(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PLANTED], capture_output=True, text=True, env=ALONE
    )
    assert done.returncode == 0, done.stderr
    small = Case.parse(done.stdout)
    steps = [line for line in small.lines if line.startswith("v")]
    assert len(small.lines) <= 6 and len(steps) <= 3, done.stdout


def test_a_case_as_a_program_needs_nothing_but_diptych(tmp_path):
    path = tmp_path / "case.py"
    path.write_text(as_program(SUM))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 (128, 100) 0 of 12,800 wrong" in done.stdout


def test_the_long_run_writes_what_it_finds_and_checks_a_file(tmp_path):
    def fuzz(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "fuzz", *arguments],
            capture_output=True, text=True, env=ALONE, cwd=tmp_path,
        )  # fmt: skip

    done = fuzz("--minutes", "1", "--cases", "2", "--jobs", "1", "--seed", "3")
    assert done.returncode == 0 and "seed 3" in done.stdout and "2 cases" in done.stdout
    path = tmp_path / "a.case"
    path.write_text(str(Case(("x0 = normal(2)", "v0 = undefined", "return (v0,)"))))
    done = fuzz("--case", str(path))
    assert done.returncode == 1 and "NameError" in done.stdout
