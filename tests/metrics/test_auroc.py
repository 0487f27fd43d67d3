import math

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from osler.metrics.auroc import auroc, delong, delong_paired, macro_auroc, roc_curve

# Aneurysmal subarachnoid haemorrhage (Turck et al., Intensive Care Medicine 2010; data set aSAH of the R package
# pROC): S100B in ng/l times 100 and the WFNS grade, of the patients with a poor and with a good outcome.
# fmt: off
S100B_POOR = [
    13, 10, 16, 12, 44, 52, 49, 7, 33, 9, 7, 41, 35, 48, 56, 25, 58, 70, 71, 7, 71, 30, 3, 9, 22, 74, 26, 77, 8, 27,
    13, 10, 11, 23, 82, 14, 86, 32, 96, 207, 44,
]
S100B_GOOD = [
    13, 14, 10, 4, 45, 17, 10, 10, 4, 8, 4, 9, 11, 7, 17, 7, 11, 13, 18, 4, 16, 14, 34, 9, 50, 46, 16, 7, 43, 47, 11,
    8, 9, 8, 4, 13, 10, 14, 15, 5, 5, 9, 5, 9, 8, 16, 9, 8, 33, 11, 28, 7, 10, 32, 7, 6, 24, 38, 10, 15, 8, 14, 10, 7,
    6, 19, 15, 47, 19, 15, 50, 48,
]
WFNS_POOR = [
    3, 2, 4, 5, 5, 5, 5, 2, 5, 2, 1, 2, 5, 4, 4, 2, 5, 5, 5, 2, 5, 2, 5, 2, 4, 5, 4, 4, 1, 4, 4, 2, 2, 5, 5, 2, 2, 5,
    5, 5, 5,
]
WFNS_GOOD = [
    1, 1, 1, 1, 5, 1, 2, 2, 1, 2, 2, 1, 1, 1, 2, 1, 2, 1, 1, 3, 4, 1, 4, 1, 5, 5, 1, 1, 2, 4, 1, 1, 2, 2, 1, 2, 1, 2,
    2, 1, 1, 1, 1, 2, 1, 2, 1, 1, 3, 2, 4, 2, 1, 4, 1, 1, 5, 4, 2, 2, 1, 1, 1, 3, 1, 2, 2, 4, 4, 1, 1, 1,
]
# fmt: on
OUTCOME = np.repeat([1, 0], [41, 72])
S100B = np.array(S100B_POOR + S100B_GOOD) / 100
WFNS = np.array(WFNS_POOR + WFNS_GOOD)


def example(seed: int, n: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Random rows; with few levels of the score, many ties."""
    random = np.random.default_rng(seed)
    target = np.r_[0, 1, random.integers(0, 2, n - 2)]
    score = random.normal(size=n) + target
    return target, score if levels is None else np.round(score * levels) / levels


CASES = [example(seed, n, levels) for seed in range(6) for n in (2, 3, 17, 300) for levels in (None, 1, 3)]


def by_pairs(target: np.ndarray, score: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for each pair of a positive (row) and a negative (column)."""
    positive, negative = score[target == 1][:, None], score[target == 0]
    return (positive > negative) + (positive == negative) / 2


@pytest.mark.parametrize(("target", "score"), CASES)
def test_auroc_agrees_with_sklearn(target: np.ndarray, score: np.ndarray) -> None:
    weight = np.random.default_rng(len(target)).uniform(0.1, 3, len(target))
    assert auroc(target, score) == pytest.approx(roc_auc_score(target, score), abs=1e-12)
    assert auroc(target == 1, score, weight) == pytest.approx(
        roc_auc_score(target, score, sample_weight=weight), abs=1e-12
    )


def test_auroc_weight_is_repetition() -> None:
    target, score = example(1, 50, 3)
    times = np.random.default_rng(0).integers(0, 4, 50)
    assert auroc(target, score, times) == pytest.approx(auroc(np.repeat(target, times), np.repeat(score, times)))


@pytest.mark.parametrize("target", [np.zeros(0), np.zeros(5), np.ones(5), np.ones(1)])
def test_auroc_of_one_class_is_nan(target: np.ndarray) -> None:
    score = np.arange(float(len(target)))
    assert math.isnan(auroc(target, score))
    assert math.isnan(delong(target, score).value) and math.isnan(delong(target, score).low)
    assert math.isnan(delong_paired(target, score, -score).value)


def test_auroc_by_hand() -> None:
    assert auroc(np.array([0, 1]), np.array([0.5, 0.5])) == 0.5
    assert auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert auroc(np.array([0, 1, 1]), np.array([-np.inf, 0, np.inf])) == 1
    assert auroc(np.array([0, 1]), np.array([1.0, 1.0 + 2**-52])) == 1
    assert math.isnan(auroc(np.array([0, 1]), np.array([0.5, np.nan])))
    assert math.isnan(auroc(np.array([0, 1, 1]), np.arange(3.0), np.array([0, 1, 1])))


@pytest.mark.parametrize(("target", "score"), CASES)
def test_roc_curve_agrees_with_sklearn(target: np.ndarray, score: np.ndarray) -> None:
    for ours, theirs in zip(
        roc_curve(target, score), sklearn_roc_curve(target, score, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_roc_curve_of_one_class_is_nan_where_undefined() -> None:
    fpr, tpr, _ = roc_curve(np.ones(3), np.arange(3.0))
    assert np.isnan(fpr).all() and tpr.tolist() == [0, 1 / 3, 2 / 3, 1]


def test_macro_auroc_agrees_with_sklearn() -> None:
    random = np.random.default_rng(0)
    truth, scores, weight = random.integers(0, 4, 200), random.dirichlet(np.ones(4), 200), random.uniform(size=200)
    one_hot = np.eye(4)[truth]
    assert macro_auroc(one_hot, scores) == pytest.approx(
        roc_auc_score(truth, scores, multi_class="ovr", average="macro"), abs=1e-12
    )
    assert macro_auroc(one_hot, scores, weight) == pytest.approx(
        roc_auc_score(one_hot, scores, average="macro", sample_weight=weight), abs=1e-12
    )


def test_macro_auroc_leaves_out_what_is_unknown() -> None:
    targets = np.array([[0, 1, 0], [1, np.nan, 0], [1, 0, 0], [np.nan, 1, 0]])
    scores = np.array([[0.1, 0.9, 0.2], [0.2, 0.5, 0.1], [0.05, 0.4, 0.3], [0.9, 0.3, 0.3]])
    # class 0: negative .1 against positives .2 and .05; class 1: positives .9 and .3 against negative .4
    assert macro_auroc(targets, scores) == 0.5
    assert math.isnan(macro_auroc(np.full((3, 2), np.nan), np.ones((3, 2))))


def test_delong_agrees_with_what_proc_published() -> None:
    """ci.auc, var and roc.test of pROC 1.18 on its aSAH data."""
    s100b, wfns = delong(OUTCOME, S100B), delong(OUTCOME, WFNS)
    assert (s100b.value, s100b.low, s100b.high) == pytest.approx((0.7314, 0.6301, 0.8326), abs=5e-5)
    for ours, area, variance in (
        (s100b, 0.731368563685637, 0.00266868245717244),
        (wfns, 0.823678861788618, 0.00146991470882363),
    ):
        assert ours.value == pytest.approx(area, abs=1e-12)
        assert ((ours.high - ours.low) / 2 / 1.959963984540054) ** 2 == pytest.approx(variance, abs=1e-12)
    difference = delong_paired(OUTCOME, WFNS, S100B)
    assert (difference.low, difference.high) == pytest.approx((0.0104061769564846, 0.174214419249478), abs=1e-9)
    assert difference.value == pytest.approx(wfns.value - s100b.value)
    assert s100b.n == difference.n == 113


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("target", "score"), CASES)
def test_delong_agrees_with_all_pairs(target: np.ndarray, score: np.ndarray, confidence: float) -> None:
    wins = by_pairs(target, score)
    if min(wins.shape) < 2:
        return
    sd = np.sqrt(wins.mean(axis=1).var(ddof=1) / len(wins) + wins.mean(axis=0).var(ddof=1) / wins.shape[1])
    ours = delong(target, score, confidence=confidence)
    assert ours.value == pytest.approx(wins.mean(), abs=1e-12)
    if sd > 1e-12:
        z = {0.9: 1.6448536269514722, 0.95: 1.959963984540054}[confidence]
        assert ours.low == pytest.approx(max(0, wins.mean() - z * sd), abs=1e-9)
        assert ours.high == pytest.approx(min(1, wins.mean() + z * sd), abs=1e-9)


def obuchowski(target: np.ndarray, score: np.ndarray, clusters: np.ndarray) -> float:
    """The clustered variance, term by term as in Obuchowski (1997), section 2."""
    wins, names = by_pairs(target, score), np.unique(clusters)
    area, of_positive, of_negative = wins.mean(), clusters[target == 1], clusters[target == 0]
    v10 = {i: (wins.mean(axis=1)[of_positive == i] - area).sum() for i in names}
    v01 = {i: (wins.mean(axis=0)[of_negative == i] - area).sum() for i in names}
    m, n, i10, i01 = len(of_positive), len(of_negative), len(set(of_positive)), len(set(of_negative))
    s10 = i10 / ((i10 - 1) * m) * sum(v10[i] ** 2 for i in names)
    s01 = i01 / ((i01 - 1) * n) * sum(v01[i] ** 2 for i in names)
    s11 = len(names) / (len(names) - 1) * sum(v10[i] * v01[i] for i in names)
    return float(s10 / m + s01 / n + 2 * s11 / (m * n))


@pytest.mark.parametrize("seed", range(8))
def test_delong_of_clusters_is_obuchowskis(seed: int) -> None:
    target, score = example(seed, 80, 2)
    clusters = np.random.default_rng(seed).choice([f"patient {i}" for i in range(25)], 80)
    ours, sd = delong(target, score, clusters), np.sqrt(obuchowski(target, score, clusters))
    assert (ours.low, ours.high) == pytest.approx(
        (ours.value - 1.959964 * sd, min(1, ours.value + 1.959964 * sd)), abs=1e-6
    )
    assert "clustered" in ours.method


def test_delong_repeated_rows_of_a_patient_add_nothing() -> None:
    target, score = example(0, 60, 3)
    other = np.random.default_rng(1).normal(size=60)
    clusters, twice = np.arange(60), np.repeat(np.arange(60), 3)
    once = delong(target, score, clusters)
    assert once == delong(target, score)
    again = delong(target[twice], score[twice], clusters[twice])
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=1e-12)
    pair, pair_again = (delong_paired(target[r], score[r], other[r], clusters[r]) for r in (clusters, twice))
    assert (pair_again.low, pair_again.high) == pytest.approx((pair.low, pair.high), abs=1e-12)


def test_delong_variance_of_clusters_is_that_of_repeated_studies() -> None:
    """Patients with a random effect and rows of both classes: the mean variance is the variance of the mean."""
    random, areas, variances = np.random.default_rng(0), [], []
    clusters = np.repeat(np.arange(60), 4)
    for _ in range(400):
        target = random.integers(0, 2, 240)
        score = np.repeat(random.normal(size=60), 4) + random.normal(size=240) + target
        area = delong(target, score, clusters)
        areas.append(area.value)
        variances.append(((area.high - area.low) / 2 / 1.959964) ** 2)
    assert np.mean(variances) == pytest.approx(np.var(areas), rel=0.15)


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (1, 9), (8, 3), (30, 500)])
def test_delong_of_perfect_scores_has_a_width(positives: int, negatives: int) -> None:
    target = np.repeat([1, 0], [positives, negatives])
    pairs = min(positives, negatives)
    perfect, wrong = delong(target, target.astype(float)), delong(target, -target.astype(float))
    # n of n: the bound under which n wins in a row have a chance of 2.5 %
    assert (perfect.value, perfect.high) == (1, 1) and perfect.low**pairs == pytest.approx(0.025, abs=1e-9)
    assert (wrong.value, wrong.low) == (0, 0) and (1 - wrong.high) ** pairs == pytest.approx(0.025, abs=1e-9)


def test_perfect_scores_hold_their_promise_where_it_is_hardest() -> None:
    """Positives are either above all negatives or below: no scores make a chance AUROC of 1 more likely."""
    for pairs in range(1, 30):
        target = np.repeat([1, 0], [pairs, 1000])
        low = delong(target, target.astype(float)).low
        areas = np.linspace(0.001, 0.999, 999)
        missed = np.where(areas < low, areas**pairs, 0)  # chance to see AUROC 1 and an interval without the truth
        assert missed.max() <= 0.025 + 1e-12


def test_delong_of_constant_scores_or_a_single_positive() -> None:
    constant = delong(np.repeat([1, 0], [10, 20]), np.zeros(30))
    assert constant.value == 0.5
    assert (constant.low, constant.high) == pytest.approx((beta.ppf(0.025, 5, 6), beta.ppf(0.975, 6, 5)), abs=1e-9)
    single = delong(np.array([1, 0, 0, 0, 0]), np.array([3.0, 1, 2, 4, 5]))
    assert single.value == 0.5 and single.low < 0.1 and single.high > 0.9


def test_perfect_scores_of_few_patients_count_patients() -> None:
    target, clusters = np.tile([1, 0], 20), np.repeat(np.arange(4), 10)
    # four patients, each with both classes: only two pairs share no patient
    assert delong(target, target.astype(float), clusters).low == pytest.approx(0.025**0.5)
    alone = delong(target, target.astype(float), np.zeros(40))
    assert alone.value == 1 and math.isnan(alone.low) and math.isnan(alone.high)


def test_delong_paired_by_all_pairs_and_antisymmetric() -> None:
    target, a = example(3, 90, 2)
    b = a + np.random.default_rng(0).normal(size=90)
    wins = by_pairs(target, a) - by_pairs(target, b)
    sd = np.sqrt(wins.mean(axis=1).var(ddof=1) / len(wins) + wins.mean(axis=0).var(ddof=1) / wins.shape[1])
    ours, turned = delong_paired(target, a, b), delong_paired(target, b, a)
    assert (ours.value, ours.low, ours.high) == pytest.approx(
        (wins.mean(), wins.mean() - 1.959963984540054 * sd, wins.mean() + 1.959963984540054 * sd), abs=1e-9
    )
    assert (turned.value, turned.low, turned.high) == pytest.approx((-ours.value, -ours.high, -ours.low))


def test_delong_paired_without_variance() -> None:
    target, score = example(0, 20, None)
    same = delong_paired(target, score, np.exp(score))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    perfect = np.arange(20.0) + 100 * target
    both = delong_paired(target, perfect, perfect + 0.9 * np.random.default_rng(0).permutation(20))
    assert both.value == 0 and both.low < -0.1 and both.high > 0.1
