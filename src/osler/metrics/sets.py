"""Prediction sets: do they hold the truth, and how large are they? (Vovk et al., 2005)"""

import numpy as np
from jaxtyping import Bool

from osler.metrics.rows import Rows, mean


def set_coverage(target: Rows, sets: Bool[np.ndarray, "n k"], weight: Rows | None = None) -> float:
    """Share of rows whose set holds the true class.

    Args:
        target: class numbers from 0.
        sets: True where the class is in the row's set.
        weight: how often each row counts.
    """
    return mean(sets[np.arange(len(sets)), np.asarray(target, np.intp)], weight)


def set_size(sets: Bool[np.ndarray, "n k"], weight: Rows | None = None) -> float:
    """Mean number of classes in a set."""
    return mean(sets.sum(axis=1), weight)
