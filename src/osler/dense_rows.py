"""What one case says about outlines and boxes: a row of numbers, for masks of all cases are too large to keep.

Rules that hold throughout: pixels of which nothing is known count for neither side; each frame of a sequence is a
row. Rules for empty masks are those of :mod:`osler.metrics`, and: where one of the two is empty, the distance between
them is the diagonal of the image (as in BraTS, where it is 373 mm), so that what was missed makes a mean worse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from scipy import ndimage

from osler.case import Answer, Case, Finding, Question
from osler.image import Image
from osler.metrics import boxes, lesions, overlap, surface
from osler.metrics.boxes import Matches

# Millimetres (pixels where there are none) within which outlines agree.
TOLERANCE = 2.0
# At 0.1 a box points at the lesion (Baumgartner et al., nnDetection, 2021), from 0.5 on it surrounds it.
THRESHOLDS = (0.1, *boxes.COCO)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes in one image.

    Attributes:
        places: ``(n, 6)``, starts then stops as (depth, height, width), edges in pixels.
        classes: row of each in ``Question.classes``.
        scores: how sure each is; ones for the reference.
    """

    places: Float[np.ndarray, "n 6"]
    classes: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]

    def of(self, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places and scores of one class."""
        mine = self.classes == number
        return np.asarray(self.places[mine], np.float64), np.asarray(self.scores[mine], np.float64)


NO_BOXES = Boxes(np.empty((0, 6)), np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True, eq=False)
class Row:
    """What one frame of one case adds to a summary.

    Attributes:
        patient: whose it is.
        numbers: by class and name; nan where something is not defined. Only classes of which the truth is known.
        matches: by class: predicted boxes against those of the reference at :data:`THRESHOLDS`.
        unit: of distances, ``mm`` or ``px``.
        size_unit: of sizes: ``ml``, ``mm2``, ``voxels``, ``px2``.
    """

    patient: str
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    matches: Mapping[str, Matches] = field(default_factory=dict)
    unit: str = ""
    size_unit: str = ""


def of_case(case: Case, image: Image, answer: Answer, question: Question) -> list[Row]:
    """The rows of a case, one a frame; none where nothing is known of its truth.

    Masks are those of findings from the answer's threshold on, also where the answer was withheld; average precision
    and FROC look at all findings.

    Args:
        case: with label maps, or with boxes and statements of absence.
        image: its image, for size and spacing.
        answer: of a model, on the grid of the image.
        question: its question.
    """
    frames = [[f for f in answer.findings if f.frame == frame and f.box is not None] for frame in range(image.frames)]
    predicted = [_boxes(found, question) for found in frames]
    if question.kind == "detection":
        mine = [f for f in case.findings if f.task == question.task and f.name in question.classes]
        stated = {f.name for f in mine}
        there = [[f for f in mine if f.frame == frame and f.box is not None] for frame in range(image.frames)]
        pairs = zip(there, predicted, strict=True)
        rows = [
            detection_row(case.patient, _boxes(ours, question), said, question, [*stated]) for ours, said in pairs
        ]
        return rows if stated else []
    if question.task not in case.maps:
        return []
    masks = np.zeros((len(question.classes), image.frames, *image.size), bool)
    for finding in (f for found in frames for f in found):
        if finding.mask is not None and (finding.probability or 0) >= (answer.threshold or 0):
            masks[question.classes.index(finding.name), finding.frame] |= finding.mask.within(image.size)
    truth = case.maps[question.task]
    known = [[f for f in found if _in_the_known(f, truth, question)] for found in frames]
    predicted = [_boxes(found, question) for found in known]
    return segmentation_rows(case.patient, truth, masks, question, image.spacing, predicted)


def _in_the_known(finding: Finding, truth: UInt8[np.ndarray, "t d h w"], question: Question) -> bool:
    """Whether a reader has looked at any of its pixels: else it is neither right nor wrong."""
    if finding.mask is None:
        return True
    window = tuple(slice(a, a + n) for a, n in zip(finding.mask.start, finding.mask.array.shape, strict=True))
    there = truth[finding.frame][window][finding.mask.array]
    return bool((there != question.unknown).any())


def _boxes(findings: Sequence[Finding], question: Question) -> Boxes:
    places = [(*f.box.start, *f.box.stop) for f in findings if f.box is not None]
    classes = [question.classes.index(f.name) for f in findings]
    scores = [1.0 if f.probability is None else f.probability for f in findings]
    return Boxes(np.array(places, float).reshape(-1, 6), np.array(classes, np.int64), np.array(scores, float))


def segmentation_rows(
    patient: str,
    reference: UInt8[np.ndarray, "t d h w"],
    predicted: UInt8[np.ndarray, "t d h w"] | Bool[np.ndarray, "k t d h w"],
    question: Question,
    spacing: tuple[float | None, float, float] | None = None,
    scored: Sequence[Boxes] = (),
    tolerance: float = TOLERANCE,
) -> list[Row]:
    """A row for each frame of a case.

    Args:
        patient: whose case it is.
        reference: label map in the question's values.
        predicted: the same, or a mask for each class, which regions need.
        question: with ``separate``, lesions are counted, too (found by at least one shared pixel).
        spacing: millimetres along (depth, height, width); ``None`` where a distance is not known. Then, and where
            only that of the slices is unknown, distances are in pixels.
        scored: for each frame the boxes of predicted lesions with their scores, for average precision and FROC; the
            boxes of the reference are those around its lesions.
        tolerance: of the normalised surface distance, in millimetres or pixels.
    """
    flat = reference.shape[1] == 1
    known = spacing is not None and (flat or spacing[0] is not None)
    scale = (1.0, 1.0, 1.0) if spacing is None or not known else (spacing[0] or 1.0, spacing[1], spacing[2])
    unit, size_unit = ("mm", "mm2" if flat else "ml") if known else ("px", "px2" if flat else "voxels")
    size = float(np.prod(scale[1:])) if flat else float(np.prod(scale)) / (1000 if known else 1)
    extent = np.array(reference.shape[1:])
    diagonal = float(np.linalg.norm(extent * scale * (extent > 1)))
    found = []
    for frame, truth in enumerate(reference):
        counted = truth != question.unknown
        numbers, matches = {}, {}
        for number, name in enumerate(question.classes):
            ours = _of_class(truth, question, number)
            if predicted.ndim == 4:
                theirs = _of_class(predicted[frame], question, number)
            else:
                theirs = predicted[number, frame]
            ours, theirs = ours & counted, theirs & counted
            # In the part of a CT that holds a lesion everything is found many times faster.
            window = surface.window(ours | theirs) or (slice(1), slice(1), slice(1))
            ours, theirs = ours[window], theirs[window]
            numbers[name] = _numbers(ours, theirs, scale, tolerance, diagonal, flat)
            numbers[name]["size"] *= size
            if question.separate:
                numbers[name] |= _lesions(ours, theirs)
                if scored:
                    matches[name] = boxes.match(_around(ours, window), *scored[frame].of(number), THRESHOLDS)
        found.append(Row(patient, numbers, matches, unit, size_unit))
    return found


def _of_class(labels: UInt8[np.ndarray, "d h w"], question: Question, number: int) -> NDArray[np.bool_]:
    table = np.zeros(256, bool)
    table[list(question.values[number])] = True
    return np.asarray(table[labels])


def _numbers(
    ours: NDArray[np.bool_],
    theirs: NDArray[np.bool_],
    scale: tuple[float, float, float],
    tolerance: float,
    diagonal: float,
    flat: bool,
) -> dict[str, float]:
    """Figures of one class in one frame; ``size`` of the reference in pixels."""
    # In an image of one slice an outline has no pixels above or below it.
    pair = (ours[0], theirs[0], scale[1:]) if flat else (ours, theirs, scale)
    apart = surface.distances(*pair)
    # nan stays nan
    hd95, assd = (diagonal if far == np.inf else far for far in (surface.hausdorff(apart), surface.assd(apart)))
    size = int(np.count_nonzero(ours))
    return {
        "size": float(size),
        "present": float(size > 0),
        "drawn": float(theirs.any()),
        "dice": overlap.dice(ours, theirs),
        "iou": overlap.iou(ours, theirs),
        "hd95": hd95,
        "assd": assd,
        "nsd": surface.nsd(apart, tolerance),
        "volume_error": overlap.volume_error(ours, theirs),
    }


def _lesions(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> dict[str, float]:
    found = lesions.match(ours, theirs)
    return {
        "lesions": float(len(found.found)),
        "lesions_found": float(found.found.sum()),
        "lesions_drawn": float(len(found.real)),
        "lesions_real": float(found.real.sum()),
    }


def _around(mask: NDArray[np.bool_], window: tuple[slice, ...]) -> NDArray[np.float64]:
    """The boxes ``(n, 6)`` around the lesions of a mask, which is that part of an image."""
    places = ndimage.find_objects(lesions.components(mask)[0])
    edges = [[*(part.start for part in place), *(part.stop for part in place)] for place in places]
    start = np.array([part.start or 0 for part in window])
    return np.asarray(np.array(edges, np.float64).reshape(-1, 6) + np.tile(start, 2))


def detection_row(
    patient: str, reference: Boxes, predicted: Boxes, question: Question, known: Sequence[str] | None = None
) -> Row:
    """The row of a case, or of a frame of it, whose boxes are known.

    Args:
        patient: whose case it is.
        reference: all boxes that there are.
        predicted: boxes with scores; also those of low score, for curves need them.
        question: its classes.
        known: classes of which it is known where they are and where not; ``None`` for all. What is predicted for
            another one is neither right nor wrong.
    """
    matches = {
        name: boxes.match(reference.of(number)[0], *predicted.of(number), THRESHOLDS)
        for number, name in enumerate(question.classes)
        if known is None or name in known
    }
    return Row(patient, {}, matches)


def quality(row: Row, threshold: float = 0.5) -> float:
    """One number to put cases in order, the best last: mean Dice, or F1 of the boxes from a score on (IoU 0.1).

    nan where nothing is there and nothing was drawn.
    """
    dice = [numbers["dice"] for numbers in row.numbers.values() if np.isfinite(numbers["dice"])]
    if row.numbers:
        return float(np.mean(dice)) if dice else float("nan")
    stated = [(one, one.score >= threshold) for one in row.matches.values()]
    both = sum(int(one.count.sum() + kept.sum()) for one, kept in stated)
    return 2 * sum(int(one.hit[kept, 0].sum()) for one, kept in stated) / both if both else float("nan")


def mean_quality(rows: Sequence[Row], threshold: float = 0.5) -> float:
    """:func:`quality` of a case, the mean over its frames; nan where there is nothing in any of them."""
    found = [value for value in (quality(row, threshold) for row in rows) if np.isfinite(value)]
    return float(np.mean(found)) if found else float("nan")
