import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from osler.metrics.ordinal import quadratic_kappa


@pytest.mark.parametrize(("seed", "n", "classes"), [(0, 5, 2), (1, 30, 5), (2, 400, 4), (3, 40, 9)])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_sklearn(seed: int, n: int, classes: int, weighted: bool) -> None:
    random = np.random.default_rng(seed)
    target, predicted = random.integers(0, classes, n), random.integers(0, classes, n)
    weight = random.uniform(size=n) if weighted else None
    expected = cohen_kappa_score(target, predicted, labels=range(classes), weights="quadratic", sample_weight=weight)
    assert quadratic_kappa(target, predicted, classes, weight) == pytest.approx(expected, abs=1e-12)


def test_extremes() -> None:
    grades = np.array([0, 1, 2, 3])
    assert quadratic_kappa(grades, grades, 4) == 1 and quadratic_kappa(grades, grades[::-1], 4) == -1
    assert quadratic_kappa(grades, np.full(4, 2), 4) == 0
    assert math.isnan(quadratic_kappa(np.ones(3, int), np.ones(3, int), 4))
    assert math.isnan(quadratic_kappa(np.zeros(0, int), np.zeros(0, int), 4))
