"""Area under the receiver operating characteristic curve, with DeLong's interval for cases and for patients.

The area is the probability that a positive scores higher than a negative, ties counting half
(Mann and Whitney, 1947). Larger scores mean positive.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import betaincinv

from osler.metrics.estimate import NAN, Estimate, z_value
from osler.metrics.rows import Rows, weigh


def auroc(target: Rows, score: Rows, weight: Rows | None = None) -> float:
    """The area under the curve.

    Args:
        target: 1 or True for positive, 0 or False for negative.
        score: any real numbers, infinite ones included; only their order counts.
        weight: how often each row counts.

    Returns:
        0 to 1; nan if one class is missing (or has no weight), or if a score is nan.
    """
    y, w = np.asarray(target, np.float64), weigh(weight, len(target))
    if len(y) == 0 or np.isnan(score).any():
        return NAN
    _, place = np.unique(score, return_inverse=True)
    positive, negative = np.bincount(place, w * y), np.bincount(place, w * (1 - y))
    pairs = positive.sum() * negative.sum()
    if pairs == 0:
        return NAN
    return float(positive @ (np.cumsum(negative) - negative / 2) / pairs)


def macro_auroc(
    targets: Shaped[np.ndarray, "n k"], scores: Shaped[np.ndarray, "n k"], weight: Rows | None = None
) -> float:
    """The unweighted mean of each class's AUROC against the rest (macro average, one versus rest).

    Args:
        targets: 1 where the row has the class, 0 where not, nan where unknown; unknown entries are left out
            class by class.
        scores: one column a class.
        weight: how often each row counts.

    Returns:
        The mean over the classes that have positives and negatives; nan if none has.
    """
    w = weigh(weight, len(targets))
    areas = []
    for target, score in zip(np.asarray(targets, np.float64).T, np.asarray(scores).T, strict=True):
        known = ~np.isnan(target)
        areas.append(auroc(target[known], score[known], w[known]))
    defined = [area for area in areas if not np.isnan(area)]
    return float(np.mean(defined)) if defined else NAN


def roc_curve(
    target: Rows, score: Rows
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """False positive rate, true positive rate and threshold at each distinct score, from high to low.

    The first threshold is infinity (nothing is called positive); a row is called positive if its score is at
    least the threshold. Rates of a class that is missing are nan.
    """
    y, s = np.asarray(target, np.float64), np.asarray(score, np.float64)
    thresholds, place = np.unique(s, return_inverse=True)
    t = len(thresholds)
    called = np.zeros((2, t + 1))
    for row, rows in enumerate((1 - y, y)):
        called[row, 1:] = np.cumsum(np.bincount(place, rows, minlength=t)[::-1])
    with np.errstate(invalid="ignore"):
        fpr, tpr = called / called[:, -1:]
    return fpr, tpr, np.append(np.inf, thresholds[::-1])


@dataclass(frozen=True)
class _Groups:
    """Which rows are positive and negative, and the number (0, 1, ...) of each one's patient."""

    positive: Shaped[np.ndarray, " n"]
    patient: Int[np.ndarray, " n"]
    clustered: bool

    @property
    def pairs(self) -> int:
        """How many pairs of a positive and a negative there are at most, all from different patients."""
        p, n = np.unique(self.patient[self.positive]), np.unique(self.patient[~self.positive])
        return min(len(p), len(n), len(np.union1d(p, n)) // 2)


def _groups(target: Rows, clusters: Rows | None) -> _Groups:
    if clusters is None:
        patient = np.arange(len(target))
    else:
        patient = np.unique(clusters, return_inverse=True)[1].astype(np.intp)
    return _Groups(np.asarray(target) == 1, patient, len(np.unique(patient)) < len(patient))


def _placements(groups: _Groups, score: Rows) -> Float[np.ndarray, " n"]:
    """For each row the share of the other class that it beats, ties half (Sun and Xu, 2014): O(n log n)."""
    s, share = np.asarray(score), np.empty(len(score))
    for rows, sign in ((groups.positive, 1), (~groups.positive, -1)):
        other = np.sort(s[~rows])
        below = (np.searchsorted(other, s[rows], "left") + np.searchsorted(other, s[rows], "right")) / 2
        share[rows] = below / len(other) if sign > 0 else 1 - below / len(other)
    return share


def _variance(groups: _Groups, share: Float[np.ndarray, " n"]) -> float:
    """Variance of the mean share (Obuchowski, 1997); with one row a patient it is DeLong's (1988).

    nan where a class has fewer than two patients.
    """
    count = int(groups.patient.max()) + 1
    sums, present, sizes = [], [], []
    for rows in (groups.positive, ~groups.positive):
        residual = share[rows] - share[rows].mean()
        sums.append(np.bincount(groups.patient[rows], residual, minlength=count) / rows.sum())
        present.append(np.bincount(groups.patient[rows], minlength=count) > 0)
        sizes.append(int(present[-1].sum()))
    if min(sizes) < 2:
        return NAN
    within = sum(size / (size - 1) * float(s @ s) for s, size in zip(sums, sizes, strict=True))
    return within + 2 * count / (count - 1) * float(sums[0] @ sums[1])


def _exact(value: float, pairs: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's (1934) interval as if ``value`` were the share of ``pairs`` independent pairs won.

    No scores leave more variance than that: var <= AUROC (1 - AUROC) / min(m, n) (Birnbaum and Klose, 1957).
    For an AUROC of 1 the interval holds whatever the scores are: if all positives beat all negatives, then so
    do the independent pairs among them, which happens with probability AUROC ** pairs.
    """
    won, tail = value * pairs, (1 - confidence) / 2
    low = float(betaincinv(won, pairs - won + 1, tail)) if won > 0 else 0.0
    high = float(betaincinv(won + 1, pairs - won, 1 - tail)) if won < pairs else 1.0
    return low, high


# below the smallest variance that a single discordant pair among a million by a million rows leaves, 1e-24
_NO_VARIANCE = 1e-28


def exact_interval(target: Rows, value: float, clusters: Rows | None, confidence: float = 0.95) -> Estimate:
    """An AUROC with a conservative interval that needs no variance: for perfect, constant or single scores.

    Clopper and Pearson's (1934) interval on as many pairs of a positive and a negative as can be formed without
    using a patient twice. nan ends where no such pair exists (e.g. a single patient).
    """
    pairs = _groups(target, clusters).pairs
    low, high = _exact(value, pairs, confidence) if pairs else (NAN, NAN)
    return Estimate(value, low, high, len(target), f"Clopper-Pearson on {pairs} independent pairs")


def delong(target: Rows, score: Rows, clusters: Rows | None = None, confidence: float = 0.95) -> Estimate:
    """The AUROC with the interval of DeLong, DeLong and Clarke-Pearson (1988).

    A normal interval, clipped to [0, 1], with the variance of Obuchowski (1997) where a patient has several
    rows. Where that variance is 0 or not defined (all positives above all negatives, constant scores, a class
    with a single patient) its width would be a lie; then :func:`exact_interval` gives a conservative one.

    Args:
        target: 1 or True for positive, 0 or False for negative.
        score: larger means positive.
        clusters: the patient of each row; each row its own where not given.
        confidence: of the two-sided interval.
    """
    value = auroc(target, score)
    if np.isnan(value):
        return Estimate(NAN, NAN, NAN, len(target), "DeLong")
    groups = _groups(target, clusters)
    variance = _variance(groups, _placements(groups, score))
    if not variance > _NO_VARIANCE:
        return exact_interval(target, value, clusters, confidence)
    half = z_value(confidence) * float(np.sqrt(variance))
    method = "DeLong, clustered (Obuchowski)" if groups.clustered else "DeLong"
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), len(target), method)


def delong_paired(
    target: Rows, score_a: Rows, score_b: Rows, clusters: Rows | None = None, confidence: float = 0.95
) -> Estimate:
    """The difference of two scores' AUROC on the same rows, a - b, with its DeLong interval clipped to [-1, 1].

    Scores that put all rows in the same order differ by nothing in any sample: the interval is [0, 0].
    Otherwise, where the variance is 0 or not defined (e.g. both separate perfectly), the two exact intervals are
    combined by square-and-add (Zou and Donner, 2008) as if independent, which is conservative for scores that
    agree.

    Args: as :func:`delong`.
    """
    a, b = auroc(target, score_a), auroc(target, score_b)
    if np.isnan(a) or np.isnan(b):
        return Estimate(NAN, NAN, NAN, len(target), "DeLong, paired")
    order_a, order_b = (np.unique(score, return_inverse=True)[1] for score in (score_a, score_b))
    if np.array_equal(order_a, order_b):
        return Estimate(0.0, 0.0, 0.0, len(target), "the same order of all rows")
    groups = _groups(target, clusters)
    variance = _variance(groups, _placements(groups, score_a) - _placements(groups, score_b))
    if not variance > _NO_VARIANCE:
        exact_a, exact_b = (exact_interval(target, value, clusters, confidence) for value in (a, b))
        below = float(np.hypot(a - exact_a.low, exact_b.high - b))
        above = float(np.hypot(exact_a.high - a, b - exact_b.low))
        method = f"square-and-add of {exact_a.method}"
    else:
        below = above = z_value(confidence) * float(np.sqrt(variance))
        method = "DeLong, paired, clustered (Obuchowski)" if groups.clustered else "DeLong, paired"
    return Estimate(a - b, max(-1.0, a - b - below), min(1.0, a - b + above), len(target), method)
