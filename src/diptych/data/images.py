"""A picture of one digit, of any size and colour mode, as pixels that a digit network expects."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import FileFormatError, MissingExtraError, MissingFileError, ShapeError

Array = np.ndarray[Any, Any]
INK = 0.2  # share of the darkest ink above which a pixel belongs to the digit
ORIENTATION = 0x0112  # the EXIF tag
MNIST_WIDTH, MNIST_BOX = 28, 20


def read_digit(path: Path, pixels: int) -> tuple[Array, list[str]]:
    """The picture as f32 (pixels,) from 0 (paper) to 1 (ink), and what was done to it.

    Transparent parts are white. A digit that is dark on light is inverted. The ink's bounding box
    is scaled to fit, keeping its proportions, and centred: for 28 x 28 as MNIST has it (a box of 20
    placed by the centre of mass), else to the full width.
    """
    width = math.isqrt(pixels)
    if width * width != pixels:
        raise ShapeError("a picture is square", f"{pixels} pixels", "a program of width * width")
    grey, notes = _grey(path)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = float(np.median(border))
    if paper > 0.5:
        grey, paper = 1.0 - grey, 1.0 - paper
        notes.append("inverted: dark on light")
    ink = np.clip(grey - paper, 0.0, 1.0)
    peak = float(ink.max())
    if peak <= 0.05:
        notes.append("nothing is drawn on it")
        return np.zeros(pixels, np.float32), notes
    return _placed(ink / peak, width, notes).reshape(-1), notes


def _grey(path: Path) -> tuple[Array, list[str]]:
    """Luminance from 0 (black) to 1 (white)."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as problem:
        raise MissingExtraError(
            "reading pictures needs Pillow", "it is not installed", "pip install diptych[image]"
        ) from problem
    if not path.is_file():
        raise MissingFileError("the file is not there", f"{path}", "check the path")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            notes = [] if image.mode == "L" else [f"from {image.mode}"]
            if opened.getexif().get(ORIENTATION, 1) != 1:
                notes.append("turned as the camera was held")
            if image.mode in ("I", "I;16", "F"):
                values = np.asarray(image, np.float64)
                if not np.isfinite(values).all():
                    raise ValueError("pixels that are no numbers")
                return values / max(float(values.max()), 1.0), notes
            whole = image.convert("RGBA")
            flat = Image.new("RGBA", whole.size, (255, 255, 255, 255))
            flat.alpha_composite(whole)
            return np.asarray(flat.convert("L"), np.float64) / 255.0, notes
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as problem:
        raise FileFormatError(
            "a picture is in a format that Pillow reads", f"{path}: {problem}", "e.g. PNG"
        ) from problem


def _placed(ink: Array, width: int, notes: list[str]) -> Array:
    from PIL import Image

    rows, columns = (np.flatnonzero((ink > INK).any(axis)) for axis in (1, 0))
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = MNIST_BOX * width // MNIST_WIDTH if width >= MNIST_BOX else width
    scale = box / max(cut.shape)
    height, breadth = (max(1, round(n * scale)) for n in cut.shape)
    if ink.shape != (width, width):
        notes.append(f"scaled from {ink.shape[1]} x {ink.shape[0]}")
    small = Image.fromarray(cut.astype(np.float32), "F").resize(
        (breadth, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    )
    values = np.clip(np.asarray(small, np.float32), 0.0, 1.0)
    top, left = (width - height) / 2, (width - breadth) / 2
    if width >= MNIST_BOX:  # MNIST centres by mass
        total = float(values.sum())
        top = width / 2 - float((values.sum(1) * (np.arange(height) + 0.5)).sum()) / total
        left = width / 2 - float((values.sum(0) * (np.arange(breadth) + 0.5)).sum()) / total
    row = min(max(round(top), 0), width - height)
    column = min(max(round(left), 0), width - breadth)
    if abs(row - rows[0]) > 1 or abs(column - columns[0]) > 1:
        notes.append("centred")
    out = np.zeros((width, width), np.float32)
    out[row : row + height, column : column + breadth] = values
    return out
