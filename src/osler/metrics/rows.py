"""What all metrics share: one row a case (or an image of a case), each with a weight."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Shaped

Rows: TypeAlias = Shaped[np.ndarray, " n"]
"""One entry a row; in one call all have the same number of rows."""


def weigh(weight: Rows | None, n: int) -> Float[np.ndarray, " n"]:
    """The weights as floats: how often each row counts; once each where none are given.

    A weight of 2 is the same as the row being there twice, of 0 as not at all: so a bootstrap is a weight.
    """
    return np.ones(n) if weight is None else np.asarray(weight, np.float64)


def mean(values: Rows, weight: Rows | None = None) -> float:
    """The weighted mean; nan where there is no row of positive weight."""
    w = weigh(weight, len(values))
    total = float(w.sum())
    return float(w @ np.asarray(values, np.float64)) / total if total > 0 else float("nan")


def ratio(numerator: float, denominator: float) -> float:
    """A quotient that is nan where it is not defined (denominator 0)."""
    return float(numerator) / float(denominator) if denominator != 0 else float("nan")
