from math import cos, radians, sin

import numpy as np
import pytest
import torch
from torch import Tensor

from osler.draws import keys
from osler.transforms import spatial
from osler.transforms.spatial import Options, apply, warp

STILL = Options(1.0, rotation=0.0, scale=0.0, stretch=0.0, shear=0.0, translation=0.0, elastic=0.0)


def smooth(*shape: int) -> Tensor:
    """A few broad Gaussian blobs, so that linear interpolation is nearly exact."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape), indexing="ij")
    blobs = [((-0.2, 0.3, -0.3), 0.3), ((0.1, -0.4, 0.35), 0.25)]
    values = [torch.exp(-sum((a - c) ** 2 for a, c in zip(axes, at, strict=True)) / s**2) for at, s in blobs]
    return sum(values[1:], values[0])[None, None]


def turn(degrees: float) -> Tensor:
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return torch.tensor([[[c, -s, 0], [s, c, 0], [0, 0, 1]]], dtype=torch.float32)


@pytest.mark.parametrize("shape", [(1, 2, 1, 20, 20), (1, 1, 5, 9, 9)])
@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_quarter_turns_are_rot90(shape: tuple[int, ...], quarter: int) -> None:
    images = torch.randn(shape)
    # rot90 turns from the first towards the second of the axes given: from x to y.
    turned = warp(images, turn(-90 * quarter), torch.zeros(1, 3))
    torch.testing.assert_close(turned, torch.rot90(images, quarter, (-1, -2)), rtol=0, atol=2e-5)


def test_quarter_turn_out_of_the_plane() -> None:
    images = torch.randn(1, 1, 8, 7, 8)
    matrix = torch.tensor([[[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]])  # about y
    turned = warp(images, matrix, torch.zeros(1, 3))
    truth = [torch.rot90(images, k, (-1, -3)) for k in (1, 3)]
    assert min((turned - t).abs().max() for t in truth) < 2e-5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_whole_pixels_are_a_roll_inside(axis: int) -> None:
    images = torch.randn(1, 1, 8, 9, 10)
    shift = torch.zeros(1, 3)
    shift[0, axis] = 2
    moved = warp(images, torch.eye(3)[None], shift, padding="zero")
    inside = moved.movedim(4 - axis, 0)
    truth = images.roll(-2, 4 - axis).movedim(4 - axis, 0)
    torch.testing.assert_close(inside[:-2], truth[:-2], rtol=0, atol=1e-5)
    assert inside[-2:].abs().max() < 1e-5
    edge = warp(images, torch.eye(3)[None], shift, padding="border").movedim(4 - axis, 0)
    torch.testing.assert_close(edge[-1], images.movedim(4 - axis, 0)[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1, 1, 13, 18), (2, 2, 6, 7, 8)])
def test_no_movement_is_the_identity(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    torch.testing.assert_close(apply(images, STILL, keys(0, np.arange(shape[0]))), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("flag", "axis"), [("flip_x", 4), ("flip_y", 3), ("flip_z", 2)])
def test_half_of_the_images_are_mirrored(flag: str, axis: int) -> None:
    images = torch.randn(200, 1, 4, 5, 6)
    options = Options(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, **{flag: True})
    after = apply(images, options, keys(1, np.arange(200)))
    mirrored = ((after - images.flip(axis)).abs().amax((1, 2, 3, 4)) < 1e-5).numpy()
    same = ((after - images).abs().amax((1, 2, 3, 4)) < 1e-5).numpy()
    assert (mirrored ^ same).all()
    assert abs(mirrored.mean() - 0.5) < 0.15


def test_nothing_is_mirrored_unless_allowed() -> None:
    matrices = spatial._matrices(Options(tilt=30.0, scale=0.5, stretch=0.3), keys(2, np.arange(500)), flat=False)
    assert (np.linalg.det(matrices) > 0).all()


def test_rotation_keeps_distances_in_an_image_that_is_not_square() -> None:
    """A turned disc stays a disc: second moments stay equal, at the place that the angle says."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(100.0), indexing="ij")
    disc = torch.exp(-((x - 70) ** 2 + (y - 30) ** 2) / 50)[None, None, None]
    turned = warp(disc, turn(40), torch.zeros(1, 3), padding="zero")[0, 0, 0]
    weight = turned / turned.sum()
    cx, cy = (weight * x).sum(), (weight * y).sum()
    # The output point p shows the input at R p, so what was at c is now at R^T c.
    assert abs(cx - (49.5 + 20.5 * cos(radians(40)) + 0.5 * sin(radians(40)))) < 0.1
    assert abs(cy - (29.5 - 20.5 * sin(radians(40)) + 0.5 * cos(radians(40)))) < 0.1
    spread_x, spread_y = (weight * (x - cx) ** 2).sum(), (weight * (y - cy) ** 2).sum()
    assert abs(spread_x / spread_y - 1) < 0.01


def test_rotation_knows_that_rows_are_further_apart_than_columns() -> None:
    """Sampled at half the rows, the turned image is the same as the turned image sampled at half the rows."""
    full = smooth(1, 80, 80)
    half = torch.nn.functional.avg_pool2d(full[:, :, 0], (2, 1))[:, :, None]
    truth = torch.nn.functional.avg_pool2d(warp(full, turn(30), torch.zeros(1, 3))[:, :, 0], (2, 1))[:, :, None]
    turned = warp(half, turn(30), torch.zeros(1, 3), aspect=(1.0, 2.0, 1.0))
    assert (turned - truth).abs().max() < 0.02
    assert (warp(half, turn(30), torch.zeros(1, 3)) - truth).abs().max() > 0.1


def test_there_and_back_again() -> None:
    images = smooth(1, 64, 64)
    back = warp(warp(images, turn(25), torch.zeros(1, 3)), turn(-25), torch.zeros(1, 3))
    assert (back - images)[..., 16:48, 16:48].abs().max() < 0.02


@pytest.mark.parametrize("size", [(1, 40, 50), (20, 24, 28)])
def test_elastic_deformation_is_smooth_bounded_and_never_folds(size: tuple[int, int, int]) -> None:
    options = Options(1.0, elastic=0.12, elastic_probability=1.0)
    bend = spatial._bend(options, keys(3, np.arange(20)), size, torch.zeros(1))
    assert bend is not None
    limit = 0.12 * torch.tensor(size[::-1]).view(1, 3, 1, 1, 1)
    assert (bend.abs() <= limit + 1e-4).all() and bend.abs().amax() > 0.3 * limit.min()
    jacobian = torch.eye(3).expand(*bend.shape[:1], *size, 3, 3).clone()
    for column in range(3):
        if size[2 - column] > 1:
            jacobian[..., column] += torch.gradient(bend, dim=4 - column)[0].movedim(1, -1)
    assert (torch.linalg.det(jacobian) > 0).all()


def test_a_bent_flat_image_stays_in_its_plane() -> None:
    bend = spatial._bend(Options(elastic_probability=1.0), keys(4), (1, 10, 10), torch.zeros(1))
    images = torch.randn(1, 1, 1, 10, 10)
    assert bend is not None
    flat = bend.clone()
    flat[:, 2] = 0
    still = torch.zeros(1, 3)
    assert torch.equal(warp(images, torch.eye(3)[None], still, bend), warp(images, torch.eye(3)[None], still, flat))


def test_angles_and_sizes_stay_within_what_was_asked() -> None:
    options = Options(rotation=15.0, scale=0.2, stretch=0.0, shear=0.0)
    matrices = spatial._matrices(options, keys(5, np.arange(2000)), flat=True)
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    sizes = np.log(np.sqrt(np.linalg.det(matrices[:, :2, :2])))
    assert 14.5 < np.abs(angles).max() <= 15 and abs(angles.mean()) < 1
    assert 0.19 < np.abs(sizes).max() <= 0.2 and abs(sizes.mean()) < 0.02
