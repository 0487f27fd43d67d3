"""How much of two masks is the same: Dice, intersection over union, error of the volume.

Rules for empty masks (Maier-Hein et al., Nature Methods 2024: a figure that is not defined is not invented): with one
of the two empty, Dice and IoU are 0; with both empty, there is nothing to compare and everything is nan.
"""

import numpy as np
from jaxtyping import Bool

from osler.metrics.rows import ratio

Pixels = Bool[np.ndarray, "*size"]


def _count(mask: Pixels) -> int:
    return int(np.count_nonzero(mask))


def dice(reference: Pixels, prediction: Pixels) -> float:
    """Twice the intersection over the sum of both (Dice 1945); 0 if one is empty, nan if both are."""
    both = _count(reference & prediction)
    return ratio(2 * both, _count(reference) + _count(prediction))


def iou(reference: Pixels, prediction: Pixels) -> float:
    """The intersection over the union (Jaccard 1912); 0 if one is empty, nan if both are."""
    return ratio(_count(reference & prediction), _count(reference | prediction))


def volume_error(reference: Pixels, prediction: Pixels) -> float:
    """How much larger the prediction is than the reference, as a share of the reference: 0.1 is 10 % too large.

    Below 0 it is too small, -1 if it is empty. nan where the reference is empty.
    """
    size = _count(reference)
    return ratio(_count(prediction) - size, size)
