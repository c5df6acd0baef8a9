"""Drawings: what they show, that nothing overlaps or is cut, and errors where they cannot."""

import builtins
import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import diptych as dp
import diptych.nn.functional as F
from diptych import nn
from diptych.cli import main
from diptych.errors import FeedError, GraphError, MissingExtraError


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def texts(svg):
    return [t.text for t in ElementTree.fromstring(svg).iter() if t.tag.endswith("}text")]


def boxes(svg):
    """(left, top, right, bottom) of the boxes, without the background."""
    found = [
        [float(r.get(k)) for k in ("x", "y", "width", "height")]
        for g in ElementTree.fromstring(svg).iter() if g.tag.endswith("}g")
        for r in g if r.tag.endswith("}rect")
    ]  # fmt: skip
    return [(x, y, x + w, y + h) for x, y, w, h in found]


def check(svg):
    """No box lies on another, and all of the picture is inside its frame."""
    for a, b in itertools.combinations(boxes(svg), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    left, top, width, height = map(float, re.search(r'viewBox="([^"]*)"', svg)[1].split())
    for x0, y0, x1, y1 in boxes(svg):
        assert left <= x0 and top <= y0 and x1 <= left + width and y1 <= top + height
    for text in ElementTree.fromstring(svg).iter():
        if text.tag.endswith("}text"):
            reach = 7.0 * len(text.text)
            x, anchor = float(text.get("x")), text.get("text-anchor", "start")
            begin = x - {"start": 0, "middle": reach / 2, "end": reach}[anchor]
            assert begin >= left and begin + reach <= left + width, text.text


def arrows(svg):
    """The straight pieces of every arrow."""
    ways = [
        [tuple(map(float, p.split())) for p in e.get("d")[1:].split("L")]
        for e in ElementTree.fromstring(svg).iter()
        if e.get("class") in ("forward", "back")
    ]
    return [list(itertools.pairwise(way)) for way in ways]


def labels(svg):
    """(left, top, right, bottom) of the texts beside arrows."""
    found = []
    for e in ElementTree.fromstring(svg).iter():
        if "halo" in e.get("class", ""):
            x, y, half = float(e.get("x")), float(e.get("y")), 6.6 * len(e.text) / 2
            found.append((x - half, y - 9, x + half, y + 2))
    return found


def meets(piece, box):
    """Whether a short straight piece passes through a box."""
    (x0, y0), (x1, y1) = piece
    for n in range(11):
        x, y = x0 + (x1 - x0) * n / 10, y0 + (y1 - y0) * n / 10
        if box[0] < x < box[2] and box[1] < y < box[3]:
            return True
    return False


def check_arrows(svg):
    """Labels lie on no arrow, box or other label; an arrow forward and the one back stay apart."""
    for label in labels(svg):
        for box in boxes(svg) + [b for b in labels(svg) if b is not label and b != label]:
            apart = label[2] <= box[0] or box[2] <= label[0]
            assert apart or label[3] <= box[1] or box[3] <= label[1], (label, box)
        for arrow in arrows(svg):
            assert not any(meets(piece, label) for piece in arrow), (label, arrow)
    for one, other in itertools.combinations(arrows(svg), 2):
        for (x, y), _ in one[1:]:
            for (p, q), _ in other[1:]:
                assert np.hypot(x - p, y - q) > 3, "two arrows meet"


@pytest.mark.parametrize("name", ["sum", "network"])
@pytest.mark.parametrize("style", ["operators", "data"])
def test_figures_can_be_read(name, style):
    main(["draw", name, "--style", style, "--out", "figure.svg"])
    svg = Path("figure.svg").read_text()
    assert len(arrows(svg)) > 6 and len(labels(svg)) > 6
    check(svg)
    check_arrows(svg)


def test_the_sum_of_the_article_in_both_conventions():
    a = dp.tensor(3.0, requires_grad=True)
    b = dp.tensor(4.0, requires_grad=True)
    y = 2 * a + 3 * b
    operators, data = dp.draw(y), dp.draw(y, style="data")
    for drawing in (operators, data):
        check(drawing.svg)
        assert drawing._repr_svg_() == drawing.svg
        for text in ("a", "b", "y", "= 3", "= 18", "\u2202 2", "\u2202 3"):
            assert text in texts(drawing.svg), text
    assert "\u00d7 2" in texts(operators.svg) and "2a" not in texts(operators.svg)
    assert {"2a", "3b", "+"} <= set(texts(data.svg))
    assert len(boxes(operators.svg)) == 6 and len(boxes(data.svg)) == 5
    assert y.item() == 18  # drawing leaves the history there
    y.backward()
    assert a.grad.item() == 2


def network():
    with dp.Program() as program:
        image, label = dp.data("image", [None, 8]), dp.data("label", [None], "i64")
        model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
        loss = F.cross_entropy(model(image), label)
    dp.Executor().run(program.startup)
    return model, loss


@pytest.mark.parametrize("style", ["operators", "data"])
def test_a_network_with_and_without_values(style):
    model, loss = network()
    feed = {"image": np.ones((4, 8), np.float32), "label": np.array([0, 1, 2, 0])}
    svg = dp.draw(loss, feed, style).svg
    check(svg)
    assert {"image", "0.weight", "2.bias", "loss", "f32 4\u00d75"} <= set(texts(svg))
    assert "\u2202 5\u00d78" in texts(svg) and len(model.parameters()) == 4
    plain = dp.draw(loss, style=style).svg
    check(plain)
    assert "f32[N,5]" in texts(plain) and not [t for t in texts(plain) if "\u2202" in t]


def test_the_partials_in_a_drawing_are_those_of_backward():
    x = dp.tensor(0.3, requires_grad=True)
    y = dp.exp(dp.sin(x) * x)
    shown = [t for t in texts(dp.draw(y).svg) if t.startswith("\u2202")]
    (slope,) = dp.partials(y, [x])
    assert shown[0] == f"\u2202 {slope.item():.4g}"


def test_saved_programs_and_the_command_line(capsys):
    for what in ("sum", "network"):
        for style in ("operators", "data"):
            assert main(["draw", what, "--style", style, "--out", "out.svg"]) == 0
            check(Path("out.svg").read_text())
    _, loss = network()
    dp.save(loss.recorder, "p.dip", ["image", "label"], [loss])
    assert main(["draw", "p.dip"]) == 0 and "wrote p.svg" in capsys.readouterr().out
    assert main(["draw", "missing.dip"]) == 1


def test_what_cannot_be_drawn(monkeypatch):
    _, loss = network()
    with pytest.raises(GraphError, match="style"):
        dp.draw(loss, style="other")
    with pytest.raises(GraphError, match="takes a tensor"):
        dp.draw(3)
    with pytest.raises(GraphError, match="placeholder"):
        dp.draw(loss, {"picture": 1})
    with pytest.raises(FeedError, match="fed"):
        dp.draw(loss, {"image": np.ones((4, 7)), "label": np.zeros(4)})
    load = builtins.__import__

    def without(name, *rest):
        if name == "igraph":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"diptych\[view\]"):
        dp.draw(loss)


def test_an_arrow_carries_its_own_part_and_a_box_the_sum():
    a, b = dp.tensor(3.0, requires_grad=True), dp.tensor(4.0, requires_grad=True)
    y = a * b + a
    for style in ("operators", "data"):
        svg = dp.draw(y, style=style).svg
        check(svg)
        check_arrows(svg)
        ends = ["1"] * (style == "operators")  # the arrow to the result
        assert partials_beside_arrows(svg) == [*ends, "1", "1", "3", "4"]
        assert "\u2202 5" in texts(svg) and "\u2202 3" in texts(svg)
    y = a * a  # both arrows are of one box
    assert partials_beside_arrows(dp.draw(y).svg) == ["1", "3", "3"]


def partials_beside_arrows(svg):
    found = ElementTree.fromstring(svg).iter()
    return sorted(e.text for e in found if e.get("class", "") == "partial halo")


def test_a_value_alone_and_a_parameter_that_waits():
    for value in (3.0, [1.0, 2.0]):
        t = dp.tensor(value)
        for drawing in (dp.draw(t), dp.draw(t, style="data")):
            assert len(boxes(drawing.svg)) == 1 and "t" in texts(drawing.svg)
    assert "= 3" in texts(dp.draw(dp.tensor(3.0)).svg)
    plain = dp.tensor(3.0) * 2
    assert plain.item() == 6 and "= 6" in texts(dp.draw(plain).svg)  # no history to keep
    p = dp.Parameter(np.float32([3.0]))
    p.assign(p + 1.0)
    y = (p * 2).sum()
    assert {"= 3", "+ 1", "= 4", "= 8", "\u2202 2"} <= set(texts(dp.draw(y).svg))


@pytest.mark.parametrize("look", [False, True])
def test_a_history_that_was_released(look):
    p = dp.Parameter(np.float32([3.0]))
    y, z = (p * 2).sum(), (p * 2).sum()
    loss = dp.compile(lambda x: (p * x).sum())(np.float32([2.0]))
    y.backward()
    z.backward(retain_graph=True)
    if look:
        assert y.item() == z.item() == loss.item() == 6
    for value in (y, loss, y + 1.0):
        with pytest.raises(GraphError, match=r"came from[\s\S]*test_view.py[\s\S]*retain_graph"):
            dp.draw(value)
    assert "\u2202 2" in texts(dp.draw(z).svg)
