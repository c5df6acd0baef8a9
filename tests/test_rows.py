"""The data path: shuffles without a loop, batches in one native call."""

import numpy as np
import pytest

import diptych as dp
from diptych import data
from diptych.data import datasets
from diptych.philox import philox, swapped
from diptych.runtime.rows import taker


def by_swapping(picks):
    """What the contract says a permutation is."""
    order = list(range(len(picks) + 1))
    for i in range(len(picks), 0, -1):
        order[i], order[picks[i - 1]] = order[picks[i - 1]], order[i]
    return order


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100, 1437])
def test_swaps_without_a_loop_are_swaps(n):
    rng = np.random.default_rng(n)
    drawn = [[int(rng.integers(0, i + 1)) for i in range(1, n)] for _ in range(30)]
    chains = [[0] * (n - 1), list(range(1, n)), list(range(n - 1)), [i // 2 for i in range(1, n)]]
    for picks in [*drawn, *chains]:
        assert swapped(np.array(picks, np.int64)).tolist() == by_swapping(picks)


def test_a_permutation_is_the_one_of_the_contract():
    n, seed, epoch = 997, 5, 3
    words = [int(w) for w in philox(seed, epoch, n - 1)]
    picks = [(words[n - 1 - i] * (i + 1)) >> 32 for i in range(1, n)]
    assert data.permutation(n, seed, epoch).tolist() == by_swapping(picks)
    assert [data.permutation(k, 1, 1).tolist() for k in (0, 1)] == [[], [0]]


@pytest.mark.parametrize("width", [1, 3, 16, 31, 784, 1021])
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_rows_are_those_of_numpy(width, count):
    rng = np.random.default_rng(width)
    rows = rng.integers(0, 61, count)
    pixels = rng.integers(0, 256, (61, width)).astype(np.uint8)
    found = taker(pixels, 127.5, -1.0)(rows)
    expected = pixels[rows].astype(np.float32) / np.float32(127.5) + np.float32(-1.0)
    assert found.dtype == np.float32 and found.tobytes() == expected.tobytes()
    for source in (rng.standard_normal((61, width), np.float32), pixels, np.arange(61)):
        found = taker(source)(rows)
        assert found.dtype == source.dtype and found.shape == source[rows].shape
        assert found.tobytes() == source[rows].tobytes()


def test_what_is_left_to_numpy():
    source = np.arange(12.0).reshape(6, 2)
    take = taker(source)
    assert take(np.array([5, 0])).tolist() == [[10.0, 11.0], [0.0, 1.0]]
    for rows in ([-1], [6], [0, 2**40]):
        assert take(np.array(rows)) is None
    for rows in (slice(0, 2), [0, 1], np.array([0], np.int32), np.arange(6)[::2], np.array(1)):
        assert take(rows) is None
    for odd in (source.T, source[:, :1], source[:0], np.array([None])):
        assert taker(odd)(np.array([0])) is None


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("labels", [np.uint8, np.int64, np.float32])
def test_a_loader_gives_what_numpy_gives(monkeypatch, kind, labels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (53, 5, 7)).astype(kind)
    named = rng.integers(0, 10, 53).astype(labels)

    def batches():
        loader = data.DataLoader(
            data.arrays(images, named, scale=127.5, shift=-1.0), 8, shuffle=True, seed=2
        )
        return [(x.shape, x.dtype, x.tobytes(), y.dtype, y.tobytes()) for x, y in loader]

    in_numpy = batches()
    monkeypatch.setattr(datasets, "LARGE", 0)
    assert batches() == in_numpy
    large = data.arrays(images, named)
    assert large.batch(np.array([-1, 3]))[0].tobytes() == large.batch([52, 3])[0].tobytes()
    with pytest.raises(IndexError):
        large.batch(np.array([53]))


def test_a_batch_belongs_to_who_asked_for_it(monkeypatch):
    monkeypatch.setattr(datasets, "LARGE", 0)
    images = np.zeros((4, 3), np.uint8)
    rows = data.arrays(images, [0, 1, 2, 3])
    first, _ = rows.batch(np.array([0, 1]))
    first += 1.0
    images[:] = 255
    second, _ = rows.batch(np.array([0, 1]))
    assert (first == 1.0).all() and (second == 255.0).all()
    assert dp.tensor(second).tolist() == [[255.0] * 3] * 2
