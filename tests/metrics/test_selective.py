import math
from itertools import permutations

import numpy as np
import pytest

from osler.metrics.selective import aurc, risk_coverage


def test_risk_coverage_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([True, False, False, True]), np.array([0.6, 0.9, 0.7, 0.8]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(np.array([1, 0, 0, 1]), np.array([0.6, 0.9, 0.7, 0.8])) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_ties_are_the_mean_over_all_orders() -> None:
    wrong, confidence = np.array([0, 1, 1, 0, 1]), np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    curves = []
    for order in permutations([1, 2, 3]):
        loss = wrong[[0, *order, 4]]
        curves.append(np.cumsum(loss) / np.arange(1, 6))
    np.testing.assert_allclose(risk_coverage(wrong, confidence)[1], np.mean(curves, axis=0))
    turned = np.array([3, 4, 0, 2, 1])
    assert aurc(wrong[turned], confidence[turned]) == pytest.approx(aurc(wrong, confidence))


def test_no_order_is_better_than_the_wrong_ones_last() -> None:
    random = np.random.default_rng(0)
    wrong = random.integers(0, 2, 50)
    best, constant, worst = aurc(wrong, 1 - wrong), aurc(wrong, np.zeros(50)), aurc(wrong, wrong)
    assert constant == pytest.approx(wrong.mean())
    assert all(best <= aurc(wrong, random.normal(size=50)) <= worst for _ in range(50))


def test_weight_is_repetition_and_no_rows_are_nan() -> None:
    random = np.random.default_rng(0)
    wrong, confidence, times = random.integers(0, 2, 30), random.uniform(size=30), random.integers(0, 3, 30)
    expected = aurc(np.repeat(wrong, times), np.repeat(confidence, times))
    assert aurc(wrong, confidence, times.astype(float)) == pytest.approx(expected)
    assert math.isnan(aurc(np.zeros(0), np.zeros(0)))
