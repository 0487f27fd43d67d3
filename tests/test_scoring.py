import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from osler.case import Question
from osler.predictions import Predictions
from osler.scoring import compare, describe, score

DRAWS = 25


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def predictions(target, probability, kind="multiclass", **more: Any) -> Predictions:
    n, k = probability.shape
    given = {
        "cases": tuple(f"case{i}" for i in range(n)),
        "patients": tuple(f"patient{i}" for i in range(n)),
        "question": Question("label", kind, tuple(f"class{j}" for j in range(k)), "years" * (kind == "regression")),
        "target": np.asarray(target, float),
        "probability": probability,
        "abstained": np.zeros(n, bool),
    }
    return Predictions(**(given | more))


def calibrated(n=400, seed=0, **more: Any) -> Predictions:
    """Outcomes drawn from the stated probabilities themselves."""
    random = np.random.default_rng(seed)
    p = sigmoid(random.normal(0, 2, n))
    return predictions(random.random(n) < p, np.column_stack([1 - p, p]), **more)


def exclusive(n=240, k=3, seed=1, kind="multiclass", **more: Any) -> Predictions:
    random = np.random.default_rng(seed)
    target = random.integers(0, k, n)
    logits = random.normal(size=(n, k)) + 1.5 * (target[:, None] == np.arange(k))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return predictions(target, p, kind, **more)


def labels(n=200, seed=2) -> Predictions:
    random = np.random.default_rng(seed)
    p = sigmoid(random.normal(0, 2, (n, 3)))
    target = (random.random((n, 3)) < p).astype(float)
    target[random.random((n, 3)) < 0.3] = np.nan
    return predictions(target, p, "multilabel", sets=p > 0.1, coverage=0.9)


def numbers(n=150, seed=3) -> Predictions:
    random = np.random.default_rng(seed)
    target = random.normal(60, 10, n)
    value = (target + random.normal(0, 4, n))[:, None]
    return predictions(target, value, "regression", low=value - 8, high=value + 8, coverage=0.95)


def values(result, names):
    return [result["metrics"][name]["value"] for name in names]


def test_two_classes_agree_with_scikit_learn():
    given = calibrated(threshold=np.array([0.5, 0.3]))
    y, p = given.target, given.probability[:, 1]
    stated = p >= 0.3
    expected = {
        "auroc": reference.roc_auc_score(y, p),
        "accuracy": reference.accuracy_score(y, stated),
        "balanced_accuracy": reference.balanced_accuracy_score(y, stated),
        "sensitivity": reference.recall_score(y, stated),
        "specificity": reference.recall_score(y, stated, pos_label=0),
        "ppv": reference.precision_score(y, stated),
        "npv": reference.precision_score(y, stated, pos_label=0),
        "f1": reference.f1_score(y, stated),
        "brier": reference.brier_score_loss(y, p),
    }
    result = score(given, draws=DRAWS)
    assert values(result, expected) == pytest.approx(list(expected.values()))
    for name in expected:
        found = result["metrics"][name]
        assert found["low"] < found["value"] < found["high"], name
    assert result["curves"]["confusion"] == reference.confusion_matrix(y, stated).tolist()


def test_net_benefit_is_its_definition():
    given = calibrated()
    y, p = given.target == 1, given.probability[:, 1]
    found = score(given, draws=DRAWS)["metrics"]["net_benefit_0.2"]["value"]
    assert found == pytest.approx((np.sum(y & (p >= 0.2)) - np.sum(~y & (p >= 0.2)) * 0.2 / 0.8) / len(y))


def test_a_calibrated_model_has_slope_one_and_intercept_zero_and_an_overconfident_one_has_not():
    given = calibrated(n=2000)
    metrics = score(given, draws=DRAWS)["metrics"]
    assert metrics["calibration_slope"]["low"] < 1 < metrics["calibration_slope"]["high"]
    assert metrics["calibration_intercept"]["low"] < 0 < metrics["calibration_intercept"]["high"]
    p = given.probability[:, 1]
    extreme = sigmoid(2 * np.log(p / (1 - p)))
    result = score(replace(given, probability=np.column_stack([1 - extreme, extreme])), draws=DRAWS)
    assert result["metrics"]["calibration_slope"]["high"] < 1
    assert result["metrics"]["calibration_slope"]["value"] == pytest.approx(
        metrics["calibration_slope"]["value"] / 2, rel=1e-6
    )
    assert "too extreme" in " ".join(describe(result))


def test_the_interval_of_the_slope_is_that_of_a_regression_with_clustered_errors():
    statsmodels = pytest.importorskip("statsmodels.api")
    given = calibrated(n=300, patients=tuple(f"p{i // 3}" for i in range(300)))
    p = given.probability[:, 1]
    design = statsmodels.add_constant(np.log(p / (1 - p)))
    model = statsmodels.GLM(given.target, design, family=statsmodels.families.Binomial())
    groups = np.repeat(np.arange(100), 3)
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    found = score(given, draws=DRAWS)["metrics"]["calibration_slope"]
    error = fit.bse[1] * np.sqrt(100 / 99)
    assert found["value"] == pytest.approx(fit.params[1], rel=1e-6)
    assert (found["high"] - found["low"]) / 2 / 1.96 == pytest.approx(error, rel=1e-4)


def test_a_perfect_model_still_has_an_interval_and_a_random_one_holds_one_half():
    target = np.repeat([0.0, 1.0], 30)
    metrics = score(predictions(target, np.column_stack([1 - target, target])), draws=DRAWS)["metrics"]
    for name in ("auroc", "accuracy", "sensitivity", "specificity"):
        assert metrics[name]["value"] == 1
        assert metrics[name]["low"] < 0.99, name
    assert metrics["f1"]["low"] is None
    assert metrics["calibration_slope"]["value"] is None
    p = np.random.default_rng(0).random(300)
    random = score(predictions(np.arange(300) % 2, np.column_stack([1 - p, p])), draws=DRAWS)["metrics"]["auroc"]
    assert random["low"] < 0.5 < random["high"]


def test_copies_of_a_case_add_no_certainty():
    once = calibrated(n=120)
    rows = np.repeat(np.arange(120), 4)
    four = predictions(once.target[rows], once.probability[rows], patients=tuple(once.patients[i] for i in rows))
    narrow, wide = score(once, draws=250)["metrics"], score(four, draws=250)["metrics"]
    for name in ("auroc", "accuracy", "sensitivity", "brier", "calibration_slope"):
        widths = [found[name]["high"] - found[name]["low"] for found in (narrow, wide)]
        assert wide[name]["value"] == pytest.approx(narrow[name]["value"])
        assert widths[1] == pytest.approx(widths[0], rel=0.25), name
        assert wide[name]["n"] == 4 * narrow[name]["n"]


@pytest.mark.parametrize("make", [calibrated, exclusive, numbers], ids=lambda make: make.__name__)
def test_cases_of_unknown_truth_change_nothing(make):
    given = make()
    known = np.random.default_rng(5).random(len(given.cases)) < 0.7
    hidden = replace(given, target=np.where(known, given.target, np.nan))
    one, other = score(hidden, draws=DRAWS), score(given.take(known), draws=DRAWS)
    assert one["metrics"] == other["metrics"]
    assert one["unknown"] == (~known).sum()


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_one_class_only_is_no_crash_but_a_note(target):
    given = replace(calibrated(n=30), target=np.full(30, target))
    result = score(given, draws=DRAWS)
    assert result["metrics"]["auroc"]["value"] is None
    assert result["metrics"]["auroc"]["note"]
    assert result["metrics"]["accuracy"]["value"] is not None
    assert any("same answer" in sentence for sentence in describe(result))
    json.dumps(result, allow_nan=False)


def test_nothing_known_is_said():
    result = score(replace(calibrated(n=5), target=np.full(5, np.nan)), draws=DRAWS)
    assert result["n"] == 0
    assert "No case has a known answer" in describe(result)[0]


def test_three_classes_agree_with_scikit_learn():
    given = exclusive()
    y, p = given.target.astype(int), given.probability
    stated = p.argmax(1)
    result = score(given, draws=DRAWS)
    assert values(result, ["auroc", "accuracy", "balanced_accuracy", "f1", "brier"]) == pytest.approx(
        [
            reference.roc_auc_score(y, p, multi_class="ovr"),
            reference.accuracy_score(y, stated),
            reference.balanced_accuracy_score(y, stated),
            reference.f1_score(y, stated, average="macro"),
            ((p - np.eye(3)[y]) ** 2).sum(1).mean(),
        ]
    )
    recall = reference.recall_score(y, stated, average=None)
    assert [result["classes"][c]["metrics"]["sensitivity"]["value"] for c in result["order"]] == pytest.approx(recall)


def test_ordered_classes_agree_with_scikit_learn():
    given = exclusive(k=4, kind="ordinal")
    stated = given.probability.argmax(1)
    result = score(given, draws=DRAWS)
    expected = [
        reference.cohen_kappa_score(given.target, stated, weights="quadratic"),
        np.abs(given.target - stated).mean(),
    ]
    assert values(result, ["quadratic_kappa", "mae"]) == pytest.approx(expected)


def test_labels_side_by_side_leave_out_what_is_unknown_one_by_one():
    given = labels()
    result = score(given, draws=DRAWS)
    each = []
    for j, name in enumerate(result["order"]):
        known = np.isfinite(given.target[:, j])
        each.append(reference.roc_auc_score(given.target[known, j], given.probability[known, j]))
        found = result["classes"][name]
        assert found["metrics"]["auroc"]["value"] == pytest.approx(each[-1])
        assert found["metrics"]["auroc"]["n"] == found["known"] == known.sum()
    assert result["metrics"]["auroc"]["value"] == pytest.approx(np.mean(each))
    held = [(given.sets[i][given.target[i] == 1]).all() for i in np.flatnonzero(given.known)]
    assert result["metrics"]["set_coverage"]["value"] == pytest.approx(np.mean(held))


def test_a_regression_agrees_with_scikit_learn():
    given = numbers()
    y, v = given.target, given.probability[:, 0]
    result = score(given, draws=DRAWS)
    expected = [
        reference.mean_absolute_error(y, v),
        reference.root_mean_squared_error(y, v),
        reference.r2_score(y, v),
        np.mean(np.abs(y - v) <= 8),
    ]
    assert values(result, ["mae", "rmse", "r2", "interval_coverage"]) == pytest.approx(expected)


def test_shares_of_single_cases_have_wilson_intervals():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    given = calibrated(n=90)
    found = score(given, draws=DRAWS)["metrics"]["accuracy"]
    right = int(((given.probability[:, 1] >= 0.5) == given.target).sum())
    assert (found["low"], found["high"]) == pytest.approx(proportion.proportion_confint(right, 90, method="wilson"))
    assert found["method"] == "Wilson"


def test_sets_hold_what_they_hold():
    given = exclusive()
    given = replace(given, sets=given.probability > 0.2, coverage=0.9)
    metrics = score(given, draws=DRAWS)["metrics"]
    truth = given.probability[np.arange(len(given.cases)), given.target.astype(int)]
    assert metrics["set_coverage"]["value"] == pytest.approx((truth > 0.2).mean())
    assert metrics["set_size"]["value"] == pytest.approx((given.probability > 0.2).sum(1).mean())


def test_withholding_is_told_apart_and_all_cases_count():
    given = calibrated()
    wrong = (given.probability[:, 1] >= 0.5) != given.target
    gated, open_gate = score(replace(given, abstained=wrong), draws=DRAWS), score(given, draws=DRAWS)
    assert gated["metrics"] == open_gate["metrics"]
    assert gated["selective"]["abstained"] == wrong.sum()
    assert gated["selective"]["error_answered"]["value"] == 0
    assert gated["selective"]["error_withheld"]["value"] == 1
    assert gated["selective"]["error"]["value"] == pytest.approx(wrong.mean())
    curve = gated["curves"]["risk_coverage"]
    assert curve["coverage"][-1] == 1
    assert curve["risk"][-1] == pytest.approx(wrong.mean())


def test_subgroups_are_the_cases_of_each_value_and_small_ones_are_only_counted():
    sites = np.array(["north"] * 150 + ["south"] * 240 + ["far"] * 10)
    given = calibrated(metadata={"site": tuple(sites), "age": tuple(range(400)), "name": tuple(map(str, sites))})
    given = replace(given, metadata={**given.metadata, "name": tuple(f"name {i}" for i in range(400))})
    result = score(given, draws=DRAWS)
    north = reference.roc_auc_score(given.target[:150], given.probability[:150, 1])
    assert result["subgroups"]["site"]["north"]["metrics"]["auroc"]["value"] == pytest.approx(north)
    assert result["subgroups"]["site"]["far"] == {
        "n": 10, "patients": 10, "metrics": {}, "omitted": "fewer than 20 cases"
    }  # fmt: skip
    assert [group["n"] for group in result["subgroups"]["age"].values()] == [134, 133, 133]
    assert "name" not in result["subgroups"]
    assert any("by name" in note for note in result["notes"])


def test_a_missing_value_is_a_group_of_its_own():
    given = calibrated(n=100, metadata={"sex": ("F", None) * 50})
    assert list(score(given, draws=DRAWS)["subgroups"]["sex"]) == ["F", "missing"]


def test_a_model_compared_with_itself_differs_by_nothing_and_with_a_worse_one_by_something():
    good = calibrated()
    same = compare(good, good, draws=DRAWS)["differences"]
    assert all(found["value"] == 0 for found in same.values())
    logit = np.log(good.probability[:, 1] / good.probability[:, 0])
    p = sigmoid(logit + np.random.default_rng(9).normal(0, 4, len(logit)))
    bad = replace(good, probability=np.column_stack([1 - p, p]))
    found = compare(good, bad, draws=200)["differences"]
    assert found["auroc"]["low"] > 0
    assert found["accuracy"]["low"] > 0
    assert found["auroc"]["value"] == pytest.approx(found["auroc"]["a"] - found["auroc"]["b"])
    assert compare(bad, good, draws=200)["differences"]["auroc"]["value"] == pytest.approx(-found["auroc"]["value"])


def test_models_of_different_cases_are_not_compared():
    with pytest.raises(ValueError, match="same cases"):
        compare(calibrated(), calibrated(seed=1))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="target of 2 cases"):
        predictions(np.zeros(3), np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="finite"):
        predictions(np.zeros(2), np.full((2, 2), np.nan))


def test_the_summary_says_what_was_counted():
    result = score(calibrated(), draws=DRAWS)
    counts = [int((calibrated().target == c).sum()) for c in (0, 1)]
    assert describe(result)[0] == (
        f"Of 400 cases of 400 patients, the truth is class0 in {counts[0]} and class1 in {counts[1]}."
    )


@pytest.mark.parametrize("make", [calibrated, exclusive, labels, numbers], ids=lambda make: make.__name__)
def test_the_result_is_json_of_the_published_schema(make):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(__file__).parents[1] / "docs/schemas/evaluation.schema.json").read_text("utf-8"))
    given = make()
    given = replace(given, abstained=np.arange(len(given.cases)) % 7 == 0)
    evaluation = {
        "schema_version": 1, "date": "2026-01-01", "model": "0" * 64, "cohort": "1" * 64, "part": "test",
        "times_evaluated": 1, "cases": len(given.cases), "patients": len(given.cases), "notes": [],
        "tasks": {"label": score(given, draws=DRAWS)},
        "comparison": {"model": "2" * 64, "tasks": {"label": compare(given, given, draws=DRAWS)}},
    }  # fmt: skip
    jsonschema.validate(json.loads(json.dumps(evaluation, allow_nan=False)), schema)
