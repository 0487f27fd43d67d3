"""Boxes move as the images do: held to the masks of ellipsoids, which move pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from osler.draws import keys
from osler.transforms.spatial import VISIBLE, Options, move_boxes, move_masks

STILL = Options(1.0, rotation=0.0, scale=0.0, stretch=0.0, shear=0.0, translation=0.0, elastic=0.0)
AFFINE = Options(1.0, 40.0, 20.0, 0.2, 0.1, 0.1, 0.05, 0.0, 0.0, flip_x=True, flip_y=True)
BENT = replace(AFFINE, rotation=15.0, elastic=0.03, elastic_probability=1.0)
FLAT, DEEP = (1, 120, 160), (40, 60, 80)


def ellipsoid(box: NDArray[np.float32], size: tuple[int, int, int]) -> NDArray[np.bool_]:
    places = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in size), indexing="ij"), -1)
    middle, half = (box[:3] + box[3:6]) / 2, (box[3:6] - box[:3]) / 2
    return np.asarray((((places - middle) / half) ** 2).sum(-1) <= 1)


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    places = np.argwhere(mask)
    return np.concatenate([places.min(0), places.max(0) + 1])


def middle_box(size: tuple[int, int, int]) -> NDArray[np.float32]:
    if size[0] == 1:
        return np.array([[0, 40, 60, 1, 80, 120, 2]], np.float32)
    return np.array([[12, 22, 24, 28, 44, 54, 1]], np.float32)


@pytest.mark.parametrize("size", [FLAT, DEEP])
@pytest.mark.parametrize("options", [AFFINE, BENT, replace(AFFINE, aspect_y=1.5, aspect_z=2.0)])
def test_boxes_hold_what_was_moved(size: tuple[int, int, int], options: Options) -> None:
    box, key = middle_box(size), keys(3, np.arange(12))
    mask = torch.from_numpy(ellipsoid(box[0], size))[None, None].expand(12, 1, *size).to(torch.uint8)
    moved = move_masks(mask, options, key)[:, 0].numpy() > 0
    # Half a pixel of the mask that is moved, one of the result, and half where the bend is not straight in between.
    allowed = 2.0 if options.elastic else 1.5
    for number in range(12):
        found = move_boxes(box, options, key[number : number + 1], size)
        assert found[0, 6] == box[0, 6]
        np.testing.assert_allclose(found[0, :6], box_of(moved[number]), atol=allowed)


@pytest.mark.parametrize("size", [FLAT, DEEP])
def test_a_mirrored_box_is_exact(size: tuple[int, int, int]) -> None:
    options, key = replace(STILL, flip_x=True), keys(0, np.arange(20))
    box, width = middle_box(size), size[2]
    found = [move_boxes(box, options, key[i : i + 1], size)[0] for i in range(20)]
    mirrored = box[0].copy()
    mirrored[[2, 5]] = width - box[0, 5], width - box[0, 2]
    same = [np.allclose(f, box[0], atol=1e-4) for f in found]
    turned = [np.allclose(f, mirrored, atol=1e-4) for f in found]
    assert all(a != b for a, b in zip(same, turned, strict=True)) and any(same) and any(turned)


def test_turning_does_not_make_round_things_larger() -> None:
    options = replace(STILL, rotation=45.0)
    box = np.array([[0, 40, 60, 1, 80, 100, 0]], np.float32)
    for number in range(10):
        found = move_boxes(box, options, keys(0, np.array([number])), FLAT)[0]
        np.testing.assert_allclose(found[3:6] - found[:3], [1, 40, 40], atol=1e-3)


def test_what_leaves_the_image_is_cut_and_dropped_when_little_is_left() -> None:
    options = replace(STILL, translation=0.4)
    box, size = np.array([[0, 50, 70, 1, 70, 90, 0]], np.float32), (1, 60, 160)
    left = []
    for number in range(200):
        found = move_boxes(box, options, keys(0, np.array([number])), size)
        for row in found:
            assert (row[:3] >= 0).all() and (row[3:6] <= size).all()
            left.append(float((row[4] - row[1]) * (row[5] - row[2]) / 400))
    assert 0 < len(left) < 200
    assert min(left) > VISIBLE and max(left) <= 1.0 + 1e-5


def test_images_that_stay_keep_their_boxes() -> None:
    box = middle_box(FLAT)
    assert (move_boxes(box, replace(AFFINE, probability=0.0), keys(0, np.array([1])), FLAT) == box).all()
    assert move_boxes(box[:0], AFFINE, keys(0, np.array([1])), FLAT).shape == (0, 7)
