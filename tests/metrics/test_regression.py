import math

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats

from osler.metrics.regression import mae, pearson, r2, rmse, spearman


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("seed", "n"), [(0, 3), (1, 20), (2, 500)])
def test_agrees_with_sklearn_and_scipy(seed: int, n: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    target = np.arange(n) % 4 * 10.0 if ties else random.normal(50, 10, n)
    predicted = np.round(target + random.normal(0, 8, n), -1 if ties and n > 3 else 3)
    weight = random.uniform(0.5, 2, n)
    for w in (None, weight):
        options = {"sample_weight": w}
        assert mae(target, predicted, w) == pytest.approx(sk.mean_absolute_error(target, predicted, **options))
        expected = sk.root_mean_squared_error(target, predicted, **options)
        assert rmse(target, predicted, w) == pytest.approx(expected, abs=1e-9)
        assert r2(target, predicted, w) == pytest.approx(sk.r2_score(target, predicted, **options), abs=1e-9)
    covariance = np.cov(target, predicted, aweights=weight)
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert pearson(target, predicted, weight) == pytest.approx(expected, abs=1e-9)
    assert pearson(target, predicted) == pytest.approx(stats.pearsonr(target, predicted).statistic, abs=1e-9)
    assert spearman(target, predicted) == pytest.approx(stats.spearmanr(target, predicted).statistic, abs=1e-9)


@pytest.mark.parametrize("score", [mae, rmse, r2, pearson, spearman])
def test_weight_is_repetition(score) -> None:
    random = np.random.default_rng(0)
    target, predicted, times = random.normal(size=40), np.round(random.normal(size=40)), random.integers(0, 4, 40)
    expected = score(np.repeat(target, times), np.repeat(predicted, times))
    assert score(target, predicted, times.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_undefined_is_nan() -> None:
    constant, other, empty = np.full(7, 0.1), np.arange(7.0), np.zeros(0)
    assert math.isnan(r2(constant, other))
    for score in (pearson, spearman):
        assert math.isnan(score(constant, other)) and math.isnan(score(other, constant))
    assert all(math.isnan(score(empty, empty)) for score in (mae, rmse, r2, pearson, spearman))
    assert math.isnan(pearson(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([1.0, 0.0])))


def test_monotone_but_not_linear() -> None:
    x = np.arange(1, 20.0)
    assert spearman(x, np.exp(x)) == pytest.approx(1) and pearson(x, np.exp(x)) < 0.8
    assert pearson(x, 3 - 2 * x) == pytest.approx(-1)
