"""The working grid: there and back, by what resampling must keep."""

from dataclasses import replace

import numpy as np
import pytest

from osler import grid
from osler.case import Question
from osler.grid import Grid
from osler.image import Affine, Image, Spacing
from osler.problem import Problem
from osler.recipe import ImagePlan, PatchPlan, Recipe

QUESTION = Question("mask", "segmentation", ("lesion",), values=((1,),))


def plan(**patches: object) -> Recipe:
    base = Recipe(ImagePlan((1, 32, 32)), {"mask": QUESTION})
    return replace(base, patches=PatchPlan(**patches))  # type: ignore[arg-type]


def test_boxes_keep_their_place_in_the_field_of_view() -> None:
    where = Grid((10, 40, 60), (5, 80, 30))
    boxes = np.array([[0, 0, 0, 10, 40, 60], [2, 10, 30, 4, 20, 45]], np.float32)
    there = where.boxes_to(boxes)
    assert there[0].tolist() == [0, 0, 0, 5, 80, 30]
    assert there[1].tolist() == [1, 20, 15, 2, 40, 22.5]
    assert np.allclose(where.boxes_back(there), boxes)


def test_a_smooth_map_comes_back() -> None:
    y, x = np.mgrid[:40, :60]
    smooth = (np.sin(y / 9) + np.cos(x / 11))[None, None].astype(np.float32)
    where = Grid((1, 40, 60), (1, 80, 120))
    there = Image(smooth[None]).resample(where.size).array[0]
    assert np.abs(where.back(np.asarray(there, np.float32)) - smooth).max() < 0.03


def test_labels_stay_labels() -> None:
    labels = np.zeros((1, 31, 47), np.uint8)
    labels[:, 8:20, 10:30] = 7
    moved = Grid((1, 31, 47), (1, 16, 24)).labels_to(labels)
    assert set(np.unique(moved)) == {0, 7}
    assert moved.sum() / 7 == pytest.approx(12 * 20 / 4, rel=0.15)


def test_millimetres_become_pixels_of_the_working_grid() -> None:
    affine = np.diag([0.5, 0.5, 4.0, 1.0])
    image = Image(np.zeros((1, 1, 20, 100, 80), np.uint8), Affine(affine))
    assert grid.find(image, plan(unit="mm", spacing=(2.0, 1.0, 1.0))).size == (40, 50, 40)
    assert grid.find(image, plan(unit="mm", spacing=(0.0, 1.0, 1.0))).size == (20, 50, 40)


def test_pixels_take_the_longest_side() -> None:
    image = Image(np.zeros((1, 1, 1, 300, 600), np.uint8), Spacing(0.1, 0.1))
    assert grid.find(image, plan(longest=200)).size == (1, 100, 200)
    assert grid.find(image, plan()).size == image.size


def test_the_middle_of_a_padded_image_stays_where_it_is_in_the_patient() -> None:
    image = Image(np.zeros((1, 1, 1, 41, 61), np.uint8), Affine(np.diag([0.5, 0.5, 4.0, 1.0])))
    moved = Grid(image.size, (1, 21, 31), (0, 6, 1), (1, 33, 33)).to(image)
    assert moved.to_patient(np.array([1 + 15.0, 6 + 10, 0])) == pytest.approx(
        image.to_patient(np.array([30.0, 20, 0]))
    )


def test_no_millimetres_are_invented() -> None:
    flat = Image(np.zeros((1, 1, 1, 30, 30), np.uint8))
    with pytest.raises(Problem, match="does not say how far apart"):
        grid.find(flat, plan(unit="mm", spacing=(0.0, 1.0, 1.0)))
    stack = Image(np.zeros((1, 1, 9, 30, 30), np.uint8), Spacing(1.0, 1.0))
    with pytest.raises(Problem, match="does not say how far apart"):
        grid.find(stack, plan(unit="mm", spacing=(2.0, 1.0, 1.0)))


def test_each_channel_is_brought_to_one_scale() -> None:
    rng = np.random.default_rng(0)
    array = rng.normal([[3.0], [50.0]], [[2.0], [9.0]], (2, 4000)).reshape(1, 2, 10, 20, 20)
    made = grid.standardised(Image(array)).array
    assert np.allclose(made.mean((0, 2, 3, 4)), 0, atol=1e-5)
    assert np.allclose(made.std((0, 2, 3, 4)), 1, atol=1e-5)
    assert np.isfinite(grid.standardised(Image(np.full((1, 1, 1, 4, 4), 7.0))).array).all()
