"""A dense model and cohorts that are not quite like the one it was trained on; recipes that cannot be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from osler import (
    ablation,
    cohort,
    dense_evaluation,
    dense_phantom,
    dense_rows,
    evaluation,
    outlines,
    phantom_files,
    recipe,
    training,
)
from osler.case import Answer, Case, Entry, Finding, Mask, Outline, Question, Source
from osler.image import Image
from osler.problem import Problem

IMAGE = Image(np.zeros((1, 1, 1, 4, 4), np.uint8))
BOTH = Question("mask", "segmentation", ("liver", "tumour"), values=((1,), (2,)))


def _drawn(path: Path, values: dict[int, str]) -> Entry:
    labels = np.zeros((1, 1, 1, 4, 4), np.uint8)
    labels[..., 0, :] = 1
    labels[..., 1, 0] = 2
    np.save(path / "label.npy", labels)
    return Entry(
        "a", "a", {"image": Source("a.png")}, outlines=(Outline("mask", Source(path / "label.npy"), values),)
    )


def test_classes_are_read_by_their_names_whatever_their_numbers(tmp_path: Path) -> None:
    entry = _drawn(tmp_path, {1: "tumour", 2: "liver"})
    found = outlines.read(entry, IMAGE, [BOTH])
    assert (found.maps["mask"][0, 0, 0] == 2).all() and found.maps["mask"][0, 0, 1].tolist() == [1, 0, 0, 0]
    sizes = {f.name: int(f.mask.array.sum()) for f in found.findings if f.mask is not None}
    assert sizes == {"tumour": 4, "liver": 1}


def test_a_label_that_the_question_does_not_know_is_said(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="the mask has 'spleen', which is none of liver, tumour"):
        outlines.read(_drawn(tmp_path, {1: "spleen", 2: "liver"}), IMAGE, [BOTH])


def test_what_a_cohort_does_not_know_is_not_measured(tmp_path: Path) -> None:
    given = Question("mask", "segmentation", ("tumour",), values=((1,),), ignore=7)
    asked = dense_evaluation._in_its_values(given, BOTH, tmp_path)
    assert asked == Question("mask", "segmentation", ("tumour",), values=((2,),), ignore=7)
    with pytest.raises(Problem, match="2 stands for unknown pixels in this cohort and for a class in the model"):
        dense_evaluation._in_its_values(replace(given, ignore=2), BOTH, tmp_path)


def test_regions_of_other_values_are_refused(tmp_path: Path) -> None:
    regions = Question("mask", "segmentation", ("whole", "core"), values=((1, 2), (2,)))
    assert dense_evaluation._in_its_values(regions, regions, tmp_path) == regions
    with pytest.raises(Problem, match="the regions of mask are made up of other values"):
        dense_evaluation._in_its_values(replace(regions, values=((1, 2), (1,))), regions, tmp_path)


def test_what_asks_of_the_whole_image_beside_places_is_linked() -> None:
    label = Question("label", "multiclass", ("no", "yes"))
    image = {"size": [1, 32, 32]}
    assert recipe.build({"image": image, "tasks": {"label": label, "mask": BOTH}}).linked
    assert not recipe.build({"image": image, "tasks": {"label": label}}).linked
    assert not recipe.build({"image": image, "tasks": {"mask": BOTH}}).linked


def test_outlines_need_values() -> None:
    with pytest.raises(Problem, match=r"tasks\.mask\.values does not say"):
        recipe.build({"image": {"size": [1, 32, 32]}, "tasks": {"mask": replace(BOTH, values=())}})


def test_a_misspelt_key_of_a_task_is_said() -> None:
    with pytest.raises(Problem, match=r"unknown key tasks.mask.separat; did you mean tasks.mask.separate"):
        recipe.check_shape({"tasks": {"mask": {"separat": True}}})


def test_a_table_asks_only_what_it_names() -> None:
    found = cohort.Cohort(Path("x"), (), (Question("label", "multiclass", ("no", "yes")), BOTH))
    asked, _ = cohort.asking(found, {"mask": {"kind": "detection"}})
    assert [question.task for question in asked.questions] == ["mask"]


def test_masks_can_be_asked_for_as_boxes_and_runs_are_not_compared(tmp_path: Path) -> None:
    spec = replace(dense_phantom.LESIONS, size=(1, 48, 48))
    place = phantom_files.write_dense_phantom(tmp_path / "c", spec, 30)
    settings = {
        "image": {"size": [1, 32, 32]},
        "network": {"backbone": "unet", "options": {"width": 4, "depth": 3}},
        "training": {
            "epochs": 1, "batch": 8, "folds": 0, "precision": "float32", "channels_last": False, "threads": 1,
        },
        "patches": {"per_case": 1, "longest": 32},
        "tasks": {"mask": {"kind": "detection"}},
    }  # fmt: skip
    made = training.train(place, tmp_path / "run", settings, say=lambda line: None)
    assert made.recipe.tasks["mask"].kind == "detection"
    evaluation.evaluate(tmp_path / "run", place, tmp_path / "out", draws=20, say=lambda line: None)
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "map50" in told["tasks"]["mask"]["metrics"]
    same = evaluation.evaluate(
        tmp_path / "run", place, tmp_path / "out", against=tmp_path / "run", draws=20, say=lambda line: None
    )
    assert same["comparison"]["tasks"]["mask"]["differences"]["map50"]["value"] == 0


def test_an_ablation_of_places_is_refused(tmp_path: Path) -> None:
    place = phantom_files.write_dense_phantom(tmp_path / "c", replace(dense_phantom.LESIONS, size=(1, 48, 48)), 12)
    with pytest.raises(Problem, match="what asks where something is has none"):
        ablation.ablate(place, tmp_path / "out", say=lambda line: None)


def test_a_finding_among_unknown_pixels_is_neither_right_nor_wrong() -> None:
    question = Question("mask", "segmentation", ("lesion",), values=((1,),), ignore=9, separate=True)
    truth = np.zeros((1, 1, 8, 8), np.uint8)
    truth[0, 0, :2, :2], truth[0, 0, 5:, 5:] = 1, 9
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 6:, 6:] = True
    right = truth[0] == 1
    said = [
        Finding("mask", "lesion", "model:0", 0.9, box=m.box, mask=m) for m in map(Mask.cropped, (mask, right))
    ]  # fmt: skip
    image = Image(np.zeros((1, 1, 1, 8, 8), np.uint8))
    case = Case("a", "a", {"image": image}, maps={"mask": truth})
    (row,) = dense_rows.of_case(case, image, Answer("mask", "segmentation", tuple(said), ("lesion",)), question)
    matched = row.matches["lesion"]
    assert len(matched.score) == 1 and matched.hit[0, 0]
    assert row.numbers["lesion"]["lesions_drawn"] == row.numbers["lesion"]["lesions_real"] == 1
