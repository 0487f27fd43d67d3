"""A number with the interval that says how well it is known."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import SupportsFloat, SupportsInt

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A measured number and its confidence interval.

    Attributes:
        value: nan where it is not defined, e.g. an AUROC without positives.
        low: lower end of the interval; nan where none can be had.
        high: upper end of the interval; nan where none can be had.
        n: number of rows that it was measured on.
        method: how the interval was made, for the reader of a report.
    """

    value: float
    low: float
    high: float
    n: int
    method: str = ""


def z_value(confidence: float) -> float:
    """The two-sided quantile of the standard normal distribution, 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(successes: SupportsFloat, n: SupportsInt, confidence: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (1927), without continuity correction.

    Args:
        successes: how many of ``n``, 0 to ``n``.
        n: number of independent trials; with 0 everything is nan.
        confidence: of the two-sided interval.
    """
    count, k, z = int(n), float(successes), z_value(confidence)
    if count == 0:
        return Estimate(NAN, NAN, NAN, 0, "Wilson")
    p = k / count
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    # at the borders the ends are exactly 0 and 1; rounding must not leave the value outside its interval
    return Estimate(p, 0.0 if k == 0 else low, 1.0 if k == count else high, count, "Wilson")
