import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from osler.metrics.estimate import Estimate, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 7), (81, 263), (1, 100_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_statsmodels(successes: int, n: int, confidence: float) -> None:
    ours = wilson(np.int64(successes), np.int64(n), confidence)
    low, high = proportion_confint(successes, n, 1 - confidence, "wilson")
    assert (ours.value, ours.low, ours.high) == pytest.approx((successes / n, low, high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1
    assert ours.n == n


def test_wilson_without_trials_says_so() -> None:
    nothing = wilson(0, 0)
    assert all(math.isnan(x) for x in (nothing.value, nothing.low, nothing.high))
    assert isinstance(nothing, Estimate) and nothing.n == 0
