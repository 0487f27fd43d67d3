"""Boxes against pycocotools, faster-coco-eval and MONAI on random and adversarial sets, and by hand."""

import contextlib
import io
import math

import numpy as np
import pytest

from osler.metrics.boxes import COCO, CPM_RATES, FreeResponse, Matches, Precision, iou, match, together

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def row(*edges: float) -> np.ndarray:
    return np.array([edges], float)


def some(random: np.random.Generator, n: int, whole: bool = False) -> np.ndarray:
    start, side = random.uniform(0, 60, (n, 2)), random.uniform(2, 40, (n, 2))
    start, side = (np.ceil(start / 8) * 8, np.ceil(side / 8) * 8) if whole else (start, side)
    return np.concatenate([start, start + side], 1)


def drawn(seed: int, images: int, most: int, levels: int = 0, whole: bool = False) -> list[Case]:
    """Images with up to so many boxes, predictions near and far from them; scores in steps give ties."""
    random, found = np.random.default_rng(seed), []
    for _ in range(images):
        reference = some(random, int(random.integers(0, most + 1)), whole)
        near = reference[random.uniform(size=len(reference)) < 0.8].repeat(2, 0)
        near = near + (0 if whole else random.normal(0, 2, near.shape))
        near = near[(near[:, :2] < near[:, 2:]).all(1)]
        predicted = np.concatenate([near, some(random, int(random.integers(0, most + 1)), whole)])
        score = random.uniform(size=len(predicted))
        found.append((reference, predicted, np.ceil(score * levels) / levels if levels else score))
    return found


SETS = {
    "few": drawn(0, 12, 2),
    "many": drawn(1, 30, 6),
    "ties in scores": drawn(2, 20, 5, levels=3),
    "ties in overlap": drawn(3, 15, 8, levels=4, whole=True),
    "crowded": drawn(4, 3, 90),
    "nothing predicted": [(some(np.random.default_rng(5), 3), np.empty((0, 4)), np.empty(0))],
    "with empty images": [*drawn(6, 5, 4), (np.empty((0, 4)), some(np.random.default_rng(7), 4), np.full(4, 0.99))],
    "touching": [(row(0, 0, 4, 4), row(4, 0, 8, 4), np.ones(1))],
    "one pixel": [(row(3, 3, 4, 4), np.concatenate([row(3, 3, 4, 4), row(3, 3, 4, 5)]), np.array([0.4, 0.6]))],
}


def matched(cases: list[Case], thresholds: tuple[float, ...] = COCO) -> Matches:
    return together([match(*case, thresholds) for case in cases])


def as_coco(cases: list[Case]) -> tuple[dict, list[dict]]:
    def flat(box: np.ndarray) -> list[float]:
        return [*box[:2], *(box[2:] - box[:2])]

    given = [
        (i, flat(b), (b[2] - b[0]) * (b[3] - b[1])) for i, (reference, *_) in enumerate(cases) for b in reference
    ]
    truth = {
        "info": {},
        "images": [{"id": i, "width": 200, "height": 200} for i in range(len(cases))],
        "categories": [{"id": 1, "name": "lesion"}],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": 1, "bbox": b, "area": area, "iscrowd": 0}
            for n, (i, b, area) in enumerate(given)
        ],
    }
    said = [
        {"image_id": i, "category_id": 1, "bbox": flat(b), "score": float(s)}
        for i, (_, predicted, score) in enumerate(cases)
        for b, s in zip(predicted, score, strict=True)
    ]
    return truth, said


def by_coco(library: str, cases: list[Case]) -> np.ndarray:
    """Average precision at each threshold, by one of the libraries that define it."""
    truth, said = as_coco(cases)
    with contextlib.redirect_stdout(io.StringIO()):
        if library == "pycocotools":
            coco, evaluator = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
            data = coco.COCO()
            data.dataset = truth
            data.createIndex()
            found = evaluator.COCOeval(data, data.loadRes(said), "bbox")
        else:
            faster = pytest.importorskip("faster_coco_eval")
            data = faster.COCO(truth)
            found = faster.COCOeval_faster(data, data.loadRes(said), "bbox")
        found.evaluate()
        found.accumulate()
    # threshold, recall, class, all sizes, up to 100 boxes
    return np.asarray(found.eval["precision"])[:, :, 0, 0, -1].mean(1)


@pytest.mark.parametrize("library", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("name", [name for name in SETS if name != "nothing predicted"])
def test_average_precision_is_cocos(name: str, library: str) -> None:
    np.testing.assert_allclose(Precision(matched(SETS[name]))(), by_coco(library, SETS[name]), atol=1e-6)


@pytest.mark.parametrize("name", ["few", "many", "crowded", "with empty images"])
def test_a_weight_is_an_image_that_is_there_so_many_times(name: str) -> None:
    cases = SETS[name]
    weight = np.random.default_rng(0).integers(0, 4, len(cases)).astype(float)
    repeated = [case for case, times in zip(cases, weight, strict=True) for _ in range(int(times))]
    np.testing.assert_allclose(Precision(matched(cases))(weight), Precision(matched(repeated))(), atol=1e-12)
    np.testing.assert_allclose(Precision(matched(cases))(weight), by_coco("pycocotools", repeated), atol=1e-6)
    for column in (0, 9):
        ours, theirs = FreeResponse(matched(cases), column), FreeResponse(matched(repeated), column)
        assert ours.cpm(weight) == pytest.approx(theirs.cpm(), abs=1e-12)


def test_iou_agrees_with_pycocotools_and_monai_in_2d_and_3d() -> None:
    random = np.random.default_rng(0)
    a, b = some(random, 20), some(random, 30)
    mask = pytest.importorskip("pycocotools.mask")
    flat = [np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], 1) for x in (a, b)]
    np.testing.assert_allclose(iou(a, b), mask.iou(*flat, [0] * len(b)), atol=1e-9)
    utils = pytest.importorskip("monai.data.box_utils")
    a, b = (np.concatenate([x, random.uniform(1, 20, x.shape)], 1)[:, [0, 1, 4, 2, 3, 5]] for x in (a, b))
    a[:, 5], b[:, 5] = a[:, 2] + 3, b[:, 2] + 7
    np.testing.assert_allclose(iou(a, b), utils.box_iou(a, b), atol=1e-6)


def test_iou_by_hand_and_whatever_the_spacing() -> None:
    a, b = row(0, 0, 0, 2, 2, 2), row(1, 1, 1, 3, 3, 3)
    assert iou(a, b)[0, 0] == pytest.approx(1 / 15)
    stretched = np.array([5.0, 0.7, 0.7, 5.0, 0.7, 0.7])
    assert iou(a * stretched, b * stretched)[0, 0] == pytest.approx(1 / 15)
    assert iou(a, row(2, 0, 0, 4, 2, 2))[0, 0] == 0
    assert iou(a, np.empty((0, 6))).shape == (1, 0)


def test_a_second_box_on_a_lesion_is_a_false_positive() -> None:
    found = match(row(0, 0, 4, 4), row(0, 0, 4, 4).repeat(2, 0), np.array([0.8, 0.9]), (0.5,))
    assert found.score.tolist() == [0.9, 0.8]
    assert found.hit.ravel().tolist() == [True, False]


def by_monai(cases: list[Case], rates: tuple[float, ...]) -> float:
    """Its curve leaves out the lowest score, so it is given one more that nothing has."""
    metrics = pytest.importorskip("monai.metrics")
    found = matched(cases, (0.1,))
    hit, targets = found.hit[:, 0], int(found.count.sum())
    missed = np.zeros(targets - int(hit.sum())) - 1
    fp, tp = np.append(found.score[~hit], -1), np.concatenate([found.score[hit], missed])
    return float(metrics.compute_froc_score(*metrics.compute_froc_curve_data(fp, tp, targets, len(cases)), rates))


@pytest.mark.parametrize("name", SETS)
def test_froc_agrees_with_monai(name: str) -> None:
    cases = SETS[name]
    assert FreeResponse(matched(cases, (0.1,)), 0).cpm() == pytest.approx(by_monai(cases, CPM_RATES), abs=1e-6)


def test_froc_by_hand() -> None:
    cases = [
        (np.concatenate([row(0, 0, 4, 4), row(10, 10, 14, 14)]), row(0, 0, 4, 4), np.array([0.9])),
        (np.empty((0, 4)), row(20, 20, 24, 24), np.array([0.5])),
        (row(3, 3, 9, 9), np.concatenate([row(3, 3, 9, 9), row(40, 40, 44, 44)]), np.array([0.3, 0.5])),
        (np.empty((0, 4)), np.empty((0, 4)), np.empty(0)),
    ]
    curve = FreeResponse(matched(cases, (0.5,)), 0)
    wrong, found = curve.curve()
    # 0.9: a hit; 0.5: two false ones together; 0.3: a hit
    np.testing.assert_allclose(wrong, [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(found, [0, 1 / 3, 1 / 3, 2 / 3])
    assert curve.score.tolist() == [0.9, 0.5, 0.3]
    np.testing.assert_allclose(curve.sensitivity([0.1, 0.25, 0.5, 8]), [1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_without_a_box_in_the_reference_nothing_is_defined() -> None:
    found = matched([(np.empty((0, 4)), row(0, 0, 1, 1), np.ones(1))])
    assert np.isnan(Precision(found)()).all()
    assert math.isnan(FreeResponse(found, 0).cpm())


def test_nothing_drawn_finds_nothing() -> None:
    found = matched(SETS["nothing predicted"])
    assert (Precision(found)() == 0).all()
    assert FreeResponse(found, 0).cpm() == 0


def test_the_order_of_images_with_different_scores_changes_nothing() -> None:
    cases = SETS["many"]
    np.testing.assert_allclose(Precision(matched(cases))(), Precision(matched(cases[::-1]))())
