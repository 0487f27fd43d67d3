"""How sure a place is, and how far a measurement may be off: fitted on cases held out from training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from osler.case import Finding

Array = NDArray[np.floating[Any]]
# Below this many held-out pairs a 95 % interval would need values that were never seen.
LEAST = 39
_DRAWS = 200


@dataclass(frozen=True, eq=False)
class Doubt:
    """What held-out cases taught about the findings of one task.

    Attributes:
        chance: ``(draws, 2)`` intercept and slope of the chance that a finding is true, over the logit of its score:
            the fit, then refits on resampled patients.
        logs: by class and measurement (``"lesion/volume"``) the sorted logarithms of true over measured.
        threshold: score ``(1,)`` from which a finding is stated.
    """

    chance: Array
    logs: Mapping[str, Array]
    threshold: Array

    def arrays(self) -> dict[str, Array]:
        """By name, for a model file."""
        return {"chance": self.chance, "threshold": self.threshold, **{f"log.{k}": v for k, v in self.logs.items()}}


def of_arrays(arrays: Mapping[str, Array]) -> Doubt:
    """What :meth:`Doubt.arrays` gave; a neutral one of nothing."""
    if "chance" not in arrays:
        return Doubt(np.array([[0.0, 1.0]]), {}, np.array([0.5]))
    logs = {name[4:]: values for name, values in arrays.items() if name.startswith("log.")}
    return Doubt(arrays["chance"], logs, arrays["threshold"])


def fit(
    scores: Sequence[float],
    hits: Sequence[bool],
    patients: Sequence[str],
    logs: Mapping[str, Sequence[float]],
    threshold: float,
    seed: int = 0,
) -> Doubt:
    """The doubt about findings like these.

    Args:
        scores: of every held-out finding, 0 to 1.
        hits: whether each was one of the reader's.
        patients: of each; resampling goes by patient.
        logs: by class and measurement, log(true / measured) of those that were.
        threshold: score from which a finding is stated.
        seed: of the resampling.
    """
    x, y, groups = _logit(np.asarray(scores, float)), np.asarray(hits, float), np.asarray(patients)
    fits = [_logistic(x, y)]
    names, rows = np.unique(groups, return_inverse=True) if len(groups) else (groups, groups)
    rng = np.random.default_rng(seed)
    for _ in range(_DRAWS if len(names) > 1 else 0):
        weight = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[rows].astype(float)
        fits.append(_logistic(x, y, weight))
    return Doubt(np.stack(fits), {k: np.sort(np.asarray(v, float)) for k, v in logs.items()}, np.array([threshold]))


def _logit(p: Array) -> Array:
    p = np.clip(p, 1e-4, 1 - 1e-4)
    return np.asarray(np.log(p / (1 - p)))


def _logistic(x: Array, y: Array, weight: Array | None = None) -> Array:
    """Intercept and slope (Platt 1999), pulled to 0 and 1 as by a handful of cases, and never falling."""
    w = np.ones_like(x) if weight is None else weight

    def loss(b: Array) -> float:
        z = b[0] + b[1] * x
        return float((w * (np.logaddexp(0, z) - y * z)).sum() + 0.5 * b[0] ** 2 + 0.5 * (b[1] - 1) ** 2)

    return np.asarray(minimize(loss, np.array([0.0, 1.0]), method="L-BFGS-B", bounds=[(-10, 10), (0.01, 10)]).x)


def chance(doubt: Doubt, score: float) -> tuple[float, tuple[float, float]]:
    """Probability that a finding of this score is true, and the 95 % interval of that number.

    Where held-out findings are of fewer than two patients nobody knows: 0 to 1.
    """
    z = doubt.chance[:, 0] + doubt.chance[:, 1] * float(_logit(np.array([score]))[0])
    p = 1 / (1 + np.exp(-z))
    low, high = np.quantile(p, [0.025, 0.975]) if len(p) > 1 else (0.0, 1.0)
    return float(p[0]), (float(min(low, p[0])), float(max(high, p[0])))


def limit(doubt: Doubt, scores: Sequence[float], missed: int) -> float:
    """The score from which findings are stated, so that the F1 to be expected is highest: chance is half of it there.

    For any chances the best F1 is reached where what is stated is as likely as half of that F1 (Lipton et al., 2014).
    The one that was best on a hundred held-out findings lies elsewhere by chance, the fitted one hardly.

    Args:
        doubt: fitted on these findings.
        scores: of every held-out finding, one or more.
        missed: how many of the reader's were not found.
    """
    intercept, slope = doubt.chance[0]
    sure = 1 / (1 + np.exp(-intercept - slope * _logit(np.sort(np.asarray(scores, float))[::-1])))
    best = (2 * np.cumsum(sure) / (np.arange(1, len(sure) + 1) + sure.sum() + missed)).max()
    z = (np.log(best / 2) - np.log1p(-best / 2) - intercept) / slope
    return float(1 / (1 + np.exp(-z)))


def interval(doubt: Doubt, name: str, value: float) -> tuple[float, float] | None:
    """Where the reader's own number lies in 95 % of such cases (split conformal; Lei 2018), ``None`` if unknown."""
    logs = doubt.logs.get(name)
    if logs is None or len(logs) < LEAST or value <= 0:
        return None
    count = len(logs)
    last = int(np.ceil(0.975 * (count + 1))) - 1
    low, high = logs[count - 1 - min(last, count - 1)], logs[min(last, count - 1)]
    return float(value * np.exp(low)), float(value * np.exp(high))


def applied(doubt: Doubt, finding: Finding) -> Finding:
    """The finding with the chance that it is true instead of its score, and an interval for each measurement."""
    p, ends = chance(doubt, finding.probability or 0.0)
    measured = tuple(
        replace(m, interval=interval(doubt, f"{finding.name}/{m.name}", m.value)) for m in finding.measurements
    )
    return replace(finding, probability=p, interval=ends, measurements=measured)
