"""Lesions found and lesions invented, counted by hand, and as properties of random masks."""

import math

import numpy as np
import pytest

from metrics.masks import box, pairs
from osler.metrics.lesions import components, match

SIZE = (20, 30)
NOTHING = np.zeros(SIZE, bool)


def lesions(*corners: tuple[int, int], side: int = 4) -> np.ndarray:
    mask = NOTHING.copy()
    for y, x in corners:
        mask |= box(SIZE, (y, x), (y + side, x + side))
    return mask


def test_a_shared_pixel_is_enough_unless_more_is_asked_for() -> None:
    ours, theirs = lesions((1, 1), (10, 1), (10, 20)), lesions((4, 4), (10, 3), (1, 20))
    found = match(ours, theirs)
    assert found.found.tolist() == [True, True, False]
    assert (found.sensitivity, found.precision) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    half = match(ours, theirs, least=0.5)
    assert (half.found.tolist(), half.sensitivity) == ([False, True, False], pytest.approx(1 / 3))
    # two of four columns are shared: 8 of 24 pixels
    assert match(ours, theirs, "iou", 8 / 24).sensitivity == pytest.approx(1 / 3)
    assert match(ours, theirs, "iou", 0.34).sensitivity == 0


def test_one_drawn_over_two_finds_both_by_overlap_and_one_of_them_by_iou() -> None:
    ours, theirs = lesions((1, 1), (1, 7)), box(SIZE, (1, 1), (5, 11))
    assert match(ours, theirs).found.tolist() == [True, True]
    one = match(ours, theirs, "iou", 0.1)
    assert (one.found.sum(), one.real.sum(), one.partner.tolist()) == (1, 1, [0])


def test_two_drawn_in_one_are_both_real_by_overlap_and_one_of_them_by_iou() -> None:
    ours, theirs = box(SIZE, (1, 1), (5, 11)), lesions((1, 1), (1, 7))
    assert match(ours, theirs).real.tolist() == [True, True]
    assert match(ours, theirs).partner.tolist() == [0, 0]
    assert match(ours, theirs, "iou", 0.1).real.sum() == 1


def test_pairs_are_taken_from_the_highest_iou_down() -> None:
    ours, theirs = lesions((0, 0), side=6), lesions((0, 0), side=5) | box(SIZE, (0, 6), (6, 7))
    theirs |= box(SIZE, (7, 0), (8, 3))
    found = match(ours | box(SIZE, (8, 0), (9, 3)), theirs, "iou", 0.2)
    assert found.partner[0] == 0


def test_parts_that_touch_at_a_corner_are_one_lesion() -> None:
    assert components(lesions((1, 1), (5, 5)))[1] == 1
    assert components(lesions((1, 1), (6, 6)))[1] == 2
    three = np.zeros((4, 4, 4), bool)
    three[0, 0, 0] = three[1, 1, 1] = three[3, 3, 3] = True
    assert components(three)[1] == 2


def test_empty_masks() -> None:
    some = lesions((1, 1))
    for rule in ("overlap", "iou"):
        assert all(
            math.isnan(x) for x in (match(NOTHING, NOTHING, rule).sensitivity, match(NOTHING, NOTHING).precision)
        )
        missed, invented = match(some, NOTHING, rule), match(NOTHING, some, rule)
        assert missed.sensitivity == 0 and math.isnan(missed.precision)
        assert invented.precision == 0 and math.isnan(invented.sensitivity)
        assert invented.partner.tolist() == [-1]


@pytest.mark.parametrize("name", pairs())
def test_swapping_the_masks_swaps_the_roles_and_no_lesion_is_paired_twice(name: str) -> None:
    ours, theirs, _ = pairs()[name]
    for rule, least in (("overlap", 0.0), ("overlap", 0.4), ("iou", 0.0), ("iou", 0.3)):
        found, swapped = match(ours, theirs, rule, least), match(theirs, ours, rule, least)
        assert found.found.sum() == swapped.real.sum()
        if rule == "iou":
            paired = found.partner[found.partner >= 0]
            assert len(set(paired.tolist())) == len(paired) == found.found.sum() == found.real.sum()


def test_what_must_be_shared_is_a_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        match(NOTHING, NOTHING, least=1.5)
