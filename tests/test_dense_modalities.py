"""Places in cases of several images: all are channels of one, and any of them may be missing."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osler import (
    cohort,
    data,
    dense_phantom,
    diagnosis,
    draws,
    evaluation,
    explanation,
    localisation,
    model,
    pace,
    patch_planning,
    patches,
    phantom_files,
    recipe,
    sliding,
    training,
    volumes,
)
from osler.case import Case, Question
from osler.image import Affine, Image
from osler.model import Network
from osler.patches import Sample
from osler.problem import Problem
from osler.recipe import ImagePlan, NetworkPlan, Recipe

SPEC = replace(dense_phantom.LESIONS, size=(1, 64, 64), classes=("nodule", "cyst"), contrast=(5.0, 5.0))
SMALL: dict[str, Any] = {
    "image": {"size": [1, 64, 64]},
    "network": {"backbone": "unet", "options": {"width": 4, "depth": 4}},
    "training": {
        "epochs": 2, "batch": 8, "folds": 0, "precision": "float32", "channels_last": False, "threads": 1,
        "learning_rate": 3e-3,
    },
    "patches": {"per_case": 1, "longest": 64, "deep": 2},
}  # fmt: skip
MASK = Question("mask", "segmentation", ("a", "b"), values=((1,), (2,)))


def quiet(line: str) -> None:
    """Nothing is printed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of five cases lacks the image of one class."""
    made = phantom_files.write_dense_phantom(tmp_path_factory.mktemp("parts") / "c", SPEC, 60, "modalities")
    with (made / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        if number % 5 == 0:
            row["image.cyst"] = ""
    with (made / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return made


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    training.train(folder, out, SMALL, say=quiet)
    return out


def plan_of(dims: int = 2, **image: Any) -> Recipe:
    size = (1, 32, 32) if dims == 2 else (16, 16, 16)
    return Recipe(
        ImagePlan(size, dims, modalities=("t1", "t2"), **image),  # type: ignore[arg-type]
        {"mask": MASK},
        NetworkPlan("unet", {"width": 8}),
    )


def series(seed: int, size: tuple[int, int, int] = (4, 40, 36), shift: float = 0.0) -> Image:
    geometry = Affine(np.array([[1.0, 0, 0, shift], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]))
    return Image(np.random.default_rng(seed).normal(100 * seed, 10, (1, 1, *size)).astype(np.float32), geometry)


def test_each_image_is_a_channel_on_the_grid_of_the_first_and_what_is_missing_is_not_a_number() -> None:
    first, second = series(1), series(2)
    both, plan = Case("c", "p", {"t1": first, "t2": second}), plan_of()
    (moment,) = volumes.read(both, plan)
    np.testing.assert_array_equal(moment.image, np.concatenate([first.array[0], second.array[0]]))
    (alone,) = volumes.read(Case("c", "p", {"t2": second}), plan)
    assert np.isnan(alone.image[0]).all()
    np.testing.assert_array_equal(alone.image[1], moment.image[1])
    # Moved by whole pixels: what one says of a place is read where the other has it.
    (moved,) = volumes.read(Case("c", "p", {"t1": first, "t2": series(2, shift=2.0)}), plan_of())
    np.testing.assert_allclose(moved.image[1, :, :, 2:], second.array[0, 0, :, :, :-2], rtol=1e-5)


def test_the_order_of_the_recipe_holds_in_whatever_order_the_images_come() -> None:
    coarse = series(2, (4, 20, 18))
    images = {"t1": series(1), "t2": replace(coarse, geometry=Affine(np.diag([2.0, 2.0, 3.0, 1.0])))}
    plan = plan_of()
    (moment,) = volumes.read(Case("c", "p", images), plan)
    (turned,) = volumes.read(Case("c", "p", dict(reversed(images.items()))), plan)
    np.testing.assert_array_equal(moment.image, turned.image)
    # The grid is that of the first in the recipe, not of the first in the table.
    other = replace(plan, image=replace(plan.image, modalities=("t2", "t1")))
    (first,) = volumes.read(Case("c", "p", images), other)
    assert moment.size == (4, 40, 36) and first.size == (4, 20, 18)
    np.testing.assert_array_equal(first.image[0], coarse.array[0, 0])


def test_images_that_nothing_lays_on_each_other_are_said() -> None:
    odd = Image(np.zeros((1, 1, 4, 20, 20), np.float32))
    with pytest.raises(Problem, match="4 x 20 x 20 and 4 x 40 x 36 pixels, and nothing says how they lie"):
        volumes.read(Case("c", "p", {"t1": series(1), "t2": odd}), plan_of())
    loop = Image(np.zeros((3, 1, 4, 40, 36), np.float32))
    with pytest.raises(Problem, match="one image of this case has 3 moments, another 1"):
        volumes.read(Case("c", "p", {"t1": series(1), "t2": loop}), plan_of())
    with pytest.raises(Problem, match="lie in other spaces, or beside each other"):
        volumes.read(Case("c", "p", {"t1": series(1), "t2": series(2, shift=500.0)}), plan_of())
    here, there = (replace(one, geometry=Affine(np.diag([1.0, 1, 3, 1]), frame)) for one, frame in
                   ((series(1), "1.2.3"), (series(2, (4, 40, 30)), "1.2.4")))  # fmt: skip
    with pytest.raises(Problem, match="lie in other spaces"):
        volumes.read(Case("c", "p", {"t1": here, "t2": there}), plan_of())
    with pytest.raises(Problem, match=r"image\.frames goes with one image"):
        recipe.build(recipe.to_dict(plan_of(frames=3)))


@pytest.mark.parametrize("intensity", ["image", "cohort", "window"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_sees_nothing_of_what_is_missing(intensity: str, dims: int) -> None:
    plan = plan_of(dims=dims, intensity=intensity)
    network = Network(plan).eval()
    whole = volumes.read(Case("c", "p", {"t1": series(1), "t2": series(2)}), plan)
    (alone,) = volumes.read(Case("c", "p", {"t1": series(1)}), plan)
    network.normalise.fit(np.stack([v.image for v in whole])[:, None].reshape(1, 2, 1, *alone.size))
    keys = draws.keys(3, np.arange(1))
    x, truth = patches.batch([Sample([alone])], keys, plan)
    assert x.shape == (1, 2, 1, *plan.image.size) and truth.places["mask"].shape == (1, *plan.image.size)
    seen = network.normalise_patches(x)
    assert torch.isfinite(seen).all() and (seen[:, 1] == 0).all() and seen[:, 0].std() > 0
    # A window that reaches beyond the image holds nothing of it either.
    padded, _ = sliding.padded(alone.image, (20, 64, 64))
    assert np.isnan(padded[1]).all() and np.isfinite(padded[0]).all()
    said = next(localisation.ask([network], alone.image[None], plan)).probabilities["mask"]
    assert said.shape == (3, *alone.size) and np.isfinite(said).all()


def test_windows_are_shown_with_some_of_their_images_and_never_with_what_is_missing() -> None:
    x = torch.zeros(4000, 3, 1, 1, 2, 2)
    x[:1000, 1] = torch.nan
    shown = localisation.parts(x, draws.keys(5, np.arange(4000))).flatten(1).numpy()
    assert set(np.unique(shown)) == {0.0, 1.0} and not shown[:1000, 1].any() and (shown.sum(1) >= 1).all()
    # Of half of the windows a random part, which may be all of it.
    complete = shown[1000:].all(1).mean()
    assert 0.5 < complete < 0.7
    np.testing.assert_array_equal(shown, localisation.parts(x, draws.keys(5, np.arange(4000))).flatten(1).numpy())


def test_all_images_are_planned_and_measured_steps_see_as_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "measure", lambda plan, chosen: (plan, 50.0, {}))
    plan, why = patch_planning.derive(cohort.read(folder), {}, 10)
    assert plan.image.modalities == ("nodule", "cyst") and plan.inputs == 2
    assert why["image.modalities"].startswith("39 of 39") or " of " in why["image.modalities"]
    one, _ = patch_planning.derive(cohort.read(folder), {"image": {"modalities": ["cyst"]}}, 10)
    assert one.image.modalities == ("cyst",) and one.inputs == 1


def test_the_line_from_a_cohort_to_an_answer_from_any_part(folder: Path, run: Path, tmp_path: Path) -> None:
    told = evaluation.evaluate(run, folder, tmp_path / "evaluation", draws=20, say=quiet)
    sets = told["modalities"]["mask"]["subsets"]
    assert set(sets) == {"all", "nodule", "cyst"}
    assert sets["all"]["metrics"]["dice"] == told["tasks"]["mask"]["metrics"]["dice"]
    assert sets["nodule"]["n"] == told["cases"] > sets["cyst"]["n"] > 0
    found = cohort.read(folder)
    entry = next(e for e in found.entries if e.split == "test" and len(e.images) == 2)
    made = model.load(run)
    whole = data.read_case(entry)
    answer = diagnosis.diagnose(made, whole)
    assert not any("missing" in note for note in answer.notes)
    alone = replace(whole, images={"cyst": whole.images["cyst"]})
    part = diagnosis.diagnose(made, alone)
    assert "The answer rests on cyst; missing: nodule." in part.notes
    assert part.answers["mask"].uncertainty is not None
    # What was not given cannot matter.
    again = diagnosis.diagnose(made, data.read_case(replace(entry, images={"cyst": entry.images["cyst"]})))
    assert again.answers == part.answers or str(again.answers) == str(part.answers)
    if answer.answers["mask"].findings:
        explained = explanation.explain(made, whole, method="gradcam")
        assert explained.heatmap.shape == whole.images["nodule"].size


def test_cases_of_the_training_are_known_by_each_of_their_images(folder: Path, run: Path, tmp_path: Path) -> None:
    """Of every case one image only, and nothing that says what it was used for."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tested = sum(row["split"] == "test" for row in rows)
    for number, row in enumerate(rows):
        row.pop("split")
        if row["image.cyst"]:
            row["image.nodule" if number % 2 else "image.cyst"] = ""
    shutil.copytree(folder, tmp_path / "c")
    with (tmp_path / "c" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    told = evaluation.evaluate(run, tmp_path / "c", tmp_path / "evaluation", draws=20, say=quiet)
    assert told["cases"] == tested < len(rows)


def test_models_of_other_images_are_compared_on_the_same_cases(folder: Path, run: Path, tmp_path: Path) -> None:
    settings = SMALL | {"image": SMALL["image"] | {"modalities": ["nodule"]}}
    training.train(folder, tmp_path / "one", settings, say=quiet)
    told = evaluation.evaluate(run, folder, tmp_path / "e", draws=20, against=tmp_path / "one", say=quiet)
    alone = evaluation.evaluate(tmp_path / "one", folder, tmp_path / "a", draws=20, say=quiet)
    dice = (one["tasks"]["mask"]["metrics"]["dice"]["value"] for one in (told, alone))
    assert told["comparison"]["tasks"]["mask"]["n"] == told["cases"] == alone["cases"]
    difference = told["comparison"]["tasks"]["mask"]["differences"]["dice"]["value"]
    np.testing.assert_allclose(difference, next(dice) - next(dice), atol=1e-9)


def test_a_file_that_does_not_say_which_image_it_is_is_refused(folder: Path, run: Path) -> None:
    path = sorted((folder / "images").iterdir())[0]
    with pytest.raises(Problem, match="none of the images that the model looks at"):
        diagnosis.diagnose(model.load(run), data.read_case_at(path))
