"""Boxes against boxes: intersection over union, average precision, free-response ROC.

Boxes are rows of edges, all starts before all stops: ``(x0, y0, x1, y1)`` in any order of axes in 2D, six numbers in
3D. The intersection over union does not change when an axis is stretched, so pixels and millimetres give the same.

Matching follows COCO (Lin et al., 2014; ``pycocotools``). In each image and class, the 100 surest boxes take turns,
the surest first, equal scores in the order given. Each takes the box of the reference that nobody took and that it
overlaps most, if that is at least the threshold; of equal ones the last. What takes none is a false positive, also
a second box on a lesion that is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from osler.metrics.rows import weigh

COCO = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS = np.linspace(0, 1, 101)
CPM_RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
MOST = 100


def iou(a: Float[np.ndarray, "n edges"], b: Float[np.ndarray, "m edges"]) -> Float[np.ndarray, "n m"]:
    """The intersection over union of every pair; boxes that only touch have 0."""
    axes = a.shape[1] // 2
    shared = np.ones((len(a), len(b)))
    for axis in range(axes):
        start = np.maximum(a[:, None, axis], b[None, :, axis])
        stop = np.minimum(a[:, None, axis + axes], b[None, :, axis + axes])
        shared *= np.maximum(stop - start, 0)
    size_a, size_b = (np.prod(x[:, axes:] - x[:, :axes], axis=1) for x in (a, b))
    return np.asarray(shared / (size_a[:, None] + size_b[None, :] - shared))


@dataclass(frozen=True, eq=False)
class Matches:
    """The boxes of one class in one image, or in many, the surest first within an image.

    Attributes:
        score: of each predicted box.
        hit: whether it took a box of the reference, at each threshold.
        image: row of the image in which it lies.
        found: whether a box of the reference was taken, at each threshold; in the order given.
        count: boxes of the reference in each image.
    """

    score: Float[np.ndarray, " n"]
    hit: Bool[np.ndarray, "n thresholds"]
    image: Int[np.ndarray, " n"]
    found: Bool[np.ndarray, "r thresholds"]
    count: Int[np.ndarray, " images"]


def match(
    reference: Float[np.ndarray, "r edges"],
    predicted: Float[np.ndarray, "n edges"],
    score: Float[np.ndarray, " n"],
    thresholds: Sequence[float],
) -> Matches:
    """The boxes of one class in one image against its reference, by the rules of the module."""
    order = np.argsort(-score, kind="stable")[:MOST]
    pairs = iou(predicted[order], reference)
    hit = np.zeros((len(order), len(thresholds)), bool)
    found = np.zeros((len(reference), len(thresholds)), bool)
    for column, threshold in enumerate(thresholds):
        # As COCO: 0.5 of a box is enough at 0.5, whatever rounding makes of it.
        free, least = np.ones(len(reference), bool), min(threshold, 1 - 1e-10)
        for row in np.flatnonzero((pairs >= least).any(1)) if len(reference) else ():
            overlap = np.where(free, pairs[row], -1)
            last = len(overlap) - 1 - int(overlap[::-1].argmax())
            if overlap[last] >= least:
                hit[row, column], found[last, column], free[last] = True, True, False
    image = np.zeros(len(order), np.int64)
    return Matches(np.asarray(score[order], np.float64), hit, image, found, np.array([len(reference)]))


def together(matches: Sequence[Matches]) -> Matches:
    """The matches of many images as those of one set, in which each keeps the number of its image.

    Raises:
        ValueError: there is none.
    """
    start = np.cumsum([0, *(len(one.count) for one in matches)])
    image = [one.image + first for one, first in zip(matches, start[:-1], strict=True)]
    columns = {
        name: np.concatenate([getattr(one, name) for one in matches]) for name in ("score", "hit", "found", "count")
    }
    return Matches(image=np.concatenate(image), **columns)


class Precision:
    """Average precision at one threshold as a function of the weights of images: sorted once for all draws.

    A weight says how often an image was drawn. The value is COCO's: the mean over 101 recalls, 0 to 1, of the highest
    precision at that recall or above; all images together, equal scores in the order of the images (of an image that
    was drawn twice, both times in a row).
    """

    def __init__(self, matches: Matches) -> None:
        order = np.argsort(-matches.score, kind="stable")
        self._image, self._count = matches.image[order], matches.count
        self._hits = [np.flatnonzero(column) for column in matches.hit[order].T]

    def __call__(self, weight: Float[np.ndarray, " images"] | None = None) -> Float[np.ndarray, " thresholds"]:
        """The average precision at each threshold; nan where no image with a box of the reference has weight."""
        w = weigh(weight, len(self._count))
        total, each = float(w @ self._count), w[self._image]
        if total == 0:
            return np.full(len(self._hits), np.nan)
        rank = np.cumsum(each)
        return np.array([_area(np.cumsum(each[at]), rank[at], total) for at in self._hits])

    def curve(self, column: int) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """Recall and the highest precision at that recall or above, after each hit, at one threshold."""
        total, at = float(self._count.sum()), self._hits[column]
        hits = np.arange(1, len(at) + 1)
        return hits / max(total, 1), _highest(hits / (at + 1.0))


def _highest(precision: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.maximum.accumulate(precision[::-1])[::-1]


def _area(hits: Float[np.ndarray, " k"], rank: Float[np.ndarray, " k"], total: float) -> float:
    """From hits and all boxes counted up to each hit. Between hits precision only falls, so they are all it takes."""
    drawn = rank > 0
    envelope = _highest(np.divide(hits, rank, out=np.zeros(len(hits)), where=drawn))
    place = np.searchsorted(hits / total, RECALLS, side="left")
    return float(np.append(envelope, 0.0)[place].mean())


class FreeResponse:
    """Free-response ROC at one threshold as a function of the weights of images: sorted once for all draws.

    Lowering the score below which boxes are not drawn, one score after the other, gives points of sensitivity (share
    of the reference's boxes that are taken) against false positives an image; all images count, also those without
    a lesion. Between points it is interpolated linearly, and it stays where it ends, as in LUNA16 (Setio 2017).
    """

    def __init__(self, matches: Matches, column: int) -> None:
        order = np.argsort(-matches.score, kind="stable")
        score = matches.score[order]
        self._image, self._hit = matches.image[order], matches.hit[order, column]
        self._count = matches.count
        # equal scores are drawn together: a threshold cannot part them
        last = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else np.empty(0, np.intp)
        self.score = score[last]
        # Points of the curve: nothing drawn, then after each score.
        self._points = slice(None) if len(last) == len(score) else np.append(0, last + 1)

    def curve(
        self, weight: Float[np.ndarray, " images"] | None = None
    ) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """False positives an image and sensitivity, from drawing nothing to drawing every box."""
        w = weigh(weight, len(self._count))
        wrong, hits = self._counted(w)
        with np.errstate(invalid="ignore", divide="ignore"):
            return wrong / w.sum(), hits / float(w @ self._count)

    def _counted(
        self, w: Float[np.ndarray, " images"]
    ) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """False positives and hits at each point."""
        each = w[self._image]
        drawn, hits = np.zeros((2, len(each) + 1))
        np.cumsum(each, out=drawn[1:])
        np.cumsum(each * self._hit, out=hits[1:])
        return (drawn - hits)[self._points], hits[self._points]

    def sensitivity(
        self, rates: Sequence[float], weight: Float[np.ndarray, " images"] | None = None
    ) -> Float[np.ndarray, " rates"]:
        """At so many false positives an image; nan where there is no box of the reference."""
        w = weigh(weight, len(self._count))
        total = float(w @ self._count)
        if total == 0:
            return np.full(len(rates), np.nan)
        # Only where it is asked for is the curve divided.
        return np.asarray(np.interp(np.asarray(rates) * w.sum(), *self._counted(w)) / total)

    def cpm(self, weight: Float[np.ndarray, " images"] | None = None) -> float:
        """The competition performance metric: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives."""
        return float(self.sensitivity(CPM_RATES, weight).mean())
