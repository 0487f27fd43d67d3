"""Overlap of masks against MONAI and counted truths; rules for empty masks."""

import math

import numpy as np
import pytest

from metrics.masks import box, pairs
from osler.metrics.overlap import dice, iou, volume_error

NOTHING = np.zeros((4, 5), bool)


def test_counted_by_hand() -> None:
    ours, theirs = box((6, 6), (0, 0), (2, 3)), box((6, 6), (0, 1), (2, 5))
    assert dice(ours, theirs) == pytest.approx(2 * 4 / (6 + 8))
    assert iou(ours, theirs) == pytest.approx(4 / 10)
    assert volume_error(ours, theirs) == pytest.approx(2 / 6)
    assert volume_error(theirs, ours) == pytest.approx(-2 / 8)


def test_one_empty_is_nothing_and_both_empty_is_undefined() -> None:
    some = box((4, 5), (1, 1), (2, 2))
    assert dice(some, NOTHING) == dice(NOTHING, some) == iou(some, NOTHING) == iou(NOTHING, some) == 0
    assert volume_error(some, NOTHING) == -1
    assert all(math.isnan(f(NOTHING, NOTHING)) for f in (dice, iou, volume_error))
    assert math.isnan(volume_error(NOTHING, some))


@pytest.mark.parametrize("name", pairs())
def test_agrees_with_monai(name: str) -> None:
    metrics, torch = pytest.importorskip("monai.metrics"), pytest.importorskip("torch")
    ours, theirs, _ = pairs()[name]
    y, y_pred = (torch.from_numpy(x[None, None].astype(np.float64)) for x in (ours, theirs))
    assert dice(ours, theirs) == pytest.approx(metrics.compute_dice(y_pred, y).item(), abs=1e-6)
    assert iou(ours, theirs) == pytest.approx(metrics.compute_iou(y_pred, y).item(), abs=1e-6)


@pytest.mark.parametrize("name", pairs())
def test_agrees_with_simpleitk(name: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    ours, theirs, _ = pairs()[name]
    found = sitk.LabelOverlapMeasuresImageFilter()
    found.Execute(*(sitk.GetImageFromArray(x.astype(np.uint8)) for x in (ours, theirs)))
    assert dice(ours, theirs) == pytest.approx(found.GetDiceCoefficient(), abs=1e-6)
    assert iou(ours, theirs) == pytest.approx(found.GetJaccardCoefficient(), abs=1e-6)


def test_dice_and_iou_are_one_figure_in_two_scales() -> None:
    for ours, theirs, _ in pairs().values():
        shared = iou(ours, theirs)
        assert dice(ours, theirs) == pytest.approx(2 * shared / (1 + shared))
