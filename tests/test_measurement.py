"""Volume, axes and surface against closed forms, and units that say no more than is known."""

import numpy as np
import pytest

from osler.case import Mask, Measurement
from osler.image import Affine, Geometry, Image, NoGeometry, Spacing
from osler.measurement import axes, measure, surface_area


def ellipsoid(radii: tuple[float, ...], spacing: tuple[float, ...], turn: float = 0, shift: float = 0) -> np.ndarray:
    """Pixels whose centres lie in it; turned in the last two axes, moved by a part of a pixel."""
    most = max(radii)
    counts = [int(2 * most / s) + 7 for s in spacing]
    lines = [(np.arange(n) - (n - 1) / 2 + shift) * s for n, s in zip(counts, spacing, strict=True)]
    grid = list(np.meshgrid(*lines, indexing="ij"))
    y, x = grid[-2], grid[-1]
    grid[-2], grid[-1] = np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x
    return np.asarray(sum((axis / r) ** 2 for axis, r in zip(grid, radii, strict=True)) <= 1)


def image(size: tuple[int, ...], geometry: Geometry) -> Image:
    return Image(np.zeros((1, 1, *size), np.uint8), geometry)


def measured(mask: np.ndarray, geometry: Geometry) -> dict[str, Measurement]:
    return {one.name: one for one in measure(Mask.cropped(mask), image(mask.shape, geometry))}


SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (5.0, 0.8, 0.8), (0.5, 1.0, 2.0)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("radius", [15.0, 30.0])
def test_a_ball(radius: float, spacing: tuple[float, float, float]) -> None:
    z, y, x = spacing
    found = measured(ellipsoid((radius,) * 3, spacing, shift=0.3), Spacing(x, y, z))
    assert (found["volume"].unit, found["long axis"].unit, found["surface"].unit) == ("ml", "mm", "mm2")
    assert found["volume"].value == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.02)
    assert found["surface"].value == pytest.approx(4 * np.pi * radius**2, rel=0.03)
    # no more than a pixel longer, and no more than the arc between slices shorter
    for name in ("long axis", "short axis"):
        assert -0.6 < found[name].value - 2 * radius < 2 * max(x, y)


def test_the_surface_of_balls_is_not_biased() -> None:
    random, shares = np.random.default_rng(0), []
    for radius in random.uniform(8, 14, 20):
        mask = ellipsoid((radius,) * 3, (1, 1, 1), shift=random.uniform(-0.5, 0.5))
        shares.append(surface_area(mask, (1, 1, 1)) / (4 * np.pi * radius**2))
    assert np.mean(shares) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("turn", [0.0, 0.4, 1.2])
def test_an_ellipsoid_turned_in_its_slices(turn: float) -> None:
    spacing, (a, b, c) = (2.0, 0.9, 0.9), (12.0, 22.0, 10.0)
    mask = ellipsoid((a, b, c), spacing, turn)
    long, short = axes(mask, spacing[1:])
    assert long == pytest.approx(2 * b, abs=1.2)
    assert short == pytest.approx(2 * c, abs=1.2)
    # Thomsen's formula is right to 1.1 %
    p = 1.6075
    expected = 4 * np.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
    assert surface_area(mask, spacing) == pytest.approx(expected, rel=0.03)


def test_a_box_in_an_image_of_one_slice() -> None:
    mask = np.zeros((1, 40, 60), bool)
    mask[0, 5:17, 8:38] = True
    found = measured(mask, Spacing(0.5, 0.25))
    assert set(found) == {"area", "long axis", "short axis"}
    assert found["area"].value == pytest.approx(12 * 0.25 * 30 * 0.5)
    # between middles of edges: at most half a pixel at each end from the corners
    assert found["long axis"].value == pytest.approx(np.hypot(3, 15), abs=0.5)
    assert 3 <= found["short axis"].value <= 3 * 1.05


@pytest.mark.parametrize(("size", "expected"), [((1, 1), (1, 1)), ((1, 9), (9, 1)), ((9, 1), (9, 1))])
def test_rows_of_pixels_are_as_long_as_they_are(size: tuple[int, int], expected: tuple[float, float]) -> None:
    assert axes(np.ones((1, *size), bool)) == pytest.approx(expected)


def test_the_axes_lie_in_the_slice_with_the_longest_and_are_perpendicular_there() -> None:
    mask = np.zeros((3, 40, 40), bool)
    mask[0, 5:35, 5:25] = True
    mask[1, 2:38, 10:14] = True
    mask[2, 20, :] = True
    long, short = axes(mask)
    assert (long, short) == (pytest.approx(40), pytest.approx(1))


def test_parts_are_one_lesion() -> None:
    mask = np.zeros((1, 10, 30), bool)
    mask[0, 4, 2:5] = mask[0, 4, 20:25] = True
    assert axes(mask)[0] == pytest.approx(23)


def test_a_perpendicular_is_no_longer_than_the_long_axis_and_nothing_changes_when_the_slice_is_flipped() -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        mask = random.uniform(size=(2, 12, 15)) < random.uniform(0.05, 0.6)
        long, short = axes(mask, (0.7, 1.3))
        assert short <= long + 1e-9
        for flipped in (mask[:, ::-1], mask[:, :, ::-1], mask[::-1]):
            assert axes(flipped, (0.7, 1.3))[0] == pytest.approx(long)
        turned = axes(mask.transpose(0, 2, 1), (1.3, 0.7))[0]
        assert turned == pytest.approx(long)


def test_the_long_axis_is_the_largest_of_all_distances() -> None:
    random = np.random.default_rng(1)
    for _ in range(10):
        mask = random.uniform(size=(1, 9, 11)) < 0.3
        points = [
            (y + dy, x + dx) for y, x in np.argwhere(mask[0]) for dy, dx in ((0, 0.5), (0, -0.5), (0.5, 0), (-0.5, 0))
        ]
        pairs = np.array(points) * (2.0, 0.6)
        expected = np.linalg.norm(pairs[:, None] - pairs[None], axis=-1).max()
        assert axes(mask, (2.0, 0.6))[0] == pytest.approx(expected)


def test_where_no_distance_is_known_pixels_are_counted() -> None:
    mask = np.zeros((4, 9, 9), bool)
    mask[1:3, 2:5, 2:8] = True
    found = measured(mask, NoGeometry())
    assert (found["volume"].value, found["volume"].unit, found["long axis"].unit) == (36, "voxels", "px")
    assert "surface" not in found
    flat = measured(mask[:1] | mask[1:2], NoGeometry())
    assert (flat["area"].value, flat["area"].unit, flat["short axis"].unit) == (18, "px2", "px")


def test_an_unknown_distance_of_slices_leaves_the_axes_in_millimetres() -> None:
    mask = np.ones((2, 3, 8), bool)
    found = measured(mask, Spacing(0.5, 0.5))
    assert (found["volume"].value, found["volume"].unit) == (48, "voxels")
    assert found["long axis"].unit == "mm"
    assert "surface" not in found


def test_millimetres_on_a_detector_are_named_so_and_carry_no_code_of_a_distance_in_the_patient() -> None:
    found = measured(np.ones((1, 3, 8), bool), Spacing(0.1, 0.1, source="ImagerPixelSpacing"))
    assert set(found) == {f"{name} in the detector plane" for name in ("area", "long axis", "short axis")}
    assert all(one.code is None for one in found.values())


def test_an_oblique_affine_measures_the_same() -> None:
    mask = ellipsoid((9.0, 6.0, 5.0), (2.0, 0.8, 0.8))
    c, s = np.cos(0.5), np.sin(0.5)
    matrix = np.array([[c, -s, 0, 5], [s, c, 0, -3], [0, 0, 1, 9], [0, 0, 0, 1]]) @ np.diag([0.8, 0.8, 2.0, 1])
    for name, one in measured(mask, Affine(matrix)).items():
        assert one.value == pytest.approx(measured(mask, Spacing(0.8, 0.8, 2.0))[name].value)


def test_an_empty_mask_has_no_measurements() -> None:
    empty = np.zeros((2, 3, 3), bool)
    assert measure(Mask(empty), image(empty.shape, NoGeometry())) == ()
    assert axes(empty) == (0, 0)
