"""Every example in the README and in docs/ runs, and prints what the page says it prints."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import pytest

import diptych as dp
from diptych.cli import main
from diptych.families import Families

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    dp.use_device("cpu")
    dp.set_eager(False)


def blocks(page):
    """(language, text, number of the first line) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield found[1], found[2], text[: found.start(2)].count("\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page_runs(page, monkeypatch):
    monkeypatch.setattr(dp.PANEL.runner, "families", Families())  # no sizes from other tests
    namespace, printed = {"__name__": page.stem}, None
    for language, text, line in blocks(page):
        if language == "python":
            out = io.StringIO()
            code = compile("\n" * line + text, str(page), "exec")
            with contextlib.redirect_stdout(out):
                exec(code, namespace)
            printed = out.getvalue()
        elif language == "text":
            assert printed is not None, f"{page.name}:{line} shows the output of nothing"
            assert printed.rstrip() == text.rstrip(), f"{page.name}:{line}"
            printed = None


def test_the_tour_runs():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(ROOT / "docs" / "tour.py"))
    assert "---- native" in out.getvalue()


@pytest.mark.parametrize("page", sorted(ROOT.glob("README*.md")), ids=lambda p: p.name)
def test_the_output_in_the_readme_is_real(page, capsys):
    """The demo's table has the hash and the accuracy that a run gives."""
    assert main(["digits", "--mode", "scan", "--epochs", "5", "--seed", "0"]) == 0
    row = next(r for r in capsys.readouterr().out.splitlines() if "scan" in r and "│" in r)
    _, _, accuracy, *_, weights, _ = [cell.strip() for cell in row.split("│")]
    shown = [r for r in page.read_text(encoding="utf-8").splitlines() if weights in r]
    assert len(shown) == 4 and all(accuracy in r for r in shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "//" not in target and (page.parent / target).exists(), f"{page.name}: {target}"


def test_both_readmes_show_the_same_code():
    code = [[b for b in blocks(p) if b[0] == "python"] for p in sorted(ROOT.glob("README*.md"))]
    assert len(code) == 2 and [c[1] for c in code[0]] == [c[1] for c in code[1]]


def test_public_names_are_documented():
    """A public name without a docstring of its own is not ready to be public."""
    for name in dp.__all__:
        value = getattr(dp, name)
        if callable(value) or isinstance(value, type(sys)):
            assert value.__doc__, name


@pytest.mark.slow
def test_the_comparison_is_built_from_nothing(tmp_path, monkeypatch):
    """On the bundled digits; the page in docs/ is built on MNIST by the same script."""
    script = ROOT / "docs" / "comparison.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", str(Path(dp.__file__).parent.parent))
    runpy.run_path(str(script), run_name="__main__")
    for name in ("comparison.md", "comparison.zh-CN.md"):
        built, kept = ((d / name).read_text(encoding="utf-8") for d in (tmp_path, ROOT / "docs"))
        assert "{" not in re.sub(FENCE, "", built)
        assert [b[1] for b in blocks(tmp_path / name)] == [
            b[1] for b in blocks(ROOT / "docs" / name)
        ]
        assert len(built.splitlines()) == len(kept.splitlines())
    for figure in ("sum-data", "sum-operators", "network-data", "network-operators"):
        drawn = (tmp_path / "figures" / f"{figure}.svg").read_text()
        assert drawn == (ROOT / "docs" / "figures" / f"{figure}.svg").read_text(), figure


def test_our_own_times_are_told_where_there_is_no_peer(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import table

    def sides(**times):
        return {n.replace("_", "/"): {"rounds": [[t], [t]]} for n, t in times.items()}

    ours = sides(diptych_scan_1=300.0, diptych_scan_2=280.0, diptych_fma_1=9.0)
    results = {
        "mlp128": ours, "adam16": {**ours, **sides(torch_eager_1=400.0, jax_scan_2=300.0)},
        "matmul256": sides(diptych_matmul_1=1500.0), "null1": sides(diptych_compiled_1=6.0),
        "job": {}, "machine": sides(diptych_copy_1=1.0),
    }  # fmt: skip
    found = [m for m in (table.measured(row, results) for row in table.rows()) if m]
    assert table.alone(results, found) == [
        "mlp128, without a peer: scan/2 280 us, fma/1 9 us",
        "matmul256, without a peer: matmul/1 1.5 ms",
    ]
