"""Intervals by drawing patients again and again (Efron and Tibshirani, 1993; clusters: Field and Welsh, 2007)."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int

from osler.metrics.auroc import auroc, exact_interval
from osler.metrics.estimate import NAN, Estimate
from osler.metrics.rows import Rows

# counts that a batch of draws may hold at once: 2 MiB, which a processor's cache holds
_BATCH = 1 << 18


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
    others = np.sort(np.asarray(score)[~positive])
    below, upto = (np.searchsorted(others, np.asarray(score)[positive], side) for side in ("left", "right"))
    of_positives, of_negatives = place[positive], place[~positive][np.argsort(np.asarray(score)[~positive])]
    drawn = []
    for counts in _counts(len(names), draws, seed):
        # whole numbers throughout: exact, and faster than floats
        times, beaten = counts.take(of_positives, axis=1), np.zeros((len(counts), len(others) + 1), np.int64)
        np.cumsum(counts.take(of_negatives, axis=1), axis=1, out=beaten[:, 1:])
        won = np.einsum("dp,dp->d", beaten.take(below, axis=1) + beaten.take(upto, axis=1), times)
        with np.errstate(invalid="ignore"):
            drawn.append(won / (2 * beaten[:, -1] * times.sum(axis=1)))
    areas = np.concatenate(drawn)
    if np.nanmin(areas, initial=np.inf) == np.nanmax(areas, initial=-np.inf):
        return exact_interval(target, value, clusters)
    return _percentiles(value, areas, len(names), n, 0.95)
