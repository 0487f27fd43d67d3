"""Linked tasks that know something of the person: who sees it, that it is asked alone, and that all verbs take it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from osler import (
    cohort,
    data,
    dense_phantom,
    diagnoses,
    diagnosis,
    evaluation,
    explanation,
    linking,
    model,
    phantom_files,
    recipe,
    training,
)
from osler.case import Finding, Question
from osler.model import Model, Network
from osler.problem import Problem
from osler.recipe import Recipe

LABEL = Question("label", "multiclass", ("normal", "benign", "malignant"))
MASK = Question("mask", "segmentation", ("lesion",), values=((1,),), separate=True)
SMALL: dict[str, Any] = {
    "tasks": "all",
    "image": {"size": [1, 32, 32]},
    "network": {"backbone": "unet", "options": {"width": 4, "depth": 3}},
    "training": {
        "epochs": 3, "batch": 8, "folds": 0, "members": 1, "precision": "float32", "channels_last": False,
        "threads": 1, "learning_rate": 1e-2,
    },
    "patches": {"per_case": 1},
}  # fmt: skip
# The age tells much, and not so much that it is left out as the answer itself.
SPEC = replace(
    dense_phantom.LESIONS, size=(1, 48, 48), diameter=(6.0, 10.0), classes=("nodule", "spiculated"), age_effect=1.0
)


def quiet(line: str) -> None:
    """Nothing is printed."""


def plan(*tasks: Question, **links: Any) -> Recipe:
    return recipe.build(
        {
            "image": {"size": [1, 32, 32], "fit": "pad"},
            "tasks": {q.task: q for q in tasks or (LABEL, MASK)},
            "network": {"backbone": "unet", "options": {"width": 4, "depth": 3}},
            "links": links,
            "covariates": {
                "columns": ["age"],
                "kinds": {"age": "number"},
                "ranges": {"age": [0, 120]},
                "seen": {"age": [20, 90]},
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every ninth patient no age is known, and one is 560."""
    spec = replace(SPEC, splits=(0.5, 0.0, 0.3, 0.2))
    place = phantom_files.write_dense_phantom(tmp_path_factory.mktemp("cohort") / "c", spec, 100, "linked")
    head, *lines = (place / "manifest.csv").read_text().splitlines()
    assert head.endswith(",covariate.age")
    lines = [line.rsplit(",", 1)[0] + "," if number % 9 == 0 else line for number, line in enumerate(lines)]
    odd = next(number for number, line in enumerate(lines) if ",test," in line and not line.endswith(","))
    lines[odd] = lines[odd].rsplit(",", 1)[0] + ",560"
    (place / "manifest.csv").write_text("\n".join([head, *lines]) + "\n")
    return place


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    training.train(folder, out, SMALL, say=quiet)
    return out


@pytest.fixture(scope="module")
def made(run: Path) -> Model:
    return model.load(run)


def test_the_age_of_a_phantom_tells_its_class_as_much_as_asked_for() -> None:
    """Means of classes lie 11 years times the effect apart, and two visits of one patient share an age."""
    spec = replace(SPEC, age_effect=1.5, cases_per_patient=1.5, size=(1, 32, 32), vessels=0)
    made = [dense_phantom.dense_case(number, spec).case for number in range(300)]
    ages: dict[str, list[float]] = {label: [] for label in dense_phantom.LABELS}
    for case in made:
        ages[dense_phantom.label_of(case.findings)].append(float(case.covariates["age"] or 0))
    for rank, found in enumerate(ages.values()):
        assert abs(np.mean(found) - (55 + 16.5 * rank)) < 4 * 11 / np.sqrt(len(found) / 2)
        assert np.std(found) == pytest.approx(11, rel=0.2)
    of_patient = {(case.patient, case.covariates["age"]) for case in made}
    assert len(of_patient) == len({case.patient for case in made}) < len(made)
    assert not dense_phantom.dense_case(0, dense_phantom.LESIONS).case.covariates
    with pytest.raises(Problem, match="age_effect is for lesions only"):
        replace(dense_phantom.ORGAN, age_effect=1.0)


def test_each_source_says_what_it_knows_and_nothing_else() -> None:
    """The image alone is the mean of what the whole and its places say; covariates alone know no image."""
    torch.manual_seed(0)
    network = Network(plan()).eval()
    x, other = torch.randn(2, 3, 1, 1, 1, 32, 32)
    young, old = torch.tensor([[20.0]] * 3), torch.tensor([[80.0]] * 3)
    with torch.no_grad():
        said, of_other = network.say(x, None, young), network.say(other, None, young)
        parts, older, elsewhere = (
            network.from_parts(*of) for of in ((said, young), (network.say(x, None, old), old), (of_other, young))
        )
    assert set(parts) == {"", "image", "covariates"}

    def same(one: Tensor, two: Tensor) -> bool:
        return torch.allclose(one, two, atol=1e-5)

    assert same(parts["image"]["label"], older["image"]["label"])
    assert not same(parts["image"]["label"], elsewhere["image"]["label"])
    assert same(parts["covariates"]["label"], elsewhere["covariates"]["label"])
    assert not same(parts["covariates"]["label"], older["covariates"]["label"])
    assert same(parts[""]["label"], (said.opinions[0]["label"] + said.opinions[1]["label"]) / 2)
    with torch.no_grad():
        unknown = network.say(x)
    assert same(unknown.opinions[1]["label"], said.opinions[1]["label"])
    assert not same(unknown.opinions[0]["label"], said.opinions[0]["label"])


def test_outlines_hear_of_the_person_through_the_class_alone() -> None:
    """What is drawn changes with the age once the class has a say, and not while it has none."""
    torch.manual_seed(0)
    network = Network(plan()).eval()
    assert network.links is not None
    x, ages = torch.randn(1, 1, 1, 1, 32, 32), [torch.tensor([[age]]) for age in (20.0, 80.0)]

    def drawn() -> list[Tensor]:
        with torch.no_grad():
            return [network.say(x, None, age).places["mask"][0] for age in ages]

    young, old = drawn()
    assert torch.equal(young, old)
    torch.nn.init.normal_(network.links.by_classes[0].weight)
    young, old = drawn()
    assert not torch.allclose(young, old, atol=1e-4)


def test_what_cannot_be_used_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="which cannot use them alone"):
        plan(MASK)
    with pytest.raises(Problem, match="the cohort has no covariate 'weight'"):
        training.train(folder, tmp_path, {**SMALL, "covariates": {"columns": ["weight"]}}, say=quiet)


def test_what_is_known_of_the_person_is_planned_learned_and_stored(run: Path, made: Model) -> None:
    assert made.recipe.linked and made.recipe.covariates.columns == ("age",)
    assert made.recipe.covariates.kinds == {"age": "number"}
    assert made.networks[0].sources == ("image", "covariates")
    assert (run / "covariates.safetensors").exists()
    assert {"mixing.0", "image.task.0.bias", "covariates.task.0.bias"} <= set(made.calibration)


def test_what_was_counted_is_what_is_diagnosed(folder: Path, made: Model) -> None:
    """Of the held-out cases as many agree, and as many of these are wrong, as their diagnoses say one by one."""
    found = cohort.read(folder)
    counts = np.zeros((2, 2), np.int64)
    unknown = 0
    for entry in found.entries:
        if entry.split != "calibration":
            continue
        case = data.read_case(entry, found.questions)
        unknown += case.covariates.get("age") in (None, "")
        said = diagnosis.diagnose(made, case)
        lead = linking.leading(said.answers["label"])
        truth = next(f.name for f in entry.findings if f.task == "label" and f.probability == 1)
        assert said.concordance is not None
        counts[int(not said.concordance.agree)] += (lead != truth, 1)
    assert unknown and counts[:, 1].sum() > 20
    np.testing.assert_array_equal(counts, made.calibration["concordance"])


def test_an_evaluation_says_what_each_source_is_worth(folder: Path, run: Path, tmp_path: Path) -> None:
    """A case with an age that cannot be is answered without it, and its places are measured like all others."""
    result = evaluation.evaluate(run, folder, tmp_path, draws=50, say=quiet)
    told = result["covariates"]["label"]
    assert {"both", "image", "covariates", "table"} <= set(told["sources"])
    cases = {row["case"] for row in _rows(tmp_path / "predictions.csv")}
    assert cases == {row["case"] for row in _rows(tmp_path / "places.csv")} and len(cases) == result["cases"]
    told = result["concordance"]
    assert told["concordant"]["cases"] + told["discordant"]["cases"] == result["cases"]


def _rows(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_folds_answer_out_of_fold_with_what_is_known_of_each_person(folder: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "training": {**SMALL["training"], "folds": 2, "epochs": 1}}
    training.train(folder, tmp_path / "run", settings, say=quiet)
    result = evaluation.evaluate(tmp_path / "run", folder, tmp_path / "out", out_of_fold=True, draws=50, say=quiet)
    assert result["cases"] > 70 and "label" in result["covariates"] and "mask" in result["tasks"]


def test_a_diagnosis_takes_what_is_known_and_says_what_it_adds(folder: Path, run: Path, tmp_path: Path) -> None:
    image = sorted((folder / "images").iterdir())[1]
    told = []
    for number, age in enumerate(("20", "90")):
        out = tmp_path / str(number)
        assert diagnoses.diagnose_paths(run, [image], out, known=[f"age={age}"], say=quiet) == (1, 0)
        (place,) = (path for path in out.iterdir() if path.is_dir())
        told.append(json.loads((place / "diagnosis.json").read_text()))
    young, old = ({f["name"]: f["probability"] for f in one["answers"]["label"]["findings"]} for one in told)
    assert old["malignant"] > young["malignant"]
    assert all(len(one["answers"]) == 3 and one["concordance"] for one in told)
    with pytest.raises(Problem, match="weight"):
        diagnoses.diagnose_paths(run, [image], tmp_path / "no", known=["weight=70"], say=quiet)


def test_shares_of_image_and_person_sum_to_the_evidence(folder: Path, made: Model) -> None:
    """What both add is the change from an answer that knows nothing to the answer that was given."""
    found = cohort.read(folder)
    entry = next(e for e in found.entries if e.covariates.get("age") not in (None, "", 560.0))
    case = data.read_case(entry, found.questions)
    said = diagnosis.diagnose(made, case)
    (shares,) = said.shares
    assert {one.source for one in shares.shares} == {"image", "age"}
    assert shares.nothing + sum(one.share for one in shares.shares) == pytest.approx(shares.all, abs=1e-6)
    p = max(f.probability or 0.0 for f in said.answers["label"].findings)
    assert shares.all == pytest.approx(np.log(p / (1 - p)), abs=1e-3)
    # Without the age the log-odds are those of the image alone, weighed as both are.
    blind = diagnosis.diagnose(made, replace(case, covariates={}))
    assert not blind.shares and "nothing is known of the person" in " ".join(blind.notes)


@pytest.mark.parametrize("finding", [Finding("label", "malignant"), Finding("mask", "lesion")])
def test_what_is_explained_is_what_is_said_of_this_person(folder: Path, made: Model, finding: Finding) -> None:
    found = cohort.read(folder)
    entry = next(e for e in found.entries if any(f.name == "malignant" and f.probability == 1 for f in e.findings))
    case = data.read_case(replace(entry, covariates={"age": 71.0}), found.questions)
    if finding.task == "mask":
        answer = diagnosis.diagnose(made, case).answers["mask"]
        places = [f for f in answer.findings if f.mask is not None]
        if not places:
            pytest.skip("this network found nothing in this image")
    why = explanation.explain(made, case, finding)
    assert why.heatmap.shape == (1, 48, 48) and why.task == finding.task
