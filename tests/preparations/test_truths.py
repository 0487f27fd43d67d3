"""Each preparation finds what was planted, and leaves alone what is not there."""

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw
from scipy import ndimage

from osler import draws, formats, phantom, preparations
from osler.case import Source
from osler.image import Image
from osler.preparations import collimation, foreground, n4, sector
from osler.problem import Problem
from osler.transforms.collimation import Options, inside

SIDE = 256


# --- MRI --------------------------------------------------------------------------------------------------


def head(seed: int = 0, size: tuple[int, int, int] = (40, 48, 44)) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A ball of two tissues in air, with noise; and where the brighter one is."""
    rng = np.random.default_rng(seed)
    centre = [(n - 1) / 2 for n in size]
    z, y, x = np.meshgrid(*(np.arange(n) - c for n, c in zip(size, centre, strict=True)), indexing="ij")
    radius = np.sqrt((z / centre[0]) ** 2 + (y / centre[1]) ** 2 + (x / centre[2]) ** 2)
    white = ndimage.gaussian_filter(rng.normal(size=size), 3) + 0.02 > 0
    body = radius < 0.85
    volume = np.where(body, np.where(white, 500, 350), 0) + np.abs(rng.normal(0, 8, size))
    return volume.astype(np.float32), body & ndimage.binary_erosion(white)


def test_otsu_is_the_threshold_of_a_reference_library() -> None:
    sitk = pytest.importorskip("SimpleITK")
    for seed in range(4):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.normal(0, 1, 5000), rng.normal(4 + seed, 1 + seed / 2, 2000 * (seed + 1))])
        found = sitk.OtsuThresholdImageFilter()
        found.SetNumberOfHistogramBins(256)
        found.Execute(sitk.GetImageFromArray(values.reshape(1, -1).astype(np.float32)))
        width = np.ptp(values) / 256
        assert abs(preparations.otsu(values.astype(np.float32)) - found.GetThreshold()) < 1.5 * width


def test_otsu_parts_two_groups_in_the_middle_between_them() -> None:
    assert 4 < preparations.otsu(np.array([0.0, 1, 2, 9, 10, 11] * 5)) < 7


def test_otsu_parts_two_neighbouring_numbers_far_from_0() -> None:
    low = np.float32(1e6)
    high = np.nextafter(low, np.float32(2e6))
    assert float(low) < preparations.otsu(np.array([low, high] * 50, np.float32)) < float(high)


def test_the_foreground_has_mean_0_and_deviation_1() -> None:
    volume, _ = head()
    found = foreground.apply(Image(volume[None, None]))
    values = found.image.array[0, 0][volume > 170].astype(np.float64)
    assert abs(values.mean()) < 1e-4 and abs(values.std() - 1) < 1e-4
    share = (volume > 170).mean()
    assert f"{share:.0%} of the image" in found.said[0]


def test_more_air_around_a_body_and_another_unit_change_nothing_in_it() -> None:
    """What mean and deviation of the whole image (``image.intensity = image``) do not keep."""
    volume, _ = head()
    wide = np.pad(volume, ((0, 0), (30, 20), (25, 40))) * 7.5
    small = foreground.apply(Image(volume[None, None])).image.array[0, 0]
    large = foreground.apply(Image(wide[None, None])).image.array[0, 0][:, 30:-20, 25:-40]
    assert np.abs(small - large).max() < 1e-3

    def whole(array: NDArray[np.float32]) -> NDArray[np.float32]:
        return (array - array.mean()) / array.std()

    assert np.abs(whole(volume) - whole(wide)[:, 30:-20, 25:-40]).max() > 0.3


def test_each_moment_has_its_own_scale() -> None:
    volume, _ = head()
    both = np.stack([volume, 3 * volume])[:, None]
    found = foreground.apply(Image(both)).image.array
    assert np.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_n4_gives_back_a_known_field(seed: int) -> None:
    pytest.importorskip("SimpleITK")
    volume, white = head(seed)
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 0.25, (1, 1, 3, 3, 3)).astype(np.float32)
    log = ndimage.gaussian_filter(Image(coarse).resample(volume.shape).array[0, 0], 4)  # type: ignore[arg-type]
    dimmed = (volume * np.exp(log)).astype(np.float32)
    corrected = n4.corrected(dimmed)
    body = volume > 170
    found = np.log(dimmed[body] / corrected[body])
    assert np.corrcoef(found, log[body])[0, 1] > 0.9

    def spread(array: NDArray[np.float32]) -> float:
        return float(array[white].std() / array[white].mean())

    assert spread(corrected) < 0.5 * spread(dimmed)
    assert abs(np.log(corrected[body] / dimmed[body]).mean()) < 0.05, "the scale stays"


def test_n4_is_the_same_twice_and_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sitk = pytest.importorskip("SimpleITK")
    monkeypatch.setenv("OSLER_HOME", str(tmp_path))
    monkeypatch.setenv("OSLER_CACHE", "1")
    volume, _ = head(size=(12, 24, 20))
    first = n4.corrected(volume)
    n4.cache.settle()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(sitk, "N4BiasFieldCorrectionImageFilter", None)
    assert (n4.corrected(volume) == first).all()
    monkeypatch.undo()
    monkeypatch.setenv("OSLER_CACHE", "0")
    assert (n4.corrected(volume) == first).all()


def test_n4_without_its_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(Problem, match="SimpleITK"):
        n4.corrected(head(size=(4, 16, 16))[0])


# --- ultrasound -------------------------------------------------------------------------------------------


def screen(kind: str, seed: int, frames: int = 3) -> tuple[Image, NDArray[np.bool_]]:
    """A screen with a sector of speckle, letters and a grey scale; and where the sector is."""
    rng = np.random.default_rng(seed)
    mask = Picture.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(mask)
    if kind == "fan":
        x, y, far = rng.integers(118, 140), rng.integers(4, 16), rng.integers(185, 215)
        draw.pieslice((x - far, y - far, x + far, y + far), 60, 120, fill=255)
        near = rng.integers(20, 50)
        draw.pieslice((x - near, y - near, x + near, y + near), 0, 360, fill=0)
    else:
        x, y = rng.integers(25, 60, 2)
        draw.rectangle((x, y, x + rng.integers(120, 160), y + rng.integers(130, 170)), fill=255)
    inside = np.asarray(mask) > 0
    depth = np.exp(-np.arange(SIDE)[:, None] / 200)
    echo = 20 + 160 * depth * ndimage.gaussian_filter(rng.rayleigh(0.5, (frames, SIDE, SIDE)), (0, 1, 2))
    array = np.where(inside, echo.clip(1, 255), 0).astype(np.uint8)
    marks = Picture.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(marks)
    draw.text((3, 3), "DOE JANE 12.3cm", fill=220)
    draw.text((190, 240), "MI 0.9", fill=220)
    draw.line((250, 60, 250, 200), fill=180, width=2)
    drawn = np.asarray(marks)
    array = np.where((drawn > 0) & ~inside, drawn, array)
    return Image(array[:, None, None], modality="US"), inside


@pytest.mark.parametrize("kind", ["fan", "rectangle"])
@pytest.mark.parametrize("seed", range(8))
def test_a_planted_sector_is_found_to_some_pixels(kind: str, seed: int) -> None:
    image, inside = screen(kind, seed)
    found = sector.apply(image)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    _, height, width = found.image.size
    ends = (found.start[1], found.start[1] + height - 1, found.start[2], found.start[2] + width - 1)
    assert np.abs(np.array(ends) - [rows[0], rows[-1], columns[0], columns[-1]]).max() <= 3
    window = inside[ends[0] : ends[1] + 1, ends[2] : ends[3] + 1]
    before = image.array[:, 0, 0, ends[0] : ends[1] + 1, ends[2] : ends[3] + 1]
    after = found.image.array[:, 0, 0]
    assert (after == before)[:, window].mean() > 0.995, "what the probe saw stays"
    text = (image.array[0, 0, 0] > 0) & ~inside
    left = (after[0] > 0) & ~window
    assert left.sum() <= 0.03 * text.sum(), "text and marks beside it vanish"


def test_a_moment_that_shows_more_widens_the_sector() -> None:
    """A shadow that hides the edge in one frame does not in all."""
    image, _ = screen("rectangle", 1)
    whole = sector.apply(image).image.size
    half = image.array.copy()
    half[0, ..., 100:] = 0
    assert sector.apply(Image(half, modality="US")).image.size == whole


@pytest.mark.parametrize(
    ("why", "array"),
    [
        ("it fills the image", np.random.default_rng(0).integers(60, 200, (1, 1, 1, 128, 128))),
        ("fewer than 64", np.eye(40)[None, None, None]),
        (
            "several parts",
            np.pad(np.full((1, 1, 1, 90, 50), 90), ((0, 0),) * 3 + ((9, 9), (9, 0)))[..., [*range(59)] * 2],
        ),
        ("no large part", np.pad(np.full((1, 1, 1, 20, 20), 90), ((0, 0),) * 3 + ((60, 60), (60, 60)))),
        ("brighter than", np.zeros((1, 1, 1, 128, 128))),
    ],
)
def test_what_is_in_doubt_is_left_alone_and_said(why: str, array: NDArray[np.generic]) -> None:
    image = Image(array.astype(np.uint8))
    found = sector.apply(image)
    assert found.image is image and why in found.said[0]


# --- X-ray ------------------------------------------------------------------------------------------------


def chest(number: int) -> NDArray[np.float32]:
    """0 to 255, with air beside the patient that is as dark as anything."""
    shown = phantom.phantom_case(number, phantom.Phantom(size=SIDE, seed=3)).case.images["image"]
    array = np.asarray(shown.array[0, 0, 0], np.float32)
    return (array - array.min()) / np.ptp(array) * 255


def planted(number: int, *, white: bool, rotation: float = 0.0) -> tuple[Image, NDArray[np.float64]]:
    """A chest with the border that the augmentation draws, and the share of each pixel in the field."""
    options = Options(1.0, 0.02, 0.14, rotation)
    share = inside(options, draws.keys(5, np.array([number])), SIDE, SIDE)[0]
    field = 30 + 0.8 * chest(number)
    array = (share * field + (1 - share) * (255 if white else 0)).astype(np.uint8)
    drawn = Picture.new("L", (SIDE, SIDE))
    ImageDraw.Draw(drawn).text((1, 0), "L AP", fill=200)
    letters = (np.asarray(drawn) > 100) & (share == 0)
    return Image(np.where(letters, 128, array).astype(np.uint8)[None, None, None], modality="DX"), share


def off(number: int, *, white: bool) -> NDArray[np.int64]:
    """By how many pixels each side of what was cropped lies inside of the planted field; below 0 outside."""
    image, share = planted(number, white=white)
    found = collimation.apply(image)
    rows, columns = np.flatnonzero((share > 0.5).any(1)), np.flatnonzero((share > 0.5).any(0))
    _, height, width = found.image.size
    first, last = found.start[1:], (found.start[1] + height - 1, found.start[2] + width - 1)
    return np.array([first[0] - rows[0], rows[-1] - last[0], first[1] - columns[0], columns[-1] - last[1]])


def test_a_known_white_border_is_found_to_a_pixel() -> None:
    assert max(np.abs(off(number, white=True)).max() for number in range(20)) <= 1


def test_a_known_black_border_is_found_to_a_pixel_or_stays() -> None:
    """It stays where a dark body begins right at the edge of the field."""
    every = np.stack([off(number, white=False) for number in range(40)])
    assert every.max() <= 1, "no exposed pixel is lost"
    assert (np.abs(every) <= 1).mean() > 0.9


def test_of_a_turned_field_no_exposed_pixel_is_lost() -> None:
    kept = []
    for number in range(30):
        image, share = planted(number, white=bool(number % 2), rotation=3.0)
        found = collimation.apply(image)
        window = np.zeros(share.shape, bool)
        _, height, width = found.image.size
        window[found.start[1] : found.start[1] + height, found.start[2] : found.start[2] + width] = True
        assert not (share[~window] == 1).any(), number
        kept.append(window.mean() - (share > 0.5).mean())
    assert np.mean(kept) < 0.13, "of the image: wedges that stay"


def test_dark_air_beside_a_patient_is_no_border() -> None:
    for number in range(30):
        image = Image(chest(number).astype(np.uint8)[None, None, None], modality="DX")
        assert collimation.apply(image).image is image


def test_noise_gradients_and_small_images_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(0, 255, 128), (128, 128))
    for array in (rng.integers(0, 255, (128, 128)), ramp, ramp.T, np.pad(np.full((20, 20), 9), 12)):
        image = Image(array.astype(np.uint8)[None, None, None])
        found = collimation.apply(image)
        assert found.image is image


# --- real images ------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_ultrasound_is_hardly_touched(real_data: Path) -> None:
    """BUSI was cropped by hand; its dark depths are tissue. Of covid_blues some black corners remain."""
    still = random.Random(0).sample(sorted((real_data / "busi" / "images").iterdir()), 80)
    found = [sector.apply(formats.read(Source(path))) for path in still]
    assert sum("cropped to" in one.said[0] for one in found) <= 1
    pytest.importorskip("av")
    loops = random.Random(0).sample(sorted((real_data / "covid_blues" / "lus_videos").glob("*.mp4")), 12)
    kept = []
    for path in loops:
        image = formats.read(Source(path), 8)
        made = sector.apply(image).image
        kept.append(made.array.size / image.array.size)
        # What was taken away was dark in all moments.
        assert made.array.astype(float).sum() > 0.99 * image.array.astype(float).sum()
    assert np.median(kept) > 0.85


@pytest.mark.real_data
def test_real_radiographs_lose_nothing_but_borders(real_data: Path) -> None:
    for path in random.Random(0).sample(sorted((real_data / "covid_cxr" / "images").iterdir()), 80):
        image = formats.read(Source(path))
        found = collimation.apply(image)
        rest = image.array.astype(np.float32).copy()
        _, height, width = found.image.size
        rest[..., found.start[1] : found.start[1] + height, found.start[2] : found.start[2] + width] = np.nan
        gone = rest[np.isfinite(rest)]
        low, high = float(image.array.min()), float(image.array.max())
        near = np.minimum(np.abs(gone - low), np.abs(gone - high)) < 0.06 * (high - low)
        # Letters in a border are the rest.
        assert not gone.size or near.mean() > 0.85, path.name
