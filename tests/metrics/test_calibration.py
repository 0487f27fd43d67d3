import math

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from statsmodels.stats.proportion import proportion_confint

from osler.metrics.calibration import brier, ece, ece_binary, reliability, slope_intercept


def example(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets drawn from logit(p') = 0.4 + 0.6 logit(p), the probabilities p and weights."""
    random = np.random.default_rng(seed)
    logit = random.normal(0, 2, n)
    target = (random.uniform(size=n) < 1 / (1 + np.exp(-0.4 - 0.6 * logit))).astype(int)
    return target, 1 / (1 + np.exp(-logit)), random.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("seed", range(4))
def test_brier_agrees_with_sklearn(seed: int) -> None:
    target, p, weight = example(seed, 50)
    assert brier(target, p) == pytest.approx(brier_score_loss(target, p), abs=1e-12)
    assert brier(target == 1, p, weight) == pytest.approx(
        brier_score_loss(target, p, sample_weight=weight), abs=1e-12
    )
    assert brier(target, np.column_stack([1 - p, p])) == pytest.approx(2 * brier(target, p), abs=1e-12)


def test_brier_of_several_classes_is_the_sum_over_classes() -> None:
    random = np.random.default_rng(0)
    truth, p = random.integers(0, 3, 40), random.dirichlet(np.ones(3), 40)
    expected = brier_score_loss(truth, p, labels=[0, 1, 2], scale_by_half=False)
    assert brier(truth, p) == pytest.approx(expected, abs=1e-12)
    assert brier(np.eye(3)[truth], p) == pytest.approx(expected, abs=1e-12)
    assert brier(np.array([0]), np.array([[0.0, 1.0]])) == 2


def test_ece_by_hand() -> None:
    confidence, correct = np.array([0.55, 0.65, 0.95, 1.0]), np.array([1, 0, 1, 1])
    # two bins: (0.5, 1] holds all; ten bins: .45 off, .65 off, and the last two .025 off on average
    assert ece(confidence, correct, bins=1) == pytest.approx(abs(0.7875 - 0.75))
    assert ece(confidence, correct, bins=10) == pytest.approx((0.45 + 0.65 + 2 * 0.025) / 4)
    assert ece(confidence, correct, 10, np.array([1, 1, 0, 0])) == pytest.approx((0.45 + 0.65) / 2)
    assert math.isnan(ece(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_ece_agrees_with_sklearns_curve(bins: int) -> None:
    target, p, _ = example(0, 400)
    observed, mean_p = calibration_curve(target, p, n_bins=bins)
    counts = np.histogram(p, bins=bins, range=(0, 1))[0]
    expected = np.sum(counts[counts > 0] * np.abs(observed - mean_p)) / 400
    assert ece_binary(target, p, bins) == pytest.approx(expected, abs=1e-12)


def test_ece_bins_are_closed_above() -> None:
    edge = np.array([0.0, 0.2, 0.4, 1.0])
    assert [(point.low, point.high, point.n) for point in reliability(np.ones(4), edge, bins=5)] == [
        (0.0, 0.2, 2),
        (0.2, 0.4, 1),
        (0.8, 1.0, 1),
    ]


def statsmodels_fit(target: np.ndarray, logit: np.ndarray, weight: np.ndarray | None) -> tuple[float, float]:
    family, options = sm.families.Binomial(), {"freq_weights": weight}
    slope = sm.GLM(target, sm.add_constant(logit), family, **options).fit(tol=1e-12).params[1]
    return float(slope), float(
        sm.GLM(target, np.ones(len(target)), family, offset=logit, **options).fit(tol=1e-12).params[0]
    )


@pytest.mark.parametrize(("seed", "n"), [(0, 20), (1, 50), (2, 300), (3, 3000)])
@pytest.mark.parametrize("weighted", [False, True])
def test_slope_and_intercept_agree_with_statsmodels(seed: int, n: int, weighted: bool) -> None:
    target, p, weight = example(seed, n)
    logit = np.log(p / (1 - p))
    weight = weight if weighted else None
    expected = pytest.approx(statsmodels_fit(target, logit, weight), abs=1e-6)
    assert slope_intercept(target, p, weight) == expected
    assert slope_intercept(target, logit, weight, logit=True) == expected


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e-3, 7.0), (40.0, -30.0)])
def test_slope_of_extreme_logits_agrees_with_statsmodels(scale: float, shift: float) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=200)
    target = (random.uniform(size=200) < 1 / (1 + np.exp(-x))).astype(int)
    slope, intercept = slope_intercept(target, scale * x + shift, logit=True)
    expected = statsmodels_fit(target, x, None)[0]
    assert slope * scale == pytest.approx(expected, abs=1e-6)
    # calibration in the large: the mean prediction, so moved, is the mean of the targets
    moved = 0.5 + 0.5 * np.tanh((intercept + scale * x + shift) / 2)
    assert moved.mean() == pytest.approx(target.mean(), abs=1e-9)


def test_slope_where_there_is_none() -> None:
    target = np.array([0, 0, 1, 1])
    assert slope_intercept(target, np.array([0.1, 0.2, 0.8, 0.9]))[0] == math.inf
    assert slope_intercept(target, np.array([0.9, 0.8, 0.2, 0.1]))[0] == -math.inf
    slope, intercept = slope_intercept(target, np.full(4, 0.8))
    assert math.isnan(slope) and intercept == pytest.approx(-math.log(4))
    assert all(math.isnan(x) for x in slope_intercept(np.ones(3), np.array([0.1, 0.2, 0.3])))
    assert all(math.isnan(x) for x in slope_intercept(np.zeros(0), np.zeros(0)))
    slope, intercept = slope_intercept(np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 1.0, 0.0]))
    assert slope == pytest.approx(0, abs=1e-9) and intercept == pytest.approx(0, abs=1e-9)


def test_reliability_agrees_with_sklearn_and_statsmodels() -> None:
    target, p, _ = example(1, 300)
    observed, mean_p = calibration_curve(target, p, n_bins=10)
    points = reliability(target, p)
    np.testing.assert_allclose([point.probability for point in points], mean_p)
    np.testing.assert_allclose([point.observed.value for point in points], observed)
    for point in points:
        rows = (p > point.low) & (p <= point.high)
        assert point.n == point.observed.n == rows.sum()
        expected = proportion_confint(target[rows].sum(), rows.sum(), method="wilson")
        assert (point.observed.low, point.observed.high) == pytest.approx(expected, abs=1e-9)
    assert reliability(np.zeros(0), np.zeros(0)) == []
