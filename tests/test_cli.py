"""The command line: training in every mode, the report, saving, and pictures of digits."""

import json

import numpy as np
import pytest
from PIL import Image

import diptych as dp
from diptych import engine
from diptych.cli import main
from diptych.data import digits
from diptych.data.images import read_digit
from diptych.errors import FileFormatError


def run(*arguments):
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network trained on the bundled digits, as a saved program."""
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    assert run("digits", "--mode", "scan", "--epochs", 20, "--save", path) == 0
    return path


def test_all_modes_agree_and_the_report_says_so(tmp_path, capsys):
    report = tmp_path / "out.json"
    assert run("digits", "--mode", "all", "--epochs", 1, "--threads", 2, "--json", report) == 0
    out = capsys.readouterr().out
    assert "the same to the last bit" in out and "diptych digits --data mnist" in out
    found = json.loads(report.read_text())
    assert list(found) == [
        "data", "model", "epochs", "batch_size", "lr", "optimizer", "seed", "threads", "device",
        "modes", "identical",
    ]  # fmt: skip
    assert found["model"] == "64-100-100-10" and found["threads"] == 2 and found["identical"]
    assert list(found["modes"]) == ["eager", "dynamic", "static", "scan"]
    for mode in found["modes"].values():
        assert {
            "test_accuracy", "train_loss", "us_per_step", "seconds", "weights_sha256",
        } <= set(mode)  # fmt: skip
        assert len(mode["weights_sha256"]) == 64


def test_the_environment_runs_the_dynamic_mode_eagerly(tmp_path, monkeypatch, capsys):
    def calls():
        before = engine.STATISTICS.calls
        assert run("digits", "--mode", "dynamic", "--epochs", 1) == 0
        assert "last bit" not in capsys.readouterr().out  # one mode has none to agree with
        return engine.STATISTICS.calls - before

    waiting = calls()
    monkeypatch.setenv("DIPTYCH_EAGER", "1")
    try:
        assert calls() > 5 * waiting
    finally:
        dp.set_eager(False)


@pytest.mark.parametrize("flag", ["--json", "--save"])
def test_a_folder_that_is_not_there_is_said_before_training(tmp_path, capsys, flag):
    assert run("digits", flag, tmp_path / "none" / "x") == 1
    said = capsys.readouterr()
    assert "epoch" not in said.out and "MissingFileError" in said.err
    assert "test_cli.py" not in said.err  # the caller of the command line has no line
    assert run("digits", "--epochs", -1) == 1


def test_adam_and_the_reference_device(tmp_path):
    hashes = []
    for device in ("cpu", "reference"):
        report = tmp_path / device
        assert run("digits", "--mode", "dynamic", "--epochs", 1, "--batch-size", 359,
                   "--optimizer", "adam", "--device", device, "--json", report) == 0  # fmt: skip
        hashes.append(json.loads(report.read_text())["modes"]["dynamic"]["weights_sha256"])
    assert hashes[0] == hashes[1]


def test_predict_classifies_the_test_digits(model, tmp_path, capsys):
    test, right = digits("test"), 0
    for n in range(20):
        path = tmp_path / f"{n}.png"
        Image.fromarray((test.images[n].reshape(8, 8) * 15).astype(np.uint8)).save(path)
        assert run("predict", model, path) == 0
        right += capsys.readouterr().out.split()[1] == str(test.labels[n])
    assert right >= 17


def drawn(mode, size, dark):
    """A seven in a corner of a large picture."""
    grey = np.full((size, size), 255 if dark else 0, np.uint8)
    ink = 0 if dark else 255
    grey[10:16, 10:40] = ink
    for n in range(40):
        grey[14 + n, 34 - n // 3 : 41 - n // 3] = ink
    return Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "LA", "I;16"])
@pytest.mark.parametrize("dark", [True, False])
def test_pictures_of_any_mode_and_size(mode, dark, tmp_path):
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    drawn(mode, 123, dark).save(path)
    expected, _ = read_digit_of(drawn("L", 123, dark), tmp_path)
    image, notes = read_digit(path, 784)
    assert image.shape == (784,) and image.dtype == np.float32
    assert image.min() >= 0 and image.max() > 0.8
    assert np.abs(image - expected).max() < 0.05
    assert any("inverted" in n for n in notes) == dark
    assert any("scaled from 123 x 123" in n for n in notes) and "centred" in notes
    rows = np.flatnonzero(image.reshape(28, 28).any(1))
    assert abs(rows[-1] - rows[0] + 1 - 20) <= 1


def read_digit_of(picture, folder):
    path = folder / "plain.png"
    picture.save(path)
    return read_digit(path, 784)


def test_a_photograph_is_turned_as_the_camera_was_held(tmp_path):
    upright = Image.new("L", (40, 60), 255)
    upright.paste(0, (18, 10, 22, 50))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to look at it
    upright.rotate(90, expand=True).save(tmp_path / "x.png", exif=exif)
    upright.save(tmp_path / "y.png")
    turned, notes = read_digit(tmp_path / "x.png", 784)
    expected, _ = read_digit(tmp_path / "y.png", 784)
    assert (turned == expected).all() and "turned as the camera was held" in notes


def test_pixels_that_are_no_numbers(tmp_path):
    values = np.zeros((9, 9), np.float32)
    values[4, 4] = np.nan
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(FileFormatError, match="no numbers"):
        read_digit(tmp_path / "x.tiff", 64)


def test_a_transparent_picture_is_drawn_on_white(tmp_path):
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (15, 5, 22, 35))
    picture.save(tmp_path / "t.png")
    image, notes = read_digit(tmp_path / "t.png", 64)
    assert "inverted: dark on light" in notes and image.max() == 1.0


def test_an_empty_picture_says_so(tmp_path):
    Image.new("L", (9, 9), 255).save(tmp_path / "e.png")
    image, notes = read_digit(tmp_path / "e.png", 64)
    assert not image.any() and "nothing is drawn on it" in notes


@pytest.mark.parametrize(("name", "content", "message"), [
    ("missing.png", None, "not there"), ("text.png", b"hello", "format that Pillow reads"),
    ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "format that Pillow reads"),
])  # fmt: skip
def test_pictures_that_cannot_be_read(model, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run("predict", model, tmp_path / name) == 1
    assert message in capsys.readouterr().err


def test_without_pillow_the_error_says_what_to_install(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    (tmp_path / "x.png").write_bytes(b"")
    assert run("predict", model, tmp_path / "x.png") == 1
    assert "pip install diptych[image]" in capsys.readouterr().err


def test_predict_with_a_file_that_is_no_program(tmp_path, capsys):
    (tmp_path / "m").write_bytes(b"nothing")
    assert run("predict", tmp_path / "m", tmp_path / "x.png") == 1
    assert "safetensors" in capsys.readouterr().err


def test_the_saved_program_is_the_trained_model(model):
    program = dp.load(model)
    images, labels = digits("test").batch(slice(None))
    (scores,) = program.run({"pixels": images})
    assert (scores.argmax(1) == labels).mean() > 0.9
