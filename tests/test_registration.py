"""A known motion is found and undone; what cannot be registered is said and left out."""

import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from osler import registration, resampling
from osler.image import Affine, Image, NoGeometry
from osler.problem import Problem

Matrix = NDArray[np.float64]
# An oblique patient: the axes of the grid are none of the room's.
TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xyz", [8, -5, 20], degrees=True).as_matrix() @ np.diag([1.1, 1.1, 1.6])
TURNED[:3, 3] = [-40, 25, 110]


def body(seed: int, size: tuple[int, int, int] = (36, 52, 48)) -> Image:
    """An ellipsoid in air that is textured inside, no two alike."""
    rng = np.random.default_rng(seed)
    centre = [(n - 1) / 2 for n in size]
    z, y, x = np.meshgrid(*(np.arange(n) - c for n, c in zip(size, centre, strict=True)), indexing="ij")
    radius = np.sqrt((z / centre[0]) ** 2 + (y / centre[1]) ** 2 + (x / centre[2]) ** 2)
    texture = ndimage.gaussian_filter(rng.normal(size=size), 3)
    inside = 300 + 100 * np.tanh(2 * texture / texture.std())
    volume = np.where(radius < 0.75, inside, 0) + rng.normal(0, 5, size)
    return Image(volume[None, None].astype(np.float32), Affine(TURNED))


def motion(seed: int, image: Image, stretch: float = 0.0) -> Matrix:
    """Up to 12 degrees about each axis and 6 mm along each, about the middle."""
    rng = np.random.default_rng(seed + 1000)
    made = np.eye(4)
    made[:3, :3] = Rotation.from_rotvec(np.radians(rng.uniform(-12, 12, 3))).as_matrix()
    made[:3, :3] = made[:3, :3] @ np.diag(1 + rng.uniform(-stretch, stretch, 3))
    middle = image.to_patient((np.array(image.size[::-1]) - 1) / 2)
    made[:3, 3] = middle - made[:3, :3] @ middle + rng.uniform(-6, 6, 3)
    return made


def moved(image: Image, by: Matrix, *, inverted: bool = False) -> Image:
    """The same body after the motion, on a grid of its own, and as another contrast shows it."""
    shown = image.array
    if inverted:
        shown = np.where(shown > 150, 700 - 1.2 * shown + 0.0006 * shown**2, shown).astype(np.float32)
    finer = TURNED @ np.diag([0.9, 0.9, 0.9, 1.0])
    finer[:3, 3] += [3, -4, 2]
    away = Image(shown, Affine(by @ TURNED))
    return resampling.onto(away, Affine(finer), (42, 60, 56))


def error(found: Matrix, true: Matrix, image: Image) -> float:
    """How far points of the body come to lie from where they belong, in voxels of 1.1 mm, on average."""
    points = np.argwhere(image.array[0, 0] > 150)[::11, ::-1].astype(float)
    places = np.c_[image.to_patient(points), np.ones(len(points))]
    return float(np.linalg.norm((places @ (found - true).T)[:, :3], axis=1).mean() / 1.1)


@pytest.fixture(autouse=True)
def _sitk() -> None:
    pytest.importorskip("SimpleITK")


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_known_motion_is_found(seed: int, inverted: bool) -> None:
    image = body(seed)
    true = motion(seed, image)
    found = registration.register({"a": image, "b": moved(image, true, inverted=inverted)}, "a")
    assert not found.failed
    assert error(found.motions["b"], true, image) < 0.5
    assert found.images["b"].size == image.size
    assert (found.images["b"].geometry.matrix == TURNED).all()  # type: ignore[union-attr]
    assert "was registered onto a (turned by" in found.notes[0]
    if not inverted:
        inside = ndimage.binary_erosion(image.array[0, 0] > 150, iterations=3)
        both = image.array[0, 0][inside], found.images["b"].array[0, 0][inside]
        assert np.corrcoef(*both)[0, 1] > 0.95


@pytest.mark.slow
def test_a_stretched_body_needs_an_affine_motion() -> None:
    image = body(9)
    true = motion(9, image, stretch=0.08)
    other = moved(image, true, inverted=True)
    rigid = registration.register({"a": image, "b": other}, "a")
    affine = registration.register({"a": image, "b": other}, "a", "affine")
    assert error(affine.motions["b"], true, image) < 0.7
    assert error(affine.motions["b"], true, image) < 0.5 * error(rigid.motions["b"], true, image)


@pytest.mark.slow
def test_unrelated_volumes_are_refused() -> None:
    """Bodies of one shape, whose insides have nothing to do with each other."""
    refused = 0
    for seed in range(5):
        found = registration.register({"a": body(seed), "b": moved(body(seed + 50), np.eye(4))}, "a")
        refused += found.failed == ("b",)
        assert ("b" in found.images) == (not found.failed)
    assert refused >= 4
    assert "b could not be registered onto a and was left out: " in found.notes[0]


def test_the_same_bits_come_twice() -> None:
    image = body(3)
    other = moved(image, motion(3, image))
    first, second = (registration.register({"a": image, "b": other}, "a") for _ in range(2))
    assert (first.motions["b"] == second.motions["b"]).all()
    assert (first.images["b"].array == second.images["b"].array).all()


def test_without_a_place_in_the_patient_middles_are_put_on_each_other() -> None:
    image = Image(body(4).array, NoGeometry())
    shifted = Image(np.roll(image.array, (2, -3, 4), (2, 3, 4)), NoGeometry())
    found = registration.register({"a": image, "b": shifted}, "a")
    assert np.abs(found.motions["b"][:3, 3] - [4, -3, 2]).max() < 0.3
    assert isinstance(found.images["b"].geometry, NoGeometry)


def test_what_lies_on_the_grid_or_shares_the_space_is_not_registered() -> None:
    image = body(5)
    image = Image(image.array, Affine(TURNED, "1.2.3"))
    finer = TURNED @ np.diag([0.8, 0.8, 0.8, 1.0])
    other = Image(body(6).array, Affine(finer, "1.2.3"))
    same = Image(image.array * 2, Affine(TURNED.copy()))
    found = registration.register({"a": image, "b": other, "c": same}, "a")
    assert found.images["c"] is same
    assert found.notes == ("b was interpolated on the grid of a, with which it shares a space.",)
    expected = resampling.onto(other, Affine(TURNED, "1.2.3"), image.size, outside=float(other.array.min()))
    assert np.allclose(found.images["b"].array, expected.array)
    assert not found.motions


def test_a_motion_that_no_patient_makes_is_refused() -> None:
    """One that shares nothing with the reference, far away from it."""
    image = body(7)
    far = np.eye(4)
    far[:3, :3] = Rotation.from_euler("z", 70, degrees=True).as_matrix()
    assert "not plausible (turned by 70 degrees" in registration.judged(far, image, image, "rigid")
    away = np.eye(4)
    away[0, 3] = 0.45 * 52 * 1.6
    assert "of the body lies in the other image" in registration.judged(away, image, image, "rigid")


def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    image = body(8)
    with pytest.raises(Problem, match="no image 'c'"):
        registration.register({"a": image}, "c")
    with pytest.raises(Problem, match="b is no still grey volume"):
        registration.register({"a": image, "b": Image(np.zeros((1, 1, 1, 30, 30)))}, "a")
    with pytest.raises(Problem, match="not numbers"):
        registration.register({"a": image, "b": Image(np.full((1, 1, 8, 30, 30), np.inf))}, "a")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(Problem, match="needs SimpleITK"):
        registration.register({"a": image, "b": body(9, (20, 30, 30))}, "a")
