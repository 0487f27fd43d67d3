"""Abstention: how wrong are the answers that are given, if the least confident are withheld?"""

import numpy as np
from jaxtyping import Float

from osler.metrics.estimate import NAN
from osler.metrics.rows import Rows


def risk_coverage(
    wrong: Rows, confidence: Rows, weight: Rows | None = None
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The risk-coverage curve (Geifman and El-Yaniv, 2017).

    Args:
        wrong: 1 or True where the answer is wrong, or any loss.
        confidence: larger is surer; only the order counts. Rows of equal confidence are taken in random order,
            and the curve is the expectation: it does not depend on the order of the rows.
        weight: how often each row counts, a whole number.

    Returns:
        ``(coverage, risk)``, one entry a row from the surest on: the share of rows answered so far, and their
        mean loss.
    """
    loss, sure = np.asarray(wrong, np.float64), np.asarray(confidence)
    if weight is not None:
        times = np.asarray(weight, np.intp)
        loss, sure = np.repeat(loss, times), np.repeat(sure, times)
    _, place = np.unique(-sure.astype(np.float64), return_inverse=True)
    expected = (np.bincount(place, loss) / np.maximum(np.bincount(place), 1))[np.sort(place)]
    answered = np.arange(1, len(loss) + 1)
    return answered / max(len(loss), 1), np.cumsum(expected) / answered


def aurc(wrong: Rows, confidence: Rows, weight: Rows | None = None) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages, lower is better; nan without rows."""
    _, risk = risk_coverage(wrong, confidence, weight)
    return float(risk.mean()) if len(risk) else NAN
