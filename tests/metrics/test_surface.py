"""Distances between outlines against MONAI, SimpleITK and closed forms; rules for empty masks."""

import math

import numpy as np
import pytest

from metrics.masks import ball, box, pairs
from osler.metrics.surface import assd, distances, hausdorff, nsd, outline

NOTHING = np.zeros((4, 5), bool)


@pytest.mark.filterwarnings("ignore:monai:FutureWarning")  # about its own calls
@pytest.mark.parametrize("name", pairs())
def test_agrees_with_monai(name: str) -> None:
    metrics, torch = pytest.importorskip("monai.metrics"), pytest.importorskip("torch")
    ours, theirs, spacing = pairs()[name]
    y, y_pred = (torch.from_numpy(x[None, None].astype(np.float32)) for x in (ours, theirs))
    found, at = distances(ours, theirs, spacing), list(spacing)
    options = {"include_background": True, "spacing": at}
    for percentile in (100, 95, 50):
        expected = metrics.compute_hausdorff_distance(y_pred, y, percentile=percentile, **options).item()
        assert hausdorff(found, percentile) == pytest.approx(expected, rel=1e-6)
    expected = metrics.compute_average_surface_distance(y_pred, y, symmetric=True, **options).item()
    assert assd(found) == pytest.approx(expected, rel=1e-6)
    for tolerance in (0.0, 0.5, 1.7, 4.3):
        expected = metrics.compute_surface_dice(y_pred, y, [tolerance], **options).item()
        assert nsd(found, tolerance) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", pairs())
def test_agrees_with_distance_maps_of_simpleitk(name: str) -> None:
    """Contours and distance maps of SimpleITK, put together as in its own notebook on evaluation of segmentations."""
    sitk = pytest.importorskip("SimpleITK")
    ours, theirs, spacing = pairs()[name]
    images = []
    for mask in (ours, theirs):
        # Its contour has no pixels at the border of the image; ours has, since nothing is known beyond.
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        images.append(image)
    contours = [sitk.LabelContour(image, fullyConnected=False) for image in images]
    at = [sitk.GetArrayFromImage(contour) > 0 for contour in contours]
    # below 0 within a contour that is several pixels wide
    maps = [
        np.maximum(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(x, False, False, True)), 0) for x in contours
    ]
    of_ours, of_theirs = maps[1][at[0]], maps[0][at[1]]
    found = distances(ours, theirs, spacing)
    np.testing.assert_allclose(found.of_reference, of_ours, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.of_prediction, of_theirs, rtol=1e-6, atol=1e-6)


def test_simpleitks_hausdorff_filter_is_another_definition_which_agrees_where_no_mask_lies_in_the_other() -> None:
    sitk = pytest.importorskip("SimpleITK")
    apart = box((12, 12), (1, 1), (4, 5)), box((12, 12), (7, 6), (10, 11))
    within = box((21, 21), (0, 0), (21, 21)), box((21, 21), (0, 0), (21, 10))

    def theirs(pair: tuple[np.ndarray, np.ndarray]) -> float:
        found = sitk.HausdorffDistanceImageFilter()
        found.Execute(*(sitk.GetImageFromArray(x.astype(np.uint8)) for x in pair))
        return float(found.GetHausdorffDistance())

    assert hausdorff(distances(*apart), 100) == pytest.approx(theirs(apart))
    hole = (
        ball((21, 21), (10, 10), 8, (1, 1)),
        ball((21, 21), (10, 10), 8, (1, 1)) & ~box((21, 21), (10, 10), (11, 11)),
    )
    assert theirs(hole) == pytest.approx(1)
    assert hausdorff(distances(*hole), 100) > 5
    assert theirs(within) == pytest.approx(11)


def test_balls_one_in_the_other_are_apart_by_the_difference_of_their_radii() -> None:
    size, spacing = (24, 80, 80), (3.0, 1.0, 0.8)
    outer, inner = (ball(size, (36, 40, 32), radius, spacing) for radius in (25, 17))
    found = distances(outer, inner, spacing)
    assert assd(found) == pytest.approx(8, abs=0.8)
    assert nsd(found, 5) == 0
    assert nsd(found, 12) == 1


def test_a_mask_that_was_moved_is_that_far_away() -> None:
    ours, theirs = box((9, 30), (2, 3), (3, 4)), box((9, 30), (2, 13), (3, 14))
    found = distances(ours, theirs, (2.0, 0.7))
    assert hausdorff(found) == hausdorff(found, 100) == assd(found) == pytest.approx(7)
    assert (nsd(found, 7), nsd(found, 6.99)) == (1, 0)


def test_three_pixels_are_within_three_times_the_spacing() -> None:
    ours, theirs = box((3, 9), (1, 1), (2, 2)), box((3, 9), (1, 4), (2, 5))
    for spacing in (0.1, 0.3, 0.7, 1.1):
        assert nsd(distances(ours, theirs, (1.0, spacing)), round(3 * spacing, 6)) == 1


def test_empty_masks() -> None:
    some = box((4, 5), (1, 1), (2, 2))
    both = distances(NOTHING, NOTHING)
    assert all(math.isnan(x) for x in (hausdorff(both), assd(both), nsd(both, 1)))
    for found in (distances(some, NOTHING), distances(NOTHING, some)):
        assert (hausdorff(found), assd(found), nsd(found, 1)) == (math.inf, math.inf, 0)


def test_what_surrounds_the_masks_changes_nothing_and_neither_does_the_order() -> None:
    for ours, theirs, spacing in pairs().values():
        found, padded = distances(ours, theirs, spacing), distances(np.pad(ours, 2), np.pad(theirs, 2), spacing)
        swapped = distances(theirs, ours, spacing)
        np.testing.assert_allclose(found.of_reference, padded.of_reference)
        np.testing.assert_allclose(found.of_reference, swapped.of_prediction)


def test_an_outline_is_a_frame_of_one_pixel() -> None:
    expected = box((8, 9), (1, 2), (6, 8)) & ~box((8, 9), (2, 3), (5, 7))
    np.testing.assert_array_equal(outline(box((8, 9), (1, 2), (6, 8))), expected)
    np.testing.assert_array_equal(outline(np.ones((3, 3), bool)), ~box((3, 3), (1, 1), (2, 2)))
    assert outline(np.ones((1, 4, 4), bool)).all()


def test_what_cannot_be_measured_is_refused() -> None:
    some = box((4, 5), (1, 1), (2, 2))
    with pytest.raises(ValueError, match="spacing"):
        distances(some, some, (1.0, 0.0))
    with pytest.raises(ValueError, match="spacing"):
        distances(some, some, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="tolerance"):
        nsd(distances(some, some), -1)
