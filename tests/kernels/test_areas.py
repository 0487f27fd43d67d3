"""The compiled loop over bootstrap draws: scikit-learn's areas, and the same numbers as without it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from osler import draws, kernels
from osler.kernels import areas
from osler.metrics import bootstrap as module
from osler.metrics.bootstrap import bootstrap, bootstrap_auroc


def example(seed: int, patients: int, most: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    patient = random.permutation(np.repeat(np.arange(patients), random.integers(1, most + 1, patients)))
    target = random.integers(0, 2, len(patient))
    score = random.normal(size=len(patient)) + target
    return target, np.round(score * levels) / levels if levels else score, patient


def drawn(monkeypatch: pytest.MonkeyPatch, compiled: bool, *example: np.ndarray, count: int, seed: int) -> np.ndarray:
    monkeypatch.setattr(module, "_PAYS", 0 if compiled else math.inf)
    target, score, patient = example
    return module._areas(target == 1, score, patient, count, seed)


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize(("patients", "most"), [(40, 1), (7, 5), (501, 3)])
def test_areas_are_scikit_learns_on_the_patients_that_bootstrap_draws(
    monkeypatch: pytest.MonkeyPatch, patients: int, most: int, levels: int
) -> None:
    target, score, patient = example(3, patients, most, levels)
    weights: list[np.ndarray] = []
    bootstrap(lambda weight: weights.append(weight) or 0.0, patient, draws=50, seed=4)
    ours = drawn(monkeypatch, True, target, score, patient, count=50, seed=4)
    for area, weight in zip(ours, weights[1:], strict=True):
        both = len(set(target[weight > 0])) == 2
        truth = roc_auc_score(target, score, sample_weight=weight) if both else math.nan
        assert area == pytest.approx(truth, abs=1e-12, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    patients=st.integers(2, 60),
    most=st.integers(1, 4),
    levels=st.integers(0, 3),
    count=st.integers(1, 40),
)
def test_compiled_and_numpy_agree_to_the_last_bit(
    seed: int, patients: int, most: int, levels: int, count: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        data = example(seed, patients, most, levels)
        one, other = (drawn(patch, compiled, *data, count=count, seed=seed) for compiled in (True, False))
    assert np.array_equal(one, other, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    data = example(0, 30, 3, 2)
    plain = drawn(monkeypatch, False, *data, count=25, seed=1)
    monkeypatch.setattr(kernels, "cores", lambda: threads)
    assert np.array_equal(drawn(monkeypatch, True, *data, count=25, seed=1), plain)


def test_the_interval_does_not_depend_on_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    target, score, patient = example(5, 90, 2, 0)
    monkeypatch.setattr(module, "_PAYS", 0)
    compiled = bootstrap_auroc(target, score, patient, draws=300)
    monkeypatch.setattr(kernels, "find", lambda name: None)
    assert bootstrap_auroc(target, score, patient, draws=300) == compiled


def test_compiling_waits_until_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "_worked", 0)
    monkeypatch.setattr(module, "_PAYS", 250)
    monkeypatch.setattr(kernels, "find", lambda name: asked.append(name))
    for _ in range(3):
        bootstrap_auroc(np.array([0, 1] * 5), np.arange(10), np.arange(10), draws=10)
    assert asked == ["areas"]


def test_a_draw_without_a_class_has_no_area() -> None:
    starts = draws.start(draws.keys(0, np.arange(200)), "bootstrap")
    one, found = np.zeros(1, np.uint32), np.empty(200)
    areas.areas(starts, 2, one, one + 1, one, one, found)
    # of two patients, both are drawn half of the time
    assert abs(np.isnan(found).mean() - 0.5) < 4 * 0.5 / math.sqrt(200)
    assert set(found[~np.isnan(found)]) == {0.0}
