"""Builds docs/comparison.md and docs/comparison.zh-CN.md: figures drawn, times measured.

    python docs/comparison.py --mnist FOLDER [--paddle PYTHON] [--out docs]

PYTHON is an interpreter (3.7) that has PaddlePaddle 1.8.5; without one its times are left out.
Without --mnist the bundled digits are used, which is enough to try the script.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import llvmlite
import numpy as np

import diptych as dp
from diptych.cli import draw_network, load, train_mode

DOCS = Path(__file__).parent
ARTICLE = DOCS.parent / "examples" / "article"
MODES = ["eager", "dynamic", "static", "scan"]
# 1.8.5 wants MNIST under its own checksums of the packed files; the unpacked ones are the same.
PADDLE = """
import sys
import paddle.dataset.common as common
folder = sys.argv[2]
common.download = lambda url, *rest, **more: folder + "/" + url.split("/")[-1]
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="a folder of MNIST")
    parser.add_argument("--paddle", help="an interpreter that has PaddlePaddle 1.8.5")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    facts = {**figures(options.out), **modes(options), **programs(options), **machine(options)}
    for name in ("comparison.md", "comparison.zh-CN.md"):
        text = (DOCS / "templates" / name).read_text(encoding="utf-8")
        for key, value in facts.items():
            text = text.replace("{" + key + "}", value)
        (options.out / name).write_text(text, encoding="utf-8")
        print("wrote", options.out / name)


def figures(out):
    """The four drawings."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    a, b = dp.tensor(3.0, requires_grad=True), dp.tensor(4.0, requires_grad=True)
    y = 2 * a + 3 * b
    for style in ("operators", "data"):
        dp.draw(y, style=style).save(folder / f"sum-{style}.svg")
        draw_network(style).save(folder / f"network-{style}.svg")
    return {}


def modes(options):
    """The same network, the same seed, four ways: rows of a table."""
    train, test = load(str(options.mnist) if options.mnist else "digits")
    settings = argparse.Namespace(
        device="cpu", seed=0, optimizer="sgd", lr=0.1, batch_size=16, epochs=2
    )
    rows, weights = [], set()
    for mode in MODES:
        report, _ = train_mode(mode, train, test, settings)
        weights.add(report["weights_sha256"])
        rows.append(
            f"| {mode} | {report['us_per_step']:.0f} | {report['test_accuracy']:.4f} "
            f"| `{report['weights_sha256'][:16]}` |"
        )
    assert len(weights) == 1, "the weights differ"
    return {"modes": "\n".join(rows), "data": train.name}


def programs(options):
    """The two programs of examples/article in the fluid API, whole, start to end."""
    rows = []
    for mode in ("static", "dynamic"):
        script = ARTICLE / f"fluid_{mode}.py"
        more = [] if options.mnist else ["--data", "digits"]
        environment = dict(os.environ)
        if options.mnist:
            environment["DIPTYCH_DATA"] = str(options.mnist.resolve())
        command = [sys.executable, "-m", "diptych.fluid", "--seed", "1", *more, str(script)]
        ours, line = timed(command, environment, options.out)
        theirs, shown = None, "not measured"
        if options.paddle:
            command = [options.paddle, "-c", PADDLE, str(script), str(options.mnist.resolve())]
            bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            theirs, shown = timed(command, {**bare, "OMP_NUM_THREADS": "1"}, options.out)
        ratio = f"{theirs / ours:.1f}" if theirs else ""
        seconds = f"{theirs:.1f} s" if theirs else ""
        rows.append(f"| {mode} | {seconds} | {ours:.1f} s | {ratio} | {shown} | {line} |")
    return {"programs": "\n".join(rows)}


def timed(command, environment, folder):
    """Seconds (the better of two runs), and the test accuracy in the last line."""
    best, accuracy = float("inf"), ""
    for _ in range(2):
        begin = time.perf_counter()
        done = subprocess.run(
            command, env=environment, cwd=folder / "figures", capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        best = min(best, time.perf_counter() - begin)
        accuracy = done.stdout.strip().rsplit(" ", 1)[-1]
    for left in ("digits.inference", "digits.pdparams"):
        subprocess.run(["rm", "-rf", str(folder / "figures" / left)], check=True)
    return best, accuracy


def machine(options):
    name = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "machine": f"{name}, {len(os.sched_getaffinity(0))} cores, Python "
        f"{platform.python_version()}, numpy {np.__version__}, llvmlite {llvmlite.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
