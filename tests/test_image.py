import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osler.image import Affine, Image, NoGeometry, Spacing

RNG = np.random.default_rng(0)
OBLIQUE = np.array([[0.9, -0.2, 0.1, 5], [0.3, 1.1, -0.4, -7], [0.0, 0.5, 2.0, 11], [0, 0, 0, 1.0]])
ARRAY = RNG.integers(0, 1000, (1, 2, 4, 6, 5)).astype(np.int16)


def placed(array=ARRAY) -> Image:
    return Image(array, Affine(OBLIQUE, "1.2.3"))


def linear(size=(4, 6, 8)) -> Image:
    """An image whose value is a linear function of the place in the patient."""
    z, y, x = np.meshgrid(*map(np.arange, size), indexing="ij")
    there = np.stack([x, y, z], -1) @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3]
    return Image((there @ [0.3, -0.7, 0.2]).astype(np.float32)[None, None], Affine(OBLIQUE))


def test_points_go_to_the_patient_and_not_without_an_affine():
    assert placed().to_patient(np.array([1.0, 2, 3])) == pytest.approx((OBLIQUE @ [1, 2, 3, 1])[:3])
    with pytest.raises(ValueError, match="no place in the patient"):
        Image(ARRAY, Spacing(1.0, 1.0)).to_patient(np.zeros(3))


def test_spacing_is_depth_height_width():
    assert Image(ARRAY, Spacing(1.0, 2.0, 3.0)).spacing == (3.0, 2.0, 1.0)
    assert Image(ARRAY, Spacing(1.0, 2.0)).spacing == (None, 2.0, 1.0)
    assert placed().spacing == pytest.approx(np.linalg.norm(OBLIQUE[:3, :3], axis=0)[::-1])
    assert Image(ARRAY).spacing is None


@pytest.mark.parametrize("axis", ["depth", "height", "width"])
def test_flipping_moves_no_pixel_in_the_patient(axis):
    image, number = placed(), ("depth", "height", "width").index(axis)
    flipped = image.flip(axis)
    where = [1, 2, 3]
    there = list(where)
    there[number] = image.size[number] - 1 - where[number]
    assert (image.array[:, :, *where] == flipped.array[:, :, *there]).all()
    at = [image.to_patient(np.array(p[::-1], float)) for p in (where,)]
    assert flipped.to_patient(np.array(there[::-1], float)) == pytest.approx(at[0])
    again = flipped.flip(axis)
    assert (again.array == image.array).all() and again.geometry.matrix == pytest.approx(OBLIQUE)


def test_padding_moves_no_pixel_in_the_patient():
    pad = placed().pad((1, 2, 0), (6, 10, 5))
    assert pad.size == (6, 10, 5) and pad.geometry.frame == "1.2.3"
    back = pad.crop((1, 2, 0), (5, 8, 5))
    assert (back.array == ARRAY).all() and back.geometry.matrix == pytest.approx(OBLIQUE)
    assert (pad.array[0, :, 0] == ARRAY.min((0, 2, 3, 4))[:, None, None]).all()


def test_cropping_moves_no_pixel_in_the_patient():
    crop = placed().crop((1, 2, 0), (3, 6, 4))
    assert crop.size == (2, 4, 4) and (crop.array == ARRAY[:, :, 1:3, 2:6, 0:4]).all()
    assert crop.to_patient(np.zeros(3)) == pytest.approx(placed().to_patient(np.array([0.0, 2, 1])))
    assert crop.geometry.frame == "1.2.3"
    for start, stop in [((0, 0, 0), (5, 1, 1)), ((-1, 0, 0), (1, 1, 1)), ((1, 1, 1), (1, 2, 2))]:
        with pytest.raises(ValueError, match="not inside"):
            placed().crop(start, stop)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 13), st.integers(1, 17)))
def test_resampling_keeps_the_edges_of_the_field_of_view(size):
    image = linear()
    smaller = image.resample(size)
    assert smaller.size == size
    for edge in (0, 1):
        old = np.array([edge * n - 0.5 for n in image.size[::-1]])
        new = np.array([edge * n - 0.5 for n in size[::-1]])
        assert smaller.to_patient(new) == pytest.approx(image.to_patient(old))


@pytest.mark.parametrize("size", [(4, 12, 16), (8, 6, 8), (4, 9, 20)])
def test_a_linear_image_stays_that_function_of_the_place(size):
    bigger = linear().resample(size)
    z, y, x = np.meshgrid(*map(np.arange, size), indexing="ij")
    wanted = bigger.to_patient(np.stack([x, y, z], -1).astype(float)) @ [0.3, -0.7, 0.2]
    # Beyond the outer centres values are held, so only the inside can be compared.
    inside = tuple(slice(new // old, new - new // old) for old, new in zip((4, 6, 8), size, strict=True))
    assert bigger.array[0, 0][inside] == pytest.approx(wanted[inside], abs=1e-4)


def test_resampling_keeps_a_constant_and_the_mean_and_the_nearest_keeps_labels():
    constant = Image(np.full((1, 1, 4, 6, 8), 7, np.uint8))
    assert constant.resample((2, 5, 11)).array == pytest.approx(7)
    noise = Image(RNG.normal(size=(1, 1, 1, 64, 64)).astype(np.float32) + 3)
    assert noise.resample((1, 16, 16)).array.mean() == pytest.approx(noise.array.mean(), abs=0.02)
    labels = Image(RNG.integers(0, 4, (1, 1, 4, 6, 8)).astype(np.uint8))
    nearest = labels.resample((3, 9, 5), order=0)
    assert nearest.array.dtype == np.uint8 and set(np.unique(nearest.array)) <= {0, 1, 2, 3}
    doubled = labels.resample((4, 12, 16), order=0).array
    assert (doubled == labels.array.repeat(2, 3).repeat(2, 4)).all()


def test_shrinking_smooths_what_the_new_grid_cannot_show():
    stripes = np.tile(np.array([0, 1], np.float32), 32)[None, None, None, None].repeat(8, 3)
    assert np.abs(Image(stripes).resample((1, 8, 9)).array - 0.5).max() < 0.1


def test_resampling_scales_a_spacing_and_invents_none():
    assert Image(ARRAY, Spacing(1.0, 2.0)).resample((4, 3, 10)).geometry == Spacing(0.5, 4.0)
    assert Image(ARRAY).resample((4, 3, 10)).geometry == NoGeometry()
    with pytest.raises(ValueError, match="at least one pixel"):
        placed().resample((0, 3, 3))


def test_frames_are_chosen_with_their_time():
    image = Image(np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1, 1), times=(0.0, 0.5, 1.0))
    assert image.frame(1).array.item() == 1 and image.frame(-1).times == (1.0,)
    with pytest.raises(ValueError, match="no frame 3 among 3"):
        image.frame(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image(np.zeros((2, 2))),
        lambda: Image(np.zeros((1, 1, 0, 2, 2))),
        lambda: Image(np.zeros((2, 1, 1, 2, 2)), times=(0.0,)),
        lambda: Spacing(0.0, 1.0),
        lambda: Spacing(1.0, float("nan")),
        lambda: Affine(np.eye(3)),
        lambda: Affine(np.diag([1.0, 1, 0, 1])),
        lambda: Affine(np.diag([1.0, 1, 1, 2])),
        lambda: Affine(np.full((4, 4), np.nan)),
    ],
)
def test_what_cannot_be_an_image_is_refused(make):
    with pytest.raises(ValueError):
        make()


def test_micrometre_pixels_are_invertible():
    assert Affine(np.diag([2.5e-4, 2.5e-4, 1e-3, 1])).spacing == pytest.approx((2.5e-4, 2.5e-4, 1e-3))
