"""The runner: a script that imports paddle, in this process, on diptych."""

from __future__ import annotations

import argparse
import ast
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import diptych as dp
from diptych import fluid
from diptych.errors import DiptychError, MissingFileError, UnwritableFileError
from diptych.fluid import dataset, files
from diptych.fluid.core import SETTINGS
from diptych.fluid.dygraph import Linear, to_variable

# Aliases that numpy had in the time of the scripts.
ALIASES = {"int": int, "float": float, "bool": bool, "object": object, "str": str}


def main(arguments: list[str]) -> int:
    """The entry of `diptych fluid` and `python -m diptych.fluid`."""
    parser = argparse.ArgumentParser(
        prog="diptych fluid", description="Run a script written for paddle.fluid 1.8 on diptych."
    )
    parser.add_argument("--data", choices=["mnist", "digits"], default="mnist",
                        help="digits: the bundled digits in the place of MNIST")  # fmt: skip
    parser.add_argument("--map", action="append", default=[], metavar="OLD=NEW",
                        help="redirect paths that begin with OLD")  # fmt: skip
    parser.add_argument("--device", choices=["cpu"], help="let CUDAPlace stand for the CPU")
    parser.add_argument("--seed", type=int, help="seed the initial weights of unseeded scripts")
    parser.add_argument("script", type=Path, metavar="SCRIPT.py")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    options = parser.parse_args(arguments)
    try:
        files.MAPPED[:] = [_pair(text) for text in options.map]
        SETTINGS.cuda_on_cpu = options.device == "cpu"
        dataset.SETTINGS.source = options.data
        if options.seed is not None:
            dp.manual_seed(options.seed)
        if not options.script.is_file():
            raise MissingFileError("a script is run", str(options.script), "check the path")
        probe(options.script)
        run_script(options.script, options.args)
    except DiptychError as problem:
        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        for note in getattr(problem, "__notes__", ()):
            print(f"       {note}", file=sys.stderr)
        return 1
    return 0


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise DiptychError("--map takes OLD=NEW", text, "--map /home/aistudio=./aistudio")
    return old, new


def run_script(script: Path, args: list[str]) -> None:
    """Run a script as Python would, with paddle there."""
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[0] = [str(script), *args], str(script.parent.resolve())
    added = install()
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before
        for name in added:
            sys.modules.pop(name, None)
        for name in ALIASES:
            if name in vars(np) and vars(np)[name] is ALIASES[name]:
                delattr(np, name)


def install() -> list[str]:
    """Put `paddle` and its submodules into sys.modules of this process; returns their names."""
    paddle = ModuleType("paddle", "paddle 1.8.5 on diptych")
    mnist = ModuleType("paddle.dataset.mnist")
    mnist.train, mnist.test = dataset.train, dataset.test  # type: ignore[attr-defined]
    common = ModuleType("paddle.dataset.common")
    common.DATA_HOME = os.path.expanduser("~/.cache/paddle/dataset")  # type: ignore[attr-defined]
    datasets = ModuleType("paddle.dataset")
    datasets.mnist, datasets.common = mnist, common  # type: ignore[attr-defined]
    nn, base = ModuleType("paddle.fluid.dygraph.nn"), ModuleType("paddle.fluid.dygraph.base")
    nn.Linear, base.to_variable = Linear, to_variable  # type: ignore[attr-defined]
    base.guard = fluid.dygraph.guard  # type: ignore[attr-defined]
    executor = ModuleType("paddle.fluid.executor")
    executor.Executor = fluid.Executor  # type: ignore[attr-defined]
    modules: dict[str, Any] = {
        "paddle": paddle, "paddle.dataset": datasets, "paddle.dataset.mnist": mnist,
        "paddle.dataset.common": common, "paddle.fluid": fluid, "paddle.fluid.core": fluid.core,
        "paddle.fluid.layers": fluid.layers, "paddle.fluid.io": fluid.io,
        "paddle.fluid.dygraph": fluid.dygraph, "paddle.fluid.dygraph.nn": nn,
        "paddle.fluid.dygraph.base": base, "paddle.fluid.executor": executor,
        "paddle.fluid.optimizer": fluid.optimizer, "paddle.fluid.framework": fluid.framework,
        "paddle.fluid.initializer": fluid.initializer,
    }  # fmt: skip
    paddle.fluid, paddle.dataset, paddle.batch = fluid, datasets, dataset.batch  # type: ignore[attr-defined]
    paddle.__version__, paddle.__path__ = "1.8.5", []  # type: ignore[attr-defined]
    sys.modules.update(modules)
    for name, kind in ALIASES.items():
        if name not in vars(np):
            setattr(np, name, kind)
    return list(modules)


def probe(script: Path) -> None:
    """Before anything is trained: may the folders be written that the script saves to?"""
    for path, is_folder, line in saved_paths(script.read_text(encoding="utf-8")):
        target = files.mapped(path).absolute()
        problem = _unwritable(target if is_folder else target.parent)
        if problem:
            mine = next((p for p in (Path.cwd(), Path.home()) if not _unwritable(p)), Path("/tmp"))
            raise UnwritableFileError(
                "a script saves where it may write",
                f"it saves to {path}, and {problem}    ({script.name}:{line})",
                f"diptych fluid --map {path}={mine / Path(path).name} {script}",
            )


def _unwritable(folder: Path) -> str:
    """Why a folder cannot be written or made; nothing where it can."""
    try:
        while not folder.exists():
            folder = folder.parent
    except PermissionError:
        return f"{folder.parent} is not yours to look into"
    if not folder.is_dir():
        return f"{folder} is a file"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} is not yours to write"


def saved_paths(source: str) -> list[tuple[str, bool, int]]:
    """Paths that a script's text gives to functions that save, literals and names of literals;
    whether each is a folder; the line of the call."""
    tree = ast.parse(source)
    literals = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        place = {"save_inference_model": 0, "save_dygraph": 1}.get(name)
        if place is None or len(node.args) <= place:
            continue
        given = node.args[place]
        path = literals.get(given.id) if isinstance(given, ast.Name) else None
        path = given.value if isinstance(given, ast.Constant) else path
        if isinstance(path, str):
            found.append((path, place == 0, node.lineno))
    return found
