"""What every preparation keeps to."""

import numpy as np
import pytest

from osler import catalog, data, preparations
from osler.image import Affine, Image
from osler.preparations import Prepared
from osler.problem import Problem
from osler.recipe import ImagePlan

NAMES = catalog.names("preparations")
PLACE = Affine(np.array([[0.0, 2, 0, 7], [-1.5, 0, 0, 3], [0, 0, 4, -9], [0, 0, 0, 1]]))


def image(frames: int = 2, size: tuple[int, int, int] = (1, 96, 120), kind: type = np.uint8) -> Image:
    """Something bright inside of a black margin, which every crop finds."""
    rng = np.random.default_rng(0)
    array = np.zeros((frames, 1, *size), kind)
    inside = array[..., 20:84, 24:100]
    inside[...] = rng.integers(40, 200, inside.shape)
    return Image(array, PLACE, tuple(float(t) for t in range(frames)), "US")


def of(name: str) -> Prepared:
    made: Prepared = catalog.find("preparations", name).apply(image())
    return made


def require(name: str) -> None:
    if name == "n4":
        pytest.importorskip("SimpleITK")


@pytest.mark.parametrize("name", NAMES)
def test_time_and_what_is_known_of_the_image_stay(name: str) -> None:
    require(name)
    found = of(name)
    assert found.image.times == (0.0, 1.0)
    assert found.image.modality == "US"
    assert found.image.frames == 2 and found.image.channels == 1
    assert len(found.said) == 1 and found.said[0]
    assert np.isfinite(found.image.array).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_pixel_stays_where_it_is_in_the_patient(name: str) -> None:
    require(name)
    before, found = image(), of(name)
    first = np.array(found.start[::-1], float)
    assert np.allclose(found.image.to_patient(np.zeros(3)), before.to_patient(first))
    step = np.array([3.0, 5, 0])
    assert np.allclose(found.image.to_patient(step), before.to_patient(first + step))
    assert bool(preparations.crops([name])) == (found.image.size != before.size)


@pytest.mark.parametrize("name", NAMES)
def test_the_image_that_was_read_is_not_changed(name: str) -> None:
    require(name)
    before = image()
    kept = before.array.copy()
    catalog.find("preparations", name).apply(before)
    assert (before.array == kept).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 3), (3, 70, 70), (1, 70, 70)])
def test_images_of_one_value_pass_through(name: str, size: tuple[int, int, int]) -> None:
    require(name)
    found = catalog.find("preparations", name).apply(Image(np.full((1, 1, *size), 7, np.int16)))
    assert found.image.size == size
    assert np.ptp(found.image.array) == 0


def test_maps_come_back_to_where_the_pixels_were() -> None:
    before, found = image(), of("sector")
    assert found.start == (0, 20, 24) and found.image.size == (1, 64, 76)
    back = found.back(found.image.array[0, 0].astype(np.float32), before.size)
    assert (back == before.array[0, 0]).all()


def test_they_are_done_once_an_image_and_forgotten_with_it() -> None:
    before = image()
    first = preparations.prepared(before, ("sector",), 2)
    assert preparations.prepared(before, ("sector",), 2) is first
    assert preparations.prepared(before, ("sector",), 1) is not first
    count = len(preparations._made)
    del before
    assert len(preparations._made) == count - 1


def test_it_does_not_matter_whether_a_loop_was_read_whole() -> None:
    """Moments that the network is not given play no part, or a training would not see what a diagnosis does."""
    whole = image(9)
    whole.array[1, ..., :, :] = 255  # what is not looked at
    plan = ImagePlan(size=(1, 32, 32), frames=3, prepare=("sector", "foreground"))
    some = data.prepare(whole.thinned(3), plan)
    assert (data.prepare(whole, plan) == some).all()
    assert data.made_ready(whole, plan).image.size == (1, 64, 76)


def test_they_come_in_the_order_of_the_recipe() -> None:
    both = data.made_ready(image(), ImagePlan(size=(1, 32, 32), frames=2, prepare=("foreground", "sector")))
    assert "foreground" in both.said[0] and "sector" in both.said[1]


def test_values_that_are_no_numbers_are_refused_before() -> None:
    broken = Image(np.full((1, 1, 1, 80, 80), np.nan, np.float32))
    with pytest.raises(Problem, match="not numbers"):
        data.prepare(broken, ImagePlan(size=(1, 32, 32), prepare=("foreground",)))
