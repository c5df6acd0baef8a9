"""`diptych fluid SCRIPT`: scripts of paddle.fluid as they are, and what goes wrong around them."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fluid_model import Network, train_static

from diptych import fluid
from diptych.errors import UnwritableFileError
from diptych.fluid import files, run
from diptych.fluid.core import EnforceNotMet

pytestmark = pytest.mark.usefixtures("fluid_process")
ARTICLE = Path(__file__).parent.parent / "examples" / "article"


def outcome(capsys, *arguments):
    code = run.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", ["fluid_static", "fluid_dynamic"])
def test_the_examples_run_on_the_bundled_digits(name, capsys):
    code, out, err = outcome(capsys, "--data", "digits", "--seed", 3, ARTICLE / f"{name}.py")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 2 and float(lines[1].rsplit(" ", 1)[1]) > 0.75
    assert "paddle" not in sys.modules and "int" not in vars(np)
    saved = "digits.inference/__model__" if name == "fluid_static" else "digits.pdparams"
    assert Path(saved).exists()
    if name == "fluid_dynamic":
        static = outcome(capsys, "--data", "digits", "--seed", 3, ARTICLE / "fluid_static.py")[1]
        assert static == out  # both modes, the same numbers


@pytest.mark.parametrize("name", ["diptych_static", "diptych_dynamic"])
def test_the_same_in_diptych(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name])  # the examples read their own arguments
    runpy.run_path(str(ARTICLE / f"{name}.py"))
    both = capsys.readouterr().out
    runpy.run_path(str(ARTICLE / "diptych_dynamic.py"))
    assert both == capsys.readouterr().out and "test accuracy 0.8" in both


def script(text, name="script.py"):
    Path(name).write_text(text)
    return name


def test_modules_are_real_entries_of_this_process_only(capsys):
    path = script(
        "import paddle, sys\n"
        "import paddle.fluid as fluid, paddle.fluid.layers as layers\n"
        "from paddle import fluid as again\n"
        "from paddle.fluid.dygraph.nn import Linear\n"
        "from paddle.fluid.dygraph.base import to_variable\n"
        "import paddle.dataset.mnist as mnist\n"
        "import numpy as np\n"
        "print(sys.argv[1:], np.int is int, np.float(3), again is fluid, paddle.__version__)\n"
        "assert 'paddle.fluid.layers' in sys.modules\n"
    )
    code, out, _ = outcome(capsys, path, "one", "--two")
    assert code == 0 and out == "['one', '--two'] True 3.0 True 1.8.5\n"
    assert not [m for m in sys.modules if m.split(".")[0] == "paddle"]
    assert subprocess.run([sys.executable, "-m", "diptych", "fluid", path]).returncode == 0
    assert subprocess.run([sys.executable, "-m", "diptych.fluid", "missing.py"]).returncode == 1


def test_paths_are_probed_before_training_and_mapped(capsys, monkeypatch):
    path = script(
        "import paddle.fluid as fluid\n"
        "folder = '/nobody/here/model'\n"
        "print('trained')\n"
        "with fluid.dygraph.guard():\n"
        "    layer = fluid.dygraph.Linear(2, 1)\n"
        "    fluid.save_dygraph(layer.state_dict(), folder)\n"
    )
    monkeypatch.setattr(os, "access", lambda place, mode: str(place) != "/")
    code, out, err = outcome(capsys, path)
    assert code == 1 and "trained" not in out
    assert "/nobody/here/model" in err and "--map" in err
    code, out, err = outcome(capsys, "--map", "/nobody=./mine", path)
    assert code == 0 and Path("mine/here/model.pdparams").exists()
    assert outcome(capsys, "--map", "wrong", path)[0] == 1


def rescued(place):
    (folder,) = Path(place).glob("diptych-rescue-*")
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_failed_save_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    Path("file").write_text("in the way")
    files.MAPPED[:] = [("/data", "file")]
    with fluid.dygraph.guard():
        weights = Network().state_dict()
        with pytest.raises(UnwritableFileError, match=r"Not a directory.*diptych-rescue") as caught:
            fluid.save_dygraph(weights, "/data/model/network")
    assert f"--map /data/model/network={tmp_path}/home/network SCRIPT" in str(caught.value)
    files.MAPPED.clear()
    fluid.save_dygraph(weights, "network")
    assert rescued(".") == {"network.pdparams": Path("network.pdparams").read_bytes()}


@pytest.mark.parametrize("full", [["model"], ["model", "diptych-rescue"]])
def test_a_full_disk_loses_no_file_of_a_model(full, tmp_path, monkeypatch):
    """All files of a model go to one place: here, or at home where the disk here is full too."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "work"):
        Path(name).mkdir()
    monkeypatch.chdir("work")
    whole = files.write_whole

    def write_whole(path, data):
        place = path.absolute().relative_to(tmp_path).as_posix()
        if len(data) > 50 and place.startswith(tuple(f"work/{f}" for f in full)):
            raise OSError(28, "No space left on device")
        whole(path, data)

    train_static("sgd_0.1")
    predict = fluid.default_main_program().var("fc_1.tmp_2")
    save = lambda: fluid.io.save_inference_model("model", ["image"], [predict], None)  # noqa: E731
    monkeypatch.setattr(files, "write_whole", write_whole)
    with pytest.raises(UnwritableFileError, match="No space left"):
        save()
    found = rescued("." if len(full) == 1 else tmp_path / "home")
    assert not list(Path(".").glob("diptych-rescue-*")) or len(full) == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    save()
    saved = {p.name: p.read_bytes() for p in Path("model").iterdir()}
    assert set(found) == set(saved) and all(
        found[n] == saved[n]
        for n in saved
        if n != "__model__"  # its target has another name
    )


@pytest.mark.parametrize("kind", ["file", "closed"])
def test_a_folder_that_cannot_be_made_is_found_before_training(kind, capsys, monkeypatch):
    path = script(
        "import paddle.fluid as fluid\n"
        "print('trained')\n"
        "fluid.io.save_inference_model('/home/aistudio/model', [], [], None)\n"
    )
    Path("place").write_text("in the way")
    if kind == "closed":
        monkeypatch.setattr(Path, "exists", lambda self: raise_(PermissionError(13, "denied")))
    code, out, err = outcome(capsys, "--map", "/home/aistudio=./place", path)
    assert code == 1 and "trained" not in out
    assert ("place is a file" if kind == "file" else "not yours to look into") in err
    assert "(script.py:3)" in err


def raise_(problem):
    raise problem


def test_a_gpu_that_is_not_there(capsys):
    path = script("import paddle.fluid as fluid\nplace = fluid.CUDAPlace(0)\nprint('ran')\n")
    with pytest.raises(EnforceNotMet, match="--device cpu"):
        run.main([path])
    capsys.readouterr()
    code, out, err = outcome(capsys, "--device", "cpu", path)
    assert code == 0 and out == "ran\n" and "is the CPU here" in err


def test_mnist_that_is_missing_or_broken_says_what_to_do(tmp_path, monkeypatch, capsys):
    import urllib.request

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIPTYCH_DATA", raising=False)
    path = script("import paddle\npaddle.dataset.mnist.train()\n")
    code, _, err = outcome(capsys, path)
    assert code == 1 and "train-images-idx3-ubyte.gz" in err and "--data digits" in err
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        Path(name).write_bytes(b"broken")
    monkeypatch.setenv("DIPTYCH_DATA", str(tmp_path))
    code, _, err = outcome(capsys, path)
    assert code == 1 and "gzip" in err and str(tmp_path) in err
