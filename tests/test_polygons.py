import numpy as np
import pytest

from osler import polygons


def test_a_rectangle_on_edges_is_exactly_its_pixels():
    mask = polygons.mask([np.array([(2, 1), (7, 1), (7, 4), (2, 4)], float)], (10, 12))
    expected = np.zeros((1, 10, 12), bool)
    expected[0, 1:4, 2:7] = True
    np.testing.assert_array_equal(mask.within((1, 10, 12)), expected)
    assert mask.start == (0, 1, 2)


@pytest.mark.parametrize("seed", range(10))
def test_a_convex_polygon_holds_the_centres_on_the_inner_side_of_each_edge(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    corners = np.stack([20 + 15 * np.cos(angles), 18 + 12 * np.sin(angles)], 1)
    y, x = np.mgrid[:40, :44] + 0.5
    inside = np.ones((40, 44), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
    for order in (corners, corners[::-1]):
        np.testing.assert_array_equal(polygons.mask([order], (40, 44)).within((1, 40, 44))[0], inside)


def test_what_it_runs_around_twice_is_outside_and_several_are_together():
    ring = np.array([(0, 0), (9, 0), (9, 9), (0, 9), (0, 0), (3, 3), (3, 6), (6, 6), (6, 3), (3, 3)], float)
    found = polygons.mask([ring], (9, 9)).within((1, 9, 9))[0]
    assert found.sum() == 81 - 9 and not found[3:6, 3:6].any()
    hole = np.array([(3, 3), (6, 3), (6, 6), (3, 6)], float)
    assert polygons.mask([ring, hole], (9, 9)).within((1, 9, 9)).all()


def test_smaller_than_a_pixel_it_is_the_pixel_of_its_middle():
    found = polygons.mask([np.array([(3.1, 5.1), (3.2, 5.1), (3.2, 5.2)])], (9, 9))
    assert found.start == (0, 5, 3) and found.array.shape == (1, 1, 1)


def test_it_is_cut_at_the_edges_of_the_image():
    found = polygons.mask([np.array([(-5, -5), (3, -5), (3, 2), (-5, 2)], float)], (9, 9))
    assert found.start == (0, 0, 0) and found.array.shape == (1, 2, 3)


@pytest.mark.parametrize("bad", [[], [np.zeros((2, 2))], [np.array([(0, 0), (1, np.nan), (2, 2)])]])
def test_what_is_no_polygon_is_refused(bad):
    with pytest.raises(ValueError, match="three corners"):
        polygons.mask(bad, (4, 4))
