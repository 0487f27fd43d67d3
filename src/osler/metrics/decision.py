"""Decision curve analysis: is acting on a prediction better than treating all or none? (Vickers and Elkin, 2006)"""

import numpy as np
from jaxtyping import Float

from osler.metrics.rows import Rows, weigh


def _odds(thresholds: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    if not ((thresholds >= 0) & (thresholds < 1)).all():
        raise ValueError("thresholds must be at least 0 and below 1")
    return np.asarray(thresholds / (1 - thresholds), np.float64)


def net_benefit(
    target: Rows, probability: Rows, thresholds: Float[np.ndarray, " t"], weight: Rows | None = None
) -> Float[np.ndarray, " t"]:
    """True positives less false positives weighed by the odds of the threshold, a row (Vickers and Elkin, 2006).

    Args:
        target: 0 or 1.
        probability: of the positive class; a row is treated if it is at least the threshold.
        thresholds: probabilities from 0 to below 1: how likely disease must be for treatment to be worth it.
        weight: how often each row counts.

    Raises:
        ValueError: a threshold outside [0, 1).
    """
    odds, p = _odds(thresholds), np.asarray(probability, np.float64)
    y, w = np.asarray(target, np.float64), weigh(weight, len(target))
    order = np.argsort(p)
    gained = np.append(np.cumsum((w * y)[order][::-1])[::-1], 0)
    harmed = np.append(np.cumsum((w * (1 - y))[order][::-1])[::-1], 0)
    first = np.searchsorted(p[order], thresholds, side="left")
    total = w.sum()
    return (gained[first] - harmed[first] * odds) / total if total > 0 else np.full(len(thresholds), np.nan)


def net_benefit_all(
    target: Rows, thresholds: Float[np.ndarray, " t"], weight: Rows | None = None
) -> Float[np.ndarray, " t"]:
    """Net benefit of treating everyone, as :func:`net_benefit`; that of treating no one is 0."""
    return net_benefit(target, np.ones(len(target)), thresholds, weight)
