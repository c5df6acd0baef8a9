"""What `import diptych` brings along: numpy, and little else."""

import subprocess
import sys

import pytest

import diptych as dp

# Each takes milliseconds that a program may never need; llvmlite comes with the first compile.
LATER = [
    "llvmlite", "rich", "safetensors", "PIL", "igraph", "ssl", "email", "http", "urllib.request",
    "subprocess", "tempfile", "shutil", "pathlib", "hashlib", "gzip", "fractions",
    "importlib.metadata", "importlib.resources", "numpy.random", "numpy.testing",
    "diptych.fluid", "diptych.formats", "diptych.view", "diptych.cli", "diptych.data.idx",
]  # fmt: skip


def modules_after(code):
    """Modules that a new process has, beyond those that numpy alone brings."""
    both = f"import sys, numpy; before = set(sys.modules); {code}; "
    both += "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", both], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_an_import_brings_little():
    found = modules_after("import diptych")
    assert "diptych.engine" in found
    assert not found & set(LATER)


def test_what_comes_later_comes_when_it_is_asked_for():
    assert "diptych.formats.program" in modules_after("import diptych; diptych.save")
    assert "diptych.data.idx" in modules_after("from diptych.data import mnist")
    assert "llvmlite" in modules_after("import diptych; (diptych.tensor([1.0]) + 1).numpy()")


def test_every_public_name_is_there():
    assert all(hasattr(dp, name) for name in dp.__all__)
    assert set(dp.__all__) <= set(dir(dp))
    for module in (dp, dp.data):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018
