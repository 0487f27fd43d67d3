"""From a cohort with masks or boxes to a trained, evaluated model that answers: the whole line, small."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from osler import (
    asking,
    data,
    dense_phantom,
    diagnoses,
    diagnosis,
    evaluation,
    model,
    phantom_files,
    places,
    training,
)
from osler.case import Case, Entry, Source
from osler.image import Image
from osler.model import Model
from osler.problem import Problem

SMALL = {
    "image": {"size": [1, 48, 48]},
    "network": {"backbone": "unet", "options": {"width": 4, "depth": 4}},
    "training": {
        "epochs": 2, "batch": 8, "folds": 0, "members": 1, "precision": "float32", "channels_last": False,
        "threads": 1, "learning_rate": 3e-3,
    },
    "patches": {"per_case": 1, "longest": 48, "deep": 2},
}  # fmt: skip


def quiet(line: str) -> None:
    """Nothing is printed."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = replace(dense_phantom.LESIONS, size=(1, 64, 64))
    return phantom_files.write_dense_phantom(tmp_path_factory.mktemp("cohort") / "c", spec, 40)


@pytest.fixture(scope="module")
def run(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    training.train(cohort, out, SMALL, say=quiet)
    return out


def test_a_run_leaves_nothing_half_done(run: Path) -> None:
    assert {"model.safetensors", "recipe.toml", "history.csv", "training.html"} <= {p.name for p in run.iterdir()}
    assert not list(run.rglob("*.part")) and not (run / "volumes").exists()


def test_the_same_command_gives_the_same_bits_also_after_a_stop(
    cohort: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osler import fitting, localisation

    class Stop(Exception):
        pass

    monkeypatch.setattr(fitting, "SAVE_SECONDS", 0.0)
    before, steps = localisation._step, []

    def step(*given: object) -> float:
        steps.append(1)
        if len(steps) == 3:
            raise Stop
        return before(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(localisation, "_step", step)
    with pytest.raises(Stop):
        training.train(cohort, tmp_path, SMALL, say=quiet)
    monkeypatch.setattr(localisation, "_step", before)
    again = training.train(cohort, tmp_path, SMALL, say=quiet)
    assert again.sha256 == model.load(run).sha256


def test_an_evaluation_holds_figures_with_intervals(cohort: Path, run: Path, tmp_path: Path) -> None:
    result = evaluation.evaluate(run, cohort, tmp_path, draws=100, say=quiet)
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert told == json.loads(json.dumps(result))
    metrics = told["tasks"]["mask"]["metrics"]
    assert {"dice", "iou", "hd95", "nsd", "lesion_sensitivity", "map50", "cpm", "drawn_without"} <= set(metrics)
    assert all(set(one) >= {"value", "low", "high", "n"} for one in metrics.values())
    assert told["part"] == "test" and (tmp_path / "evaluation.html").exists()
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(lines) == told["cases"] + 1
    assert not any(name in (tmp_path / "predictions.csv").read_text() for name in ("case0000", "patient0"))


def test_a_diagnosis_is_written_with_its_places(cohort: Path, run: Path, tmp_path: Path) -> None:
    import nibabel

    image = sorted((cohort / "images").iterdir())[0]
    done, failed = diagnoses.diagnose_paths(run, [image], tmp_path, method="none", say=quiet)
    assert (done, failed) == (1, 0)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    told = json.loads((folder / "diagnosis.json").read_text())
    assert told["answers"]["mask"]["kind"] == "segmentation"
    assert (folder / "findings.csv").exists() and (folder / "diagnosis.html").exists()
    volume = nibabel.load(folder / "mask-uncertainty.nii.gz")
    assert volume.shape[:2] == (64, 64)  # type: ignore[attr-defined]
    everything = json.loads((tmp_path / "diagnoses.json").read_text())
    assert everything[0]["answers"].keys() == {"mask"}


def test_a_larger_image_than_the_window_is_answered_whole(run: Path) -> None:
    made = model.load(run)
    recipe = replace(made.recipe, patches=replace(made.recipe.patches, longest=0))
    free = Model(recipe, made.networks, made.calibration, made.card, made.sha256)
    array = np.random.default_rng(0).integers(0, 256, (1, 1, 1, 100, 130)).astype(np.uint8)
    answer = places.answer(free, Image(array))["mask"]
    assert answer.uncertainty is not None and answer.uncertainty.shape == (1, 1, 100, 130)


def test_nothing_of_an_answer_comes_from_a_network_that_was_not_asked(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model.load(run)
    two = Model(made.recipe, [*made.networks, *model.load(run).networks], made.calibration, made.card, made.sha256)
    asked, outputs = [], asking.outputs

    def noted(network: model.Network, *more: object, **named: object) -> asking.Outputs:
        asked.append(network)
        return outputs(network, *more, **named)

    monkeypatch.setattr(asking, "outputs", noted)
    case = Case("x", "x", {"image": Image(np.zeros((1, 1, 1, 64, 64), np.uint8))})
    diagnosis.diagnose(two, case, [two.networks[1]])
    assert len(asked) == 1 and asked[0] is two.networks[1]


def test_folds_answer_for_what_they_have_not_seen(cohort: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "training": {**SMALL["training"], "folds": 2, "epochs": 1}}
    training.train(cohort, tmp_path / "run", settings, say=quiet)
    told = evaluation.evaluate(tmp_path / "run", cohort, tmp_path / "out", out_of_fold=True, draws=50, say=quiet)
    assert told["part"] == "out of fold" and told["cases"] > 25
    with pytest.raises(Problem, match="no case of this cohort is left"):
        evaluation.evaluate(tmp_path / "run", _seen_only(cohort, tmp_path), tmp_path / "again", draws=50, say=quiet)


def _seen_only(cohort: Path, tmp_path: Path) -> Path:
    """The same cohort without its test part."""
    text = (cohort / "manifest.csv").read_text().splitlines()
    kept = [line for line in text if ",test," not in line]
    for name in ("images", "masks"):
        (tmp_path / name).symlink_to(cohort / name)
    (tmp_path / "manifest.csv").write_text("\n".join(kept) + "\n")
    return tmp_path / "manifest.csv"


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_boxes_take_the_same_way(layout: phantom_files.LayoutName, tmp_path: Path) -> None:
    spec = replace(dense_phantom.LESIONS, size=(1, 64, 64))
    cohort = phantom_files.write_dense_phantom(tmp_path / "c", spec, 30, layout)
    settings = {**SMALL, "tasks": "boxes", "patches": {"longest": 48}}
    made = training.train(cohort, tmp_path / "run", settings, say=quiet)
    assert made.recipe.tasks["boxes"].kind == "detection"
    told = evaluation.evaluate(tmp_path / "run", cohort, tmp_path / "out", draws=50, say=quiet)
    assert {"map50", "map", "cpm"} <= set(told["tasks"]["boxes"]["metrics"])
    source = next(iter(sorted(cohort.rglob("*.png")))).resolve()
    found = diagnosis.diagnose(made, data.read_case(Entry("x", "x", {"image": Source(source)})))
    assert found.answers["boxes"].kind == "detection"


def test_volumes_take_the_same_way(tmp_path: Path) -> None:
    spec = replace(dense_phantom.NODULES, size=(12, 32, 32), diameter=(3, 5))
    cohort = phantom_files.write_dense_phantom(tmp_path / "c", spec, 24, "nnunet")
    settings = {
        **SMALL,
        "image": {"size": [8, 24, 24], "dims": 3},
        "network": {"backbone": "residual_unet", "options": {"width": 4, "depth": 3}},
        "patches": {"deep": 1},
    }
    made = training.train(cohort, tmp_path / "run", settings, say=quiet)
    assert made.recipe.patches.unit == "mm"
    told = evaluation.evaluate(tmp_path / "run", cohort, tmp_path / "out", draws=50, say=quiet)
    assert told["tasks"]["mask"]["unit"] == "mm"


def test_a_task_that_nobody_knows_is_said(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="nothing is known about 'nothing'"):
        training.train(cohort, tmp_path, {**SMALL, "tasks": "nothing"}, say=quiet)


def test_verbs_that_compare_labels_refuse_what_asks_where(tmp_path: Path) -> None:
    from osler import ablation

    cohort = phantom_files.write_dense_phantom(tmp_path / "c", dense_phantom.LESIONS, 12, "coco")
    with pytest.raises(Problem, match="compared by AUROC"):
        ablation.ablate(cohort, tmp_path / "out", say=quiet)


def test_a_backbone_is_pretrained_on_images_that_are_only_outlined(cohort: Path, tmp_path: Path) -> None:
    from osler import pretraining

    settings = {
        "image": {"size": [1, 32, 32]}, "network": {"backbone": "resnet", "options": {"width": 4}},
        "training": {"epochs": 1, "batch": 8, "precision": "float32", "channels_last": False, "threads": 1},
    }  # fmt: skip
    path = pretraining.pretrain(cohort, tmp_path / "w.safetensors", settings, say=quiet)
    assert path.exists()


def test_a_training_that_no_longer_gets_better_stops(cohort: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "training": {**SMALL["training"], "epochs": 6, "patience": 1, "learning_rate": 1e-9}}
    training.train(cohort, tmp_path, settings, say=quiet)
    rows = (tmp_path / "history.csv").read_text().splitlines()[1:]
    assert len(rows) < 6


# --- one of several images ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_images(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort with a column of images before its own, which show nothing and are of another size."""
    import csv

    from PIL import Image as Picture

    folder = tmp_path_factory.mktemp("two")
    for name in ("images", "masks"):
        (folder / name).symlink_to(cohort / name)
    with (cohort / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (folder / "empty").mkdir()
    named = []
    for row in rows:
        empty = f"empty/{row['case']}.png"
        noise = np.random.default_rng(len(named)).integers(0, 9, (20, 24)).astype(np.uint8)
        Picture.fromarray(noise).save(folder / empty)
        named.append({"case": row["case"], "image.a": empty, "image.b": row["image"]} | row)
        del named[-1]["image"]
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(named[0]))
        table.writeheader()
        table.writerows(named)
    return folder


@pytest.fixture(scope="module")
def run_of_b(two_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run_of_b")
    image = {**SMALL["image"], "modalities": ["b"]}
    training.train(two_images, out, {**SMALL, "image": image}, say=quiet)
    return out


def test_two_images_that_nothing_lays_on_each_other_are_not_looked_at_together(
    two_images: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(Problem, match="no case that can be used is left to train on"):
        training.train(two_images, tmp_path / "both", SMALL, say=said.append)
    assert any(
        "and nothing says how they lie to each other; bring them to one grid, or choose" in one for one in said
    )
    with pytest.raises(Problem, match="no case has an image 'c'"):
        training.train(two_images, tmp_path / "run", {**SMALL, "image": {"modalities": ["c"]}}, say=quiet)


def test_the_chosen_image_goes_all_the_way_as_if_it_were_the_only_one(
    cohort: Path, run: Path, two_images: Path, run_of_b: Path, tmp_path: Path
) -> None:
    alone, chosen = model.load(run), model.load(run_of_b)
    assert chosen.recipe.image.modalities == ("b",)
    for one, other in zip(alone.networks, chosen.networks, strict=True):
        weights = other.state_dict()
        assert all(value.equal(weights[name]) for name, value in one.state_dict().items())
    told = [
        evaluation.evaluate(*pair, tmp_path / str(n), draws=20, say=quiet)
        for n, pair in enumerate(((run, cohort), (run_of_b, two_images)))
    ]
    assert told[0]["tasks"] == told[1]["tasks"] and told[0]["cases"] == told[1]["cases"]
    path = sorted((cohort / "images").iterdir())[0]
    case = data.read_case_at({"a": sorted((two_images / "empty").iterdir())[0], "b": path})
    answers = [
        diagnosis.diagnose(chosen, one).answers["mask"] for one in (case, data.read_case_at(path))
    ] + [diagnosis.diagnose(alone, data.read_case_at(path)).answers["mask"]]  # fmt: skip
    assert [f.probability for f in answers[0].findings] == [f.probability for f in answers[2].findings]
    assert [f.probability for f in answers[1].findings] == [f.probability for f in answers[2].findings]
    # Files are on the grid of the image that was looked at, not of the first.
    folder = diagnoses.write_diagnosis(diagnosis.diagnose(chosen, case), case, chosen, tmp_path / "out", "none")
    import nibabel

    assert nibabel.load(folder / "mask-uncertainty.nii.gz").shape[:2] == (64, 64)  # type: ignore[attr-defined]
    images = [f"b={path}"]
    assert diagnoses.diagnose_paths(run_of_b, [], tmp_path / "x", images=images, method="none", say=quiet) == (1, 0)
