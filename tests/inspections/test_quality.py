"""Planted blank, saturated, blurred and noisy images are found among textures, and nothing else."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from osler.case import Entry
from osler.image import Image
from osler.inspections import Evidence, Look, plane, quality


def texture(number: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(number)
    values = gaussian_filter(random.normal(size=(96, 96)), random.uniform(1.5, 3))
    return np.clip(128 + 40 * values / values.std() + random.normal(0, 4, (96, 96)), 0, 255).astype(np.uint8)


def kinds(images: list[NDArray[np.uint8]]) -> dict[str, tuple[str, ...]]:
    entries = [Entry(str(number), str(number), {}) for number in range(len(images))]
    looks = [
        Look(entry, Image(one[None, None, None]), one.astype(np.float32))
        for entry, one in zip(entries, images, strict=True)
    ]
    seen = np.stack([quality.measure(look) for look in looks])
    found = quality.find(Evidence(tuple(entries), (), measured={"quality": seen}))
    return {trouble.kind: trouble.cases for trouble in found}


IMAGES = [texture(number) for number in range(200)]


def test_a_clean_cohort_has_none() -> None:
    assert kinds(IMAGES) == {}


def test_planted_defects_are_found() -> None:
    random = np.random.default_rng(1)
    blank, saturated = np.full((96, 96), 31, np.uint8), np.clip(IMAGES[1].astype(int) + 160, 0, 255).astype(np.uint8)
    blurred = gaussian_filter(IMAGES[2].astype(float), 9)
    noisy = np.clip(IMAGES[3] + random.normal(0, 90, (96, 96)), 0, 255)
    planted = [blank, saturated, blurred.astype(np.uint8), noisy.astype(np.uint8)]
    assert kinds([*IMAGES, *planted]) == {
        "blank": ("200",), "saturated": ("201",), "blurred": ("202",), "noisy": ("203",)
    }  # fmt: skip


def test_brightness_and_contrast_are_no_defects() -> None:
    darker = [np.asarray(image * 0.3 + 20, np.uint8) for image in IMAGES[:5]]
    assert kinds([*IMAGES, *darker]) == {}


def test_the_plane_of_a_colour_loop_is_the_luma_of_its_middle() -> None:
    array = np.zeros((3, 3, 5, 4, 6), np.float32)
    array[1, :, 2] = np.array([10.0, 20.0, 30.0])[:, None, None]
    array[1, 0, 2, 0, 0] = np.nan
    found = plane(Image(array))
    assert found.shape == (4, 6)
    assert np.isclose(found[1, 1], 0.299 * 10 + 0.587 * 20 + 0.114 * 30)
    assert found[0, 0] == 0
