"""One grid through the places in the patient onto another, against SimpleITK and what is known in closed form."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from osler import resampling
from osler.image import Affine, Image, NoGeometry


def grid(rng: np.random.Generator, *, flips: bool) -> tuple[Affine, tuple[int, int, int]]:
    """A rotated, anisotropic grid around the origin, mirrored along some axes."""
    size = tuple(int(n) for n in rng.integers(6, 14, 3))
    spacing = rng.uniform(0.6, 3, 3) * (rng.choice([-1, 1], 3) if flips else 1)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=int(rng.integers(1e6))).as_matrix() * spacing
    matrix[:3, 3] = rng.normal(0, 1.5, 3) - matrix[:3, :3] @ ((np.array(size[::-1]) - 1) / 2)
    return Affine(matrix), size


def in_itk(array: np.ndarray, where: Affine):
    sitk = pytest.importorskip("SimpleITK")
    picture = sitk.GetImageFromArray(array)
    # ITK's directions are a rotation, mirrored or not; its spacings are positive: the columns carry the signs.
    picture.SetSpacing(where.spacing)
    picture.SetDirection((where.matrix[:3, :3] / where.spacing).ravel().tolist())
    picture.SetOrigin(where.matrix[:3, 3].tolist())
    return picture


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("order", [0, 1])
def test_oblique_flipped_and_anisotropic_grids_agree_with_simpleitk(seed, order):
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(seed)
    (a, small), (b, size) = grid(rng, flips=True), grid(rng, flips=True)
    array = rng.integers(0, 5, small).astype(np.uint8) if order == 0 else rng.normal(size=small).astype(np.float32)
    ours = resampling.onto(Image(array[None, None], a), b, size, order=order).array[0, 0]
    kind = sitk.sitkNearestNeighbor if order == 0 else sitk.sitkLinear
    reference = in_itk(np.zeros(size, array.dtype), b)
    theirs = sitk.GetArrayFromImage(sitk.Resample(in_itk(array, a), reference, sitk.Transform(), kind, 0))
    assert ours.shape == theirs.shape and ours.any()
    if order == 0:
        assert (ours == theirs).mean() == 1 and ours.dtype == np.uint8
    else:
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_its_own_grid_gives_the_same_pixels():
    rng = np.random.default_rng(0)
    where, size = grid(rng, flips=True)
    array = rng.integers(0, 9, (2, 1, *size)).astype(np.int16)
    image = Image(array, where, times=(0.0, 1.0))
    same = resampling.onto(image, where, size, order=0)
    np.testing.assert_array_equal(same.array, array)
    assert same.times == image.times
    assert resampling.farthest(image, where) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("axis", ["depth", "height", "width"])
def test_what_was_flipped_lies_where_it_was(axis):
    rng = np.random.default_rng(1)
    where, size = grid(rng, flips=False)
    image = Image(rng.normal(size=(1, 2, *size)).astype(np.float32), where)
    back = resampling.onto(image.flip(axis), where, size)
    np.testing.assert_allclose(back.array, image.array, atol=1e-5)


def test_a_block_on_a_grid_twice_as_fine():
    # Edges of coarse pixels are edges of fine ones: each becomes 2 x 2 x 2.
    coarse = np.random.default_rng(2).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    fine = np.eye(4) * 0.5
    fine[3, 3] = 1
    fine[:3, 3] = -0.25
    found = resampling.onto(Image(coarse[None, None], Affine(np.eye(4))), Affine(fine), (6, 8, 10), order=0)
    np.testing.assert_array_equal(found.array[0, 0], np.kron(coarse, np.ones((2, 2, 2), np.uint8)))


def test_beyond_the_edges_nothing_is_known():
    image = Image(np.full((1, 1, 2, 2, 2), 7, np.uint8), Affine(np.eye(4)))
    moved = np.eye(4)
    moved[0, 3] = -3
    found = resampling.onto(image, Affine(moved), (2, 2, 6), order=0, outside=9).array[0, 0, 0, 0]
    assert found.tolist() == [9, 9, 9, 7, 7, 9]


def test_without_an_affine_there_is_no_way():
    with pytest.raises(ValueError, match="no place in the patient"):
        resampling.onto(Image(np.zeros((1, 1, 1, 2, 2)), NoGeometry()), Affine(np.eye(4)), (1, 2, 2))


def test_how_far_two_grids_lie_apart_is_measured_at_the_worst_corner():
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 1, degrees=True).as_matrix()
    image = Image(np.zeros((1, 1, 1, 101, 101), np.uint8), Affine(np.eye(4)))
    # By one degree about the first pixel: 100 pixels along one side move by 100 sin(1), and 100 (1 - cos(1)) more.
    expected = 100 * np.sin(np.radians(1)) + 100 * (1 - np.cos(np.radians(1)))
    assert resampling.farthest(image, Affine(turned)) == pytest.approx(expected)
