"""Counts of truth against prediction, and the rates that come from them."""

import numpy as np
from jaxtyping import Float

from osler.metrics.rows import Rows, mean, ratio, weigh


def confusion_matrix(
    target: Rows, predicted: Rows, classes: int, weight: Rows | None = None
) -> Float[np.ndarray, "{classes} {classes}"]:
    """How often each class (row) was called each class (column).

    Args:
        target: whole numbers from 0 to ``classes - 1``, the truth.
        predicted: whole numbers from 0 to ``classes - 1``.
        classes: number of classes.
        weight: how often each row counts.

    Raises:
        ValueError: a number outside the classes.
    """
    t, p = np.asarray(target, np.intp), np.asarray(predicted, np.intp)
    if len(t) and not (min(t.min(), p.min()) >= 0 and max(t.max(), p.max()) < classes):
        raise ValueError(f"class numbers must be 0 to {classes - 1}")
    counts = np.bincount(t * classes + p, weigh(weight, len(t)), minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.float64)


def accuracy(target: Rows, predicted: Rows, classes: int, weight: Rows | None = None) -> float:
    """Share of rows that were called what they are; nan without rows."""
    matrix = confusion_matrix(target, predicted, classes, weight)
    return ratio(np.trace(matrix), matrix.sum())


def balanced_accuracy(target: Rows, predicted: Rows, classes: int, weight: Rows | None = None) -> float:
    """Mean sensitivity over the classes that occur in truth (Brodersen et al., 2010); nan without rows."""
    matrix = confusion_matrix(target, predicted, classes, weight)
    true = matrix.sum(axis=1)
    return mean(np.diag(matrix)[true > 0] / true[true > 0])


def f1(target: Rows, predicted: Rows, classes: int, weight: Rows | None = None) -> float:
    """Macro F1: the mean of 2 TP / (2 TP + FP + FN) over the classes that occur in truth or prediction."""
    matrix = confusion_matrix(target, predicted, classes, weight)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)
    return mean(2 * np.diag(matrix)[total > 0] / total[total > 0])


def sensitivity(target: Rows, predicted: Rows, weight: Rows | None = None) -> float:
    """Share of the positives that were called positive, for arrays of 0 and 1; nan without positives."""
    return mean(np.asarray(predicted) == 1, weigh(weight, len(target)) * (np.asarray(target) == 1))


def specificity(target: Rows, predicted: Rows, weight: Rows | None = None) -> float:
    """Share of the negatives that were called negative, for arrays of 0 and 1; nan without negatives."""
    return mean(np.asarray(predicted) == 0, weigh(weight, len(target)) * (np.asarray(target) == 0))


def precision(target: Rows, predicted: Rows, weight: Rows | None = None) -> float:
    """Share of those called positive that are (positive predictive value); nan if none was called positive.

    It depends on how common the class is in the rows: in a set made up half and half it is not that of a clinic.
    """
    return mean(np.asarray(target) == 1, weigh(weight, len(target)) * (np.asarray(predicted) == 1))
