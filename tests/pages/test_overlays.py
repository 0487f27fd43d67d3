"""Overlays: what is drawn lies exactly where the masks and boxes are, and nothing of a name gets out of its text."""

import base64
import io
import re

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image as Pillow

from osler.case import Answer, Box, Case, Finding, Mask, Question
from osler.image import Affine, Image, Spacing
from osler.pages.overlays import Example, Places, chosen, example, overlay

GREY = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)


def lines(path: str) -> list[list[tuple[float, float]]]:
    """The corners of each way around, as x and y."""
    ways = []
    for way in path.split("Z")[:-1]:
        x, y = (float(number) for number in re.match(r"M(\S+) ([\d.]+)", way).groups())
        corners = [(x, y)]
        for step, to in re.findall(r"([HV])([\d.]+)", way):
            x, y = (float(to), y) if step == "H" else (x, float(to))
            corners.append((x, y))
        ways.append(corners)
    return ways


def filled(ways: list[list[tuple[float, float]]], size: tuple[int, int]) -> np.ndarray:
    """The pixels that are inside, by counting crossings to the left of their centres."""
    crossings = np.zeros(size, int)
    for corners in ways:
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if x0 == x1:
                low, high = sorted((int(y0), int(y1)))
                crossings[low:high, int(x0) :] += 1
    return crossings % 2 == 1


@pytest.mark.parametrize("seed", range(5))
def test_outlines_go_along_the_edges_of_pixels_holes_and_corners_included(seed: int) -> None:
    mask = np.random.default_rng(seed).uniform(size=(60, 80)) < (0.3, 0.5, 0.7, 0.95, 1.0)[seed]
    drawing = overlay(GREY, Places([mask]), Places(), "a")
    path = re.search(r'<path d="([^"]+)"', drawing).group(1)
    np.testing.assert_array_equal(filled(lines(path), mask.shape), mask)
    # every way comes back to where it began, along one axis
    assert all(way[0][0] == way[-1][0] or way[0][1] == way[-1][1] for way in lines(path))


def picture(drawing: str) -> np.ndarray:
    data = re.search(r'href="data:image/png;base64,([^"]+)"', drawing).group(1)
    return np.asarray(Pillow.open(io.BytesIO(base64.b64decode(data))))


def test_a_small_lesion_is_shown_with_its_surroundings_and_everything_moves_along() -> None:
    image = np.zeros((300, 400), np.uint8)
    image[100:104, 200:206] = 255
    mask = image > 0
    drawing = overlay(image, Places([mask]), Places(boxes=np.array([[100.0, 200, 104, 206]])), "a")
    shown = picture(drawing)
    assert shown.shape[0] < 100
    left, top = (int(number) for number in re.search(r"translate\(-(\d+) -(\d+)\)", drawing).groups())
    np.testing.assert_array_equal(shown, image[top : top + shown.shape[0], left : left + shown.shape[1]])
    reader, model = re.findall(r'<path d="([^"]+)"', drawing)
    assert {*lines(reader)[0]} == {*lines(model)[0]} == {(200, 100), (206, 100), (206, 104), (200, 104)}


def test_what_is_large_or_absent_shows_the_whole_image() -> None:
    for places in (Places(), Places([np.ones((60, 80), bool)]), Places([np.zeros((60, 80), bool)])):
        assert picture(overlay(GREY, places, Places(), "a")).shape == (60, 80)


def test_bytes_are_shown_as_they_are_and_other_values_from_end_to_end() -> None:
    image = np.random.default_rng(0).integers(40, 90, (30, 30)).astype(np.uint8)
    np.testing.assert_array_equal(picture(overlay(image, Places(), Places(), "a")), image)
    wide = picture(overlay(image.astype(np.int16) * 20 - 1000, Places(), Places(), "a"))
    assert (wide.min(), wide.max()) == (0, 255)
    holes = np.full((9, 9), np.nan)
    holes[0, 0] = 5
    assert picture(overlay(holes, Places(), Places(), "a")).shape == (9, 9)


def test_names_are_escaped() -> None:
    bad = '"><script>alert(1)</script>'
    drawing = overlay(GREY, Places(), Places(boxes=np.array([[1.0, 1, 50, 70]]), words=[bad]), bad)
    assert "<script" not in drawing


QUESTION = Question("mask", "segmentation", ("lesion",), values=((1,),), separate=True)


def test_an_example_shows_the_slice_with_most_of_it() -> None:
    maps = np.zeros((2, 5, 40, 40), np.uint8)
    maps[1, 3, 10:30, 10:30] = 1
    maps[0, 2, 10:12, 10:12] = 1
    array = np.broadcast_to(np.arange(10, dtype=np.uint8).reshape(2, 1, 5, 1, 1) * 20, (2, 1, 5, 40, 40))
    image = Image(array, Spacing(1.0, 2.0, 5.0))
    mask = Mask.cropped(maps[1] == 1)
    sure = Finding("mask", "lesion", "model", 0.9, box=mask.box, mask=mask, frame=1)
    unsure = Finding("mask", "lesion", "model", 0.1, box=mask.box, mask=mask, frame=0)
    answer = Answer("mask", "segmentation", (sure, unsure), ("lesion",), threshold=0.5)
    shown = example(Case("a1b2", "anna", {}, maps={"mask": maps}), image, answer, QUESTION, 0.93)
    assert shown.said == "Dice 0.93, frame 2, slice 4"
    assert (picture(shown.drawing) == 8 * 20).all()
    # pixels are twice as high as wide
    assert 'viewBox="0 0 40 80"' in shown.drawing
    assert shown.drawing.count("<path") == 2


def test_boxes_are_drawn_in_the_slices_that_they_reach_with_name_and_probability() -> None:
    image = Image(np.zeros((1, 3, 4, 50, 50), np.uint8), Affine(np.diag([1.0, 1, 3, 1])))
    place = Box((1, 5, 5), (2.5, 25, 25))
    reader = Finding("boxes", "nodule", probability=1, box=place)
    other = Finding("boxes", "nodule", probability=1, box=Box((3, 0, 0), (4, 2, 2)))
    said = Finding("boxes", "nodule", "model", 0.83, box=place)
    question = Question("boxes", "detection", ("nodule",))
    answer = Answer("boxes", "detection", (said,), ("nodule",), threshold=0.5)
    shown = example(Case("a1b2", "anna", {}, (reader, other)), image, answer, question, float("nan"))
    assert shown.said == "nothing there, nothing drawn, slice 2"
    assert shown.drawing.count("<path") == 2
    assert "nodule 83 %" in shown.drawing


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 9, 40])
def test_best_median_and_worst_are_different_cases_in_order(count: int) -> None:
    random = np.random.default_rng(0)
    qualities = random.permutation(count) / max(count, 1)
    examples = [Example(f"{i}", Markup(), "", float(x)) for i, x in enumerate(qualities)]
    found = chosen([*examples, Example("nothing", Markup(), "", float("nan"))])
    shown = [one.case for some in found.values() for one in some]
    assert len(shown) == len(set(shown)) == min(count, 9, 3 * max(1, count // 3))
    if count > 2:
        best, median, worst = (
            np.mean([one.quality for one in found[title]]) for title in ("Best", "Median", "Worst")
        )
        assert best > median > worst
        assert found["Best"][0].quality == max(one.quality for one in examples)
        assert found["Worst"][0].quality == 0
