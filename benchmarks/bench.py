"""Every workload for diptych and, in turn with it, for the peers: `make bench PEERS=FOLDER`.

FOLDER has one virtual environment a peer: torch, jax, ort (onnxruntime, onnx), tf. Without MNIST
(--data, or DIPTYCH_DATA) pixels are random and the digit job is left out. The table is kept as
JSON under results/, by date and processor; what is slower than in the last one is said.
"""

import argparse
import json
import os
import platform
import re
import time
from pathlib import Path

import driver
import growth
import table
from driver import Side
from processes import Processes
from rich.console import Console
from workloads import MLP, SQUARE, flops

RESULTS = Path(__file__).parent / "results"
TRAINING = {
    "diptych": ("scan", "compiled", "dynamic"),
    "torch": ("eager", "compile_step", "compile_10_steps"),
    "jax": ("jit_step", "scan"),
}
PRODUCTS = {"diptych": ("matmul",), "torch": ("matmul",)}
INFERENCE = {
    "diptych": ("inference", "inference_program"), "torch": ("inference", "inference_traced"),
    "jax": ("inference",), "ort": ("inference",), "tf": ("inference",),
}  # fmt: skip
IN_WORKERS = {
    **dict.fromkeys(MLP, TRAINING), **dict.fromkeys(SQUARE, PRODUCTS), "awkward": PRODUCTS,
    "inference": INFERENCE,
}  # fmt: skip
IN_PROCESSES = {"import": 9, "start": 5, "job": 3, "article": 3}  # rounds
NEEDS = {  # as MORE="--data FOLDER --seed FOLDER" of make bench
    "job": "--data, a folder of MNIST",
    "article": "--data, and --seed, the folder of the article's two programs",
}
GROUPS = {"matmul": [*SQUARE, "awkward"], "mlp": list(MLP)}
ALL = ["machine", *IN_WORKERS, *IN_PROCESSES, "growth"]
AGREE = 1e-4  # how far losses after 50 steps may lie apart


def main():
    options = arguments()
    os.environ.update({"DIPTYCH_DATA": str(options.data.resolve())} if options.data else {})
    console = Console(width=None if os.isatty(1) else 170)
    pythons = driver.pythons(options.peers)
    workers = driver.Workers(pythons)
    processes = Processes(pythons, options.seed, (1,) if options.quick else (1, 2))
    results, problems, grown = {}, [], []
    for workload in options.workloads:
        begin = time.perf_counter()
        if workload == "growth":
            grown = growth.run(options.quick, options.rounds)
        elif workload in IN_PROCESSES:
            count = 1 if options.quick else IN_PROCESSES[workload]
            results[workload] = processes.compare(workload, count)
        else:
            found = workers.compare(
                workload, sides(workload, pythons, options), options.rounds, options.seconds
            )
            results[workload] = found
            problems += disagreements(workload, found)
        console.print(f"{workload}: {time.perf_counter() - begin:.0f} s", style="dim")
    versions = workers.versions()
    workers.close()
    report(options, console, results, grown, versions)
    for problem in [*problems, *workers.failures, *processes.failures]:
        console.print(problem, style="red", markup=False)
    return 1 if problems or workers.failures or processes.failures else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {' '.join([*ALL, *GROUPS])}; or all")
    parser.add_argument("--peers", help="a folder of virtual environments")
    parser.add_argument("--data", type=Path, help="a folder of MNIST")
    parser.add_argument("--seed", type=Path, help="a folder with the article's two programs")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; nothing is kept")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--cpu", action="store_true",
        help="time of the processor, one thread: for a machine with other work; nothing is kept",
    )  # fmt: skip
    options = parser.parse_args()
    asked = [w for name in options.workloads for w in GROUPS.get(name, [name])]
    unknown = set(asked) - set(ALL)
    if unknown:
        parser.error(f"unknown {sorted(unknown)}; there are {' '.join([*ALL, *GROUPS])}")
    options.workloads = asked or ALL
    if options.peers and not Path(options.peers).is_dir():
        parser.error(f"no folder {options.peers}")
    options.rounds = options.rounds or (3 if options.quick else 9)
    if options.cpu:
        os.environ["BENCH_CLOCK"] = "cpu"
        options.workloads = [w for w in options.workloads if w in IN_WORKERS]
    options.seconds = 0.03 if options.quick else 0.1
    return options


def sides(workload, pythons, options):
    """The sides of a workload that runs in workers."""
    if workload == "machine":
        return [Side("diptych", "copy", 1), Side("diptych", "copy", 2)]
    counts = (1,) if options.cpu or workload == "null1" else (1, 2)
    if options.quick and workload in MLP:  # where every side is fastest, or nearly
        counts = (2,) if workload == "wide128" and not options.cpu else (1,)
    made = [
        Side(peer, case, threads)
        for peer, cases in IN_WORKERS[workload].items()
        for threads in counts
        for case in cases
        if peer in pythons
    ]
    limits = ["fma_limit"] if workload in (*MLP, *SQUARE) else []
    limits += ["python_limit"] if workload == "null1" else []
    return [*[Side("diptych", limit, 1) for limit in limits], *made]


def disagreements(workload, found):
    """A side whose check lies apart from the others did other work."""
    checks = {name: r["check"] for name, r in found.items() if r["check"] is not None}
    if not checks or max(checks.values()) - min(checks.values()) <= AGREE:
        return []
    return [f"{workload}: the sides do not agree: {checks}"]


def report(options, console, results, grown, versions):
    found = [m for m in (table.measured(row, results) for row in table.rows()) if m]
    found += growth.rows(grown)
    console.print(f"\n{machine()}\n" + ", ".join(f"{k} {v}" for k, v in versions.items()))
    for workload, sides_ in results.items():
        if "diptych/fma_limit/1" in sides_:
            rate = flops(workload) / table.middle(sides_["diptych/fma_limit/1"]) / 1e3
            console.print(f"{workload}: one core multiplies and adds at {rate:.0f} GFLOP/s")
        if "diptych/python_limit/1" in sides_:
            turn = 1e3 * table.middle(sides_["diptych/python_limit/1"])
            console.print(f"{workload}: a turn of a loop in plain Python takes {turn:.0f} ns")
        for threads in (1, 2):
            if f"diptych/copy/{threads}" in sides_:
                rate = 1e6 / table.middle(sides_[f"diptych/copy/{threads}"])
                console.print(f"copy, read and written, {threads} process(es): {rate:.1f} GB/s")
    table.show(found, console)
    for line in table.alone(results, found):
        console.print(line)
    for workload in [w for w, sides_ in results.items() if not sides_]:
        console.print(f"{workload}: left out, it takes {NEEDS.get(workload, 'more')}")
    growth.show(grown, console)
    if options.quick or options.cpu:
        return
    earlier = previous()
    for line in table.slower(results, earlier):
        console.print(f"slower than on {earlier['date']}: {line}", style="yellow")
    keep(earlier, results, found, grown, versions)


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine():
    return (
        f"{processor()}, {len(os.sched_getaffinity(0))} processors, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}"
    )


def slug():
    """The processor as part of a file's name."""
    return "-".join(re.findall(r"[a-z0-9.]+", processor().lower().replace("(r)", "")))


def previous():
    """The latest results of such a processor."""
    kept = sorted(RESULTS.glob(f"????-??-??-{slug()}.json"))
    return json.loads(kept[-1].read_text()) if kept else {}


def keep(earlier, results, found, grown, versions):
    """Write today's results; workloads that were not run keep what was measured today."""
    today = time.strftime("%Y-%m-%d")
    kept = earlier if earlier.get("date") == today else {}
    workloads = {
        name: {
            "at": time.strftime("%H:%M"),
            "sides": {side: summary(r) for side, r in sides_.items()},
        }
        for name, sides_ in results.items()
        if sides_
    }
    names = {f["row"] for f in found}
    whole = {
        "date": today, "machine": machine(), "versions": {**kept.get("versions", {}), **versions},
        "table": [*(f for f in kept.get("table", []) if f["row"] not in names), *found],
        "growth": grown or kept.get("growth", []),
        "workloads": {**kept.get("workloads", {}), **workloads},
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{today}-{slug()}.json"
    path.write_text(json.dumps(rounded(whole), indent=1) + "\n")


def summary(result):
    values = [table.mean(v) for v in result["rounds"]]
    found = {"median_us": table.middle(result), "best_us": min(values), "worst_us": max(values)}
    return {**found, "check": result["check"]} if result["check"] is not None else found


def rounded(value):
    """Four digits are what a measurement has."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: v if k == "check" else rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    raise SystemExit(main())
