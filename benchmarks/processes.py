"""Sides that need a process of their own each round: imports, first steps, jobs, programs."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ACCURACY = 0.85  # of the digit job after two epochs, below which the work was not done


class Processes:
    """Runs `fresh.py` with the interpreters of the peers; each answer is microseconds."""

    def __init__(self, pythons, seed_folder, threads):
        self.pythons, self.seed_folder, self.threads = pythons, seed_folder, threads
        self.failures, self.accuracies = [], {}

    def sides(self, workload):
        """{name of a side: what gives its microseconds once} of a workload."""
        jax, torch = ("jax" in self.pythons), ("torch" in self.pythons)
        made = {}
        if workload == "import":
            made["diptych/import/1"] = lambda: self._fresh("diptych", "import_diptych")[0]
            made["numpy/import/1"] = lambda: self._fresh("diptych", "import_numpy")[0]
        if workload == "start":
            for peer in ("diptych", *(["jax"] if jax else [])):
                made[f"{peer}/cold/2"] = lambda peer=peer: self._first(peer, False)
                made[f"{peer}/warm/2"] = lambda peer=peer: self._first(peer, True)
        if workload == "job" and os.environ.get("DIPTYCH_DATA"):
            for threads in self.threads:
                made[f"diptych/scan/{threads}"] = self._job("diptych", "job_scan", threads)
                made[f"diptych/dynamic/{threads}"] = self._job("diptych", "job_dynamic", threads)
                if jax:
                    made[f"jax/scan/{threads}"] = self._job("jax", "job_jax", threads)
                if torch:
                    made[f"torch/loader/{threads}"] = self._job("torch", "job_torch", threads)
        if workload == "article" and self.seed_folder and os.environ.get("DIPTYCH_DATA"):
            made["diptych/static/2"] = lambda: self._article("static_mnist.py")
            made["diptych/dynamic/2"] = lambda: self._article("dynamic_mnist.py")
        return made

    def compare(self, workload, rounds):
        """As Workers.compare, for the sides of this file."""
        sides = self.sides(workload)
        found = {name: {"check": None, "rounds": []} for name in sides}
        if workload in ("import", "start"):  # the first one writes Python's own compiled files
            for run in sides.values():
                run()
        for _ in range(rounds if sides else 0):
            for name, run in sides.items():
                try:
                    found[name]["rounds"].append([run() * 1e6])
                except (subprocess.SubprocessError, ValueError) as problem:
                    said = getattr(problem, "stderr", "") or problem
                    self.failures.append(f"{workload} {name}: {str(said)[-1500:]}")
        return {name: result for name, result in found.items() if result["rounds"]}

    def _fresh(self, peer, name, threads=2, **variables):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **variables}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled
        if peer == "diptych":
            environment["DIPTYCH_THREADS"] = str(threads)
        else:
            environment.pop("PYTHONPATH", None)
        processors = sorted(os.sched_getaffinity(0))[-threads:]
        done = subprocess.run(
            [self.pythons[peer], str(HERE / "fresh.py"), name],
            env=environment, capture_output=True, text=True, check=True, timeout=120,
            preexec_fn=lambda: os.sched_setaffinity(0, processors),
        )  # fmt: skip
        return [float(word) for word in done.stdout.split()]

    def _first(self, peer, warm):
        """From the start of a process to the end of its first compiled step."""
        with tempfile.TemporaryDirectory() as cache:
            variables = {
                "DIPTYCH_CACHE": cache,
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            }
            if warm:
                self._fresh(peer, f"first_{peer}", **variables)
            begin = time.time()
            return self._fresh(peer, f"first_{peer}", **variables)[0] - begin

    def _job(self, peer, name, threads):
        def run():
            with tempfile.TemporaryDirectory() as cache:  # compiling is part of the job
                seconds, accuracy = self._fresh(peer, name, threads, DIPTYCH_CACHE=cache)
            self.accuracies[f"{peer}/{name}"] = accuracy
            if accuracy < ACCURACY:
                raise ValueError(f"test accuracy {accuracy} is below {ACCURACY}")
            return seconds

        return run

    def _article(self, name):
        """One of the article's programs, the whole process, with its cache of code as it is."""
        script = Path(self.seed_folder).resolve() / name
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "diptych", "fluid", "--map", f"/home/aistudio={folder}",
                 str(script)],
                cwd=folder, capture_output=True, text=True, check=True, timeout=120,
            )  # fmt: skip
            return time.perf_counter() - begin
