"""Intervals by drawing patients again and again (Efron and Tibshirani, 1993; clusters: Field and Welsh, 2007)."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from osler import draws as random
from osler import kernels
from osler.metrics.auroc import auroc, exact_interval
from osler.metrics.estimate import NAN, Estimate
from osler.metrics.rows import Rows

# counts that a batch of draws may hold at once: 512 KiB, which a processor's cache holds
_BATCH = 1 << 16
# rows times draws that take without the compiled loop about as long as its compiling
_PAYS = 10**8
_worked = 0


def _counts(groups: int, draws: int, seed: int) -> Iterator[Int[np.ndarray, "_ groups"]]:
    """Batches of draws: how often each of the patients was drawn, with replacement, as many as there are."""
    batch = max(1, _BATCH // groups)
    for start in range(0, draws, batch):
        key = random.keys(seed, np.arange(start, min(start + batch, draws)))
        drawn = random.whole(key, "bootstrap", groups, groups)
        drawn += np.arange(len(key))[:, None] * groups
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


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


def bootstrap_several(
    statistic: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " k"]],
    clusters: Rows,
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Estimate]:
    """As :func:`bootstrap`, for a statistic of several numbers that are found together, an estimate for each."""
    n = len(clusters)
    names, place = np.unique(clusters, return_inverse=True)
    values = statistic(np.ones(n))
    drawn = np.array(
        [
            statistic(count[place].astype(np.float64))
            for batch in (_counts(len(names), draws, seed) if len(names) > 1 else ())
            for count in batch
        ]
    ).reshape(-1, len(values))
    return [
        _percentiles(float(value), column, len(names), n, confidence)
        for value, column in zip(values, drawn.T, strict=True)
    ]


def bootstrap_auroc(target: Rows, score: Rows, clusters: Rows, draws: int = 2000, seed: int = 0) -> Estimate:
    """The AUROC with its 95 % bootstrap interval over patients: :func:`bootstrap` of ``auroc``, many draws at once.

    Sorts once: a draw's area is then a running sum of its negatives, looked up at each positive. Where numba is
    installed, a compiled loop does it as soon as a process has done enough to be worth the compiling.
    Where all draws agree (all positives above all negatives) the interval is that of
    :func:`osler.metrics.auroc.exact_interval`, for one without width would be a lie.
    """
    n, value = len(clusters), auroc(target, score)
    names, place = np.unique(clusters, return_inverse=True)
    if np.isnan(value) or len(names) < 2:
        return _percentiles(value, np.empty(0), len(names), n, 0.95)
    areas = _areas(np.asarray(target) == 1, np.asarray(score), place, draws, seed)
    if np.nanmin(areas, initial=np.inf) == np.nanmax(areas, initial=-np.inf):
        return exact_interval(target, value, clusters)
    return _percentiles(value, areas, len(names), n, 0.95)


def _areas(
    positive: Bool[np.ndarray, " n"], score: Rows, patient: Int[np.ndarray, " n"], draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """The area of each draw; the same to the last bit with the compiled loop and without."""
    global _worked
    _worked += len(score) * draws
    others, groups = np.sort(score[~positive]), int(patient.max()) + 1
    below, upto = (np.searchsorted(others, score[positive], side) for side in ("left", "right"))
    of_positives, of_negatives = patient[positive], patient[~positive][np.argsort(score[~positive])]
    loop = kernels.find("areas") if _worked > _PAYS else None
    if loop is not None:
        starts, found = random.start(random.keys(seed, np.arange(draws)), "bootstrap"), np.empty(draws)
        rows = [x.astype(np.uint32) for x in (of_positives, of_negatives, below, upto)]
        kernels.spread(
            lambda first, last: loop.areas(starts[first:last], groups, *rows, found[first:last]),
            draws,
            kernels.cores(),
        )
        return found
    drawn = []
    for counts in _counts(groups, draws, seed):
        # whole numbers throughout: exact, and faster than floats
        times, beaten = counts.take(of_positives, axis=1), np.zeros((len(counts), len(others) + 1), np.int64)
        np.cumsum(counts.take(of_negatives, axis=1), axis=1, out=beaten[:, 1:])
        won = np.einsum("dp,dp->d", beaten.take(below, axis=1) + beaten.take(upto, axis=1), times)
        with np.errstate(invalid="ignore"):
            drawn.append(won / (2 * beaten[:, -1] * times.sum(axis=1)))
    return np.concatenate(drawn)
