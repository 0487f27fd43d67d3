"""What a sample of annotated cases looks like: how large images are, and how thin what is sought in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from osler import data
from osler.case import Case, Question
from osler.cohort import Cohort, is_known
from osler.problem import Problem

SAMPLE = 32


@dataclass(frozen=True)
class Structures:
    """What a sample of annotated cases looks like.

    Attributes:
        sizes: ``(n, 3)`` of the images, (depth, height, width).
        spacings: ``(n, 3)`` millimetres, NaN where unknown.
        thickness: of the structures that are outlined, pixels: a low quantile of twice the mean depth below their
            surface; inf where nothing is.
        side: of the boxes, pixels: of the class with the smallest ones, a low quantile of the smaller in-plane side;
        inf where there are none.
    """

    sizes: NDArray[np.float64]
    spacings: NDArray[np.float64]
    thickness: float
    side: float


def look(cohort: Cohort, questions: Sequence[Question], names: Sequence[str] = ()) -> Structures:
    """Reads up to 63 cases, evenly spread, with what is outlined in them; none of a test part that has a name.

    Where it is known of some cases only, of these; ``names`` are the modalities that the network will be given.

    Raises:
        Problem: none of them can be read.
    """
    sizes, spacings, thick = [], [], []
    sides: dict[tuple[str, str], list[float]] = {}
    first: Problem | None = None
    entries = [entry for entry in cohort.entries if entry.split != "test"] or list(cohort.entries)
    entries = [entry for entry in entries if any(is_known(entry, q) for q in questions if q.dense)] or entries
    for entry in entries[:: max(1, len(entries) // SAMPLE)]:
        try:
            case = data.read_case(entry, questions, names=names)
            image = next(iter(case.images.values()))
        except Problem as problem:
            first = first or problem
            continue
        sizes.append(image.size)
        known = image.spacing or (math.nan, math.nan, math.nan)
        spacings.append([math.nan if s is None else s for s in known])
        for question in questions:
            thick += _thickness(case, question)
            for name, side in _sides(case, question):
                sides.setdefault((question.task, name), []).append(side)
    if not sizes:
        assert first is not None
        raise Problem(f"no case can be read (the first: {first.clause})", path=cohort.root, fix="check the files")
    return Structures(
        np.array(sizes, float),
        np.array(spacings, float),
        _low(thick),
        min(map(_low, sides.values()), default=math.inf),
    )


def _low(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.1)) if values else math.inf


def _thickness(case: Case, question: Question) -> list[float]:
    """Of each class in the slice that holds most of it: four times the mean distance to its edge.

    That is the width of a long band, and a third more than the radius of a disc.
    """
    found = []
    if question.kind == "segmentation" and question.task in case.maps:
        labels = case.maps[question.task][0]
        for values in question.values:
            there = np.isin(labels, values)
            if there.any():
                plane = there[int(there.sum((1, 2)).argmax())]
                found.append(4 * float(ndimage.distance_transform_edt(plane)[plane].mean()))
    return found


def _sides(case: Case, question: Question) -> list[tuple[str, float]]:
    """Class and smaller in-plane side of each box."""
    if question.kind != "detection":
        return []
    stated = [(f.name, f.box) for f in case.findings if f.task == question.task and f.box is not None]
    return [(name, min(b.stop[1] - b.start[1], b.stop[2] - b.start[2])) for name, b in stated]
