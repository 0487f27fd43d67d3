"""What images are put through to see what a network stands, against what each says of itself."""

import numpy as np
import pytest
from scipy import ndimage

from osler import catalog
from osler.corruptions import CORRUPTIONS, corrupt
from osler.draws import keys

SHAPES = [(4, 1, 1, 1, 28, 28), (3, 2, 3, 1, 17, 24), (2, 1, 1, 5, 12, 16)]


def images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(50, 20, shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_image_is_corrupted_by_itself_and_always_alike(name: str, shape: tuple[int, ...]) -> None:
    x, key = images(shape), keys(1, np.arange(shape[0]))
    before = x.copy()
    after = corrupt(name, x, key)
    assert after.shape == shape and after.dtype == np.float32 and np.isfinite(after).all()
    assert np.array_equal(x, before) and (after != x).any((1, 2, 3, 4, 5)).all()
    assert np.array_equal(corrupt(name, x, key), after)
    for row in range(shape[0]):
        np.testing.assert_allclose(corrupt(name, x[row : row + 1], key[row : row + 1])[0], after[row], rtol=1e-5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_even_image_stays_finite(name: str) -> None:
    even = np.full((1, 1, 1, 1, 9, 9), 7.0, np.float32)
    np.testing.assert_allclose(corrupt(name, even, keys(0)), 7.0, atol=1e-4)


def test_none_has_the_name_of_an_augmentation() -> None:
    assert not set(CORRUPTIONS) & set(catalog.names("transforms"))


def test_impulses_strike_two_of_a_hundred() -> None:
    x = images((20, 1, 1, 1, 64, 64))
    after = corrupt("impulse", x, keys(2, np.arange(20)))
    struck = after != x
    assert abs(struck.mean() - 0.02) < 4 * np.sqrt(0.02 * 0.98 / x.size)
    ends = np.stack([x.min((1, 2, 3, 4, 5)), x.max((1, 2, 3, 4, 5))], 1)
    for image, hit, pair in zip(after, struck, ends, strict=True):
        assert set(image[hit]) <= set(pair)


def test_smearing_is_along_x_only() -> None:
    point = np.zeros((1, 1, 1, 1, 48, 48), np.float32)
    point[..., 20, 20] = 1
    after = corrupt("smeared", point, keys(0))[0, 0, 0, 0]
    assert np.flatnonzero(after.any(1)).tolist() == [20]
    np.testing.assert_allclose(after[20, 18:23], 0.2, rtol=1e-5)


def test_equalising_keeps_the_order_and_flattens_the_histogram() -> None:
    x = np.exp(images((1, 1, 1, 1, 40, 40)) / 20)
    order = x.ravel().argsort()
    after = corrupt("equalised", x, keys(0)).ravel()
    assert (np.diff(after[order]) >= 0).all()
    whole = 2 * after - x.ravel()  # all of the way
    counts, _ = np.histogram(whole, 10)
    np.testing.assert_allclose(counts, 160, atol=2)


def test_six_grey_levels_are_left() -> None:
    x = images((1, 1, 1, 1, 40, 40))
    after = corrupt("posterised", x, keys(0))
    assert len(np.unique(after)) == 6 and np.abs(after - x).max() <= (x.max() - x.min()) / 10 + 1e-3


def test_sharpening_raises_high_frequencies() -> None:
    smooth = ndimage.gaussian_filter(images((1, 1, 1, 1, 100, 100)), 3, axes=(4, 5))
    after = corrupt("sharpened", smooth, keys(0))
    assert np.abs(np.diff(after)).mean() > 1.2 * np.abs(np.diff(smooth)).mean()


def test_the_mark_is_a_corner() -> None:
    x = images((1, 1, 1, 1, 40, 40))
    changed = (corrupt("marked", x, keys(0)) != x)[0, 0, 0, 0]
    assert not changed[5:].any() and not changed[:, 10:].any() and changed.sum() >= 49
