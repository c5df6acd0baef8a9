"""The targets, the table of ratios, and the comparison with an earlier run."""

import math
import statistics
from dataclasses import dataclass
from fnmatch import fnmatch

SLOWER = 1.3  # times the earlier median from which a row is said to be slower
STEP = ("jax/jit_step/*", "torch/compile_step/*")
PEERS = ("torch/*", "jax/*", "ort/*", "tf/*")
# Seconds of PaddlePaddle 1.8.5 on the article's own programs: stated, not run here. They were
# measured on another machine (Intel Xeon, Emerald Rapids class, 2 processors, AVX-512).
ARTICLE = {"static": 38.8, "dynamic": 21.2}


@dataclass(frozen=True)
class Row:
    """`ours` against the best of `theirs`, or against a time in microseconds."""

    name: str
    workload: str
    ours: str
    theirs: tuple[str, ...] | float
    limit: float
    speed: bool = False  # the limit is a least ratio of speeds, not a largest ratio of times


def rows():
    made = [
        Row("mlp16, scan, of the best peer", "mlp16", "diptych/scan/*", PEERS, 0.5),
        Row("mlp16, scan, of one core's FMA limit", "mlp16", "diptych/scan/*",
            ("diptych/fma_limit/1",), 1.4),
        Row("mlp16, a compiled step, of jit and torch.compile", "mlp16", "diptych/compiled/*",
            STEP, 0.45),
        Row("mlp16, dynamic, of our compiled step", "mlp16", "diptych/dynamic/*",
            ("diptych/compiled/*",), 1.6),
        Row("mlp16, dynamic, of torch eager", "mlp16", "diptych/dynamic/*",
            ("torch/eager/*",), 0.25),
        Row("mlp16, scan, 2 threads of 1", "mlp16", "diptych/scan/2", ("diptych/scan/1",), 1.05),
        Row("adam16, scan, of the best peer", "adam16", "diptych/scan/*", PEERS, 1.0),
        Row("adam16, a compiled step, of the best peer", "adam16", "diptych/compiled/*",
            STEP, 1.0),
        Row("adam16, dynamic, of torch eager", "adam16", "diptych/dynamic/*",
            ("torch/eager/*",), 1.0),
        Row("null1, a compiled step", "null1", "diptych/compiled/*", 12.0, 1.0),
        Row("null1, a compiled step, of JAX jit", "null1", "diptych/compiled/*",
            ("jax/jit_step/*",), 0.3),
        Row("null1, dynamic", "null1", "diptych/dynamic/*", 45.0, 1.0),
        Row("null1, dynamic, of torch eager", "null1", "diptych/dynamic/*",
            ("torch/eager/*",), 0.2),
        Row("mlp128, scan, of the best peer", "mlp128", "diptych/scan/*", PEERS, 0.6),
        Row("wide128, scan, of the best peer", "wide128", "diptych/scan/*", PEERS, 0.9),
    ]  # fmt: skip
    for n in (256, 512, 1024, 2048):
        for threads in (1, 2):
            made.append(
                Row(f"matmul {n}, {threads} thread(s), speed of torch", f"matmul{n}",
                    f"diptych/matmul/{threads}", (f"torch/matmul/{threads}",), 0.95, True)
            )  # fmt: skip
    return [
        *made,
        Row("matmul, 20 awkward shapes, speed of torch", "awkward", "diptych/matmul/*",
            PEERS, 1.0, True),
        Row("inference, batch 1, of the best of ort and tflite", "inference", "diptych/*",
            ("ort/*", "tf/*"), 0.7),
        Row("inference, batch 1, of torch and JAX", "inference", "diptych/*",
            ("torch/*", "jax/*"), 1.0),
        Row("the digit job, scan, of JAX scan", "job", "diptych/scan/*", ("jax/*",), 0.3),
        Row("the digit job, dynamic, of torch", "job", "diptych/dynamic/*", ("torch/*",), 0.3),
        Row("import diptych after numpy", "import", "diptych/*", 0.05e6, 1.0),
        Row("start to first compiled step, cold", "start", "diptych/cold/*", 0.8e6, 1.0),
        Row("start to first compiled step, warm", "start", "diptych/warm/*", 0.4e6, 1.0),
        Row("start to first step, cold, of JAX", "start", "diptych/cold/*", ("jax/cold/*",), 1.0),
        Row("start to first step, warm, of JAX", "start", "diptych/warm/*", ("jax/warm/*",), 1.0),
        Row("the article's static program, speed of 1.8.5 (stated)", "article",
            "diptych/static/*", ARTICLE["static"] * 1e6, 20.0, True),
        Row("the article's dynamic program, speed of 1.8.5 (stated)", "article",
            "diptych/dynamic/*", ARTICLE["dynamic"] * 1e6, 12.0, True),
    ]  # fmt: skip


def middle(result):
    """The median microseconds of a side; of several shapes, the geometric mean."""
    return statistics.median(mean(values) for values in result["rounds"])


def mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def best(results, patterns):
    """The fastest side by its median, or None."""
    names = [n for n in results if any(fnmatch(n, p) for p in patterns)]
    return min(names, key=lambda n: middle(results[n]), default=None)


def measured(row, results):
    """What a row says of a run: a dict for the table and the JSON, or None without its sides."""
    sides = results.get(row.workload, {})
    ours = best(sides, (row.ours,))
    stated = isinstance(row.theirs, float)
    theirs = None if stated else best(sides, row.theirs)
    if ours is None or (theirs is None and not stated):
        return None
    mine = [mean(v) for v in sides[ours]["rounds"]]
    other = [row.theirs] * len(mine) if stated else [mean(v) for v in sides[theirs]["rounds"]]
    ratios = sorted(b / a if row.speed else a / b for a, b in zip(mine, other))
    ratio = statistics.median(ratios)
    return {
        "row": row.name, "ours": ours, "ours_us": statistics.median(mine),
        "theirs": theirs or "stated", "theirs_us": statistics.median(other),
        "ratio": ratio, "low": ratios[0], "high": ratios[-1], "limit": row.limit,
        "speed": row.speed, "met": ratio >= row.limit if row.speed else ratio <= row.limit,
    }  # fmt: skip


def time_text(us):
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} us"


def cells(found):
    """One row of the table as text."""
    sign = "at least" if found["speed"] else "at most"
    return (
        found["row"],
        f"{found['ours'].partition('/')[2]}  {time_text(found['ours_us'])}",
        f"{found['theirs']}  {time_text(found['theirs_us'])}",
        f"{found['ratio']:.2f}",
        f"{found['low']:.2f} to {found['high']:.2f}",
        f"{sign} {found['limit']:g}",
        "met" if found["met"] else "not met",
    )


HEADS = ("what", "diptych", "against", "ratio", "spread", "target", "")


def markdown(found):
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    return "\n".join([*lines, *("| " + " | ".join(cells(f)) + " |" for f in found)])


def show(found, console):
    from rich.table import Table

    table = Table(*HEADS)
    for f in found:
        table.add_row(*cells(f), style=None if f["met"] else "red")
    console.print(table)


def alone(results, found):
    """Lines about workloads that no row of the table tells of, for want of a peer: our own times,
    of each form at its better number of threads."""
    named = {f["row"] for f in found}
    told = {row.workload for row in rows() if row.name in named} | {"machine"}
    lines = []
    for workload, sides in results.items():
        best_of = {}
        for name in sides:
            peer, form, threads = name.split("/")
            time = middle(sides[name])
            if peer == "diptych" and "limit" not in form:
                best_of[form] = min(best_of.get(form, (time, threads)), (time, threads))
        if workload not in told and best_of:
            times = [f"{form}/{n} {time_text(time)}" for form, (time, n) in best_of.items()]
            lines.append(f"{workload}, without a peer: {', '.join(times)}")
    return lines


def slower(results, earlier):
    """Lines about sides of diptych that take longer than in an earlier run, by workload.

    What the peers and the rate of one core lost since then is the machine's, and taken off.
    """
    lines = []
    for workload, sides in results.items():
        before = earlier.get("workloads", {}).get(workload, {}).get("sides", {})
        both = {n: middle(sides[n]) / before[n]["median_us"] for n in sides if n in before}
        ours = {n: r for n, r in both.items() if n.startswith("diptych/") and "limit" not in n}
        others = [r for n, r in both.items() if n not in ours]
        machine = max(1.0, statistics.median(others)) if others else 1.0
        lines += [
            f"{workload} {name}: {ratio:.2f} x the earlier time, others {machine:.2f} x"
            for name, ratio in ours.items()
            if ratio > SLOWER * machine
        ]
    return lines
