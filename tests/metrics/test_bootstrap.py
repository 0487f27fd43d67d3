import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from osler.metrics.auroc import auroc, delong
from osler.metrics.bootstrap import bootstrap, bootstrap_auroc
from osler.metrics.rows import mean


def example(seed: int, patients: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(patients), random.integers(1, 5, patients))
    random.shuffle(clusters)
    target = random.integers(0, 2, len(clusters))
    score = random.normal(size=len(clusters)) + target + random.normal(size=patients)[clusters]
    return target, np.round(score) if ties else score, clusters


def test_weights_are_whole_patients_as_many_as_there_are() -> None:
    clusters = np.array(["b", "a", "a", "c", "b", "b"])
    seen = []
    bootstrap(lambda weight: seen.append(weight) or 0.0, clusters, draws=200)
    assert (seen[0] == 1).all()
    for weight in seen[1:]:
        drawn = {name: set(weight[clusters == name]) for name in "abc"}
        assert all(len(times) == 1 for times in drawn.values())
        assert sum(times.pop() for times in drawn.values()) == 3
    # each patient is drawn once on average
    assert np.mean(seen[1:], axis=0) == pytest.approx(np.ones(6), abs=0.2)


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    ours = bootstrap(lambda weight: mean(values, weight), np.arange(400), draws=5000, confidence=0.9)
    half = 1.6448536 * values.std() / 20
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_patients_not_rows_decide_the_width() -> None:
    values = np.random.default_rng(0).normal(size=50)
    once = bootstrap(lambda weight: mean(values, weight), np.arange(50))
    repeated, clusters = np.repeat(values, 9), np.repeat(np.arange(50), 9)
    again = bootstrap(lambda weight: mean(repeated, weight), clusters)
    assert (once.low, once.high) == pytest.approx((again.low, again.high), abs=1e-12)
    assert (once.n, again.n) == (50, 450)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("seed", "patients"), [(0, 3), (1, 8), (2, 60), (3, 600)])
def test_bootstrap_auroc_is_the_bootstrap_of_auroc(seed: int, patients: int, ties: bool) -> None:
    target, score, clusters = example(seed, patients, ties)
    slow = bootstrap(lambda weight: auroc(target, score, weight), clusters, draws=300, seed=seed)
    fast = bootstrap_auroc(target, score, clusters, draws=300, seed=seed)
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high), abs=1e-12)
    assert fast.method == slow.method and fast.n == len(target)


def test_bootstrap_auroc_agrees_with_sklearn_in_distribution() -> None:
    target, score, clusters = example(7, 200, True)
    random, areas = np.random.default_rng(1), []
    rows = [np.flatnonzero(clusters == patient) for patient in range(200)]
    for _ in range(400):
        drawn = np.concatenate([rows[patient] for patient in random.integers(0, 200, 200)])
        areas.append(roc_auc_score(target[drawn], score[drawn]))
    ours = bootstrap_auroc(target, score, clusters)
    assert (ours.low, ours.high) == pytest.approx(np.quantile(areas, [0.025, 0.975]).tolist(), abs=0.015)
    analytic = delong(target, score, clusters)
    assert (ours.low, ours.high) == pytest.approx((analytic.low, analytic.high), abs=0.015)


def test_draws_without_a_value_are_left_out_and_counted() -> None:
    target, score = np.r_[1, np.zeros(9)], np.r_[4.5, np.arange(9)]
    ours = bootstrap_auroc(target, score, np.arange(10), draws=1000)
    # a patient is missing from a draw with probability (1 - 1/10)^10 = 0.349
    left_out = int(ours.method.split("draws, ")[1].split()[0])
    assert left_out == pytest.approx(349, abs=60)
    assert ours.low < ours.value < ours.high


def test_no_interval_where_none_can_be_had() -> None:
    one_class = bootstrap_auroc(np.ones(5), np.arange(5.0), np.arange(5))
    assert math.isnan(one_class.value) and math.isnan(one_class.low)
    one_patient = bootstrap_auroc(np.array([0, 1, 0]), np.array([0.0, 1, 2]), np.zeros(3))
    assert one_patient.value == 0.5 and math.isnan(one_patient.low) and math.isnan(one_patient.high)
    never = bootstrap(lambda weight: float("nan"), np.arange(5), draws=10)
    assert math.isnan(never.value) and math.isnan(never.low) and "10 of them" in never.method


def test_perfect_scores_have_a_width() -> None:
    target = np.repeat([0, 1], 10)
    ours = bootstrap_auroc(target, np.arange(20.0), np.arange(20))
    assert ours.value == ours.high == 1 and ours.low == pytest.approx(0.025**0.1)


def test_the_seed_decides() -> None:
    target, score, clusters = example(0, 40, False)
    first, again, other = (bootstrap_auroc(target, score, clusters, 200, seed) for seed in (0, 0, 1))
    assert first == again != other
