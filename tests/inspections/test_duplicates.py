"""Copies are found whatever was done to them, and pictures of different patients are none."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter, zoom

from osler import cohort, formats
from osler.case import Entry, Finding, Question, Source
from osler.image import Image
from osler.inspections import Evidence, Trouble, duplicates, plane, torn_patients

Picture = NDArray[np.uint8]


def picture(number: int, size: tuple[int, int] = (120, 100)) -> Picture:
    """A body that all share, and structure of its own."""
    random = np.random.default_rng(number)
    own = gaussian_filter(random.normal(size=size), 4)
    shared = np.hypot(*np.meshgrid(*(np.linspace(-1, 1, n) for n in size[::-1]))) < 0.9
    values = 60.0 + 90 * shared + 25 * own / own.std()
    return np.clip(values, 0, 255).astype(np.uint8)


def jpeg(image: Picture, quality: int) -> Picture:
    stream = io.BytesIO()
    Pillow.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Pillow.open(stream))


def marked(pictures: list[Picture]) -> NDArray[np.void]:
    images = [Image(one[None, None, None]) for one in pictures]
    return np.stack([duplicates.mark(image, plane(image)) for image in images])


def pairs(pictures: list[Picture]) -> dict[str, set[tuple[int, int]]]:
    found = duplicates.copies(marked(pictures))
    return {kind: set(map(tuple, np.sort(some, axis=1).tolist())) for kind, some in found.pairs.items() if len(some)}


ORIGINALS = [picture(number) for number in range(60)]
COPIES = {
    "same_pixels": lambda image: image.copy(),
    "reencoded_copy": lambda image: jpeg(image, 60),
    "resized_copy": lambda image: np.asarray(Pillow.fromarray(image).resize((70, 84), Pillow.Resampling.BILINEAR)),
    "flipped_copy": lambda image: image[:, ::-1],
}


@pytest.mark.parametrize("kind", COPIES)
def test_each_kind_is_found_and_called_by_its_name(kind: str) -> None:
    made = [COPIES[kind](ORIGINALS[number]) for number in (3, 17, 41)]
    assert pairs([*ORIGINALS, *made]) == {kind: {(3, 60), (17, 61), (41, 62)}}


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_pose_is_found(turns: int, mirrored: bool) -> None:
    turned = np.rot90(ORIGINALS[5], turns)
    assert pairs([*ORIGINALS, turned[:, ::-1] if mirrored else turned]) == {"flipped_copy": {(5, 60)}}


def test_a_repeated_shot_is_a_near_copy() -> None:
    """Moved by two pixels, zoomed by 2 %, brighter, noisy, with a caliper drawn into it."""
    again = zoom(ORIGINALS[7].astype(float), 1.02, order=1)[2:, 2:][:118, :98] * 1.1
    again += np.random.default_rng(99).normal(0, 6, again.shape)
    again[40:42, 30:60] = 255
    found = pairs([*ORIGINALS, np.clip(again, 0, 255).astype(np.uint8)])
    assert set().union(*found.values()) == {(7, 60)}
    assert not pairs(ORIGINALS)


def test_a_grey_picture_stored_as_colour_or_with_more_bits_has_the_same_pixels() -> None:
    grey = ORIGINALS[0][None, None, None]
    kinds = [Image(grey), Image(np.repeat(grey, 3, 1)), Image(grey.astype(np.uint16)), Image(grey.astype(np.int32))]
    marks = np.stack([duplicates.mark(image, plane(image)) for image in kinds])
    assert len(set(marks["pixels"].tolist())) == 1
    assert duplicates.mark(Image(grey + np.uint8(1)), plane(kinds[0]))["pixels"] != marks["pixels"][0]


def test_the_small_copy_holds_exact_means_over_sixteenths() -> None:
    """Of a size that 16 divides, means of blocks; of any other, what a much finer grid gives."""
    image = np.random.default_rng(0).random((48, 32)).astype(np.float32)
    whole = duplicates._sixteenths(image)
    assert np.allclose(whole, image.reshape(16, 3, 32).mean(1))
    odd = np.random.default_rng(1).random((23, 4)).astype(np.float32)
    assert np.allclose(duplicates._sixteenths(odd), np.repeat(odd, 16, axis=0).reshape(16, 23, 4).mean(1))


def test_many_cases_are_searched_with_hashes_and_copies_still_found() -> None:
    """Beyond the size of an exhaustive search: every planted copy, and no pair of independent images."""
    random = np.random.default_rng(5)
    fields = gaussian_filter(random.normal(size=(6000, 28, 28)), (0, 1.5, 1.5))
    images = ((fields - fields.min()) / np.ptp(fields) * 255).astype(np.uint8)
    chosen = random.choice(6000, 50, replace=False)
    noisy = np.clip(images[chosen] + random.normal(0, 2, (50, 28, 28)), 0, 255).astype(np.uint8)
    found = pairs([*images, *noisy])
    assert set().union(*found.values()) == {(int(row), 6000 + number) for number, row in enumerate(chosen)}


def test_many_copies_of_one_picture_are_one_group() -> None:
    random = np.random.default_rng(6)
    same = [np.clip(ORIGINALS[0] + random.normal(0, 3, (120, 100)), 0, 255).astype(np.uint8) for _ in range(20)]
    groups = duplicates.copies(marked([*ORIGINALS, *same])).groups()
    assert groups == [(0, *range(60, 80))]


def test_a_block_full_of_hits_stays_connected_and_bounded() -> None:
    alike = np.ones((1, 100, 4), np.float32) / 2
    found = duplicates._hits(alike, np.arange(100)[None], 0.9)
    assert len(found) <= 800
    assert duplicates._connected(found, 100) == [tuple(range(100))]


def test_blank_images_are_no_copies() -> None:
    assert not pairs([*ORIGINALS, *(np.full((50, 50), value, np.uint8) for value in (0, 0, 9))])


# --- what is said -----------------------------------------------------------------------------------------


def evidence(folder: Path, rows: list[tuple[Picture, str, str, str]], grouping: str = "") -> Evidence:
    entries = []
    for number, (image, patient, label, split) in enumerate(rows):
        Pillow.fromarray(image).save(folder / f"{number:03d}.png")
        findings = (Finding("label", label, probability=1.0),)
        images = {"image": Source(folder / f"{number:03d}.png")}
        entries.append(Entry(f"{number:03d}", patient, images, findings, split))  # type: ignore[arg-type]
    read = [formats.read(entry.images["image"]) for entry in entries]
    marks = np.stack([duplicates.mark(image, plane(image)) for image in read])
    question = Question("label", "multiclass", ("a", "b"))
    return Evidence(tuple(entries), (question,), grouping, {}, {"duplicates": marks})


def told(troubles: list[Trouble]) -> dict[tuple[str, str], tuple[tuple[str, ...], ...]]:
    return {(trouble.kind, trouble.severity): trouble.groups for trouble in troubles}


def test_copies_across_splits_and_labels_are_told_apart(tmp_path: Path) -> None:
    rows = [(image, f"p{number}", "a", "train") for number, image in enumerate(ORIGINALS)]
    rows += [(ORIGINALS[1], "q1", "a", "test"), (ORIGINALS[2], "q2", "b", "train")]
    assert told(duplicates.find(evidence(tmp_path, rows))) == {
        ("same_file", "repair"): (("001", "060"),),
        ("same_file", "look"): (("002", "061"),),
        ("label_conflict", "look"): (("002", "061"),),
    }


def test_a_patient_in_two_splits_stops(tmp_path: Path) -> None:
    rows = [(ORIGINALS[0], "x", "a", "train"), (ORIGINALS[1], "y", "a", "train"), (ORIGINALS[2], "x", "b", "test")]
    assert told(torn_patients.find(evidence(tmp_path, rows, "column patient"))) == {
        ("torn_patient", "stop"): (("000", "002"),)
    }
    assert not torn_patients.find(evidence(tmp_path, rows)), "without patients nobody can be torn apart"


# --- real images ------------------------------------------------------------------------------------------


def of_cohort(path: Path, cohort_file: Path | None = None) -> tuple[tuple[Entry, ...], duplicates.Copies]:
    entries = cohort.read(path, cohort_file).entries
    images = (formats.read(entry.images["image"]) for entry in entries)
    return entries, duplicates.copies(np.stack([duplicates.mark(image, plane(image)) for image in images]))


@pytest.mark.real_data
def test_near_duplicates_of_breast_ultrasound_are_found_from_pixels(real_data: Path) -> None:
    """Against the groups that the data set's curators named: recall at least 0.9 at precision at least 0.8."""
    recipe = Path(__file__).parents[2] / "recipes" / "cohorts" / "busi.toml"
    entries, found = of_cohort(real_data / "busi", recipe)
    named = {(a, b) for a in range(len(entries)) for b in range(a) if entries[a].patient == entries[b].patient}
    said = {(a, b) for rows in found.groups() for a in rows for b in rows if b < a}
    assert len(named & said) / len(named) >= 0.9
    assert len(named & said) / len(said) >= 0.8


@pytest.mark.real_data
def test_exactly_the_shared_images_of_pneumoniamnist_are_found(real_data: Path) -> None:
    entries, found = of_cohort(real_data / "pneumoniamnist")
    assert not any(len(some) for kind, some in found.pairs.items() if kind != "same_pixels")
    across = [rows for rows in found.groups() if len({entries[row].split for row in rows}) == 2]
    assert sum(entries[row].split == "validation" for rows in across for row in rows) == 8
