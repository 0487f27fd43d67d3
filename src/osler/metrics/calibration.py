"""Do predicted probabilities come true as often as they say?"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from osler.metrics.estimate import NAN, Estimate, wilson
from osler.metrics.rows import Rows, mean, weigh

# probabilities are moved this far from 0 and 1 before a logit: the resolution of single precision near 1
_EDGE = 2.0**-23


def brier(
    target: Shaped[np.ndarray, "n ..."], probability: Shaped[np.ndarray, "n ..."], weight: Rows | None = None
) -> float:
    """Mean squared error of probabilities (Brier, 1950).

    Args:
        target: 0 or 1 a row; for several classes the class number a row, or one-hot ``(n, k)``.
        probability: of the positive class ``(n,)``: the score is then the mean of (p - y)^2, 0 to 1; or of all
            classes ``(n, k)``: then the *sum* over classes, 0 to 2, which for two classes is twice the first.
        weight: how often each row counts.
    """
    y, p = np.asarray(target), np.asarray(probability, np.float64)
    if p.ndim == 2 and y.ndim == 1:
        y = np.eye(p.shape[1])[y.astype(np.intp)]
    error = (p - y.astype(np.float64)) ** 2
    return mean(error.reshape(len(p), -1).sum(axis=1), weight)


def _bin(probability: Rows, bins: int) -> Shaped[np.ndarray, " n"]:
    """Number of the equal-width bin (low, high] of each probability; 0 itself is in the first."""
    edges = np.linspace(0, 1, bins + 1)
    return np.searchsorted(edges[1:-1], np.asarray(probability, np.float64), side="left")


def ece(confidence: Rows, correct: Rows, bins: int = 15, weight: Rows | None = None) -> float:
    """Expected calibration error of the top class (Naeini et al., 2015; Guo et al., 2017), equal-width bins.

    Args:
        confidence: probability of the class that was called.
        correct: 1 or True where that class is the truth.
        bins: number of bins over [0, 1].
        weight: how often each row counts.

    Returns:
        Mean distance of a bin's confidence from its accuracy, 0 to 1; it depends on the number of bins and is
        above 0 by chance in a small sample. nan without rows.
    """
    w = weigh(weight, len(confidence))
    gap = w * (np.asarray(confidence, np.float64) - np.asarray(correct, np.float64))
    by_bin = np.bincount(_bin(confidence, bins), gap, minlength=bins)
    return float(np.abs(by_bin).sum() / w.sum()) if w.sum() > 0 else NAN


def ece_binary(target: Rows, probability: Rows, bins: int = 15, weight: Rows | None = None) -> float:
    """Expected calibration error of the positive class's probability against its observed rate, as :func:`ece`."""
    return ece(probability, target, bins, weight)


def _logistic(
    x: Float[np.ndarray, "n c"],
    y: Float[np.ndarray, " n"],
    w: Float[np.ndarray, " n"],
    offset: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " c"]:
    """Maximum-likelihood logistic regression by Newton's method, a step halved while it makes the fit worse."""

    def loss(beta: Float[np.ndarray, " c"]) -> float:
        eta = offset + x @ beta
        return float(w @ (np.logaddexp(0, eta) - y * eta))

    beta = np.zeros(x.shape[1])
    for _ in range(100):
        p = 0.5 + 0.5 * np.tanh((offset + x @ beta) / 2)
        hessian = x.T @ ((w * np.maximum(p * (1 - p), 1e-300))[:, None] * x)
        step = np.linalg.lstsq(hessian, x.T @ (w * (y - p)), rcond=None)[0]
        here = loss(beta)
        while loss(beta + step) > here and np.abs(step).max() > 1e-12:
            step = step / 2
        beta = beta + step
        if np.abs(step).max() <= 1e-10 * (1 + np.abs(beta).max()):
            break
    return beta


def slope_intercept(
    target: Rows, probability: Rows, weight: Rows | None = None, *, logit: bool = False
) -> tuple[float, float]:
    """Calibration slope and calibration in the large (Van Calster et al., 2019, weak calibration).

    The slope b is that of the logistic regression logit(p') = a + b logit(p): 1 is ideal, below 1 means
    predictions too extreme. The intercept is that of logit(p') = a + logit(p), with the slope held at 1: 0 is
    ideal, below 0 means predictions too high on average.

    Args:
        target: 0 or 1.
        probability: of the positive class (moved 1.2e-7 from 0 and 1), or its logit with ``logit=True``.
        weight: how often each row counts.
        logit: ``probability`` holds logits.

    Returns:
        ``(slope, intercept)``; both nan if one class is missing. The slope is nan if all probabilities are
        equal, and infinite if they separate the classes perfectly (there is then no finite best fit).
    """
    kept = weigh(weight, len(target)) > 0
    w, y = weigh(weight, len(target))[kept], np.asarray(target, np.float64)[kept]
    x = np.asarray(probability, np.float64)[kept]
    if not logit:
        clipped = np.clip(x, _EDGE, 1 - _EDGE)
        x = np.log(clipped) - np.log1p(-clipped)
    if len(np.unique(y)) < 2:
        return NAN, NAN
    intercept = float(_logistic(np.ones((len(x), 1)), y, w, x)[0])
    positive, negative, spread = x[y == 1], x[y == 0], float(x.std())
    if x.min() == x.max():
        return NAN, intercept
    if negative.max() <= positive.min():
        return float("inf"), intercept
    if positive.max() <= negative.min():
        return float("-inf"), intercept
    standard = np.column_stack([np.ones_like(x), (x - x.mean()) / spread])
    return float(_logistic(standard, y, w, np.zeros_like(x))[1] / spread), intercept


@dataclass(frozen=True)
class Bin:
    """One point of a reliability diagram.

    Attributes:
        low: lower end of the bin, not in it (but 0 is in the first).
        high: upper end of the bin, in it.
        probability: mean predicted probability of its rows.
        observed: share of its rows that are positive, with Wilson's interval.
        n: number of its rows.
    """

    low: float
    high: float
    probability: float
    observed: Estimate
    n: int


def reliability(target: Rows, probability: Rows, bins: int = 10) -> list[Bin]:
    """The points of a reliability diagram, from low to high, in equal-width bins; bins without rows are left out."""
    y, p, place = np.asarray(target), np.asarray(probability, np.float64), _bin(probability, bins)
    edges = np.linspace(0, 1, bins + 1)
    points = []
    for number in np.unique(place):
        rows = place == number
        observed = wilson((y[rows] == 1).sum(), rows.sum())
        low, high = float(edges[number]), float(edges[number + 1])
        points.append(Bin(low, high, float(p[rows].mean()), observed, observed.n))
    return points
