"""Several modalities along the whole line: planned, loaded, trained, answered from every set of them, measured."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from osler import (
    answers,
    asking,
    cohort,
    data,
    diagnoses,
    diagnosis,
    evaluation,
    explanation,
    fitting,
    identity,
    layouts,
    modalities,
    modality_phantom,
    modality_planning,
    model,
    planning,
    pretraining,
    recipe,
    subsets,
    training,
    volumes,
)
from osler.case import Case, Entry, Source
from osler.cohort import Test
from osler.image import Image
from osler.inspections import duplicates
from osler.model import Model, Network
from osler.problem import Problem

SPEC = modality_phantom.ModalityPhantom(evidence={"t1": 1.5, "t2": 3.0}, missing=0.25, splits=(0.5, 0.0, 0.25, 0.25))
SMALL = {
    "image": {"size": [1, 16, 16], "intensity": "cohort"},
    "network": {"backbone": "reference_cnn", "pooling": "neck", "dropout": 0.0},
    "training": {
        "epochs": 12, "batch": 16, "folds": 0, "members": 1, "learning_rate": 0.003, "smoothing": 0.0,
        "precision": "float32", "channels_last": False, "threads": 1,
    },
    "inference": {"views": 1},
    "augmentation": "none",
}  # fmt: skip
QUESTION = {"label": {"kind": "multiclass", "classes": ["a", "b"]}}


def quiet(line: str) -> None:
    """Nothing is printed."""


def plan_of(**changes: object) -> recipe.Recipe:
    content = {
        "image": {"size": [1, 8, 8], "modalities": ["ct", "mr"]},
        "network": {"backbone": "resnet", "options": {"depth": 18, "width": 4}, "dropout": 0.0},
        "tasks": QUESTION,
    }
    return recipe.build(recipe.merge(content, changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modality_phantom.write(tmp_path_factory.mktemp("cohort") / "c", SPEC, 200)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    training.train(folder, out, SMALL, say=quiet)
    return out


@pytest.fixture(scope="module")
def made(run: Path) -> Model:
    return model.load(run)


@pytest.fixture
def whole(folder: Path) -> list[Entry]:
    """Test cases that have both."""
    return [entry for entry in layouts.read(folder).entries if entry.split == "test" and len(entry.images) == 2]


# --- the phantom ----------------------------------------------------------------------------------------------------


def test_the_ideal_observer_of_every_set_is_as_good_as_its_closed_form() -> None:
    spec = modality_phantom.ModalityPhantom(size=8)
    made = [modality_phantom.case(number, spec) for number in range(1500)]
    second = np.array([one.label == "tumour" for one in made])
    expected = modality_phantom.expected_auroc(spec)
    assert len(expected) == 15 and max(expected, key=lambda name: expected[name]) == "all"
    for name in ("all", "t1", "t1c+flair"):
        members = list(spec.evidence) if name == "all" else name.split("+")
        score = np.array([sum(one.evidence[m] for m in members) for one in made])
        found = (score[second][:, None] > score[~second]).mean()
        # The standard error is at most sqrt(1 / (12 * 750)) from each class.
        assert found == pytest.approx(expected[name], abs=3 * math.sqrt(1 / (6 * 750)))
    gone = np.array([len(one.missing) for one in made])
    assert gone.max() < 4 and 0.15 < gone.mean() / 4 < 0.22


def test_its_files_hold_what_it_says(folder: Path, tmp_path: Path) -> None:
    made = modality_phantom.case(5, SPEC)
    entry = next(e for e in layouts.read(folder).entries if e.id == made.id)
    assert {"t1", "t2"} - set(entry.images) == set(made.missing)
    read = data.read_case(entry)
    for name, image in read.images.items():
        assert np.array_equal(image.array[0, 0, 0], modality_phantom.stored(made.images[name]))
    with pytest.raises(Problem, match="not empty"):
        modality_phantom.write(folder, SPEC, 1)
    with pytest.raises(Problem, match="must be 0 or more"):
        modality_phantom.ModalityPhantom(evidence={"t1": -1.0})


# --- loading --------------------------------------------------------------------------------------------------------


def test_modalities_lie_side_by_side_and_what_is_missing_is_said_to_be(folder: Path) -> None:
    entries = layouts.read(folder).entries[:20]
    plan = recipe.ImagePlan((1, 16, 16), modalities=("t2", "t1"))
    loaded = data.load(entries, plan)
    assert loaded.pixels.shape == (20, 2, 1, 1, 16, 16) and loaded.times.shape == (20, 2)
    there = subsets.there(loaded.times, 2)
    for row, entry in enumerate(entries):
        assert there[row].tolist() == [name in entry.images for name in ("t2", "t1")]
        for s, name in enumerate(("t2", "t1")):
            alone = np.zeros((1, 1, 1, 16, 16), np.float32)
            if name in entry.images:
                alone = data.prepare(data.read_case(entry).images[name], replace(plan, modalities=()))
            assert np.array_equal(loaded.pixels[row : row + 1][0, s : s + 1], alone)
    assert len(set(loaded.digests)) == 20


def test_one_of_several_may_be_chosen(folder: Path) -> None:
    entry = next(e for e in layouts.read(folder).entries if len(e.images) == 2)
    case = data.read_case(entry)
    assert data.the_image(case, recipe.ImagePlan((1, 8, 8), modalities=("t2",))) is case.images["t2"]
    with pytest.raises(Problem, match=r"2 images \(t1, t2\).*image\.modalities"):
        data.the_image(case)
    with pytest.raises(Problem, match=r"none of the images.*looks at \(pd, dwi\) but t1, t2.*--image pd=FILE"):
        data.the_image(case, recipe.ImagePlan((1, 8, 8), modalities=("pd", "dwi")))


def test_loops_lie_behind_each_other_with_their_times() -> None:
    def loop(frames: int) -> Image:
        return Image(np.arange(frames, dtype=np.uint8)[:, None, None, None, None], times=tuple(range(frames)))

    plan = recipe.ImagePlan((1, 1, 1), frames=3, modalities=("a", "b", "c"))
    image = data.the_image(Case("x", "x", {"c": loop(5), "a": loop(2)}), plan)
    assert data.prepare(image, plan).ravel().tolist() == [0, 0, 1, 0, 0, 0, 0, 2, 4]
    times = data.timeline(image, plan).tolist()
    assert times[:1] == [0] and times[2] == 1 and times[6:] == [0, 2, 4]
    assert np.isnan(times[1]) and np.isnan(times[3:6]).all()


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intensity", ["cohort", "image", "window"])
def test_every_modality_is_normalised_by_its_own_numbers_and_what_is_missing_does_not_count(intensity: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal([[[[[[5]]]], [[[[900]]]]]], [[[[[[2]]]], [[[[70]]]]]], (40, 2, 1, 1, 8, 8)).astype(np.float32)
    pixels = np.ascontiguousarray(pixels.reshape(40, 2, 1, 1, 8, 8))
    times = np.zeros((40, 2), np.float32)
    times[::2, 1] = np.nan
    pixels[::2, 1] = 1e6
    made = model.Normalise(intensity, 1, 2)  # type: ignore[arg-type]
    made.fit(pixels, times)
    alone = model.Normalise(intensity, 1)  # type: ignore[arg-type]
    for s, rows in ((0, slice(None)), (1, slice(1, None, 2))):
        part = np.ascontiguousarray(pixels[rows, s : s + 1])
        alone.fit(part)
        assert torch.allclose(made(torch.from_numpy(pixels))[rows, s : s + 1], alone(torch.from_numpy(part)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("fusion", ["concat", "film", "cross_attention"])
def test_what_stands_where_an_image_is_missing_does_not_matter(shared: bool, fusion: str) -> None:
    torch.manual_seed(0)
    network = Network(plan_of(network={"shared": shared, "fusion": fusion})).eval()
    x = torch.randn(4, 2, 1, 1, 8, 8)
    times = torch.zeros(4, 2)
    times[1:, 0] = math.nan
    other = x.clone()
    other[1:, 0] = 1e4
    first, second = network.say(x, times), network.say(other, times)
    assert torch.equal(first.answers["label"], second.answers["label"])
    assert first.there is not None and first.there[:, 0].tolist() == [True, False, False, False]
    # What is asked from some of what is there is the same as if the rest had never been.
    all_there = network.say(x)
    alone = network.from_some(all_there, None, torch.tensor([[False, True]]))["label"]
    assert torch.allclose(alone[1:], first.answers["label"][1:], atol=1e-6)
    assert not torch.allclose(alone[0], first.answers["label"][0], atol=1e-4)
    count = sum(p.numel() for p in network.backbone.parameters())
    every = sum(
        p.numel() for look in {id(one[0]): one[0] for one in network.looks()}.values() for p in look.parameters()
    )
    assert every == (1 if shared else 2) * count


def test_a_backbone_does_not_see_what_is_missing_while_it_trains() -> None:
    torch.manual_seed(0)
    network = Network(plan_of(network={"shared": False})).train()
    x, times = torch.randn(6, 2, 1, 1, 8, 8), torch.zeros(6, 2)
    times[1:, 1] = math.nan
    with torch.no_grad():
        first = network.seen(x, times)
        x[1:, 1] = 1e4
        second = network.seen(x, times)
    assert torch.isfinite(first).all() and torch.equal(first[1:, 1], torch.zeros_like(first[1:, 1]))
    # Running statistics moved by what is there alone.
    moved = {name: value for name, value in network.state_dict().items() if "running" in name}
    assert moved and all(value.abs().max() < 100 for value in moved.values())
    assert torch.allclose(first[0, 1], second[0, 1], atol=1e-5)


def test_the_loss_asks_all_each_alone_and_some() -> None:
    torch.manual_seed(0)
    plan = plan_of(image={"modalities": ["a", "b", "c"]})
    network = Network(plan).eval()
    x, times = torch.randn(3, 3, 1, 1, 8, 8), torch.zeros(3, 3)
    times[0, 2] = math.nan
    target = torch.tensor([[0.0], [1.0], [1.0]])
    with torch.no_grad():
        said = network.say(x, times)
    key = np.arange(3).astype(np.uint64)

    def entropy(answers: torch.Tensor, rows: list[int]) -> float:
        return float(-answers.detach().log_softmax(1)[rows, target[rows, 0].long()].mean())

    parts = [entropy(said.answers["label"], [0, 1, 2])]
    for s in range(3):
        one = torch.arange(3)[None] == s
        parts.append(entropy(network.from_some(said, None, one)["label"], [1, 2] if s == 2 else [0, 1, 2]))
    some = torch.from_numpy(subsets.some(np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], bool), key))
    parts.append(entropy(network.from_some(said, None, some)["label"], [0, 1, 2]))
    found = fitting.loss_of(network, said, None, {"label": target}, plan, key)
    assert found.item() == pytest.approx(np.mean(parts), rel=1e-5)


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_plan_names_the_modalities_and_says_why(run: Path) -> None:
    plan = recipe.read(run / "recipe.toml")
    assert plan["image"]["modalities"] == ["t1", "t2"] and plan["network"]["shared"]
    text = (run / "recipe.toml").read_text()
    assert re.search(r"modalities = .*  # \d+ of \d+ cases have t1; \d+ of \d+ cases have t2", text)
    assert "under 2000, images alike teach one backbone" in text


def test_a_plan_looks_at_the_images_that_the_network_is_given(tmp_path: Path) -> None:
    """The others are larger and coloured; some cases have only these."""
    random, rows = np.random.default_rng(4), ["case,image.flair,image.photo,label"]
    for number in range(20):
        Picture.fromarray(random.integers(0, 255, (16, 24)).astype(np.uint8)).save(tmp_path / f"f{number}.png")
        Picture.fromarray(random.integers(0, 255, (48, 40, 3)).astype(np.uint8)).save(tmp_path / f"p{number}.png")
        rows.append(f"{number},{f'f{number}.png' if number % 3 else ''},p{number}.png,{'ab'[number % 2]}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    found = cohort.read(tmp_path)
    plan, why = planning.derive(found, {"image": {"modalities": ["flair"]}, "training": SMALL["training"]}, 1.0)
    assert plan.image.modalities == ("flair",) and why["image.modalities"] == "given"
    assert (plan.image.size, plan.image.channels) == ((1, 16, 24), 1)
    assert planning.fingerprint(found).channels == 3


def test_what_hardly_any_case_has_is_left_out_and_what_differs_shares_nothing() -> None:
    def entry(number: int) -> Entry:
        names = ["ct", "mr", *(["pet"] if number < 3 else [])]
        return Entry(str(number), str(number), dict.fromkeys(names, Source(Path("x"))))

    found = cohort.Cohort(Path(), tuple(entry(n) for n in range(100)), (), "")
    names, why = modality_planning.images(found)
    assert names == ["ct", "mr"] and "too few to learn from: pet" in why
    assert not modality_planning.network(100, ["CT", "MR"])[0]["shared"]
    assert not modality_planning.network(5000, ["MR"])[0]["shared"]
    assert modality_planning.network(100, ["MR", ""])[0]["shared"]


def test_what_is_not_built_for_several_is_refused_in_a_sentence(folder: Path) -> None:
    with pytest.raises(Problem, match="one image of a case, and these have t1, t2"):
        pretraining.derive(cohort.read(folder), {key: SMALL[key] for key in ("image", "network", "training")}, 1)
    dense = {"spots": {"kind": "segmentation", "classes": ["spot"], "values": [[1]]}}
    with pytest.raises(Problem, match="linked tasks take one image, and the recipe names ct, mr"):
        plan_of(tasks=dense)


def test_the_evidence_of_independent_sources_is_added_up_where_the_network_did_not() -> None:
    """Four Gaussian sources; what is said by all is the first alone. Of the sum, the AUROC has a closed form."""
    from scipy.stats import norm

    from osler import calibration
    from osler.case import Question
    from osler.metrics.auroc import auroc
    from osler.tasks.classification import Classification

    rng, d = np.random.default_rng(0), np.array([0.5, 1.2, 0.8, 1.0])
    y = np.arange(4000) % 2
    ratio = d * (y[:, None] * d - d / 2 + rng.normal(size=(4000, 4)))
    each = [np.stack([-one / 2, one / 2], 1) for one in ratio.T]
    task = Classification(Question("label", "multiclass", ("a", "b")))
    given, target = [each[0], *(scale * one for scale, one in zip((1, 0.3, 2, 1), each, strict=True))], y[:, None]
    weights = calibration.mixing(task, [one[:2000] for one in given], target[:2000].astype(np.float32))
    assert weights.shape == (5,)
    mixed = np.tensordot(weights, np.stack(given), 1)[2000:, 1]
    assert auroc(y[2000:].astype(float), mixed) == pytest.approx(norm.cdf(np.linalg.norm(d) / np.sqrt(2)), abs=0.02)


# --- one case -------------------------------------------------------------------------------------------------------


def test_a_copy_of_any_image_joins_its_cases_and_was_seen(folder: Path, made: Model, whole: list[Entry]) -> None:
    """Also where it is not the first one; what is missing or shows nothing is no copy of anything."""
    blank = folder / "blank.png"
    Picture.fromarray(np.full((16, 16), 7, np.uint8)).save(blank)
    a, b, c, d = (replace(whole[i], id=f"x{i}", patient=f"x{i}", split=None) for i in range(4))
    shared = [
        a,
        replace(b, images=b.images | {"t2": a.images["t2"]}),
        replace(c, images=c.images | {"t2": Source(blank)}),
        replace(d, images=d.images | {"t2": Source(blank)}),
    ]
    loaded = data.load(shared, made.recipe.image)
    assert duplicates.cases(loaded.marks) == [(0, 1)]
    seen = frozenset(identity.short(digest) for digest in loaded.images[0])
    fresh, known, _ = answers.answer_all(made, Test(tuple(shared)), seen=seen)
    assert known == 2
    assert fresh is not None
    assert [entry.id for entry in fresh.entries] == [c.id, d.id]
    # Models of before kept a digest of all images of a case together.
    _, known, _ = answers.answer_all(made, Test((a, c)), seen=frozenset([identity.short(loaded.digests[0])]))
    assert known == 1


def test_of_a_cohort_with_a_shared_second_image_no_part_knows_anothers(folder: Path, made: Model) -> None:
    """And what a run kept as seen holds each image of what it was trained on."""
    found = cohort.read(folder)
    twice = next(e for e in found.entries if e.split == "train" and len(e.images) == 2)
    spy = next(e for e in found.entries if e.split == "test" and len(e.images) == 2)
    entries = tuple(
        replace(e, images=e.images | {"t2": twice.images["t2"]}) if e.id == spy.id else e for e in found.entries
    )
    asked = {question.task: question for question in found.questions}
    plan = recipe.build(recipe.merge(SMALL, {"image": {"modalities": ["t1", "t2"]}, "tasks": asked}))
    loaded = data.load(entries, plan.image)
    splits, notes = training.divide(replace(found, entries=entries), loaded, plan)
    assert twice.id not in {e.id for e in splits.training.entries}
    assert any("copies" in note for note in notes)
    second = data.the_image(data.read_case(twice, names=["t2"]))
    assert identity.short(identity.pixels(second)) in made.calibration["seen"]


def test_every_set_has_a_calibration_of_its_own_and_the_card_says_how_good_it_is(made: Model) -> None:
    for part in ("", "t1.", "t2."):
        assert f"{part}task.0.temperature" in made.calibration
        assert made.calibration[f"{part}novelty.threshold"].shape == (1,)
    assert set(made.card["subsets"]) == {"all", "t1", "t2"}
    assert all(one["label"]["cases"] > 20 for one in made.card["subsets"].values())


def test_a_case_without_an_image_is_answered_as_if_that_had_never_been_looked_at(
    made: Model, whole: list[Entry]
) -> None:
    cases = [data.read_case(entry) for entry in whole[:8]]
    images = [data.the_image(case, made.recipe.image) for case in cases]
    pixels = np.stack([data.prepare(image, made.recipe.image) for image in images])
    times = np.stack([data.timeline(image, made.recipe.image) for image in images])
    found = diagnosis.answer_each(made, pixels, times=times)
    assert set(found) == {"", "t1", "t2"}
    for row, case in enumerate(cases):
        for name in ("t1", "t2"):
            alone = diagnosis.diagnose(made, replace(case, images={name: case.images[name]}))
            p = [one.probability for one in alone.answers["label"].findings]
            assert p == pytest.approx(found[name].probability["label"][row], abs=1e-5)
            other = "t2" if name == "t1" else "t1"
            assert f"The answer rests on {name}; missing: {other}." in alone.notes
            assert any("held-out cases, from all" in note for note in alone.notes)
    # Cases that lack different images may be answered in one go.
    times[0, 1], times[1, 0] = math.nan, math.nan
    mixed = diagnosis.answer(made, pixels, times=times).probability["label"]
    assert mixed[0] == pytest.approx(found["t1"].probability["label"][0], abs=1e-5)
    assert mixed[1] == pytest.approx(found["t2"].probability["label"][1], abs=1e-5)
    assert mixed[2] == pytest.approx(found[""].probability["label"][2], abs=1e-5)


def test_what_is_no_better_than_chance_is_withheld(made: Model, whole: list[Entry]) -> None:
    case = data.read_case(whole[0])
    only = replace(case, images={"t1": case.images["t1"]})
    measured = {"cases": 60, "auroc": {"value": 0.9, "low": 0.8, "high": 0.95}}
    chance = {"cases": 60, "auroc": {"value": 0.52, "low": 0.4, "high": 0.64}}
    card = {**made.card, "subsets": {"all": {"label": measured}, "t1": {"label": chance}, "t2": {"label": measured}}}
    found = diagnosis.diagnose(replace(made, card=card), only)
    assert found.abstained and "the model cannot do without t2" in " ".join(found.reasons)
    assert not any("cannot do without" in one for one in diagnosis.diagnose(replace(made, card=card), case).reasons)


def test_swapped_images_are_said_to_be(made: Model, whole: list[Entry]) -> None:
    said, quiet_ones = [], []
    for entry in whole[:10]:
        case = data.read_case(entry)
        right, wrong = case.images, {"t1": case.images["t2"], "t2": case.images["t1"]}
        quiet_ones += [one for one in diagnosis.diagnose(made, case).reasons if "swapped" in one]
        found = diagnosis.diagnose(made, replace(case, images=wrong))
        assert found.abstained or right == wrong
        said.append(any("the image given as t1 looks like t2" in one for one in found.reasons))
    assert np.mean(said) >= 0.8 and len(quiet_ones) <= 1


def test_another_dicom_code_than_in_training_is_said(made: Model, whole: list[Entry]) -> None:
    case = data.read_case(whole[0])
    card = {**made.card, "codes": modalities.codes(("t1", "t2"), ["CT/MR", "CT/", "/MR"])}
    assert card["codes"] == {"t1": ["CT"], "t2": ["MR"]}
    images = {name: replace(image, modality="MR") for name, image in case.images.items()}
    found = diagnosis.diagnose(replace(made, card=card), replace(case, images=images))
    assert "the image given as t1 is MR, and of CT in training" in found.reasons


def test_the_image_that_counts_most_is_explained(made: Model, whole: list[Entry]) -> None:
    case = data.read_case(whole[0])
    why = explanation.explain(made, case, method="occlusion")
    assert why.modality in ("t1", "t2") and why.heatmap.shape == (1, 16, 16)
    assert f"in {why.modality}" in why.sentences[0]
    alone = explanation.explain(made, replace(case, images={"t1": case.images["t1"]}), method="gradcam")
    assert alone.modality == "t1"


def test_images_are_given_by_name(
    run: Path, made: Model, whole: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    paths = {name: source.path for name, source in whole[0].images.items()}
    words = [f"{name}={path}" for name, path in paths.items()]
    assert diagnoses.diagnose_paths(run, [], tmp_path / "d", images=words, say=quiet) == (1, 0)
    [content] = json.loads((tmp_path / "d" / "diagnoses.json").read_text())
    expected = diagnosis.diagnose(made, data.read_case_at(paths))
    given = {one["name"]: one["probability"] for one in content["answers"]["label"]["findings"]}
    assert given == pytest.approx({f.name: f.probability for f in expected.answers["label"].findings}, abs=1e-6)
    lines: list[str] = []
    assert diagnoses.diagnose_paths(run, [paths["t1"]], tmp_path / "n", say=lines.append) == (0, 1)
    assert "that the model looks at (t1, t2)" in lines[0] and "--image t1=FILE" in lines[0]
    for wrong, said in (("pd=x", "no modality 'pd'"), ("t1", "is no image"), ("t1=gone.png", "no such file")):
        with pytest.raises(Problem, match=said):
            diagnoses.diagnose_paths(run, [], tmp_path / "w", images=[wrong], say=quiet)
    with pytest.raises(Problem, match="two images are given as t1"):
        diagnoses.diagnose_paths(run, [], tmp_path / "w", images=[words[0], words[0]], say=quiet)


def test_images_are_explained_by_name(
    run: Path, made: Model, whole: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    paths = {name: source.path for name, source in whole[0].images.items()}
    words = [f"{name}={path}" for name, path in paths.items()]
    said = list(explanation.explain_path(run, None, tmp_path / "x", images=words))
    expected = explanation.explain(made, data.read_case_at(paths))
    assert said == list(expected.sentences)
    [content] = json.loads((tmp_path / "x" / "explanation.json").read_text())["explanations"]
    assert content["modality"] == expected.modality and (tmp_path / "x" / "gradcam.png").exists()
    with pytest.raises(Problem, match=r"--image t1=FILE"):
        list(explanation.explain_path(run, paths["t1"], tmp_path / "x"))
    with pytest.raises(Problem, match="no image is given"):
        list(explanation.explain_path(run, None, tmp_path / "x"))
    with pytest.raises(Problem, match="given twice"):
        list(explanation.explain_path(run, paths["t1"], tmp_path / "x", images=words))


def test_a_model_of_one_image_takes_a_file_without_a_name(whole: list[Entry]) -> None:
    plan = recipe.ImagePlan((1, 16, 16), modalities=("t2",))
    both = data.read_case(whole[0])
    alone = data.read_case(whole[0], names=plan.modalities)
    assert list(alone.images) == ["t2"]
    case = data.read_case_at(whole[0].images["t2"].path)
    for one in (both, alone, case):
        assert np.array_equal(data.the_image(one, plan).array, both.images["t2"].array)
    with pytest.raises(Problem, match=r"looks at \(t2\)"):
        data.the_image(data.read_case(whole[0], names=("t1",)), plan)


# --- many cases -----------------------------------------------------------------------------------------------------


def test_the_evaluation_has_a_row_for_every_set(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    lines: list[str] = []
    result = evaluation.evaluate(run, folder, tmp_path / "e", draws=50, say=lines.append)
    found = result["modalities"]["label"]["subsets"]
    with (folder / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    has = {name: {row["case"] for row in rows if row[f"image.{name}"]} for name in ("t1", "t2")}
    assert {name: one["n"] for name, one in found.items()} == {
        "all": len(has["t1"] & has["t2"]), "t1": len(has["t1"]), "t2": len(has["t2"])
    }  # fmt: skip
    assert found["t2"]["metrics"]["auroc"]["value"] > 0.85
    paired = found["t1"]["less_all"]["auroc"]
    assert paired["value"] == pytest.approx(paired["a"] - paired["b"]) and paired["n"] == found["all"]["n"]
    schema = json.loads((Path(__file__).parents[1] / "docs/schemas/evaluation.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "e" / "evaluation.json").read_text()), schema)
    assert "covariates" not in result
    assert any(line.startswith(f"label, t1 ({found['t1']['n']} cases): AUROC") for line in lines)
    page = (tmp_path / "e" / "evaluation.html").read_text()
    assert "What if an image is missing?" in page


def test_folds_covariates_and_backbones_of_their_own_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    folder = modality_phantom.write(tmp_path / "c", SPEC, 60)
    lines = (folder / "manifest.csv").read_text().splitlines()
    rows = [f"{lines[0].rsplit(',', 1)[0]},covariate.age"]
    rows += [f"{line.rsplit(',', 1)[0]},{40 + n % 7 if n % 3 else ''}" for n, line in enumerate(lines[1:])]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    wanted = recipe.merge(SMALL, {
        "training": {"folds": 2, "epochs": 1}, "network": {"shared": False, "fusion": "cross_attention"},
        "covariates": {"columns": ["age"]},
    })  # fmt: skip
    made = training.train(folder, tmp_path / "run", wanted, say=quiet)
    assert made.networks[0].sources == ("t1", "t2", "covariates") and len(made.card["subsets"]) == 7
    result = evaluation.evaluate(tmp_path / "run", folder, tmp_path / "e", out_of_fold=True, draws=20, say=quiet)
    found = result["modalities"]["label"]["subsets"]
    assert len(found) == 7 and found["covariates"]["n"] == 40 and found["t1+t2"]["n"] < 60
    entry = next(e for e in cohort.read(folder).entries if len(e.images) == 2)
    images = [f"{name}={source.path}" for name, source in entry.images.items()]
    said = list(explanation.explain_path(tmp_path / "run", None, tmp_path / "x", images=images, known=["age=41"]))
    assert any("what the covariates add is not told" in line for line in said)
    assert "shares" not in json.loads((tmp_path / "x" / "explanation.json").read_text())


@pytest.mark.real_data
def test_real_series_are_read_beside_each_other(real_data: Path) -> None:
    file = Path(__file__).parents[1] / "recipes" / "cohorts" / "brats2015_sample.toml"
    found = cohort.read(real_data / "brats2015_sample", file)
    assert len(found.entries) == 4 and all(set(entry.images) == {"flair", "t1c"} for entry in found.entries)
    plan = recipe.ImagePlan((8, 24, 24), dims=3, intensity="image", modalities=("flair", "t1c"))
    lacking = replace(found.entries[0], images={"t1c": found.entries[0].images["t1c"]})
    loaded = data.load([lacking, *found.entries[1:]], plan)
    assert not loaded.problems and subsets.there(loaded.times, 2).tolist() == [[False, True], *[[True, True]] * 3]
    torch.manual_seed(0)
    content = {"image": {**vars(plan)}, "network": {"options": {"depth": 18, "width": 4}}, "tasks": QUESTION}
    network = Network(recipe.build(content)).eval()
    seen = asking.outputs(network, loaded.pixels, [lambda x: x], times=loaded.times)
    assert set(seen.alone) == {"flair", "t1c"} and np.isfinite(seen.answers["label"]).all()
    # Of the case without FLAIR, T1c alone is all.
    assert seen.answers["label"][0] == pytest.approx(seen.alone["t1c"]["label"][0])
    assert seen.answers["label"][1] != pytest.approx(seen.alone["t1c"]["label"][1])
    # What is outlined there is asked of both, channels of one image on the grid that they share.
    dense = recipe.build({
        "image": {**vars(plan)}, "tasks": {"tumour": found.questions[0]}, "network": {"backbone": "unet"},
    })  # fmt: skip
    case = data.read_case(found.entries[0], found.questions, names=plan.modalities)
    (volume,) = volumes.read(case, dense)
    assert volume.image.shape[0] == 2 and volume.image.shape[1:] == volume.labels["tumour"].shape
    assert np.isfinite(volume.image).all() and set(np.unique(volume.labels["tumour"])) <= {0, 1, 2, 3, 4}
