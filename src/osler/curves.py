"""What figures are drawn from, as plain lists: short enough to store, whatever the number of cases."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.metrics import auroc, calibration, selective
from osler.metrics import decision as decisions
from osler.metrics.confusion import confusion_matrix

Floats = NDArray[np.floating[Any]]

_BAND_DRAWS = 300
_MOST_POINTS = 400


def _thin(count: int) -> NDArray[np.intp]:
    """Which of many points are kept, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(np.intp))


def roc(target: Floats, score: Floats, clusters: NDArray[np.intp], seed: int | None) -> dict[str, Any]:
    """The ROC curve and, with a seed, a pointwise 95 % band of sensitivity, patients drawn again and again."""
    fpr, tpr, _ = auroc.roc_curve(target, score)
    # A point between two others on one horizontal or vertical line adds nothing.
    inner = ((np.diff(fpr)[:-1] == 0) & (np.diff(fpr)[1:] == 0)) | (
        (np.diff(tpr)[:-1] == 0) & (np.diff(tpr)[1:] == 0)
    )
    corners = np.flatnonzero(np.concatenate([[True], ~inner, [True]]))
    kept = corners[_thin(len(corners))]
    band = {} if seed is None else _band(target, score, clusters, seed)
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist(), **band}


def _band(target: Floats, score: Floats, clusters: NDArray[np.intp], seed: int) -> dict[str, Any]:
    grid, generator = np.linspace(0, 1, 101), np.random.default_rng(seed)
    rows_of = np.split(
        np.argsort(clusters, kind="stable"), np.cumsum(np.unique(clusters, return_counts=True)[1])[:-1]
    )
    heights = []
    for _ in range(_BAND_DRAWS):
        rows = np.concatenate([rows_of[i] for i in generator.integers(len(rows_of), size=len(rows_of))])
        if 0 < target[rows].mean() < 1:
            across, along, _ = auroc.roc_curve(target[rows], score[rows])
            heights.append(along[np.searchsorted(across, grid, side="right") - 1])
    if not heights:
        return {}
    low, high = np.quantile(heights, [0.025, 0.975], axis=0)
    return {"band": {"fpr": grid.tolist(), "low": low.tolist(), "high": high.tolist()}}


def reliability(target: Floats, probability: Floats) -> list[dict[str, Any]]:
    """Mean stated probability and observed share of each of ten bins, with Wilson's interval."""
    return [
        {
            "mean": point.probability,
            "fraction": point.observed.value,
            "low": point.observed.low,
            "high": point.observed.high,
            "n": point.n,
        }
        for point in calibration.reliability(target, probability)
    ]


def decision(target: Floats, probability: Floats) -> dict[str, list[float]]:
    """Net benefit of acting on the model and on everyone, at thresholds of 1 to 99 %."""
    thresholds = np.linspace(0.01, 0.99, 99)
    return {
        "threshold": thresholds.tolist(),
        "model": decisions.net_benefit(target, probability, thresholds).tolist(),
        "all": decisions.net_benefit_all(target, thresholds).tolist(),
    }


def confusion(target: NDArray[np.intp], stated: NDArray[np.intp], classes: int) -> list[list[int]]:
    """Counts of truth (rows) against what was stated (columns)."""
    counts: list[list[int]] = confusion_matrix(target, stated, classes).astype(int).tolist()
    return counts


def risk_coverage(wrong: Floats, certainty: Floats) -> dict[str, Any]:
    """Mean error among the share of cases that are answered first, the most certain before the others."""
    coverage, risk = selective.risk_coverage(wrong, certainty)
    kept = _thin(len(coverage))
    return {"coverage": coverage[kept].tolist(), "risk": risk[kept].tolist()}
