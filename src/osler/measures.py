"""Figures as functions of the weights of rows, each with the interval that suits it best.

A weight says how often a row was drawn, so one function serves the value, its bootstrap over patients and the
paired comparison of two models. Where a closed form is sound (DeLong, Wilson, sandwich variance) it is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.metrics import auroc, calibration, confusion, ordinal, regression
from osler.metrics.bootstrap import bootstrap
from osler.metrics.estimate import Estimate, wilson
from osler.metrics.rows import mean

Floats = NDArray[np.floating[Any]]
Statistic = Callable[[NDArray[Any]], float]

NET_BENEFIT_AT = (0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, eq=False)
class Measure:
    """One figure: how it comes from the weights of its rows, and its interval.

    Attributes:
        statistic: from the weight of each row to the figure.
        clusters: the patient of each row.
        n: how many rows it is a figure of.
        closed: makes the estimate where an interval in closed form is sound.
        centred: shift the bootstrap so that its median is the value: drawing rows twice inflates the statistic.
    """

    statistic: Statistic
    clusters: NDArray[np.intp]
    n: int
    closed: Callable[[], Estimate] | None = None
    centred: bool = False

    def estimate(self, draws: int, seed: int) -> Estimate:
        """The value with its interval: in closed form, else by drawing patients."""
        if self.closed is not None:
            return self.closed()
        drawn: list[float] = []

        def recorded(weight: NDArray[Any]) -> float:
            drawn.append(self.statistic(weight))
            return drawn[-1]

        found = replace(bootstrap(recorded, self.clusters, draws, seed), n=self.n)
        if found.low == found.high:
            method = f"{found.method}: all gave the same, so no interval"
            return replace(found, low=np.nan, high=np.nan, method=method)
        if self.centred and np.isfinite(found.low):
            shift = float(np.nanmedian(drawn)) - found.value
            low, high = max(0.0, found.low - shift), found.high - shift
            return replace(found, low=low, high=high, method=f"{found.method}, centred")
        return found


Measures = dict[str, Measure]


def share(hits: NDArray[Any], among: NDArray[np.bool_], clusters: NDArray[np.intp]) -> Measure:
    """How often ``hits`` is true among some of the rows."""
    n, patients = int(among.sum()), len(np.unique(clusters[among]))
    value = mean(hits, among)
    statistic: Statistic = lambda weight: mean(hits, weight * among)  # noqa: E731
    if patients == n:
        return Measure(statistic, clusters, n, lambda: wilson(hits[among].sum(), n))
    if value in (0, 1):
        # All draws of patients would agree; as many trials as there are patients is the cautious reading.
        cautious = replace(wilson(value * patients, patients), n=n, method="Wilson, a trial a patient")
        return Measure(statistic, clusters, n, lambda: cautious)
    return Measure(statistic, clusters, n)


def average(values: NDArray[Any], clusters: NDArray[np.intp], among: NDArray[np.bool_] | None = None) -> Measure:
    """The mean of ``values``, over some of the rows."""
    rows = np.ones(len(values), bool) if among is None else among
    return Measure(lambda weight: mean(values, weight * rows), clusters, int(rows.sum()))


def weak_calibration(target: Floats, probability: Floats, clusters: NDArray[np.intp]) -> tuple[Estimate, Estimate]:
    """Calibration slope and intercept with normal intervals from the sandwich variance by patient (White, 1982).

    The bootstrap would fit thousands of logistic regressions for the same interval.
    """
    n, edge = len(target), 2.0**-23
    slope, intercept = calibration.slope_intercept(target, probability)
    nothing = Estimate(np.nan, np.nan, np.nan, n, "sandwich variance by patient")
    if np.isnan(intercept):
        return nothing, nothing
    clipped = np.clip(probability.astype(np.float64), edge, 1 - edge)
    x = np.log(clipped) - np.log1p(-clipped)
    in_large = _sandwich(np.ones((n, 1)), target, intercept + x, clusters)[0]
    large = replace(nothing, value=intercept, low=intercept - 1.96 * in_large, high=intercept + 1.96 * in_large)
    if not np.isfinite(slope):
        return nothing, large
    offset = calibration.slope_intercept(target, slope * x, logit=True)[1]
    error = _sandwich(np.column_stack([np.ones(n), x]), target, offset + slope * x, clusters)[1]
    return replace(nothing, value=slope, low=slope - 1.96 * error, high=slope + 1.96 * error), large


def _sandwich(x: Floats, target: Floats, logit: Floats, clusters: NDArray[np.intp]) -> Floats:
    """Standard errors of a logistic regression's coefficients, residuals of a patient taken together."""
    fitted = 0.5 + 0.5 * np.tanh(logit / 2)
    bread = np.linalg.pinv(x.T @ ((fitted * (1 - fitted))[:, None] * x))
    groups = np.unique(clusters, return_inverse=True)[1]
    summed = np.zeros((groups.max() + 1, x.shape[1]))
    np.add.at(summed, groups, x * (target - fitted)[:, None])
    spread = len(summed) / max(len(summed) - 1, 1)
    return np.asarray(np.sqrt(np.diag(bread @ (summed.T @ summed) @ bread) * spread))


def two_sided(target: Floats, probability: Floats, stated: NDArray[np.bool_], clusters: NDArray[np.intp]) -> Measures:
    """Figures of one class against the rest; ``target`` of 0 and 1, nothing unknown."""
    yes, every = target == 1, np.ones(len(target), bool)
    n, y, called = len(target), yes.astype(np.intp), stated.astype(np.intp)
    grouped = clusters if len(np.unique(clusters)) < n else None

    def drawn(statistic: Statistic) -> Measure:
        return Measure(statistic, clusters, n)

    def balanced(w: NDArray[Any]) -> float:
        return (confusion.sensitivity(y, called, w) + confusion.specificity(y, called, w)) / 2

    def f1(w: NDArray[Any]) -> float:
        hits = w @ (yes & stated)
        return float(2 * hits / (w @ yes + w @ stated)) if w @ yes + w @ stated > 0 else np.nan

    def weak(which: int) -> Measure:
        return Measure(
            lambda w: calibration.slope_intercept(y, probability, w)[which],
            clusters,
            n,
            lambda: weak_calibration(target, probability, clusters)[which],
        )

    measures = {
        "auroc": Measure(
            lambda w: auroc.auroc(y, probability, w), clusters, n, lambda: auroc.delong(y, probability, grouped)
        ),
        "accuracy": share(yes == stated, every, clusters),
        "balanced_accuracy": drawn(balanced),
        "sensitivity": share(stated, yes, clusters),
        "specificity": share(~stated, ~yes, clusters),
        "ppv": share(yes, stated, clusters),
        "npv": share(~yes, ~stated, clusters),
        "f1": drawn(f1),
        "brier": drawn(lambda w: mean((probability - y) ** 2, w)),
        "ece": Measure(lambda w: calibration.ece_binary(y, probability, weight=w), clusters, n, centred=True),
        "calibration_slope": weak(0),
        "calibration_intercept": weak(1),
    }
    for threshold in NET_BENEFIT_AT:
        treated = probability >= threshold
        worth = (treated & yes) - (treated & ~yes) * threshold / (1 - threshold)
        measures[f"net_benefit_{threshold}"] = drawn(partial(mean, worth))
    return measures


def _ranking(target: Floats, score: Floats) -> Statistic:
    """:func:`osler.metrics.auroc.auroc` as a function of the weight, sorted once for all draws."""
    yes, place = (target == 1).astype(float), np.unique(score, return_inverse=True)[1]

    def area(weight: NDArray[Any]) -> float:
        positive, negative = np.bincount(place, weight * yes), np.bincount(place, weight * (1 - yes))
        pairs = float(positive.sum() * negative.sum())
        return float(positive @ (np.cumsum(negative) - negative / 2)) / pairs if pairs > 0 else np.nan

    return area


def _macro(statistics: Sequence[Statistic], known: NDArray[np.bool_]) -> Statistic:
    """The mean of the statistics of all classes, each over its known rows, where it is defined."""

    def macro(weight: NDArray[Any]) -> float:
        found = np.array([statistic(weight * known[:, j]) for j, statistic in enumerate(statistics)])
        return float(np.mean(found[np.isfinite(found)])) if np.isfinite(found).any() else np.nan

    return macro


def several(truth: Floats, probability: Floats, stated: NDArray[np.bool_], clusters: NDArray[np.intp]) -> Measures:
    """Figures of exclusive classes together, all arrays ``(n, k)``, one-hot truth without unknown rows."""
    number, called, k, n = truth.argmax(1), stated.argmax(1), truth.shape[1], len(truth)
    sure, right = probability.max(1), number == called

    def drawn(statistic: Statistic) -> Measure:
        return Measure(statistic, clusters, n)

    return {
        "auroc": drawn(_macro([_ranking(*pair) for pair in zip(truth.T, probability.T, strict=True)], truth >= 0)),
        "accuracy": share(right, np.ones(n, bool), clusters),
        "balanced_accuracy": drawn(lambda w: confusion.balanced_accuracy(number, called, k, w)),
        "f1": drawn(lambda w: confusion.f1(number, called, k, w)),
        "brier": drawn(lambda w: mean(((probability - truth) ** 2).sum(1), w)),
        "ece": Measure(lambda w: calibration.ece(sure, right, weight=w), clusters, n, centred=True),
    }


def ranks(truth: Floats, stated: NDArray[np.bool_], clusters: NDArray[np.intp]) -> Measures:
    """Figures of ordered classes, on top of :func:`several`."""
    number, called, k, n = truth.argmax(1), stated.argmax(1), truth.shape[1], len(truth)
    return {
        "quadratic_kappa": Measure(lambda w: ordinal.quadratic_kappa(number, called, k, w), clusters, n),
        "mae": Measure(lambda w: mean(np.abs(number - called), w), clusters, n),
    }


def labels(truth: Floats, probability: Floats, stated: NDArray[np.bool_], clusters: NDArray[np.intp]) -> Measures:
    """Figures of labels that stand side by side: means over the labels, each of its own known rows."""
    known = np.isfinite(truth)
    yes, n = truth == 1, len(truth)

    def over_labels(statistic: Callable[[int, NDArray[Any]], float]) -> Measure:
        return Measure(_macro([partial(statistic, j) for j in range(truth.shape[1])], known), clusters, n)

    ranked = [_ranking(*pair) for pair in zip(truth.T, probability.T, strict=True)]
    return {
        "auroc": Measure(_macro(ranked, known), clusters, n),
        "accuracy": over_labels(lambda j, w: mean(yes[:, j] == stated[:, j], w)),
        "sensitivity": over_labels(lambda j, w: mean(stated[:, j], w * yes[:, j])),
        "specificity": over_labels(lambda j, w: mean(~stated[:, j], w * ~yes[:, j])),
        "brier": over_labels(lambda j, w: mean((probability[:, j] - yes[:, j]) ** 2, w)),
        "ece": replace(
            over_labels(lambda j, w: calibration.ece_binary(yes[:, j], probability[:, j], weight=w)), centred=True
        ),
    }


def numbers(target: Floats, value: Floats, clusters: NDArray[np.intp]) -> Measures:
    """Figures of a regression, in its unit where they have one."""
    n = len(target)
    return {
        "mae": Measure(lambda w: regression.mae(target, value, w), clusters, n),
        "rmse": Measure(lambda w: regression.rmse(target, value, w), clusters, n),
        "r2": Measure(lambda w: regression.r2(target, value, w), clusters, n),
        "spearman": Measure(lambda w: regression.spearman(target, value, w), clusters, n),
    }
