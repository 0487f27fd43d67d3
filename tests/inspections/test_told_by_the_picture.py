"""Marks, borders, exposure and wrong labels, on pictures whose truth is known."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from osler import cohort, demonstration
from osler.case import Entry, Finding, Question, Source
from osler.data import read_case, the_image
from osler.image import Image
from osler.inspections import Evidence, Look, mislabels, normalisation, shortcuts
from osler.phantom import phantom_case

ENTRY = Entry("a", "a", {"image": Source(Path("a.png"))})
QUESTION = Question("label", "multiclass", ("normal", "ill"))
ZONES = 16


def look(plane: NDArray[np.generic], colour: NDArray[np.generic] | None = None) -> Look:
    array = plane[None] if colour is None else colour
    return Look(ENTRY, Image(array[None, :, None]), plane.astype(np.float32))


def tissue(size: int = 128, seed: int = 0) -> NDArray[np.float64]:
    """Smooth grey with noise, and a bright layer across, as in ultrasound."""
    random = np.random.default_rng(seed)
    plane = 90 + 30 * np.sin(np.arange(size) / 20)[:, None] * np.ones(size) + random.normal(0, 4, (size, size))
    plane[30:32] += 110
    return plane


def marks(plane: NDArray[np.generic], colour: NDArray[np.generic] | None = None) -> NDArray[np.float64]:
    """Lines down or across, whichever are fewer: bright, dark, coloured, in each zone."""
    found = shortcuts.measure(look(plane, colour))[: 6 * ZONES].reshape(3, 2, 4, 4)
    return found.astype(np.float64).min(axis=1)


def drawn(what: str, plane: NDArray[np.float64], value: int = 255) -> NDArray[np.float64]:
    image = Pillow.fromarray(plane.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    if what == "text":
        pen.text((100, 100), "LT 3", fill=value)
    elif what == "caliper":
        pen.line((104, 111, 118, 111), fill=value)
        pen.line((111, 104, 111, 118), fill=value)
    else:
        pen.rectangle((104, 104, 113, 113), fill=value)
    return np.asarray(image).astype(np.float64)


def test_tissue_with_bright_layers_has_no_marks() -> None:
    assert not marks(tissue()).sum() and not marks(tissue().T).sum()


@pytest.mark.parametrize("what", ["text", "caliper", "block"])
def test_marks_are_found_where_they_are(what: str) -> None:
    bright, dark, coloured = marks(drawn(what, tissue()))
    assert bright[3, 3] >= 4 and bright.sum() == bright[3, 3] and not dark.sum() and not coloured.sum()
    bright, dark, coloured = marks(drawn(what, 255 - tissue(), 0))
    assert dark[3, 3] >= 4 and dark.sum() == dark[3, 3] and not bright.sum()


def test_coloured_marks_are_found_and_faint_colour_is_not() -> None:
    plane = tissue()
    colour = np.stack([plane] * 3)
    colour[0] = np.maximum(colour[0], drawn("caliper", np.zeros_like(plane), 255))
    assert marks(plane, colour)[2, 3, 3] >= 4
    faint = np.stack([plane] * 3)
    faint[0] += drawn("caliper", np.zeros_like(plane), 3)
    assert not marks(plane, faint)[2].sum()


def test_a_frame_is_a_step_along_the_side_and_a_shadow_is_not() -> None:
    def steps(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        border = shortcuts.measure(look(plane))[6 * ZONES : 6 * ZONES + 12].reshape(4, 3)
        return np.abs(border[:, 1]).astype(np.float64)

    plain = 100 + np.random.default_rng(0).normal(0, 4, (96, 96))
    framed = np.full_like(plain, 20.0)
    framed[5:-5, 5:-5] = plain[5:-5, 5:-5]
    shadowed = plain.copy()
    shadowed[40:, 30:50] = 20
    assert steps(framed).min() > 0.5 > 0.1 > steps(plain).max() and steps(shadowed).max() < 0.1


def test_exposure_is_of_the_whole_image() -> None:
    """The same change of brightness everywhere is found; as large a change in one place is not."""
    labels = [("normal", "ill")[k % 2] for k in range(120)]
    entries = tuple(
        Entry(f"c{k}", f"p{k}", ENTRY.images, (Finding("label", label, probability=1.0),))
        for k, label in enumerate(labels)
    )

    def found(change: str) -> set[str]:
        random, rows, rows_of = np.random.default_rng(1), [], np.arange(64)[:, None]
        for label in labels:
            plane = 100 + 8 * random.normal() + random.normal(0, 10, (64, 64))
            if label == "ill" and change == "everywhere":
                plane *= 1.3
            elif label == "ill" and change == "somewhere":
                y, x = random.integers(14, 38, 2)
                plane += 40 * np.exp(-((rows_of - y) ** 2 + (rows_of.T - x) ** 2) / 40)
            rows.append(shortcuts.measure(look(plane)))
        evidence = Evidence(entries, (QUESTION,), measured={"shortcuts": np.stack(rows)})
        return {trouble.kind for trouble in shortcuts.find(evidence)}

    assert found("everywhere") == {"exposure_shortcut"}
    assert found("somewhere") == set()


@pytest.mark.real_data
@pytest.mark.slow
def test_calipers_of_busi_are_found(real_data: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "cohorts" / "busi.toml"
    listed = cohort.read(real_data / "busi", recipe)
    rows = []
    for entry in listed.entries:
        image = the_image(read_case(entry))
        rows.append(shortcuts.measure(Look(entry, image, image.array[0, 0, 0].astype(np.float32))))
    evidence = Evidence(listed.entries, listed.questions, listed.grouping, {}, {"shortcuts": np.stack(rows)})
    (trouble,) = [trouble for trouble in shortcuts.find(evidence) if trouble.kind == "marker_shortcut"]
    label = {entry.id: entry.findings[0].name for entry in listed.entries}
    assert "'normal'" in trouble.message and {label[case] for case in trouble.cases} == {"benign", "malignant"}


def test_sums_are_those_of_all_pixels() -> None:
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    count, total, squares, low, high = normalisation.measure(Look(ENTRY, Image(array), array[0, 0, 0]))
    exact = array.astype(np.float64)
    assert (count, low, high) == (720, exact.min(), exact.max())
    assert np.allclose([total, squares], [exact.sum(), (exact**2).sum()])
    whole = Image((array * 100).astype(np.int16))
    assert np.isnan(normalisation.measure(Look(ENTRY, whole, array[0, 0, 0]))).all()


# --- wrong labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 100), (28, 28), (5, 7)])
def test_a_small_copy_keeps_the_mean(height: int, width: int) -> None:
    """Averaging by area: the mean stays, a constant stays, whatever the sizes."""
    plane = np.random.default_rng(0).random((height, width))
    small = mislabels._averaged(mislabels._averaged(plane).T).T
    assert small.shape == (32, 32) and np.isclose(small.mean(), plane.mean())
    if height == width == 64:
        assert np.allclose(small, plane.reshape(32, 2, 32, 2).mean((1, 3)))


def test_suspects_are_those_that_look_like_another_class() -> None:
    told = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95], [0.45, 0.55], [0.6, 0.4]] + [[0.9, 0.1]] * 25)
    own = np.array([0, 0, 0, 0, 1] + [0] * 25)
    assert mislabels.suspects(told, own).tolist() == [2, 1]
    assert len(mislabels.suspects(told[1:3].repeat(20, 0), np.zeros(40, np.intp))) == 4  # a tenth at most


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_flipped_labels_of_the_demo_are_found(seed: int) -> None:
    """One in twenty labels of the demo's cohort is wrong: four in five are found, half of what is shown is wrong."""
    spec, random = demonstration.SPEC, np.random.default_rng(seed)
    wrong = set(random.choice(demonstration.CASES, demonstration.CASES // 20, replace=False).tolist())
    entries, rows = [], []
    for number in range(demonstration.CASES):
        made = phantom_case(number, spec)
        label = spec.classes[spec.classes.index(made.label) ^ (number in wrong)]
        entries.append(
            Entry(str(number), made.case.patient, ENTRY.images, (Finding("label", label, probability=1.0),))
        )
        image = made.case.images["image"]
        rows.append(mislabels.measure(Look(ENTRY, image, image.array[0, 0, 0].astype(np.float32))))
    question = Question("label", "multiclass", spec.classes)
    (trouble,) = mislabels.find(Evidence(tuple(entries), (question,), measured={"mislabels": np.stack(rows)}))
    shown = {int(case) for case in trouble.cases}
    assert len(shown & wrong) >= 0.8 * len(wrong) and len(shown & wrong) >= 0.5 * len(shown)


def test_labels_that_nobody_can_tell_are_left_alone() -> None:
    random = np.random.default_rng(0)
    entries = tuple(
        Entry(f"c{k}", f"p{k}", ENTRY.images, (Finding("label", ("normal", "ill")[k % 2], probability=1.0),))
        for k in range(80)
    )
    small = random.integers(0, 255, (80, 32, 32)).astype(np.uint8)
    assert mislabels.find(Evidence(entries, (QUESTION,), measured={"mislabels": small})) == []
