"""The comparison of augmentations: same cases, same everything, and figures that another library gives as well."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from osler import ablation, cohort, data, identity, model, phantom, recipe, training
from osler.problem import Problem
from osler.tasks.classification import Classification

SETTINGS: dict[str, Any] = {
    "image": {"size": [1, 16, 16]},
    "network": {"options": {"width": 4}},
    "training": {"epochs": 1, "folds": 2, "threads": 1, "precision": "float32", "channels_last": False},
    "augmentation": {name: {"probability": 0.0} for name in ("blur", "bias")},
}
SPEC = phantom.Phantom(classes=("normal", "nodule"), prevalence=(0.5, 0.5), size=16, lesion=(5.0, 7.0))


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ablation")
    phantom.write_phantom(place / "cohort", SPEC, 60)
    ablation.ablate(place / "cohort", place / "out", SETTINGS, bootstraps=200, say=quiet)
    return place


@pytest.fixture
def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "ablation.json").read_text("utf-8"))
    return content


def held(folder: Path) -> ablation.HeldOut:
    found = cohort.read(folder / "cohort")
    plan = recipe.build(recipe.read(folder / "out" / "recipe.toml"))
    task = Classification(next(iter(plan.tasks.values())))
    return ablation.held_out(found, data.load(found.entries, plan.image), plan, task)


def test_the_arms_differ_in_their_augmentation_only(folder: Path, result: dict[str, Any]) -> None:
    expected = {
        "none": (), "base": ("spatial", "intensity"), "base + noise": ("spatial", "intensity", "noise"),
        "base again": ("spatial", "intensity"),
    }  # fmt: skip
    assert {arm["name"]: tuple(arm["augmentation"]) for arm in result["arms"]} == expected
    plans = {}
    for name, kept in expected.items():
        plan = recipe.build(recipe.read(folder / "out" / name.replace(" ", "") / "recipe.toml"))
        on = [key for key, options in plan.augmentation.items() if options["probability"]]
        assert sorted(on) == sorted(kept)
        content = recipe.to_dict(plan)
        content.pop("augmentation")
        assert content["training"].pop("seed") == (name == "base again")
        plans[name] = content
    assert all(plan == plans["base"] for plan in plans.values())


def test_no_test_case_is_looked_at(folder: Path, result: dict[str, Any]) -> None:
    parts = {entry.id: entry.split for entry in cohort.read(folder / "cohort").entries}
    test = {i for i, part in parts.items() if part == "test"}
    assert test and not test & set(held(folder).ids)
    assert result["cases"] == len(parts) - len(test) == len(held(folder).ids)


def test_each_case_is_answered_by_the_network_that_has_not_seen_it(folder: Path) -> None:
    cases = held(folder)
    rows = (folder / "out" / "base" / "splits.csv").read_text().splitlines()[1:]
    fold = {row.split(",")[0]: int(row.split(",")[2]) for row in rows if row.split(",")[1] == "fold"}
    found = cohort.read(folder / "cohort")
    digest = {e.id: identity.pixels(data.the_image(data.read_case(e))) for e in found.entries}
    for places, numbers in cases.answers:
        assert {(fold[digest[cases.ids[i]]],) for i in places} == {numbers}


def test_figures_are_those_of_scikit_learn(folder: Path, result: dict[str, Any]) -> None:
    truth = held(folder).target[:, 0].astype(int)
    for arm in result["arms"][::2]:
        _, said = model.read_tensors(folder / "out" / arm["name"].replace(" ", "") / "held_out.safetensors")
        clean = said["clean"].numpy()
        value = {name: estimate["value"] for name, estimate in arm["figures"].items()}
        assert value["auroc"] == pytest.approx(roc_auc_score(truth, clean[:, 1]))
        assert value["log_loss"] == pytest.approx(log_loss(truth, clean), rel=1e-4)
        assert value["brier"] == pytest.approx(((clean - np.eye(2)[truth]) ** 2).sum(1).mean())
        areas = {name: roc_auc_score(truth, p.numpy()[:, 1]) for name, p in said.items() if name != "clean"}
        assert arm["corrupted"] == pytest.approx(areas)
        assert value["robust"] == pytest.approx(np.mean(list(areas.values())))
        for estimate in arm["figures"].values():
            assert estimate["low"] < estimate["value"] < estimate["high"]


def test_differences_are_to_the_base_and_paired(result: dict[str, Any]) -> None:
    arms = {arm["name"]: arm for arm in result["arms"]}
    base = arms["base"]
    assert base["differences"] is None
    for name in ("none", "base + noise", "base again"):
        for key, found in arms[name]["differences"].items():
            assert found["value"] == pytest.approx(
                arms[name]["figures"][key]["value"] - base["figures"][key]["value"]
            )
    # Nearly the same network answers nearly alike: in pairs that is seen, from two intervals it is not.
    width = {key: found["high"] - found["low"] for key, found in arms["base + noise"]["differences"].items()}
    alone = {key: found["high"] - found["low"] for key, found in base["figures"].items()}
    assert width["auroc"] < 2**0.5 * alone["auroc"]


def test_answers_that_agree_differ_by_nothing(folder: Path) -> None:
    cases = held(folder)
    drawn = {"auroc": ablation._drawn(lambda w: float(w @ cases.target[:, 0]), cases.patients, 50)}
    twin = ablation._row(ablation.Arm("twin", ()), None, drawn, drawn)
    assert twin["differences"]["auroc"] == {"value": 0, "low": 0, "high": 0}


def test_a_finished_arm_is_not_trained_again(folder: Path, result: dict[str, Any], monkeypatch: Any) -> None:
    real: Callable[..., Any] = training.train
    trained: list[str] = []

    def counted(cohort_path: Path, out: Path, *rest: Any, **words: Any) -> Any:
        trained.append(out.name)
        return real(cohort_path, out, *rest, **words)

    monkeypatch.setattr(training, "train", counted)
    (folder / "out" / "none" / "held_out.safetensors").unlink()
    again = ablation.ablate(folder / "cohort", folder / "out", SETTINGS, bootstraps=200, say=quiet)
    assert trained == ["none"]
    arms = [{**arm, "seconds": 0} for arm in again["arms"]]
    assert json.loads(json.dumps(arms)) == [{**arm, "seconds": 0} for arm in result["arms"]]
    assert (
        next(arm for arm in again["arms"] if arm["name"] == "none")["seconds"] is None
    )  # of a training that was not seen whole


def test_the_page_shows_figures_and_no_case(folder: Path, result: dict[str, Any]) -> None:
    page = (folder / "out" / "ablation.html").read_text("utf-8")
    assert page.count("<svg") == 2 and "base + noise" in page and "base again" in page
    assert not [i for i in held(folder).ids if i in page]
    assert not [i for i in held(folder).ids if i in json.dumps(result)]


def test_the_table_has_a_line_for_each_arm_and_each_difference(result: dict[str, Any]) -> None:
    lines = ablation.table(result)
    assert len(lines) == 3 + 4 + 3 and all(" to " in line for line in lines[2:6] + lines[7:])


def test_given_parts_are_used_where_there_are_no_folds(folder: Path) -> None:
    found = cohort.read(folder / "cohort")
    plan = recipe.build(recipe.read(folder / "out" / "recipe.toml"))
    content = recipe.to_dict(plan)
    content["training"]["folds"] = 0
    plan = recipe.build(content)
    task = Classification(next(iter(plan.tasks.values())))
    cases = ablation.held_out(found, data.load(found.entries, plan.image), plan, task)
    parts = {entry.id: entry.split for entry in found.entries}
    assert {parts[i] for i in cases.ids} == {"validation", "calibration"}


def test_nothing_to_compare_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no augmentation is planned"):
        ablation.ablate(folder / "cohort", tmp_path / "o", {**SETTINGS, "augmentation": "none"}, say=quiet)


def test_a_regression_is_refused(tmp_path: Path) -> None:
    phantom.write_phantom(tmp_path / "c", SPEC, 30)
    (tmp_path / "c" / "cohort.toml").write_text(
        'table = "manifest.csv"\ncase = "case"\nimage = "{image}"\n[label.age]\ncolumn = "covariate.age"\n'
        'kind = "regression"\n'
    )
    with pytest.raises(Problem, match="regression has none"):
        ablation.ablate(tmp_path / "c", tmp_path / "o", {**SETTINGS}, say=quiet)
