import numpy as np
import pytest

from osler.metrics.decision import net_benefit, net_benefit_all


def test_net_benefit_by_hand() -> None:
    target, p = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.2, 0.5, 0.2, 0.1])
    thresholds = np.array([0.0, 0.2, 0.5, 0.75, 0.95])
    # at least the threshold is treated: TP 2 2 1 1 0, FP 3 2 1 0 0, odds 0 1/4 1 3 19
    expected = np.array([2, 2 - 2 / 4, 1 - 1, 1, 0]) / 5
    np.testing.assert_allclose(net_benefit(target, p, thresholds), expected, atol=1e-12)
    np.testing.assert_allclose(
        net_benefit_all(target, thresholds), 0.4 - 0.6 * thresholds / (1 - thresholds), atol=1e-12
    )


def test_net_benefit_by_its_definition_with_ties_and_weights() -> None:
    random = np.random.default_rng(0)
    target, p = random.integers(0, 2, 200), np.round(random.uniform(size=200), 1)
    times, thresholds = random.integers(0, 3, 200), np.round(np.linspace(0, 0.9, 10), 1)
    y, repeated = np.repeat(target, times), np.repeat(p, times)
    expected = [
        ((repeated >= t) & (y == 1)).mean() - ((repeated >= t) & (y == 0)).mean() * t / (1 - t) for t in thresholds
    ]
    np.testing.assert_allclose(net_benefit(target, p, thresholds, times), expected, atol=1e-12)
    np.testing.assert_allclose(net_benefit_all(target, thresholds, times), net_benefit_all(y, thresholds), atol=1e-12)


def test_a_threshold_of_one_is_refused_and_no_rows_are_nan() -> None:
    with pytest.raises(ValueError, match="below 1"):
        net_benefit(np.ones(2), np.ones(2), np.array([0.5, 1.0]))
    assert np.isnan(net_benefit(np.zeros(0), np.zeros(0), np.array([0.1]))).all()
