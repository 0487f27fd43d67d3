"""Rows and summaries of outlines and boxes: against libraries, by hand, and by the rules that the page states."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metrics.masks import ball, box
from metrics.test_boxes import SETS, by_coco
from osler.case import Answer, Box, Case, Finding, Mask, Question
from osler.dense_rows import NO_BOXES, Boxes, Row, detection_row, of_case, quality, segmentation_rows
from osler.dense_scoring import describe, summary
from osler.image import Image, Spacing

SIZE, SPACING = (12, 24, 24), (3.0, 1.0, 1.0)
HEART = Question("mask", "segmentation", ("muscle", "cavity"), values=((1,), (2,)), ignore=255)
TUMOUR = Question("mask", "segmentation", ("whole", "core"), values=((1, 2), (2,)))
LESIONS = Question("mask", "segmentation", ("lesion",), values=((1,),), separate=True)
BOXES = Question("boxes", "detection", ("nodule", "mass"))


def heart(radius: float, shift: float = 0.0) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[ball(SIZE, (18, 12 + shift, 12), radius, SPACING)] = 1
    labels[ball(SIZE, (18, 12 + shift, 12), radius / 2, SPACING)] = 2
    return labels[None]


def boxes(*rows: tuple[int, float, float, float], at: float = 0.0) -> Boxes:
    """Squares of class, y, x and score, ten pixels wide."""
    places = [(0, y + at, x, 1, y + at + 10, x + 10) for _, y, x, _ in rows]
    return Boxes(
        np.array(places, float).reshape(-1, 6),
        np.array([row[0] for row in rows], np.int64),
        np.array([row[3] for row in rows], float),
    )


def row(reference: np.ndarray, predicted: np.ndarray, question: Question = HEART, **more: object) -> Row:
    return segmentation_rows("anna", reference, predicted, question, SPACING, **more)[0]


# --- rows ----------------------------------------------------------------------------------------------------


def test_a_row_agrees_with_monai() -> None:
    metrics, torch = pytest.importorskip("monai.metrics"), pytest.importorskip("torch")
    ours, theirs = heart(10), heart(8, 2)
    found = row(ours, theirs)
    for name, value in (("muscle", 1), ("cavity", 2)):
        y, y_pred = (torch.from_numpy(x[:, None] == value).float() for x in (ours, theirs))
        assert found.numbers[name]["dice"] == pytest.approx(metrics.compute_dice(y_pred, y).item(), abs=1e-6)
        assert found.numbers[name]["iou"] == pytest.approx(metrics.compute_iou(y_pred, y).item(), abs=1e-6)
        assert found.numbers[name]["size"] == pytest.approx(float((ours == value).sum()) * 3 / 1000)
    assert (found.unit, found.size_unit) == ("mm", "ml")


def test_masks_of_each_class_say_the_same_as_a_map_and_regions_overlap() -> None:
    ours, theirs = heart(10), heart(8, 2)
    masks = np.stack([theirs > 0, theirs == 2])
    assert row(ours, masks, TUMOUR).numbers == row(ours, theirs, TUMOUR).numbers
    assert row(ours, theirs, TUMOUR).numbers["whole"]["dice"] > row(ours, theirs, HEART).numbers["muscle"]["dice"]


def test_pixels_of_which_nothing_is_known_count_for_neither_side() -> None:
    ours, theirs = heart(8), heart(8)
    theirs[0, :, :4] = 1
    ours[0, :, :4] = 255
    assert row(ours, theirs).numbers["muscle"]["dice"] == 1


def test_each_frame_is_a_row() -> None:
    ours, theirs = np.concatenate([heart(8), heart(10)]), np.concatenate([heart(8), heart(8)])
    first, second = segmentation_rows("anna", ours, theirs, HEART, SPACING)
    assert first.numbers["cavity"]["dice"] == 1
    assert second.numbers == row(ours[1:], theirs[1:]).numbers


def test_what_was_missed_is_the_diagonal_of_the_image_away() -> None:
    nothing = np.zeros_like(heart(8))
    diagonal = math.hypot(36, 24, 24)
    for found in (row(heart(8), nothing), row(nothing, heart(8))):
        one = found.numbers["muscle"]
        assert (one["hd95"], one["assd"]) == (pytest.approx(diagonal), pytest.approx(diagonal))
        assert (one["dice"], one["iou"], one["nsd"]) == (0, 0, 0)
    both = row(nothing, nothing).numbers["muscle"]
    assert all(math.isnan(both[key]) for key in ("dice", "iou", "hd95", "assd", "nsd", "volume_error"))


def test_an_image_of_one_slice_is_flat() -> None:
    ours = box((1, 1, 20, 20), (0, 0, 5, 5), (1, 1, 15, 15)).astype(np.uint8)
    theirs = box((1, 1, 20, 20), (0, 0, 7, 7), (1, 1, 13, 13)).astype(np.uint8)
    found = segmentation_rows("anna", ours, theirs, LESIONS, (None, 0.5, 0.5))[0]
    # outlines are frames of one pixel; in depth they would be whole squares, at distance 0 nearly everywhere
    assert found.numbers["lesion"]["hd95"] == pytest.approx(math.hypot(1, 1))
    assert (found.size_unit, found.numbers["lesion"]["size"]) == ("mm2", 25)


def test_without_known_distances_pixels_are_counted() -> None:
    for spacing in (None, (None, 1.0, 1.0)):
        found = segmentation_rows("anna", heart(8), heart(6), HEART, spacing)[0]
        assert (found.unit, found.size_unit) == ("px", "voxels")
        assert found.numbers["cavity"]["size"] == (heart(8) == 2).sum()


def test_lesions_are_counted_and_their_boxes_matched() -> None:
    ours = box((1, 1, 60, 60), (0, 0, 5, 5), (1, 1, 15, 15)) | box((1, 1, 60, 60), (0, 0, 40, 40), (1, 1, 50, 50))
    theirs = box((1, 1, 60, 60), (0, 0, 5, 5), (1, 1, 15, 15)) | box((1, 1, 60, 60), (0, 0, 20, 40), (1, 1, 30, 50))
    scored = [boxes((0, 5, 5, 0.9), (0, 20, 40, 0.8))]
    found = segmentation_rows("anna", ours.astype(np.uint8), theirs.astype(np.uint8), LESIONS, None, scored)[0]
    one = found.numbers["lesion"]
    assert [one[f"lesions{key}"] for key in ("", "_found", "_drawn", "_real")] == [2, 1, 2, 1]
    assert found.matches["lesion"].count.tolist() == [2]
    assert found.matches["lesion"].hit[:, 1].tolist() == [True, False]


def test_classes_of_which_nothing_is_known_are_neither_right_nor_wrong() -> None:
    found = detection_row("anna", boxes((0, 0, 0, 1)), boxes((0, 0, 0, 0.9), (1, 50, 50, 0.8)), BOXES, ["nodule"])
    assert set(found.matches) == {"nodule"}


def test_quality_orders_cases() -> None:
    assert quality(row(heart(8), heart(8))) == 1
    assert quality(row(heart(8), heart(6))) > quality(row(heart(8), heart(4)))
    truth = boxes((0, 0, 0, 1), (1, 50, 50, 1))
    assert quality(detection_row("anna", truth, boxes((0, 0, 0, 0.9), (1, 50, 50, 0.8)), BOXES)) == 1
    # one of two found, with one false: F1 is 1/2; below the threshold nothing is drawn
    half = detection_row("anna", truth, boxes((0, 0, 0, 0.9), (0, 70, 0, 0.9), (1, 50, 50, 0.1)), BOXES)
    assert quality(half) == pytest.approx(0.5)
    assert math.isnan(quality(detection_row("anna", NO_BOXES, NO_BOXES, BOXES)))


def test_a_case_and_an_answer_become_rows() -> None:
    pixels = np.zeros((2, 1, *SIZE), np.uint8)
    image = Image(pixels, Spacing(1.0, 1.0, 3.0))
    maps = np.concatenate([heart(8), heart(10)])
    findings = tuple(
        Finding("mask", name, "model", 0.9, box=mask.box, mask=mask, frame=frame)
        for frame, radius in enumerate((8, 6))
        for name, mask in (
            ("muscle", Mask.cropped(heart(radius)[0] == 1)),
            ("cavity", Mask.cropped(heart(radius)[0] == 2)),
        )
    )
    unsure = replace(findings[0], probability=0.1, mask=Mask(np.ones((2, 2, 2), bool)))
    answer = Answer("mask", "segmentation", (*findings, unsure), (), threshold=0.5)
    case = Case("case", "anna", {"image": image}, maps={"mask": maps})
    found = of_case(case, image, answer, HEART)
    expected = segmentation_rows("anna", maps, np.concatenate([heart(8), heart(6)]), HEART, SPACING)
    assert [one.numbers for one in found] == [one.numbers for one in expected]
    assert of_case(replace(case, maps={}), image, answer, HEART) == []


def test_a_case_with_boxes_becomes_rows_of_the_classes_that_are_stated() -> None:
    image = Image(np.zeros((1, 1, 1, 60, 60), np.uint8))
    place = Box((0, 5, 5), (1, 15, 15))
    case = Case("case", "anna", {"image": image}, (Finding("boxes", "nodule", probability=1, box=place),))
    said = tuple(Finding("boxes", name, "model", 0.8, box=place) for name in BOXES.classes)
    answer = Answer("boxes", "detection", said, ("nodule",), threshold=0.5)
    (row,) = of_case(case, image, answer, BOXES)
    assert row.matches["nodule"].hit.all()
    assert set(row.matches) == {"nodule"}
    healthy = replace(case, findings=(Finding("boxes", "nodule", probability=0),))
    (row,) = of_case(healthy, image, answer, BOXES)
    assert (row.matches["nodule"].count.tolist(), row.matches["nodule"].hit.any()) == ([0], False)
    assert of_case(replace(case, findings=()), image, answer, BOXES) == []


# --- summary -------------------------------------------------------------------------------------------------


def hearts(count: int) -> list[Row]:
    random, rows = np.random.default_rng(0), []
    for i in range(count):
        ours, theirs = heart(random.uniform(6, 10)), heart(random.uniform(6, 10), random.uniform(-2, 2))
        if i % 5 == 0:
            ours[ours == 2] = 0
        rows += segmentation_rows(f"p{i // 2}", ours, theirs, HEART, SPACING)
    return rows


def test_figures_of_masks_are_means_over_cases_with_the_class_and_of_the_whole_over_classes() -> None:
    rows = hearts(20)
    found = summary(rows, HEART, draws=200)
    means = {}
    for name in HEART.classes:
        there = [one.numbers[name] for one in rows if one.numbers[name]["present"]]
        assert found["classes"][name]["n"] == len(there)
        for key in ("dice", "iou", "hd95", "assd", "nsd", "volume_error"):
            means[name, key] = np.mean([one[key] for one in there])
            assert found["classes"][name]["metrics"][key]["value"] == pytest.approx(means[name, key])
    for key in ("dice", "hd95", "volume_error"):
        assert found["metrics"][key]["value"] == pytest.approx((means["muscle", key] + means["cavity", key]) / 2)
    assert found["metrics"]["dice"]["n"] == 20
    absolute = np.mean([abs(one.numbers["muscle"]["volume_error"]) for one in rows])
    assert found["classes"]["muscle"]["metrics"]["volume_error_absolute"]["value"] == pytest.approx(absolute)
    # of the four cases without the cavity, one was drawn in each
    assert found["classes"]["cavity"]["metrics"]["drawn_without"] | {"method": ""} == pytest.approx(
        found["classes"]["cavity"]["metrics"]["drawn_without"] | {"value": 1.0, "n": 4, "method": ""}
    )
    assert found["metrics"]["drawn_without"]["n"] == 0
    assert found["metrics"]["drawn_without"]["value"] is None
    assert found["curves"]["sizes"]["cavity"]["unit"] == "ml"


def test_intervals_draw_patients_not_images() -> None:
    one = hearts(12)
    twice = [Row(f"p{i}", row.numbers, {}, row.unit, row.size_unit) for i, row in enumerate(one) for _ in range(4)]
    apart = [Row(f"p{i}", row.numbers, {}, row.unit, row.size_unit) for i, row in enumerate(one)]
    few, many = (summary(rows, HEART, draws=500)["metrics"]["dice"] for rows in (apart, twice))
    assert many["value"] == pytest.approx(few["value"])
    assert (many["low"], many["high"]) == (pytest.approx(few["low"]), pytest.approx(few["high"]))
    assert few["low"] < few["value"] < few["high"]


def test_an_interval_holds_the_expected_value_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(0), 0
    for trial in range(120):
        rows = [
            Row(f"p{i}", {"lesion": dict.fromkeys(("dice", "iou", "hd95", "assd", "nsd", "volume_error"), value)})
            for i, value in enumerate(random.beta(8, 2, 40))
        ]
        for one in rows:
            one.numbers["lesion"].update(present=1.0, drawn=1.0, size=1.0)
        found = summary(rows, LESIONS, draws=300, seed=trial)["metrics"]["dice"]
        held += found["low"] <= 0.8 <= found["high"]
    assert 0.88 <= held / 120 <= 1


def test_lesions_are_pooled() -> None:
    def counted(there: int, found: int, drawn: int, real: int) -> Row:
        values = dict.fromkeys(("dice", "iou", "hd95", "assd", "nsd", "volume_error"), 0.5)
        values |= {"present": float(there > 0), "drawn": float(drawn > 0), "size": 1.0}
        values |= {"lesions": there, "lesions_found": found, "lesions_drawn": drawn, "lesions_real": real}
        return Row(f"p{there}{found}{drawn}", {"lesion": values})

    found = summary([counted(4, 3, 3, 3), counted(1, 0, 0, 0), counted(0, 0, 2, 0)], LESIONS, draws=100)
    metrics = found["classes"]["lesion"]["metrics"]
    assert metrics["lesion_sensitivity"]["value"] == pytest.approx(3 / 5)
    assert metrics["lesion_precision"]["value"] == pytest.approx(3 / 5)
    assert metrics["false_lesions"]["value"] == pytest.approx(2 / 3)
    assert metrics["drawn_without"]["value"] == 1
    assert found["classes"]["lesion"]["lesions"] == 5


def test_average_precision_is_cocos_for_each_class_and_their_mean_for_the_whole() -> None:
    pytest.importorskip("pycocotools")
    rows = []
    images = zip(SETS["many"][:12], SETS["ties in overlap"][:12], strict=True)
    for i, pair in enumerate(images):
        sets = []
        for which in (0, 1):
            flat = np.concatenate([case[which] for case in pair])
            places = np.concatenate([np.zeros((len(flat), 1)), flat[:, :2], np.ones((len(flat), 1)), flat[:, 2:]], 1)
            classes = np.repeat([0, 1], [len(case[which]) for case in pair])
            scores = np.concatenate([case[2] for case in pair]) if which else np.ones(len(flat))
            sets.append(Boxes(places, classes, scores))
        rows.append(detection_row(f"p{i}", *sets, BOXES))
    found = summary(rows, BOXES, draws=50)
    expected = [by_coco("pycocotools", SETS[name][:12]) for name in ("many", "ties in overlap")]
    for name, ap in zip(BOXES.classes, expected, strict=True):
        assert found["classes"][name]["metrics"]["map50"]["value"] == pytest.approx(ap[0], abs=1e-6)
        assert found["classes"][name]["metrics"]["map"]["value"] == pytest.approx(ap.mean(), abs=1e-6)
    assert found["metrics"]["map"]["value"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_boxes_from_a_score_on_are_stated() -> None:
    truth = boxes((0, 0, 0, 1), (0, 50, 50, 1))
    said = boxes((0, 1, 0, 0.9), (0, 50, 51, 0.3), (0, 80, 0, 0.6))
    rows = [detection_row("anna", truth, said, BOXES), detection_row("berta", NO_BOXES, boxes((0, 5, 5, 0.7)), BOXES)]
    at_half, low = (summary(rows, BOXES, threshold=t, draws=50)["classes"]["nodule"]["metrics"] for t in (0.5, 0.2))
    assert at_half["lesion_sensitivity"]["value"] == 0.5
    assert at_half["lesion_precision"]["value"] == pytest.approx(1 / 3)
    assert at_half["false_lesions"]["value"] == 1
    assert at_half["drawn_without"] | {"n": 1} == at_half["drawn_without"]
    assert low["lesion_sensitivity"]["value"] == 1
    assert summary(rows, BOXES, draws=50)["classes"]["mass"]["metrics"]["map50"]["value"] is None


def test_the_froc_curve_rises_and_its_band_holds_it() -> None:
    random, rows = np.random.default_rng(0), []
    for i in range(30):
        truth = boxes(*((0, 40.0 * k, 0, 1) for k in range(random.integers(0, 4))))
        near = boxes(*((0, 40.0 * k, 0, random.uniform(0.3, 1)) for k in range(5)), at=random.uniform(0, 6))
        rows.append(detection_row(f"p{i}", truth, near, BOXES))
    curve = summary(rows, BOXES, draws=200)["curves"]["froc"]["nodule"]
    assert (np.diff(curve["value"]) >= 0).all()
    assert all(
        a <= v <= b for v, a, b in zip(curve["value"], curve["low"], curve["high"], strict=True) if a is not None
    )


def test_distances_in_pixels_are_left_out_beside_millimetres() -> None:
    rows = hearts(4) + segmentation_rows("zoe", heart(8), heart(6), HEART, None)
    found, without = summary(rows, HEART, draws=50), summary(rows[:4], HEART, draws=50)
    assert found["unit"] == "mm"
    assert "of 4 of 5 images" in found["notes"][0]
    assert found["metrics"]["hd95"]["value"] == pytest.approx(without["metrics"]["hd95"]["value"])
    assert found["classes"]["muscle"]["metrics"]["hd95"]["n"] == 4
    assert found["classes"]["muscle"]["metrics"]["dice"]["n"] == 5


def test_without_a_case_nothing_is_measured() -> None:
    found = summary([], HEART, unknown=3)
    assert describe(found) == found["notes"]
    assert found["unknown"] == 3


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_the_result_is_json_of_the_published_schema(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(__file__).parents[1] / "docs/schemas/evaluation.schema.json").read_text("utf-8"))
    if kind == "segmentation":
        result = summary(hearts(6), HEART, draws=50)
    else:
        rows = [detection_row(f"p{i}", boxes((0, 0, 0, 1)), boxes((0, 0, i, 0.9)), BOXES) for i in range(4)]
        result = summary(rows, BOXES, draws=50)
    assert all(sentence.endswith(".") and "None" not in sentence for sentence in describe(result))
    evaluation = {
        "schema_version": 1, "date": "2026-01-01", "model": "0" * 64, "cohort": "1" * 64, "part": "test",
        "times_evaluated": 1, "cases": 6, "patients": 3, "notes": [], "tasks": {"mask": result},
    }  # fmt: skip
    for part in ("test", "all", "unseen", "out of fold"):
        told = evaluation | {"part": part, "refused_as_novel": None}
        jsonschema.validate(json.loads(json.dumps(told, allow_nan=False)), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(evaluation | {"part": "some"}, schema)
