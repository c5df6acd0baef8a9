"""The command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import diptych as dp
import diptych.nn.functional as F
from diptych import config, engine, nn, optim
from diptych.data import ArrayDataset, DataLoader, digits, mnist
from diptych.data.images import read_digit
from diptych.errors import DiptychError, FileFormatError, MissingFileError
from diptych.fluid.run import main as run_fluid
from diptych.runtime.files import write_whole

MODES = {
    "eager": ["eager"], "dynamic": ["dynamic"], "static": ["static"], "scan": ["scan"],
    "both": ["dynamic", "static"], "all": ["eager", "dynamic", "static", "scan"],
}  # fmt: skip
OPTIMIZERS: dict[str, Any] = {"sgd": optim.SGD, "adam": optim.Adam}


def main(arguments: list[str] | None = None) -> int:
    """The entry of `diptych` and `python -m diptych`."""
    parser = argparse.ArgumentParser(prog="diptych", description=dp.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("digits", help="train the article's network on digits")
    train.add_argument(
        "--data",
        default="digits",
        help="digits, mnist, or a folder with four idx files as MNIST has",
    )
    train.add_argument("--mode", default="both", choices=list(MODES))
    train.add_argument("--epochs", type=int, default=5)
    train.add_argument("--batch-size", type=int, default=16)
    train.add_argument("--lr", type=float, default=0.1)
    train.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--threads", type=int, help="threads of a native call")
    train.add_argument("--device", default="cpu", choices=engine.DEVICES)
    train.add_argument("--json", type=Path, help="write the report to this file")
    train.add_argument("--save", type=Path, help="save the trained program to this file")
    train.set_defaults(run=run_digits)
    show = commands.add_parser("predict", help="classify images with a saved program")
    show.add_argument("model", type=Path, metavar="MODEL")
    show.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    show.set_defaults(run=run_predict)
    picture = commands.add_parser("draw", help="draw a graph as SVG")
    picture.add_argument("what", help="sum (y = 2a + 3b), network (the article's), or a file")
    picture.add_argument("--style", choices=["operators", "data"], default="operators",
                         help="data: a box is data, an arrow an operation")  # fmt: skip
    picture.add_argument("--out", type=Path, help="the SVG file; by default WHAT.svg")
    picture.set_defaults(run=run_draw)
    commands.add_parser("fluid", add_help=False, help="run a script written for paddle.fluid 1.8")
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["fluid"]:
        return run_fluid(arguments[1:])
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except DiptychError as problem:
        facts = problem.facts.partition("    (")[0]  # no line of this program is the caller's
        lines = [f"{type(problem).__name__}: {problem.rule}", f"  got  {facts}"]
        print("\n".join([*lines, f"  try  {problem.cure}"]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def load(name: str) -> tuple[ArrayDataset, ArrayDataset]:
    if name == "digits":
        return digits("train"), digits("test")
    if name != "mnist" and not Path(name).is_dir():
        raise MissingFileError(
            "data is digits, mnist, or a folder with MNIST's four files",
            f"--data {name}",
            "--data digits",
        )
    folder = None if name == "mnist" else name
    train, test = mnist("train", folder), mnist("test", folder)
    if train.features != test.features:
        raise FileFormatError(
            "pictures to train and to test are of one size",
            f"{train.features} and {test.features} pixels in {test.source}",
            "check that the four files belong together",
        )
    return train, test


def run_digits(options: argparse.Namespace) -> int:
    """Train in every mode that is asked for, and say whether the weights agree."""
    if options.epochs < 0:
        raise DiptychError("epochs are a whole number", f"{options.epochs}", "e.g. --epochs 5")
    for path in (options.json, options.save):
        if path is not None and not path.parent.is_dir():
            raise MissingFileError("a file is written into a folder", f"no {path.parent}", "mkdir")
    if options.threads is not None:
        dp.set_threads(options.threads)
    train, test = load(options.data)
    print(f"data: {train.name}, {len(train)} to train and {len(test)} to test, {train.source}")
    results, model = {}, None
    for mode in MODES[options.mode]:
        results[mode], model = train_mode(mode, train, test, options)
    hashes = {r["weights_sha256"] for r in results.values()}
    identical = len(hashes) == 1
    show(results, identical)
    if options.json:
        report = {
            "data": train.name,
            "model": f"{train.features}-100-100-{train.classes}",
            "epochs": options.epochs, "batch_size": options.batch_size, "lr": options.lr,
            "optimizer": options.optimizer, "seed": options.seed, "threads": dp.threads(),
            "device": options.device, "modes": results, "identical": identical,
        }  # fmt: skip
        write_whole(options.json, (json.dumps(report, indent=2) + "\n").encode())
    if options.save and model is not None:
        save_model(model, train.features, options.save)
        print(f"saved {options.save}; try: diptych predict {options.save} IMAGE.png")
    if train.name == "digits":
        print("for MNIST: diptych digits --data mnist")
    return 0 if identical else 1


def train_mode(
    mode: str, train: ArrayDataset, test: ArrayDataset, options: argparse.Namespace
) -> tuple[dict[str, Any], nn.Module]:
    """Train from the same start in one mode: the report, and the model."""
    dp.use_device(options.device)
    dp.set_eager(mode == "eager" or config.eager())
    dp.manual_seed(options.seed)
    model = nn.Sequential(
        nn.Linear(train.features, 100), nn.ReLU(),
        nn.Linear(100, 100), nn.ReLU(),
        nn.Linear(100, train.classes),
    )  # fmt: skip
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), lr=options.lr)

    def step(images: Any, labels: Any) -> Any:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = dp.compile(step) if mode in ("static", "scan") else step
    loader = DataLoader(train, options.batch_size, shuffle=True, seed=options.seed)
    compiling = engine.STATISTICS.compile_seconds
    start, micros, loss, accuracy = time.perf_counter(), [], None, 0.0
    try:
        for epoch in range(options.epochs):
            began = time.perf_counter()
            loss = run_epoch(mode, run, loader)
            micros.append((time.perf_counter() - began) / len(loader) * 1e6)
            accuracy = evaluate(model, test)
            print(f"  {mode:8} epoch {epoch + 1}  loss {loss:.4f}  test {accuracy:.4f}")
        if not options.epochs:
            accuracy = evaluate(model, test)
    finally:
        dp.set_eager(config.eager())
    report = {
        "test_accuracy": accuracy,
        "train_loss": loss,
        "us_per_step": float(np.median(micros[1:] or micros)) if micros else None,
        "seconds": time.perf_counter() - start,
        "compile_seconds": engine.STATISTICS.compile_seconds - compiling,
        "weights_sha256": fingerprint(model),
    }
    return report, model


def save_model(model: nn.Module, features: int, path: Path) -> None:
    """Save the program that turns pixels from 0 to 1 into probabilities."""
    model.eval()
    with dp.Program() as program:
        pixels = dp.placeholder("pixels", [None, features])
        probabilities = F.softmax(model(pixels))
    dp.save(program, path, ["pixels"], [probabilities])


def run_draw(options: argparse.Namespace) -> int:
    """Write the drawing of an example or of a saved program."""
    if options.what == "sum":
        a, b = (dp.tensor(n, requires_grad=True) for n in (3.0, 4.0))
        y = 2 * a + 3 * b
        drawing = dp.draw(y, style=options.style, names={"a": a, "b": b, "y": y})
    elif options.what == "network":
        drawing = draw_network(options.style)
    else:
        drawing = dp.draw(dp.load(options.what), style=options.style)
    out = options.out or Path(f"{Path(options.what).stem}.svg")
    drawing.save(out)
    print(f"wrote {out}")
    return 0


def draw_network(style: str) -> dp.Drawing:
    """The article's network on 16 of the bundled digits, with its partial derivatives."""
    dp.manual_seed(0)
    with dp.Program() as program:
        image, label = dp.placeholder("image", [None, 64]), dp.placeholder("label", [None], "i64")
        model = nn.Sequential(
            nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
        )
        scores = model(image)
        loss = F.cross_entropy(scores, label)
    dp.Executor().run(program.startup)
    images, labels = digits("test").batch(slice(0, 16))
    names = {"image": image, "label": label, "scores": scores, "loss": loss}
    names.update((n, p) for n, p in model.named_parameters())
    return dp.draw(loss, {"image": images, "label": labels}, style, names)


def run_predict(options: argparse.Namespace) -> int:
    """Print the likeliest classes of every image."""
    program = dp.load(options.model)
    (feed,) = program.feeds.values()
    if feed.node.type.rank != 2 or not isinstance(feed.node.type.shape[1], int):
        raise DiptychError(
            "predict takes a program of one input, pixels (n, width * width)",
            f"{feed.name} is {feed.node.type}",
            "a file written by diptych digits --save",
        )
    for path in options.images:
        image, notes = read_digit(path, feed.node.type.shape[1])
        (scores,) = program.run({feed.name: image[None]})
        best = np.argsort(-scores[0], kind="stable")[:3]
        shown = "  ".join(f"{n} {scores[0, n]:.1%}" for n in best)
        print(f"{path.name}: {shown}" + (f"    ({', '.join(notes)})" if notes else ""))
    return 0


def run_epoch(mode: str, run: Any, loader: DataLoader) -> float:
    """One pass over the data; the loss of its last step."""
    if mode == "scan":
        return float(dp.scan(run, loader)[0][-1])
    for images, labels in progress(mode, loader):
        loss = run(dp.tensor(images), dp.tensor(labels))
    return float(loss)


def progress(mode: str, loader: DataLoader) -> Any:
    """The batches, with a bar where somebody watches."""
    if not sys.stdout.isatty():
        return loader
    from rich.progress import track

    return track(loader, f"  {mode:8}", len(loader), transient=True)


def evaluate(model: nn.Module, test: ArrayDataset) -> float:
    """Share of the test images that are classified right."""
    with dp.no_grad():
        scores = model(dp.tensor(test.batch(slice(None))[0]))
        right = scores.argmax(1).numpy() == test.labels
    return float(right.mean())


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the raw little-endian bytes of the parameters in state_dict order."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.tobytes())
    return digest.hexdigest()


def show(results: dict[str, dict[str, Any]], identical: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("mode", "test accuracy", "compile s", "us per step", "weights")
    for mode, r in results.items():
        table.add_row(
            mode, f"{r['test_accuracy']:.4f}", f"{r['compile_seconds']:.2f}",
            f"{r['us_per_step'] or 0:.0f}", r["weights_sha256"][:16],
        )  # fmt: skip
    Console().print(table)
    if len(results) > 1:
        print("the weights are the same to the last bit" if identical else "the weights DIFFER")


if __name__ == "__main__":
    sys.exit(main())
