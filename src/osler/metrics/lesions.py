"""Lesion by lesion: how many were found, and how many of those drawn are real.

A lesion is a connected part of a mask, connected over faces, edges and corners (8 neighbours in 2D, 26 in 3D). Two
rules say when one is found; both are named in every result:

``overlap``
    A lesion of the reference is found if predicted lesions cover at least ``least`` of it, and at least one pixel; a
    predicted lesion is real if lesions of the reference cover as much of it. One may find several, and several one.
``iou``
    One to one: pairs with an intersection over union of at least ``least`` are taken from the highest down, each
    lesion once. Two lesions drawn as one are at most one found.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from osler.metrics.rows import ratio

Rule = Literal["overlap", "iou"]
Pixels = Bool[np.ndarray, "*size"]
Parts = Integer[np.ndarray, "*size"]


@dataclass(frozen=True, eq=False)
class Lesions:
    """What became of each lesion.

    Attributes:
        found: a row for each lesion of the reference.
        real: a row for each predicted lesion.
        partner: for each predicted lesion the row of the reference lesion with which its intersection over union is
            the highest under rule ``overlap``, or that it was paired with under rule ``iou``; -1 without one.
    """

    found: Bool[np.ndarray, " r"]
    real: Bool[np.ndarray, " p"]
    partner: Integer[np.ndarray, " p"]

    @property
    def sensitivity(self) -> float:
        """The share of the reference's lesions that was found; nan without one."""
        return ratio(float(self.found.sum()), len(self.found))

    @property
    def precision(self) -> float:
        """The share of predicted lesions that is real; nan without one."""
        return ratio(float(self.real.sum()), len(self.real))


def components(mask: Pixels) -> tuple[Parts, int]:
    """Connected parts numbered from 1 in the order of their first pixel, 0 elsewhere; and how many there are."""
    parts, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return parts, int(count)


def match(reference: Pixels, prediction: Pixels, rule: Rule = "overlap", least: float = 0.0) -> Lesions:
    """Which lesions of the reference were found and which predicted ones are real.

    Args:
        reference, prediction: of the same shape.
        rule: see the module.
        least: share of the lesion covered, or the intersection over union; 0 is a single shared pixel.

    Raises:
        ValueError: ``least`` is not between 0 and 1.
    """
    if not 0 <= least <= 1:
        raise ValueError(f"what must be shared is a share between 0 and 1; got {least}")
    (ours, n), (theirs, m) = components(reference), components(prediction)
    return _matched(_shared(ours, theirs, n, m), _sizes(ours, n), _sizes(theirs, m), rule, least)


def _sizes(parts: Parts, count: int) -> Integer[np.ndarray, " parts"]:
    return np.bincount(parts[parts > 0] - 1, minlength=count)


def _shared(ours: Parts, theirs: Parts, n: int, m: int) -> Integer[np.ndarray, "n m"]:
    """How many pixels each pair of lesions has in common."""
    both = (ours > 0) & (theirs > 0)
    pair = (ours[both].astype(np.int64) - 1) * m + theirs[both] - 1
    return np.bincount(pair, minlength=n * m).reshape(n, m)


def _matched(
    shared: Integer[np.ndarray, "n m"],
    ours: Integer[np.ndarray, " n"],
    theirs: Integer[np.ndarray, " m"],
    rule: Rule,
    least: float,
) -> Lesions:
    union = ours[:, None] + theirs[None, :] - shared
    iou = shared / union
    n, m = shared.shape
    if rule == "overlap":
        of_ours, of_theirs = shared.sum(1), shared.sum(0)
        found, real = ((part > 0) & (part >= least * whole) for part, whole in ((of_ours, ours), (of_theirs, theirs)))
        best = iou.argmax(0) if n else np.zeros(m, np.intp)
        return Lesions(found, real, np.where(of_theirs > 0, best, -1))
    found, real, partner = np.zeros(n, bool), np.zeros(m, bool), np.full(m, -1)
    first, second = np.nonzero((shared > 0) & (iou >= least))
    for at in np.argsort(-iou[first, second], kind="stable"):
        i, j = first[at], second[at]
        if not found[i] and not real[j]:
            found[i] = real[j] = True
            partner[j] = i
    return Lesions(found, real, partner)
