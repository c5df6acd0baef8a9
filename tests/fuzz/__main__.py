"""`python -m fuzz`: draw cases for some minutes, and write what fails, made small, as text."""

from __future__ import annotations

import argparse
import platform
import re
import secrets
import sys
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from diptych.runtime.code import host_target
from fuzz.case import MODES, Case
from fuzz.child import Child
from fuzz.draw import drawn, recorded
from fuzz.program import as_program
from fuzz.shrink import shrunk


class Hunt:
    """What the workers of one run share: the seed, the time, what was found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
        self.fixed = {n: v for n in ("mode", "target") if (v := getattr(options, n))}
        self.start = time.monotonic()
        self.lock = threading.Lock()
        self.next = options.first
        self.cases = 0
        self.work = 0.0
        self.settings: Counter[str] = Counter()
        self.found: dict[str, list[str]] = {}  # outline of a case -> where it is written

    def minutes(self) -> float:
        return (time.monotonic() - self.start) / 60

    def is_over(self) -> bool:
        limit = self.options.cases
        return self.minutes() >= self.options.minutes or bool(limit and self.cases >= limit)

    def work_on(self) -> None:
        """Draw and check cases until the time is over."""
        child = Child()
        while not self.is_over():
            with self.lock:
                number, self.next = self.next, self.next + 1
                case = drawn(self.seed, number, **self.fixed)
                work = recorded(case).cost() * len(case.rounds)
            problem = child.check(str(case))
            with self.lock:
                self.cases += 1
                self.work += work
                self.settings.update([case.mode, f"{case.threads} threads", case.target])
            if problem:
                child.stop()
                self.report(case, number, problem, child)
        child.stop()

    def report(self, case: Case, number: int, problem: str, child: Child) -> None:
        """Write a failing case as it was drawn, and as small as it becomes."""
        print(f"case {self.seed}/{number} after {self.minutes():.1f} min: {problem}", flush=True)
        folder = Path(self.options.folder)
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"{self.seed}-{number}"
        drawn_as = f"# drawn as {self.seed}/{number}: {' '.join(problem.split())}\n"
        stem.with_suffix(".case").write_text(drawn_as + str(case))
        small = shrunk(
            case, lambda c: kind(child.check(str(c))) == kind(problem), self.options.shrink
        )
        child.stop()
        again = child.check(str(small))
        head = drawn_as + f"# now: {' '.join(again.split())}\n"
        stem.with_suffix(".small.case").write_text(head + str(small))
        stem.with_suffix(".py").write_text(as_program(small))
        with self.lock:
            self.found.setdefault(outline(small), []).append(f"{stem}.small.case")
        print(f"{head}{small}", flush=True)

    def line(self) -> str:
        rate = self.work / 60e6 / max(self.minutes(), 1e-9)
        return (
            f"{self.minutes():.1f} min, seed {self.seed}, {self.cases:,} cases, "
            f"{self.work:.2e} multiply-adds ({rate:.1f} million a second), "
            f"{sum(map(len, self.found.values()))} failures of {len(self.found)} kinds"
        )

    def summary(self) -> str:
        target = host_target("native")
        lines = [
            f"{self.minutes() / 60 * self.options.jobs:.2f} hours of {self.options.jobs} processes "
            f"on {target.cpu} ({platform.machine()}, {target.lanes} lanes)",
            self.line(),
            *[f"  {count:6} x {name}" for name, count in sorted(self.settings.items())],
        ]
        for written in self.found.values():
            lines.append(f"found {len(written)} times, e.g. {written[0]}")
        return "\n".join(lines)


def kind(problem: str) -> str:
    """What has to stay the same while a case is made smaller."""
    if re.search(r"\d wrong, the first at", problem):
        return "wrong"
    return problem.split(":")[0]


def outline(case: Case) -> str:
    """A case without its sizes and numbers."""
    return re.sub(r"\d[\d.e-]*", "", "\n".join(case.lines))


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--cases", type=int, default=0, help="stop after so many")
    parser.add_argument("--seed", type=int, help="of the run; drawn where it is not given")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--mode", choices=MODES, help="not drawn but this")
    parser.add_argument("--target", help="not drawn but this, e.g. 'native lanes=8'")
    parser.add_argument("--folder", default="fuzz-failures", help="where failing cases are written")
    parser.add_argument("--shrink", type=float, default=120.0, help="seconds to make one small")
    parser.add_argument("--case", help="check the case of this file alone")
    options = parser.parse_args()
    if options.case:
        text = Path(options.case).read_text()
        Case.parse(text)
        problem = Child().check(text)
        print(problem or "the bits are the reference's")
        return bool(problem)
    hunt = Hunt(options)
    print(f"seed {hunt.seed}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(hunt.work_on) for _ in range(options.jobs)}
        while running:
            done, running = wait(running, 60, FIRST_COMPLETED)
            for worker in done:
                if worker.exception():
                    options.minutes = 0.0  # ends the others
                worker.result()
            print(hunt.line(), flush=True)
    print(hunt.summary())
    return bool(hunt.found) or not hunt.cases


if __name__ == "__main__":
    sys.exit(main())
