"""Data sets, loaders and downloads."""

import collections
import functools
import gc
import gzip
import hashlib
import http.server
import subprocess
import sys
import threading
import time
from typing import ClassVar

import numpy as np
import pytest

import diptych as dp
from diptych import data
from diptych.data import unpacked
from diptych.data.download import download
from diptych.data.idx import FILES, mnist
from diptych.errors import DiptychError, DtypeError, FileFormatError, MissingFileError, ShapeError

mnist_module = sys.modules["diptych.data.idx"]


class Squares:
    """Rows by number: (array, int)."""

    def __init__(self, n, fail=None):
        self.n, self.fail = n, fail

    def __len__(self):
        return self.n

    def __getitem__(self, n):
        if n == self.fail:
            raise KeyError("row 7 is broken")
        return np.full(3, n * n, np.float32), n


def workers():
    return [t for t in threading.enumerate() if t._target and t._target.__name__ == "_work"]


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_prefetching_changes_nothing(prefetch, drop_last):
    def batches(ahead):
        loader = data.DataLoader(Squares(11), 4, shuffle=True, seed=3, drop_last=drop_last,
                                 prefetch=ahead)  # fmt: skip
        return [(x.tolist(), y.tolist()) for _ in range(2) for x, y in loader]

    assert batches(prefetch) == batches(0)
    assert len(batches(prefetch)) == (4 if drop_last else 6)


def test_every_epoch_has_every_row_once_in_another_order():
    loader = data.DataLoader(Squares(10), 3, shuffle=True, seed=1)
    epochs = [[n for _, labels in loader for n in labels.tolist()] for _ in range(3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = data.DataLoader(Squares(10), 3, shuffle=True, seed=1)
    assert [n for _, labels in again for n in labels.tolist()] == epochs[0]


def test_leaving_the_loop_early_ends_the_thread():
    for _ in data.DataLoader(Squares(1000), 2, prefetch=3):
        break
    gc.collect()
    time.sleep(0.3)
    assert not workers()


def test_an_error_in_the_data_is_raised_in_the_loop():
    seen = []
    with pytest.raises(KeyError, match="row 7") as caught:
        for _, labels in data.DataLoader(Squares(20, fail=7), 4):
            seen += labels.tolist()
    assert seen == [0, 1, 2, 3]
    assert any("__getitem__" in str(f.name) for f in caught.traceback)


def test_the_interpreter_ends_with_a_loader_in_the_middle():
    code = (
        "import diptych as dp, numpy as np\n"
        "class D:\n"
        "    def __len__(self): return 10**6\n"
        "    def __getitem__(self, n): return np.zeros(3, np.float32), n\n"
        "it = iter(dp.data.DataLoader(D(), 4))\n"
        "next(it)\n"
        "print('end')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_bad_loaders():
    for bad in ({"batch_size": 0}, {"prefetch": -1}):
        with pytest.raises(dp.DiptychError):
            data.DataLoader(Squares(3), **bad)
    assert list(data.DataLoader(Squares(0), 4)) == []


def test_what_is_no_data_set_of_rows_is_an_error_with_a_cure():
    images, labels = np.zeros((4, 2), np.float32), np.zeros(4, np.int64)
    with pytest.raises(DiptychError, match=r"rows[\s\S]*2 arrays[\s\S]*data\.arrays\("):
        data.DataLoader((images, labels))
    ragged = [np.zeros(3), np.zeros(2), np.zeros(3)]
    for prefetch in (0, 2):
        loader = data.DataLoader(ragged, batch_size=2, prefetch=prefetch)
        with pytest.raises(ShapeError, match=r"one shape[\s\S]*\[3\] and \[2\][\s\S]*pad"):
            next(iter(loader))
    assert [b.shape for b in data.DataLoader(ragged, batch_size=1)] == [(1, 3), (1, 2), (1, 3)]


def test_an_unseeded_loader_says_its_seed(capsys):
    loader = data.DataLoader(Squares(50), 50, shuffle=True)
    said = capsys.readouterr().err
    assert f"seed {loader.seed}" in said
    ((_, labels),) = loader
    ((_, again),) = data.DataLoader(Squares(50), 50, shuffle=True, seed=loader.seed)
    assert labels.tolist() == again.tolist()


def test_unseeded_random_numbers_say_their_seed():
    code = "import diptych as dp; dp.uniform((3,)).numpy(); dp.uniform((3,)).numpy()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.count("diptych: random numbers got the seed") == 1


def test_the_digits_have_a_stated_split():
    train, test = data.digits("train"), data.digits("test")
    assert (len(train), len(test), train.features, train.classes) == (1437, 360, 64, 10)
    images, labels = train.batch(slice(0, 5))
    assert images.dtype == np.float32 and labels.dtype == np.int64
    assert images.min() >= 0 and images.max() == 1.0
    with pytest.raises(dp.DiptychError, match="train, test or all"):
        data.digits("validation")


def test_arrays():
    made = data.arrays(np.ones((4, 2, 3), np.float32), [0, 1, 2, 1])
    assert (len(made), made.features, made.classes) == (4, 6, 3)
    with pytest.raises(dp.DiptychError, match=r"one row for every example[\s\S]*4, 2"):
        data.arrays(np.ones((4, 2)), [1, 2])


@pytest.mark.parametrize("many", [6, 40_000], ids=["numpy", "native"])
def test_any_number_of_arrays(many):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (many, 128)).astype(np.uint8)
    y, w = draw.integers(0, 3, many), draw.random(many).astype(np.float32)
    ids, mask = np.arange(many, dtype=np.int32), draw.random((many, 2)) < 0.5
    made = data.arrays(x, y, w, ids, mask, scale=255.0)
    order = dp.data.permutation(many, 1, 0)
    for rows, at in zip(data.DataLoader(made, 4, shuffle=True, seed=1), order[::4], strict=False):
        first = rows[0][0]
        assert first.tobytes() == (x[at].astype(np.float32) / np.float32(255)).tobytes()
        found = [r[0].tolist() for r in rows[1:]]
        assert found == [y[at], w[at], ids[at], mask[at].tolist()]
        assert [r.dtype.name for r in rows[1:]] == ["int64", "float32", "int64", "int64"]
    ((alone,),) = data.DataLoader(data.arrays(x[:4]), 4)
    assert alone.shape == (4, 128)
    with pytest.raises(ShapeError, match="second array"):
        _ = data.arrays(x).classes
    for settings in ({"scale": 0}, {"scale": np.nan}, {"shift": np.inf}):
        with pytest.raises(DiptychError, match="pixel / scale"):
            data.arrays(x, y, **settings)
    with pytest.raises(DiptychError, match="fit into i64"):
        data.arrays(x[:1], np.array([2**63], np.uint64))
    for labels in (y[:0], np.array([np.nan])):
        with pytest.raises(ShapeError, match="greatest label"):
            _ = data.arrays(x[: len(labels)], labels).classes
    with pytest.raises(ShapeError, match="seed"):
        data.DataLoader(made, 4, shuffle=True, seed=1.5)
    for bad in ((), (x, y, w[1:])):
        with pytest.raises(ShapeError, match=r"\(test_data\.py"):
            data.arrays(*bad)
    with pytest.raises(dp.DiptychError, match=r"array 3[\s\S]*scale="):
        data.arrays(x, y, 255.0)


def test_a_scanned_step_takes_as_many_arrays():
    draw = np.random.default_rng(0)
    x, y = draw.random((11, 3)).astype(np.float32), draw.integers(0, 3, 11)
    w = draw.random(11).astype(np.float32)
    step = dp.compile(lambda x, y, w: (x.sum(1) * w).sum() + y.sum().astype("f32"))
    loader = data.DataLoader(data.arrays(x, y, w), 4, shuffle=True, seed=2)
    (scanned,) = dp.scan(step, loader)
    loader.epoch = 0
    assert scanned.tolist() == [step(*rows).item() for rows in loader]


class Rows(list):
    """A data set of given rows."""


@pytest.mark.parametrize("prefetch", [0, 2])
def test_rows_that_are_dicts_and_named_tuples(prefetch):
    def load(rows):
        return list(data.DataLoader(Rows(rows), 2, prefetch=prefetch))

    rows = [{"x": np.full(3, n, np.float32), "y": n, "name": f"row {n}"} for n in range(3)]
    first, last = load(rows)
    assert first["x"].tolist() == [[0] * 3, [1] * 3] and first["y"].tolist() == [0, 1]
    assert first["name"].tolist() == ["row 0", "row 1"] and last["x"].shape == (1, 3)
    (nested,) = load([({"a": {"b": n}}, n) for n in range(2)])
    assert nested[0]["a"]["b"].tolist() == nested[1].tolist() == [0, 1]
    Row = collections.namedtuple("Row", "x y")
    (named,) = load([Row(1, 2.5), Row(3, 4.5)])
    assert named.x.tolist() == [1, 3] and named.y.tolist() == [2.5, 4.5]
    bad = [
        ([{"x": 1}, {"y": 1}], ShapeError), ([{"x": 1}, 3], ShapeError),
        ([{"x": 1}, {"x": 1, "y": 2}], ShapeError), ([(1, 2), (1,)], ShapeError),
        ([(1, 2), 3], ShapeError), ([None, None], DtypeError), ([object(), 1], DtypeError),
        ([([[1], [2, 3]], 0)] * 2, DtypeError), ([{"x": {1}}] * 2, DtypeError),
        ([((1, {"x": 2}), 3)] * 2, DtypeError),
    ]  # fmt: skip
    for given, kind in bad:
        with pytest.raises(kind, match=r"\(test_data\.py") as caught:
            load(given)
        assert len(str(caught.value).splitlines()) == 3


def test_targets_of_a_regression_keep_their_fractions():
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    y = x[:, :1] / 4
    made = data.arrays(x, y)
    assert made.batch(slice(1, 3))[1].tobytes() == y[1:3].tobytes()
    step = dp.compile(lambda rows, targets: targets.sum() + 0 * rows.sum())
    (sums,) = dp.scan(step, data.DataLoader(made, 2))
    assert sums.tolist() == [0.5, 2.5, 2.0]
    with pytest.raises(dp.DiptychError, match="DataLoader of arrays"):
        dp.scan(step, data.DataLoader(Squares(4), 2))


# ---- MNIST from files and from the network -------------------------------------------------


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


@pytest.fixture
def tiny(tmp_path):
    """Files as MNIST has them, their checksums, and a web server's folder."""
    rng = np.random.default_rng(0)
    folder, sums = tmp_path / "served", {}
    folder.mkdir()
    for split, n in (("train", 600), ("test", 40)):
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        for name, array in zip(FILES[split], (images, labels), strict=True):
            raw = idx(array)
            sums[name] = hashlib.sha256(raw).hexdigest()
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
    return folder, sums


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves ranges; the first answers may be cut off."""

    cuts = 0
    asked: ClassVar[list] = []

    def do_GET(self):
        path = self.translate_path(self.path)
        Handler.asked.append((self.path, self.headers.get("Range")))
        try:
            with open(path, "rb") as file:
                body = file.read()
        except OSError:
            self.send_error(404)
            return
        start = 0
        if self.headers.get("Range"):
            start = int(self.headers["Range"].split("=")[1].rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        if Handler.cuts > 0:
            Handler.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tiny):
    Handler.cuts, Handler.asked = 0, []
    made = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tiny[0]))
    )
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIPTYCH_DATA", raising=False)
    return tmp_path


def test_mnist_is_fetched_once_and_kept(home, tiny, server):
    for _ in range(2):
        train = mnist("train", mirrors=[server], checksums=tiny[1])
        assert len(train) == 600 and train.batch(slice(0, 1))[0].max() <= 1.0
    assert len(Handler.asked) == 2
    assert len(mnist("all", mirrors=[server], checksums=tiny[1])) == 640
    assert len(Handler.asked) == 4
    assert not list((home / "cache").rglob("*.part"))


def test_a_server_that_dies_is_resumed(home, tiny, server):
    Handler.cuts = 1
    with pytest.raises(MissingFileError, match="connection ended"):
        mnist("train", mirrors=[server], checksums=tiny[1])
    (part,) = (home / "cache").rglob("*.part")
    have = part.stat().st_size
    assert have > 0
    assert len(mnist("train", mirrors=[server], checksums=tiny[1])) == 600
    assert Handler.asked[1][1] == f"bytes={have}-"


def test_the_second_mirror_is_taken(home, tiny, server):
    missing, closed = f"{server}/nowhere", "http://127.0.0.1:9"
    assert len(mnist("test", mirrors=[closed, missing, server], checksums=tiny[1])) == 40


def test_a_wrong_file_is_never_kept(home, tiny, server):
    wrong = dict.fromkeys(tiny[1], "0" * 64)
    with pytest.raises(MissingFileError, match="another"):
        mnist("train", mirrors=[server], checksums=wrong)
    assert not [p for p in (home / "cache").rglob("*") if p.is_file()]


def test_without_a_network_the_error_says_which_files_to_put_where(home):
    with pytest.raises(MissingFileError) as caught:
        mnist("train", mirrors=["http://127.0.0.1:9"])
    said = str(caught.value)
    assert "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz" in said
    assert str(home / "cache") in said and "DIPTYCH_DATA" in said
    assert len(said.splitlines()) == 3


def test_folders_and_the_variable(home, tiny, monkeypatch):
    folder, sums = tiny
    assert len(mnist("test", folder, checksums=sums)) == 40
    monkeypatch.setenv("DIPTYCH_DATA", str(folder))
    assert len(mnist("test", checksums=sums, mirrors=[])) == 40
    for split in FILES["test"]:
        packed = folder / f"{split}.gz"
        (folder / split).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert len(mnist("test", folder, checksums=sums)) == 40


@pytest.fixture
def kept(home, tiny, monkeypatch):
    """All files count as large; how often one is unpacked."""
    monkeypatch.setattr(unpacked, "LARGE", 1)
    monkeypatch.setenv("DIPTYCH_CACHE", str(home / "code"))
    counted, inner = [], mnist_module._unpacked
    monkeypatch.setattr(mnist_module, "_unpacked", lambda d: (counted.append(1), inner(d))[1])
    return counted


def test_large_files_are_unpacked_once(kept, home, tiny):
    folder, sums = tiny
    first, again = mnist("test", folder, checksums=sums), mnist("test", folder, checksums=sums)
    assert len(kept) == 2 and again.images.tobytes() == first.images.tobytes()
    assert again.labels.tolist() == first.labels.tolist()
    with pytest.raises(ValueError, match="read-only"):
        again.images[0, 0] = 1
    assert len(list((home / "cache" / "diptych" / "unpacked").iterdir())) == 4


def test_a_kept_copy_stands_only_for_the_file_it_came_from(kept, home, tiny):
    folder, sums = tiny
    name = FILES["test"][0]
    mnist("test", folder, checksums=sums)
    path = folder / f"{name}.gz"
    path.write_bytes(path.read_bytes())  # written anew: it is looked at again
    mnist("test", folder, checksums=sums)
    assert len(kept) == 3
    copy = next((home / "cache" / "diptych" / "unpacked").glob(f"{name}-*"))
    copy.write_bytes(b"changed")
    assert len(mnist("test", folder, checksums=sums)) == 40 and len(kept) == 4
    copy.with_name(f"{name}.json").write_text("[broken")
    assert len(mnist("test", folder, checksums=sums)) == 40 and len(kept) == 5
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileFormatError, match="gzip"):
        mnist("test", folder, checksums=sums)


def test_copies_of_several_sets_are_kept_and_then_deleted(kept, home, monkeypatch):
    monkeypatch.setattr(unpacked, "SOURCES", 2)
    for n in range(3):
        other_set(home / f"set{n}", n)
    for n in (0, 1, 0, 1):  # each has its own copy
        assert mnist("test", home / f"set{n}").name == f"set{n}"
    assert len(kept) == 4
    mnist("test", home / "set2")
    mnist("test", home / "set1")
    assert len(kept) == 6
    for name in FILES["test"]:
        assert len(list((home / "cache" / "diptych" / "unpacked").glob(f"{name}-*"))) == 2
    first = mnist("test", home / "set0")
    assert len(kept) == 8 and first.labels.tolist() == other_set(home / "set0", 0)["test"].tolist()


def other_set(folder, seed=5, height=6, width=4):
    """A set of MNIST's form and other sizes, some files packed; its labels."""
    folder.mkdir(exist_ok=True)
    rng, made = np.random.default_rng(seed), {}
    for split, n in (("train", 30), ("test", 7)):
        images = rng.integers(0, 256, (n, height, width)).astype(np.uint8)
        made[split] = rng.integers(0, 3, n).astype(np.uint8)
        for name, array in zip(FILES[split], (images, made[split]), strict=True):
            path = folder / (name if split == "train" else f"{name}.gz")
            raw = idx(array)
            path.write_bytes(raw if split == "train" else gzip.compress(raw, mtime=0))
    return made


def test_a_folder_may_hold_another_set_of_that_form(home, monkeypatch, capsys):
    labels = other_set(home / "fashion")
    for split in ("train", "test"):
        found = mnist(split, home / "fashion")
        assert found.name == "fashion" and found.features == 24
        assert found.labels.tolist() == labels[split].tolist()
    assert len(mnist("all", home / "fashion")) == 37
    monkeypatch.setenv("DIPTYCH_DATA", str(home / "fashion"))
    assert len(mnist("train")) == 30
    from diptych.cli import main

    options = ["--mode", "dynamic", "--epochs", "1", "--data", str(home / "fashion")]
    assert main(["digits", *options]) == 0
    assert "data: fashion, 30 to train and 7 to test" in capsys.readouterr().out


def test_files_that_do_not_belong_together(home, capsys):
    from diptych.cli import main

    folder = home / "set"
    other_set(folder)
    images, labels = (folder / name for name in FILES["train"])
    whole = {path: path.read_bytes() for path in (images, labels)}
    flat = np.zeros((30, 24), np.uint8)
    bad = [
        (labels, idx(np.zeros(29, np.uint8))),
        (labels, whole[images]),
        (images, whole[labels]),
        (images, idx(flat)),
        (images, idx(np.zeros((30, 0, 4), np.uint8))),
        (images, whole[images][:-1]),
        (images, whole[images] + b"x"),
        (images, b""),
        (images, b"\0\0\x0d" + whole[images][3:]),  # floats
        (images, b"\0\0\x08\xff"),
        (images, b"\0\0\x08\x03" + b"\xff" * 12),
        (images, b"\0\0\x08\x03" + b"\x80\0\0\0" * 3),  # a product that is 0 in 64 bits
    ]
    for path, content in bad:
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"train-.*\(test_data\.py") as caught:
            mnist("train", folder)
        assert len(str(caught.value).splitlines()) == 3
        path.write_bytes(whole[path])
    (folder / FILES["train"][0]).write_bytes(idx(np.zeros((30, 4, 4), np.uint8)))
    with pytest.raises(FileFormatError, match=r"\[7, 6, 4\].*beside pictures \[30, 4, 4\]"):
        mnist("all", folder)
    assert main(["digits", "--data", str(folder)]) == 1
    assert "16 and 24 pixels" in capsys.readouterr().err
    labels.unlink()
    with pytest.raises(MissingFileError, match=r"train-labels-idx1-ubyte not in"):
        mnist("train", folder)


def test_a_cache_that_cannot_be_written_is_done_without(kept, home, tiny, monkeypatch):
    (home / "cache").write_text("in the way")
    for _ in range(2):
        assert len(mnist("test", tiny[0], checksums=tiny[1])) == 40
    assert len(kept) == 4


def test_gzip_files_of_two_members():
    whole = bytes(range(256)) * 40
    packed = gzip.compress(whole[:5000]) + gzip.compress(whole[5000:])
    assert mnist_module._unpacked(packed) == whole == mnist_module._unpacked(gzip.compress(whole))


DAMAGE = [
    lambda b: b[:-9],
    lambda b: b"no",
    lambda b: gzip.compress(b"x"),
    lambda b: gzip.compress(idx(np.ones((3, 3), np.uint8))),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_files(home, tiny, damage):
    folder, sums = tiny
    path = folder / f"{FILES['test'][0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileFormatError, match=r"t10k-images.*\(test_data\.py"):
        mnist("test", folder, checksums=sums)


def test_a_part_that_is_whole_already(tmp_path, tiny, server):
    name = f"{FILES['test'][1]}.gz"
    (tmp_path / f"{name}.part").write_bytes((tiny[0] / name).read_bytes())
    assert download(name, tmp_path, [server], lambda path: None).name == name
