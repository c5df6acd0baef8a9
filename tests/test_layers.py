"""Imports point down: a part imports only from rows above it and from itself."""

import ast
from pathlib import Path

import diptych

ROOT = Path(diptych.__file__).parent
ROW = {
    "errors": 0, "lazy": 0, "elsewhere": 0.5, "config": 1, "states": 1, "dtypes": 1, "size": 1.5,
    "philox": 1, "kernel": 2,
    "graph": 3,
    "ops": 4, "autodiff": 5, "interpret": 5, "compiler": 5, "runtime": 5.5, "compiles": 5,
    "engine": 6, "generator": 2, "tensor": 7, "derivatives": 7.2, "trail": 7.2, "loops": 7.3,
    "families": 6.5, "running": 7.5, "rehearsal": 7.2, "tiers": 6.2, "dynamic": 8, "static": 8,
    "data": 6, "nn": 9, "optim": 9,
    "formats": 9, "testing": 9, "view": 9, "__init__": 10, "cli": 11, "fluid": 11,
    "__main__": 12,
}  # fmt: skip
TOP = ("__init__", "cli", "fluid", "__main__")


def part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.split(".")[0] == "diptych"]
            assert not [n for n in names if "." in n and part(path) not in TOP], f"{path}: {names}"
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "diptych":
                yield from (a.name for a in node.names)
            elif node.module and node.module.startswith("diptych."):
                yield node.module.split(".")[1]


def test_imports_point_down():
    for path in ROOT.rglob("*.py"):
        own = part(path)
        for other in imported_parts(path):
            if other == own or own in TOP:
                continue
            assert ROW[other] < ROW[own], f"{path.relative_to(ROOT)} imports {other}"


def test_a_gradient_is_read_through_its_panel():
    """Elsewhere it may be a `Bundle` of several, which is no tensor."""
    for path in ROOT.rglob("*.py"):
        if part(path) in ("tensor", "trail", "dynamic"):
            continue
        read = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        assert "_grad" not in {n.attr for n in read}, path.relative_to(ROOT)


def test_references_are_counted_in_one_place():
    for path in ROOT.rglob("*.py"):
        assert path.name == "holders.py" or "refcount" not in path.read_text(), path
