"""Predicted numbers against measured ones."""

import numpy as np
from jaxtyping import Float

from osler.metrics.estimate import NAN
from osler.metrics.rows import Rows, mean, ratio, weigh


def mae(target: Rows, predicted: Rows, weight: Rows | None = None) -> float:
    """Mean absolute error, in the target's unit."""
    return mean(np.abs(_error(target, predicted)), weight)


def rmse(target: Rows, predicted: Rows, weight: Rows | None = None) -> float:
    """Root of the mean squared error, in the target's unit."""
    return float(np.sqrt(mean(_error(target, predicted) ** 2, weight)))


def r2(target: Rows, predicted: Rows, weight: Rows | None = None) -> float:
    """Share of the target's variance that is explained, 1 at best, below 0 if worse than the mean of the targets.

    nan if the targets are all equal.
    """
    y = np.asarray(target, np.float64)
    if _constant(y, weight):
        return NAN
    return 1 - ratio(mean(_error(target, predicted) ** 2, weight), mean((y - mean(y, weight)) ** 2, weight))


def pearson(target: Rows, predicted: Rows, weight: Rows | None = None) -> float:
    """Product-moment correlation (Pearson, 1895); nan if either side is constant."""
    a, b = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
    if _constant(a, weight) or _constant(b, weight):
        return NAN
    a, b = a - mean(a, weight), b - mean(b, weight)
    root = np.sqrt(mean(a**2, weight)) * np.sqrt(mean(b**2, weight))
    return float(np.clip(ratio(mean(a * b, weight), root), -1, 1))


def spearman(target: Rows, predicted: Rows, weight: Rows | None = None) -> float:
    """Rank correlation (Spearman, 1904), ties with their mean rank; nan if either side is constant."""
    return pearson(_ranks(target, weight), _ranks(predicted, weight), weight)


def _error(target: Rows, predicted: Rows) -> Float[np.ndarray, " n"]:
    return np.asarray(predicted, np.float64) - np.asarray(target, np.float64)


def _constant(values: Rows, weight: Rows | None) -> bool:
    # by the values themselves: the mean of equal numbers can differ from them by rounding
    kept = values[weigh(weight, len(values)) > 0]
    return len(kept) == 0 or bool((kept == kept[0]).all())


def _ranks(values: Rows, weight: Rows | None) -> Float[np.ndarray, " n"]:
    """Mean rank of each value (less one half), a row of weight 2 taking two places."""
    _, place = np.unique(values, return_inverse=True)
    places = np.bincount(place, weigh(weight, len(values)))
    return np.asarray((np.cumsum(places) - places / 2)[place], np.float64)
