"""What kind of machine made the images decides which augmentations are planned; all can be switched off."""

from pathlib import Path
from typing import Any

import pytest

from osler import catalog, cohort, modality, phantom, planning, recipe
from osler.problem import Problem

SETTINGS: dict[str, Any] = {
    "image": {"size": [1, 16, 16]},
    "network": {"options": {"width": 4}},
    "training": {"epochs": 1, "folds": 2, "threads": 1, "precision": "float32", "channels_last": False},
}
COHORT_FILE = (
    'table = "manifest.csv"\ncase = "case"\nimage = "{image}"\nmodality = "US"\n[label.label]\ncolumn = "label"\n'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("modality") / "cohort"
    phantom.write_phantom(place, phantom.Phantom(size=16, lesion=(5.0, 7.0)), 40)
    return place


def derived(folder: Path, *words: str, file: Path | None = None) -> tuple[recipe.Recipe, dict[str, str]]:
    return planning.derive(cohort.read(folder, file), recipe.merge(SETTINGS, recipe.settings(words)), 1)


@pytest.mark.parametrize("code", modality.SPECIFIC)
def test_the_modality_brings_its_augmentations(folder: Path, code: str) -> None:
    plan, reasons = derived(folder, f"modality={code}")
    expected = modality.SPECIFIC[code]
    assert plan.image.modality == code and reasons["image.modality"] == "given"
    assert list(plan.augmentation)[-len(expected) :] == list(expected)
    for name in expected:
        assert 0 < plan.augmentation[name]["probability"] <= 0.5
        assert expected[name][1] in reasons[f"augmentation.{name}"]


def test_without_a_modality_nothing_specific_is_planned(folder: Path) -> None:
    plan, reasons = derived(folder)
    assert plan.image.modality == "" and "set modality=US" in reasons["image.modality"]
    assert not {name for options in modality.SPECIFIC.values() for name in options} & set(plan.augmentation)


def test_a_cohort_file_may_say_it_and_does_not_change_the_scale_of_intensities(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cohort.toml").write_text(COHORT_FILE)
    plan, reasons = derived(folder, file=tmp_path / "cohort.toml")
    assert plan.image.modality == "US" and "speckle" in plan.augmentation
    assert "cohort file" in reasons["image.modality"]
    (tmp_path / "cohort.toml").write_text(COHORT_FILE.replace('modality = "US"\n', ""))
    assert derived(folder, file=tmp_path / "cohort.toml")[0].image.intensity == plan.image.intensity


@pytest.mark.parametrize(
    ("codes", "planned"), [(("CR", "DX"), "CR"), (("CT",), "CT"), (("CT", "MR"), ""), (("PT",), ""), ((), "")]
)
def test_files_that_say_it_are_believed_if_they_agree(codes: tuple[str, ...], planned: str) -> None:
    assert modality.decide(codes, "")[0] == planned
    assert modality.decide(codes, "US")[0] == "US"  # what a person says goes first


@pytest.mark.parametrize("file", [True, False])
def test_an_unknown_modality_is_refused(folder: Path, tmp_path: Path, file: bool) -> None:
    (tmp_path / "cohort.toml").write_text(COHORT_FILE.replace("US", "sonar"))
    with pytest.raises(Problem, match="modality"):
        derived(folder, *(() if file else ("modality=sonar",)), file=tmp_path / "cohort.toml" if file else None)


# --- none at all ------------------------------------------------------------------------------------------


def test_augmentation_can_be_switched_off_as_a_whole(folder: Path, tmp_path: Path) -> None:
    plan, reasons = derived(folder, "augmentation=none", "modality=US")
    assert plan.augmentation == {} and reasons["augmentation"] == "given"
    recipe.write(plan, reasons, tmp_path / "recipe.toml")
    assert 'augmentation = "none"  # given' in (tmp_path / "recipe.toml").read_text()
    written = recipe.read(tmp_path / "recipe.toml")
    assert recipe.build(written) == plan
    # Trained with once more, it stays off.
    assert planning.derive(cohort.read(folder), written, 1)[0].augmentation == {}


def test_none_and_some_contradict_each_other() -> None:
    with pytest.raises(Problem, match="none"):
        recipe.settings(("augmentation=none", "augmentation.blur.probability=1"))
    with pytest.raises(Problem, match="augmentation is none, and yet"):
        recipe.merge({"augmentation": "none"}, {"augmentation": {"blur": {"probability": 1.0}}})


def test_any_other_word_is_refused() -> None:
    with pytest.raises(Problem, match="write none"):
        recipe.check_shape({"augmentation": "off"})


def test_every_planned_augmentation_exists() -> None:
    for code in modality.SPECIFIC:
        for name, given in modality.augmentations(code)[0].items():
            recipe.options("transforms", name, given)
            assert name in catalog.names("transforms")
