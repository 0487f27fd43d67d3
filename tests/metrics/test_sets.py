import math

import numpy as np
import pytest

from osler.metrics.sets import set_coverage, set_size

SETS = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]], bool)


def test_by_hand() -> None:
    target, weight = np.array([0, 0, 2, 0]), np.array([3.0, 1.0, 0.0, 1.0])
    assert set_coverage(target, SETS) == 0.5 and set_size(SETS) == 6 / 4
    assert set_coverage(target, SETS, weight) == pytest.approx(3 / 5)
    assert set_size(SETS, weight) == pytest.approx(5 / 5)


def test_extremes() -> None:
    target = np.random.default_rng(0).integers(0, 3, 20)
    assert set_coverage(target, np.ones((20, 3), bool)) == 1 and set_coverage(target, np.zeros((20, 3), bool)) == 0
    assert set_coverage(target, np.eye(3, dtype=bool)[target]) == set_size(np.eye(3, dtype=bool)[target]) == 1
    assert math.isnan(set_coverage(np.zeros(0, int), np.zeros((0, 3), bool)))
    assert math.isnan(set_size(np.zeros((0, 3), bool)))
