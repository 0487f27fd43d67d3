"""Intervals by drawing patients again and again (Efron and Tibshirani, 1993; clusters: Field and Welsh, 2007)."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int

from osler.metrics.auroc import auroc, exact_interval
from osler.metrics.estimate import NAN, Estimate
from osler.metrics.rows import Rows

# numbers that a batch of draws may hold at once: 2 MiB of 32-bit counts stay in the processor's cache
_BATCH = 1 << 19


def _counts(groups: int, draws: int, seed: int) -> Iterator[Int[np.ndarray, "_ groups"]]:
    """Batches of draws: how often each of the patients was drawn, with replacement, as many as there are."""
    generator = np.random.default_rng(seed)
    batch = max(1, _BATCH // groups)
    for start in range(0, draws, batch):
        size = min(batch, draws - start)
        drawn = generator.integers(groups, size=(size, groups), dtype=np.int64)
        drawn += np.arange(size)[:, None] * groups
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups)


def _percentiles(
    value: float, drawn: Float[np.ndarray, " draws"], groups: int, n: int, confidence: float
) -> Estimate:
    kept = drawn[~np.isnan(drawn)]
    method = f"bootstrap of {groups} patients, {len(drawn)} draws"
    if len(kept) < len(drawn):
        method += f", {len(drawn) - len(kept)} of them without a value left out"
    if groups < 2 or len(kept) == 0 or np.isnan(value):
        return Estimate(value, NAN, NAN, n, method)
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), n, method)


def bootstrap(
    statistic: Callable[[Float[np.ndarray, " n"]], float],
    clusters: Rows,
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Any statistic with its percentile interval over whole patients drawn with replacement.

    Args:
        statistic: from ``weight``, how often each row was drawn, to a number; nan where it is not defined.
        clusters: the patient of each row: all rows of a patient are drawn together.
        draws: number of bootstrap samples.
        seed: the same seed draws the same patients, whatever the statistic: so two can be compared in pairs.
        confidence: of the two-sided interval.

    Returns:
        ``value`` is the statistic of all rows once each. Draws that give nan (e.g. without a positive) are left
        out and counted in ``method``; the interval is nan with fewer than two patients.
    """
    n = len(clusters)
    names, place = np.unique(clusters, return_inverse=True)
    value = float(statistic(np.ones(n)))
    drawn = [
        float(statistic(count[place].astype(np.float64)))
        for batch in (_counts(len(names), draws, seed) if len(names) > 1 else ())
        for count in batch
    ]
    return _percentiles(value, np.asarray(drawn, np.float64), len(names), n, confidence)


def bootstrap_auroc(target: Rows, score: Rows, clusters: Rows, draws: int = 2000, seed: int = 0) -> Estimate:
    """The AUROC with its 95 % bootstrap interval over patients: :func:`bootstrap` of ``auroc``, many draws at once.

    Sorts once: a draw's area is then a running sum of its negatives, looked up at each positive.
    Where all draws agree (all positives above all negatives) the interval is that of
    :func:`osler.metrics.auroc.exact_interval`, for one without width would be a lie.
    """
    n, value = len(clusters), auroc(target, score)
    names, place = np.unique(clusters, return_inverse=True)
    if np.isnan(value) or len(names) < 2:
        return _percentiles(value, np.empty(0), len(names), n, 0.95)
    positive = np.asarray(target) == 1
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(np.asarray(score)[negatives])]
    others = np.asarray(score)[negatives]
    below, upto = (np.searchsorted(others, np.asarray(score)[positive], side) for side in ("left", "right"))
    tied = bool((below != upto).any())
    drawn = []
    for counts in _counts(len(names), draws, seed):
        beaten = np.zeros((len(counts), len(negatives) + 1))
        np.cumsum(counts[:, place[negatives]], axis=1, out=beaten[:, 1:])
        won = (beaten[:, below] + beaten[:, upto]) / 2 if tied else beaten[:, below]
        of_positives = counts[:, place[positive]].astype(np.float64)
        with np.errstate(invalid="ignore"):
            area = np.einsum("dp,dp->d", won, of_positives) / (beaten[:, -1] * of_positives.sum(axis=1))
        drawn.append(area)
    areas = np.concatenate(drawn)
    if np.nanmin(areas, initial=np.inf) == np.nanmax(areas, initial=-np.inf):
        return exact_interval(target, value, clusters)
    return _percentiles(value, areas, len(names), n, 0.95)
