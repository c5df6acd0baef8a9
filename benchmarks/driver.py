"""Runs the sides of a workload in turn, round after round, each in a process of its own."""

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE = 300  # seconds that a side may take to build one case


@dataclass(frozen=True)
class Side:
    """One form of one framework on a number of threads."""

    peer: str
    case: str
    threads: int

    def __str__(self):
        return f"{self.peer}/{self.case}/{self.threads}"


class Failed(Exception):
    """A side could not do what it was asked."""


class Worker:
    """A peer's process, which keeps what it has prepared until it is told to forget."""

    def __init__(self, python, peer, threads):
        self.name = f"{peer}, {threads} thread(s)"
        paths = [str(HERE)]
        if peer == "diptych":
            paths.append(os.environ.get("PYTHONPATH", ""))
        self.process = subprocess.Popen(
            [python, str(HERE / "peers" / f"{peer}_worker.py"), str(threads)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                 "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.set_blocking(self.process.stderr.fileno(), False)
        self.versions = self._answer()

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            ready, _, _ = select.select([self.process.stdout], [], [], 1.0)
            self.said = ((self.process.stderr.read() or b"").decode() or self.said)[-3000:]
            if ready:
                line = self.process.stdout.readline()
                if not line:
                    break
                return json.loads(line)
        self.close()
        raise Failed(f"{self.name}: {self.said.strip()}")

    said = "no answer"

    def close(self):
        self.process.kill()
        self.process.wait()


class Workers:
    """All workers of a run, started at need."""

    def __init__(self, pythons):
        self.pythons, self.running, self.failures = pythons, {}, []

    def get(self, side):
        key = (side.peer, side.threads)
        if key not in self.running:
            self.running[key] = Worker(self.pythons[side.peer], *key)
        return self.running[key]

    def versions(self):
        return {
            f"{peer}: {name}": version
            for (peer, _), worker in sorted(self.running.items())
            for name, version in worker.versions.items()
        }

    def compare(self, workload, sides, rounds, seconds):
        """{side: {"check": ..., "rounds": [[us, ...], ...]}}, without the sides that fail."""
        found = {}
        for side in sides:
            answer = self._ask(
                side, found, do="prepare", case=side.case, workload=workload, seconds=seconds
            )
            if answer is not None:
                found[side] = {"check": answer["check"], "rounds": []}
        for _ in range(rounds):
            for side in list(found):
                answer = self._ask(side, found, do="round", case=side.case, workload=workload)
                if answer is not None:
                    found[side]["rounds"].append(answer["us"])
                time.sleep(0.005)  # threads that spin after their work are at rest
        for side in found:
            self.get(side).ask(do="forget")
        return {str(side): result for side, result in found.items()}

    def _ask(self, side, found, **request):
        """The answer, or None where the side failed; with a worker all its sides are gone."""
        try:
            answer = self.get(side).ask(**request)
        except (Failed, BrokenPipeError) as problem:
            answer = {"failed": problem}
            self.running.pop((side.peer, side.threads), None)
            for other in [s for s in found if (s.peer, s.threads) == (side.peer, side.threads)]:
                del found[other]
        if "failed" in answer:
            self.failures.append(f"{request['workload']} {side}: {answer['failed']}")
            return None
        return answer

    def close(self):
        for worker in self.running.values():
            worker.close()


def pythons(folder):
    """The interpreter of each peer that is installed in `folder`, and our own."""
    found = {"diptych": sys.executable}
    for peer in ("torch", "jax", "ort", "tf"):
        python = Path(folder) / peer / "bin" / "python" if folder else None
        if python and python.exists():
            found[peer] = str(python)
    return found
