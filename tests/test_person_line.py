"""Covariates along the whole line: planned, trained, stored, answered from, measured, served; and left out."""

import asyncio
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from osler import (
    asking,
    covariates,
    data,
    diagnoses,
    diagnosis,
    draws,
    evaluation,
    explanation,
    fitting,
    layouts,
    model,
    phantom,
    recipe,
    sources,
    tensors,
    training,
)
from osler.case import Entry, Question
from osler.cohort import Training
from osler.model import Model, Network
from osler.problem import Problem

SMALL = {
    "image": {"size": [1, 24, 24]},
    "network": {"options": {"depth": 18, "width": 4}},
    "training": {
        "epochs": 2, "batch": 16, "folds": 0, "members": 1,
        "precision": "float32", "channels_last": False, "threads": 1,
    },
    "inference": {"views": 2},
}  # fmt: skip


def quiet(line: str) -> None:
    """Nothing is printed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom cohort whose table has one covariate more that is mostly missing, and one that is the answer."""
    spec = phantom.Phantom(
        size=24, classes=("normal", "nodule"), prevalence=(0.5, 0.5), lesion=(6.0, 9.0), age_effect=1.5
    )
    made = phantom.write_phantom(tmp_path_factory.mktemp("cohort") / "c", spec, 140)
    with (made / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["covariate.crp [mg/l]"] = "" if number % 4 else str(number)
        row["covariate.marker"] = "9.5" if row["label"] == "nodule" else "1.5"
        if number % 9 == 0:
            row["covariate.sex"] = ""
    with (made / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return made


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    training.train(folder, out, SMALL, say=quiet)
    return out


@pytest.fixture(scope="module")
def made(run: Path) -> Model:
    return model.load(run)


@pytest.fixture
def tested(folder: Path) -> list[Entry]:
    return [entry for entry in layouts.read(folder).entries if entry.split == "test"]


def test_the_plan_says_which_columns_and_why(run: Path) -> None:
    plan = recipe.read(run / "recipe.toml")["covariates"]
    assert plan["columns"] == ["age", "sex", "crp [mg/l]"]
    assert not plan["categories"] and not plan["ranges"]
    line = next(line for line in (run / "recipe.toml").read_text().splitlines() if line.startswith("columns"))
    assert "age: given as a covariate" in line
    assert re.search(r"crp \[mg/l\]: given as a covariate; 7\d% of the cases have no value", line)
    assert "left out is marker: it alone tells" in line


def test_what_was_learned_travels_with_the_model(made: Model, folder: Path) -> None:
    plan = made.recipe.covariates
    assert plan.kinds == {"age": "number", "sex": "category", "crp [mg/l]": "number"}
    assert plan.categories == {"sex": ("F", "M")} and plan.units["crp [mg/l]"] == "mg/l"
    learned = [e for e in layouts.read(folder).entries if e.split == "train"]
    ages = [float(e.covariates["age"] or 0) for e in learned]
    assert plan.seen["age"] == (min(ages), max(ages))
    persons = made.networks[0].persons
    assert persons is not None
    assert persons.mean[0].item() == pytest.approx(np.mean(ages), abs=1e-3)
    assert persons.spread[0].item() == pytest.approx(np.std(ages), abs=1e-3)
    for source in ("", "image.", "covariates."):
        assert f"{source}task.0.temperature" in made.calibration
    assert made.calibration["mixing.0"].shape == (3,)


def test_one_model_answers_by_both_and_by_each_alone(made: Model, tested: list[Entry]) -> None:
    pixels = np.stack([data.prepare(data.the_image(data.read_case(e)), made.recipe.image) for e in tested[:6]])
    known = covariates.table(made.recipe.covariates, tested[:6])
    found = diagnosis.answer_each(made, pixels, known=known)
    assert set(found) == {"", "image", "covariates"}
    p = {source: one.probability["label"] for source, one in found.items()}
    # The image alone does not know the person, the covariates alone do not know the image.
    other = np.full_like(known, np.nan)
    assert diagnosis.answer_each(made, pixels, known=other)["image"].probability["label"] == pytest.approx(p["image"])
    assert diagnosis.answer(made, pixels).probability["label"] == pytest.approx(p["image"])
    assert diagnosis.answer(made, pixels, known=other).probability["label"] == pytest.approx(p["image"])
    moved = diagnosis.answer_each(made, np.ascontiguousarray(pixels[::-1]), known=known)["covariates"]
    assert moved.probability["label"] == pytest.approx(p["covariates"], abs=1e-6)
    assert not np.allclose(p[""], p["image"], atol=1e-4) and not np.allclose(p[""], p["covariates"], atol=1e-4)
    # In a batch, a case of which nothing is known is answered by its image, and the others are not.
    mixed = known.copy()
    mixed[2] = np.nan
    whole = diagnosis.answer(made, pixels, known=mixed).probability["label"]
    assert whole[2] == pytest.approx(p["image"][2]) and whole[[0, 1, 3]] == pytest.approx(p[""][[0, 1, 3]])


def test_a_diagnosis_says_what_was_known(made: Model, tested: list[Entry]) -> None:
    case = data.read_case(tested[0])
    found = diagnosis.diagnose(made, replace(case, covariates={"age": 71.0, "sex": "X", "marker": 9.5}))
    assert "sex 'X' was in no training case (known are F, M): it counts as missing" in found.notes
    assert "age lies between 0 and 120 years" in found.checked
    assert [one.source for one in found.shares[0].shares] == ["image", "age", "sex", "crp [mg/l]"]
    alone = diagnosis.diagnose(made, replace(case, covariates={}))
    assert any("the image alone" in note for note in alone.notes) and alone.shares == ()
    unknown = diagnosis.diagnose(made, replace(case, covariates={"sex": "X"}))
    assert unknown.answers["label"].findings == alone.answers["label"].findings
    with pytest.raises(Problem, match="age = 560 is not plausible"):
        diagnosis.diagnose(made, replace(case, covariates={"age": 560.0}))


def test_by_hand_or_from_the_table_it_is_the_same(
    run: Path, folder: Path, tested: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    entry = tested[0]
    words = [f"{name}={value}" for name, value in entry.covariates.items() if value is not None and name != "marker"]
    source = entry.images["image"].path
    diagnoses.diagnose_paths(run, [source], tmp_path / "one", method="none", known=words, say=quiet)
    made = model.load(run)
    expected = diagnosis.diagnose(made, data.read_case(entry))
    [found] = json.loads((tmp_path / "one" / "diagnoses.json").read_text())
    given = {f["name"]: f["probability"] for f in found["answers"]["label"]["findings"]}
    assert given == pytest.approx({f.name: f.probability for f in expected.answers["label"].findings}, abs=1e-6)
    assert {one["source"] for one in found["shares"][0]["shares"]} >= {"image", "age"}
    page = next((tmp_path / "one").glob("*/diagnosis.html")).read_text()
    assert "What does each source add?" in page and "crp [mg/l]" in page
    with pytest.raises(Problem, match="several are given"):
        diagnoses.diagnose_paths(run, [source, source], tmp_path / "two", known=words, say=quiet)


def test_an_implausible_case_is_said_and_the_rest_goes_on(
    run: Path, folder: Path, tested: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    lines: list[str] = []
    rows = ["image,covariate.age,covariate.sex"]
    rows += [f"{e.images['image'].path},{age},F" for e, age in zip(tested, (50, 560, "old"), strict=False)]
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "manifest.csv").write_text("\n".join(rows) + "\n")
    done, failed = diagnoses.diagnose_paths(
        run, [tmp_path / "cohort"], tmp_path / "out", method="none", say=lines.append
    )
    assert (done, failed) == (1, 2)
    left = [line for line in lines if line.startswith("left out")]
    assert "age = 560 is not plausible" in left[0] and "'old' is none" in left[1]
    assert len(list((tmp_path / "out").glob("*/diagnosis.html"))) == 1


def test_an_explanation_has_the_shares(run: Path, tested: list[Entry], tmp_path: Path) -> None:
    source = tested[0].images["image"].path
    lines = list(
        explanation.explain_path(run, source, tmp_path, method="gradcam", finding="nodule", known=["age=71"])
    )
    content = json.loads((tmp_path / "explanation.json").read_text())
    told = content["shares"]
    assert told["name"] == "nodule" and "age 71" in lines[-1]
    assert sum(one["share"] for one in told["shares"]) == pytest.approx(told["all"] - told["nothing"], abs=1e-5)


def test_the_evaluation_compares_the_sources(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    lines: list[str] = []
    result = evaluation.evaluate(run, folder, tmp_path / "e", draws=50, say=lines.append)
    found = result["covariates"]["label"]
    assert list(found["sources"]) == ["image", "covariates", "both", "table"]
    assert found["n"] == result["cases"] == found["known"]
    assert found["sources"]["both"]["auroc"] == result["tasks"]["label"]["metrics"]["auroc"]
    paired = found["differences"]["both - image"]["auroc"]
    assert "DeLong" in paired["method"]
    values = {name: one["auroc"]["value"] for name, one in found["sources"].items()}
    assert paired["value"] == pytest.approx(values["both"] - values["image"])
    assert any("image only" in line and "boosted trees" in line for line in lines)
    assert {"age", "sex"} <= set(result["tasks"]["label"]["subgroups"])
    schema = json.loads((Path(__file__).parents[1] / "docs/schemas/evaluation.schema.json").read_text("utf-8"))
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads((tmp_path / "e" / "evaluation.json").read_text()), schema)
    assert "What are the image and the covariates worth?" in (tmp_path / "e" / "evaluation.html").read_text()
    # A model that travels alone has no training cases with it.
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    alone = evaluation.evaluate(tmp_path / "alone", folder, tmp_path / "f", draws=50, say=quiet)
    assert list(alone["covariates"]["label"]["sources"]) == ["image", "covariates", "both"]


def test_a_value_that_cannot_be_does_not_cost_a_case_of_an_evaluation(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training: it counts as missing, the case is answered, and it is said."""
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    with (folder / "manifest.csv").open(newline="") as file:
        told = [row for row in csv.DictReader(file) if row["split"] == "test"]
    kept = ("case", "image", "label", "covariate.age", "covariate.sex")
    rows = [{name: row[name] for name in kept} for row in told]
    for row in rows:
        row["image"] = str(folder / row["image"])
    rows[0]["covariate.age"], rows[1]["covariate.age"] = "560", ""
    (tmp_path / "c").mkdir()
    with (tmp_path / "c" / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = evaluation.evaluate(run, tmp_path / "c", tmp_path / "e", draws=50, say=quiet)
    assert result["cases"] == len(rows)
    assert "1 cases have a value of age that cannot be right: it counts as missing" in result["notes"]


def test_the_covariates_of_training_cases_are_private_from_the_first_byte_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (run / "covariates.safetensors").stat().st_mode & 0o777 == 0o600
    assert (run / "model.safetensors").stat().st_mode & 0o777 == 0o644
    wrote, modes = tensors.save_file, []

    def watched(tensors: dict[str, torch.Tensor], path: Path, header: dict[str, str]) -> None:
        modes.append(path.stat().st_mode & 0o777)
        wrote(tensors, path, header)
        modes.append(path.stat().st_mode & 0o777)

    monkeypatch.setattr(tensors, "save_file", watched)
    model.write_tensors(tmp_path / "t.safetensors", {"covariates": torch.zeros(1, 1)}, {}, 0o600)
    assert modes == [0o600, 0o600]


def test_out_of_fold(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    training.train(folder, tmp_path / "r", recipe.merge(SMALL, {"training": {"folds": 2, "epochs": 1}}), say=quiet)
    result = evaluation.evaluate(tmp_path / "r", folder, tmp_path / "e", out_of_fold=True, draws=50, say=quiet)
    found = result["covariates"]["label"]
    assert set(found["sources"]) == {"image", "covariates", "both", "table"}
    assert found["sources"]["table"]["auroc"]["value"] > 0.6
    assert found["sources"]["both"]["auroc"]["n"] == result["cases"]


def test_without_columns_the_network_is_what_it_was(tmp_path: Path) -> None:
    content = {"image": {"size": [1, 24, 24]}, "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}}}
    plain = recipe.build(content)
    network = Network(plain)
    assert network.persons is None and network.fusion is None
    assert not [name for name in network.state_dict() if "persons" in name or "fusion" in name]
    assert recipe.build({**content, "covariates": {"columns": []}}) == plain
    assert asking.outputs(network, np.zeros((1, 1, 1, 1, 24, 24), np.float32), [lambda x: x]).alone == {}


def test_a_column_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    given = recipe.merge(SMALL, {"covariates": {"columns": ["height"]}})
    with pytest.raises(Problem, match=r"no covariate 'height'.*it has age"):
        training.train(folder, tmp_path / "r", given, say=quiet)


# --- what is hidden, and when -------------------------------------------------------------------------------------


def test_what_is_hidden_depends_on_the_case_and_epoch_alone() -> None:
    content = {
        "image": {"size": [1, 8, 8]}, "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}},
        "covariates": {"columns": ["x", "y"], "hidden": 0.2},
    }  # fmt: skip
    plan, n = recipe.build(content), 20_000
    values = np.ones((n, 2), np.float32)
    examples = fitting.Examples(Training(()), np.zeros((n, 1, 1, 1, 1, 1), np.float32), {}, None, values)
    rows = np.arange(n)
    keys = fitting.draws.keys(0, 0, 8, 0, rows)
    known = fitting.persons(examples, rows, keys, plan, torch.device("cpu"))
    assert known is not None
    hidden = known.isnan()
    # One and the other independently.
    assert hidden.float().mean(0).tolist() == pytest.approx([0.2, 0.2], abs=0.01)
    assert hidden.all(1).float().mean().item() == pytest.approx(0.04, abs=0.005)
    back = np.argsort(-rows)
    again = fitting.persons(examples, rows[back], keys[back], plan, torch.device("cpu"))
    assert again is not None
    assert torch.equal(again[torch.from_numpy(np.argsort(back))].isnan(), hidden)


def test_each_source_is_asked_alone_so_that_none_is_left_out() -> None:
    """The loss is the mean of three: its gradient on the backbone is there however well the covariates tell."""
    content = {
        "image": {"size": [1, 8, 8]}, "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}},
        "covariates": {"columns": ["x"], "kinds": {"x": "number"}, "hidden": 0.0},
    }  # fmt: skip
    plan = recipe.build(content)
    network, target = Network(plan).eval(), {"label": torch.tensor([[0.0], [1.0], [1.0]])}
    x, known = torch.randn(3, 1, 1, 1, 8, 8), torch.tensor([[1.0], [torch.nan], [-1.0]])
    said = network.say(x, None, known)
    assert said.whole is not None

    def alone(answers: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(answers["label"], target["label"][:, 0].long())

    parts = [alone(one) for one in network.from_parts(said, known).values()]
    assert parts[1].item() == pytest.approx(alone(network(x)).item())
    found = fitting.loss_of(network, said, known, target, plan, draws.keys(0, np.arange(3)))
    assert found.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-6)


# --- the table beside ---------------------------------------------------------------------------------------------


def test_trees_find_what_a_table_tells() -> None:
    draw = np.random.default_rng(0)
    rows = np.stack([draw.normal(size=600), draw.integers(0, 3, 600)], 1).astype(np.float32)
    rows[::7, 0] = np.nan
    question = Question("label", "multiclass", ("a", "b", "c"))
    target = rows[:, 1:].copy()
    said = sources.trees(question, (rows[:400], target[:400]), rows[400:], [False, True])
    assert said.sum(1) == pytest.approx(np.ones(200))
    assert (said.argmax(1) == target[400:, 0]).all()
    labels = np.stack([rows[:, 1] == 0, np.full(600, np.nan)], 1).astype(np.float32)
    labels[:, 1] = np.where(np.isnan(rows[:, 0]), 1, 0)
    many = sources.trees(
        Question("m", "multilabel", ("x", "y")), (rows[:400], labels[:400]), rows[400:], [False, True]
    )
    assert ((many > 0.5) == labels[400:]).all()
    number = np.where(np.isnan(rows[:, :1]), 5, rows[:, :1]).astype(np.float32)
    value = sources.trees(Question("n", "regression", ("v",)), (rows[:400], number[:400]), rows[400:], [False, True])
    assert np.corrcoef(value[:, 0], number[400:, 0])[0, 1] > 0.95


def test_trees_without_two_classes_or_any_value_give_shares() -> None:
    rows = np.full((10, 1), np.nan, np.float32)
    target = np.array([[0.0]] * 7 + [[1.0]] * 3, np.float32)
    said = sources.trees(Question("label", "multiclass", ("a", "b")), (rows, target), rows[:2], [False])
    assert said == pytest.approx(np.array([[0.7, 0.3]] * 2))


# --- served -------------------------------------------------------------------------------------------------------


def test_the_server_takes_them(
    made: Model, tested: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    from osler.server import app

    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    served = app.build(made)
    source = tested[0].images["image"].path

    def ask(method: str, path: str, **content: object) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(served)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8765") as client:
                return await client.request(method, path, **content)  # type: ignore[arg-type]

        return asyncio.run(answer())

    files = {"file": ("a.png", source.read_bytes())}
    said = ask(
        "POST",
        "/diagnoses",
        files=files,
        data={"covariate.age": "71", "covariate.sex": "F", "covariate.crp [mg/l]": ""},
    )
    assert said.status_code == 200
    expected = diagnosis.diagnose(made, replace(data.read_case(tested[0]), covariates={"age": 71.0, "sex": "F"}))
    given = {f["name"]: f["probability"] for f in said.json()["answers"]["label"]["findings"]}
    assert given == pytest.approx({f.name: f.probability for f in expected.answers["label"].findings}, abs=1e-6)
    refused = ask("POST", "/diagnoses", files=files, data={"covariate.age": "560"})
    assert refused.status_code == 422 and "age = 560 is not plausible" in refused.json()["problem"]
    strange = ask("POST", "/diagnoses", files=files, data={"covariate.shoe": "43"})
    assert strange.status_code == 422 and "knows no covariate 'shoe'" in strange.json()["problem"]
    page = ask("GET", "/", headers={"Accept": "text/html"}).text
    assert 'name="covariate.age"' in page and "<option>F</option>" in page
    form = ask("GET", "/openapi.json").json()["paths"]["/diagnoses"]["post"]["requestBody"]
    fields = form["content"]["multipart/form-data"]["schema"]["properties"]
    assert fields["covariate.age"]["maximum"] == 120 and fields["covariate.sex"]["enum"] == ["F", "M"]


# --- real data ----------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_age_and_sex_of_real_radiographs_go_through(real_data: Path) -> None:
    from osler import cohort
    from osler.inspections import covariates as columns

    file = Path(__file__).parents[1] / "recipes" / "cohorts" / "covid_cxr.toml"
    found = cohort.read(real_data / "covid_cxr", file)
    judged = columns.propose(found.entries, found.questions)
    given = {one.name: one for one in judged if one.verdict == "covariate"}
    assert set(given) == {"age", "sex"}
    plan, _ = covariates.learn(recipe.CovariatePlan(("age", "sex")), found.entries)
    assert plan.kinds == {"age": "number", "sex": "category"} and plan.categories["sex"] == ("F", "M")
    assert plan.ranges["age"] == (0, 120)
    rows = covariates.table(plan, found.entries)
    assert 0 < np.isnan(rows).mean() < 1
