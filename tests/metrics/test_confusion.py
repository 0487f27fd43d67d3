import math

import numpy as np
import pytest
import sklearn.metrics as sk

from osler.metrics.confusion import (
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    f1,
    precision,
    sensitivity,
    specificity,
)

RANDOM = np.random.default_rng(0)
CASES = [
    (RANDOM.integers(0, 4, 100), RANDOM.integers(0, 4, 100), 4),
    (RANDOM.integers(0, 2, 5), RANDOM.integers(0, 2, 5), 2),
    (np.array([0, 0, 2, 2]), np.array([0, 1, 1, 2]), 5),  # 1 never true, 3 and 4 nowhere
    (np.array([1]), np.array([1]), 3),
    (np.array([1]), np.array([0]), 3),
]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.parametrize(("target", "predicted", "classes"), CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_sklearn(target: np.ndarray, predicted: np.ndarray, classes: int, weighted: bool) -> None:
    weight = np.random.default_rng(1).uniform(0.5, 2, len(target)) if weighted else None
    rows, options = (target, predicted), {"sample_weight": weight}
    np.testing.assert_allclose(
        confusion_matrix(*rows, classes, weight), sk.confusion_matrix(*rows, labels=range(classes), **options)
    )
    assert accuracy(*rows, classes, weight) == pytest.approx(sk.accuracy_score(*rows, **options), abs=1e-12)
    expected = sk.balanced_accuracy_score(*rows, **options)
    assert balanced_accuracy(*rows, classes, weight) == pytest.approx(expected, abs=1e-12)
    expected = sk.f1_score(*rows, average="macro", **options)
    assert f1(*rows, classes, weight) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_two_class_rates_agree_with_sklearn(weighted: bool) -> None:
    target, predicted = RANDOM.integers(0, 2, 60), RANDOM.integers(0, 2, 60)
    weight = RANDOM.uniform(size=60) if weighted else None
    options = {"sample_weight": weight}
    assert sensitivity(target, predicted, weight) == pytest.approx(sk.recall_score(target, predicted, **options))
    expected = sk.recall_score(target, predicted, pos_label=0, **options)
    assert specificity(target == 1, predicted == 1, weight) == pytest.approx(expected)
    assert precision(target, predicted, weight) == pytest.approx(sk.precision_score(target, predicted, **options))


def test_undefined_is_nan_never_zero() -> None:
    none, some = np.zeros(3, int), np.ones(3, int)
    assert math.isnan(sensitivity(none, none)) and specificity(none, none) == 1
    assert math.isnan(specificity(some, some)) and math.isnan(precision(some, none))
    empty = np.zeros(0, int)
    assert all(math.isnan(score(empty, empty, 2)) for score in (accuracy, balanced_accuracy, f1))


def test_weight_is_repetition() -> None:
    target, predicted, classes = CASES[0]
    times = RANDOM.integers(0, 3, len(target))
    repeated = np.repeat(target, times), np.repeat(predicted, times)
    for score in (accuracy, balanced_accuracy, f1):
        assert score(target, predicted, classes, times) == pytest.approx(score(*repeated, classes))


@pytest.mark.parametrize("wrong", [-1, 2])
def test_class_outside_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        confusion_matrix(np.array([0, 1]), np.array([0, wrong]), 2)
