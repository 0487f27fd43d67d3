"""From what a cohort with outlines looks like to a recipe: the rules, not their numbers."""

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture

from osler import cohort, link_planning, pace, patch_planning, recipe, structures
from osler.problem import Problem
from osler.recipe import Recipe

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _fifty_patches_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules are tested, not this machine."""
    monkeypatch.setattr(pace, "measure", lambda plan, chosen: (plan, 50.0, {"training.precision": "measured"}))


def volumes(
    folder: Path,
    size: tuple[int, int, int] = (24, 32, 28),
    spacing: tuple[float, float, float] = (1.2, 1.2, 1.2),
    names: tuple[str, str] = ("head", "tail"),
    count: int = 10,
) -> Path:
    """An nnU-Net folder; sizes and spacings as (depth, height, width)."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    affine = np.diag([*spacing[::-1], 1.0])
    for number in range(count):
        image = RNG.normal(100, 20, size[::-1]).astype(np.float32)
        labels = np.zeros(size[::-1], np.uint8)
        middle = [n // 2 for n in labels.shape]
        labels[middle[0] - 4 : middle[0], middle[1] - 4 : middle[1] + 4, middle[2] - 1 : middle[2] + 2] = 1
        labels[middle[0] : middle[0] + 4, middle[1] - 4 : middle[1] + 4, middle[2] - 1 : middle[2] + 2] = 2
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"case_{number:03d}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), folder / "labelsTr" / f"case_{number:03d}.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, names[0]: 1, names[1]: 2},
                "numTraining": count,
                "file_ending": ".nii.gz",
            }
        )
    )
    return folder


def pictures(folder: Path, side: int, thick: int, count: int = 20) -> Path:
    """A folder of PNG photographs with a table of masks: bands of that thickness."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rows = ["case,image,mask,split"]
    for number in range(count):
        mask = np.zeros((side, side), np.uint8)
        mask[side // 2 : side // 2 + thick] = 255
        image = RNG.integers(0, 200, (side, side, 3)).astype(np.uint8)
        Picture.fromarray(image).save(folder / "images" / f"{number}.png")
        Picture.fromarray(mask).save(folder / "masks" / f"{number}.png")
        part = "test" if number >= count // 2 else "train"
        rows.append(f"{number},images/{number}.png,masks/{number}.png,{part}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def beside(folder: Path, column: str, values: list[str]) -> None:
    """Adds a column to the table of :func:`pictures`."""
    head, *rows = (folder / "manifest.csv").read_text().splitlines()
    lines = [f"{head},{column}", *(f"{row},{value}" for row, value in zip(rows, values, strict=True))]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def derived(folder: Path, minutes: float = 30, **given: Any) -> tuple[Recipe, dict[str, str]]:
    return patch_planning.derive(cohort.read(folder), given, minutes)


def test_even_volumes_are_seen_in_3d_on_their_own_grid_with_a_reason_beside_each_choice(tmp_path: Path) -> None:
    plan, why = derived(volumes(tmp_path / "set"))
    assert plan.image.dims == 3
    assert plan.patches.unit == "mm"
    assert plan.patches.spacing == (1.2, 1.2, 1.2)
    # The whole median image fits a step, and the network halves it evenly.
    assert all(p >= n and p % 8 == 0 for p, n in zip(plan.image.size, (24, 32, 28), strict=True))
    assert plan.image.intensity == "image"
    assert plan.network.backbone == "unet"
    assert plan.patches.deep > 1
    assert plan.training.folds == 5
    chosen = {"image.dims", "image.size", "image.intensity", "network.backbone", "training.batch", "training.folds"}
    chosen |= {"patches.spacing", "patches.deep", "patches.per_case", "training.epochs", "augmentation"}
    assert chosen <= why.keys()
    assert recipe.build(recipe.to_dict(plan)) == plan


def test_slices_far_apart_are_looked_at_one_by_one(tmp_path: Path) -> None:
    plan, _ = derived(volumes(tmp_path / "set", (10, 48, 48), (9.0, 1.5, 1.5)))
    assert plan.image.dims == 2
    assert plan.image.size[0] == 1
    assert plan.patches.spacing == (0.0, 1.5, 1.5)
    assert plan.augmentation["spatial"].get("tilt", 0) == 0


def test_somewhat_thick_slices_are_halved_later(tmp_path: Path) -> None:
    plan, _ = derived(volumes(tmp_path / "set", (16, 40, 40), (2.5, 1.0, 1.0)))
    assert plan.image.dims == 3
    assert plan.network.options["aspect_z"] == 2.5
    assert plan.augmentation["spatial"]["aspect_z"] == 2.5


def test_a_large_volume_is_seen_in_patches_that_keep_its_shape(tmp_path: Path) -> None:
    plan, _ = derived(volumes(tmp_path / "set", (60, 120, 100)))
    assert math.prod(plan.image.size) <= link_planning.VOXELS[patch_planning._device()]
    assert plan.image.size[0] <= plan.image.size[2] <= plan.image.size[1]


def test_nothing_is_mirrored_where_a_name_tells_left_from_right(tmp_path: Path) -> None:
    plan, why = derived(volumes(tmp_path / "set", names=("left lung", "right lung")))
    assert not any(plan.augmentation["spatial"].get(f"flip_{axis}") for axis in "xyz")
    assert not plan.patches.mirror
    assert "left from right" in why["augmentation"]


def test_pictures_are_mirrored_and_outlined_volumes_are_not(tmp_path: Path) -> None:
    flat, _ = derived(pictures(tmp_path / "flat", 256, 40))
    deep, _ = derived(volumes(tmp_path / "deep"))
    thick, _ = derived(volumes(tmp_path / "thick", (10, 128, 128), (10.0, 1.5, 1.5)))
    assert thick.image.dims == 2
    assert flat.patches.mirror
    assert flat.augmentation["spatial"]["flip_x"]
    for plan in (deep, thick):
        assert not plan.patches.mirror
        assert not plan.augmentation["spatial"]["flip_x"]


def test_what_is_thin_is_seen_as_it_is_and_what_is_thick_at_a_smaller_size(tmp_path: Path) -> None:
    thin, _ = derived(pictures(tmp_path / "thin", 512, 4))
    thick, why = derived(pictures(tmp_path / "thick", 512, 80))
    assert thin.patches.longest == 0
    assert thin.image.size == (1, 256, 256)
    assert 0 < thick.patches.longest < 512
    assert "82 pixels thick" in why["patches.longest"]
    assert (thin.patches.unit, thin.image.intensity, thin.image.channels) == ("px", "cohort", 3)


def test_what_is_thick_on_the_grid_is_outlined_on_a_coarse_map_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {(40, "cpu"): ("resnet", None), (8, "cpu"): ("unet", 2), (4, "cpu"): ("unet", None)}
    chosen |= {(40, "cuda"): ("unet", None), (8, "cuda"): ("unet", None)}
    for (thick, device), (backbone, stride) in chosen.items():
        monkeypatch.setattr(patch_planning, "_device", lambda device=device: device)
        plan, why = derived(pictures(tmp_path / f"{thick}{device}", 160, thick))
        assert (plan.network.backbone, plan.network.options.get("stride")) == (backbone, stride)
        assert ("pixels thick" in why["network.backbone"]) is (backbone == "resnet")
        assert plan.patches.deep == 3
    volume, _ = derived(volumes(tmp_path / "v", (24, 96, 96)))
    assert volume.network.backbone == "unet"


def test_what_is_given_decides_how_thick_things_are_on_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 of 160 pixels are 10 of 40: too thin for a coarse map, alone or beside a class that sees 40 pixels."""
    monkeypatch.setattr(patch_planning, "_device", lambda: "cpu")
    folder = pictures(tmp_path / "set", 160, 40)
    assert derived(folder)[0].network.backbone == "resnet"
    assert derived(folder, patches={"longest": 32})[0].network.backbone == "unet"
    beside(folder, "label", ["ab"[number % 2] for number in range(20)])
    for side, backbone in ((160, "resnet"), (32, "unet")):
        plan, _ = derived(folder, image={"size": [1, side, side]})
        assert plan.linked and plan.network.backbone == backbone


def test_how_thick_things_are_is_seen_where_they_are_outlined_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_planning, "_device", lambda: "cpu")
    empty = pictures(tmp_path / "empty", 160, 0)
    plan, why = derived(empty)
    assert plan.network.backbone == "unet" and "inf" not in why["network.backbone"]
    # Few of many are outlined, and none of those that a step over all of them would meet.
    few = pictures(tmp_path / "few", 160, 40, count=200)
    table = few / "manifest.csv"
    head, *rows = table.read_text().splitlines()
    kept = [
        row.replace(",test", ",train") if number % 20 == 1 else row.replace(f"masks/{number}.png", "")
        for number, row in enumerate(rows)
    ]
    table.write_text("\n".join([head, *kept]) + "\n")
    found = cohort.read(few)
    seen = structures.look(found, found.questions)
    assert len(seen.sizes) == 10 and seen.thickness == pytest.approx(41, abs=1)


def test_linked_slices_that_know_their_distances_are_planned(tmp_path: Path) -> None:
    folder, names = tmp_path / "set", []
    volumes(folder, (10, 48, 48), (9.0, 1.5, 1.5))
    for number in range(10):
        names.append(
            f"{number},imagesTr/case_{number:03d}_0000.nii.gz,labelsTr/case_{number:03d}.nii.gz,{number % 2}"
        )
    (folder / "dataset.json").unlink()
    (folder / "manifest.csv").write_text("\n".join(["case,image,mask,label", *names]) + "\n")
    plan, _ = derived(folder)
    assert plan.linked and plan.image.dims == 2 and plan.image.size == (10, 64, 64)


def of_two_kinds(folder: Path) -> Path:
    """Each picture under one of two names, so that each case has one of them only."""
    table = pictures(folder, 64, 8) / "manifest.csv"
    rows = [row.split(",") for row in table.read_text().splitlines()[1:]]
    lines = [
        ",".join([case, *([image, ""] if number % 2 else ["", image]), mask, part, "a" if number % 4 < 2 else "b"])
        for number, (case, image, mask, part) in enumerate(rows)
    ]
    table.write_text("\n".join(["case,image.4ch,image.t1,mask,split,label", *lines]) + "\n")
    return folder


def test_images_of_two_kinds_are_never_taken_for_the_same(tmp_path: Path) -> None:
    folder = of_two_kinds(tmp_path / "set")
    plan, why = derived(folder, tasks={"mask": {}})
    assert set(plan.image.modalities) == {"4ch", "t1"} and plan.inputs == 2 * plan.image.channels
    assert "cases have 4ch" in why["image.modalities"]
    # Linked tasks take one.
    with pytest.raises(Problem, match=r"linked tasks take one image, and cases have .*; choose it: .*image.modal"):
        derived(folder)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": {"modalities": [1]}}, r"image\.modalities\.0 is wrong: .*string; write it in quotes"),
        ({"image": {"modalities": 5}}, r"image\.modalities is wrong: .*; write a list"),
        ({"image": {"modalities": "flair"}}, r"image\.modalities is wrong: .*; write a list"),
        ({"image": {"size": 64}}, r"image\.size is wrong: .*; write a list"),
        ({"patches": {"longest": "wide"}}, r"patches\.longest is wrong: .*; correct it"),
    ],
)
def test_what_is_given_is_of_the_right_type_before_anything_is_planned(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(Problem, match=said):
        derived(pictures(tmp_path / "set", 64, 8), **given)


def test_minutes_become_epochs_and_test_cases_take_none_of_them(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 256, 40)
    short, _ = derived(folder, 20)
    long, _ = derived(folder, 60)
    assert math.isclose(long.training.epochs / short.training.epochs, 3, rel_tol=0.1)
    # 10 of 20 cases are not for testing; each of 5 networks sees 8 of them.
    assert short.training.folds == 5
    patches = short.training.epochs * short.patches.per_case * 8 * 5
    assert 0.5 * 20 * 60 * 50 <= patches <= 20 * 60 * 50


def test_without_time_for_five_networks_there_is_one(tmp_path: Path) -> None:
    plan, why = derived(pictures(tmp_path / "set", 256, 40), 1)
    assert plan.training.folds == 0
    assert "no time for 5 networks" in why["training.folds"]


def test_what_is_given_goes_first(tmp_path: Path) -> None:
    given = {"image": {"size": [16, 16, 16]}, "training": {"epochs": 3, "folds": 0}, "patches": {"deep": 1}}
    plan, why = derived(volumes(tmp_path / "set"), **given)
    assert plan.image.size == (16, 16, 16)
    assert (plan.training.epochs, plan.training.folds, plan.patches.deep) == (3, 0, 1)
    assert {why[k] for k in ("image.size", "training.epochs", "training.folds", "patches.deep")} == {"given"}


def test_boxes_in_thick_slices_are_looked_for_across_them(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "set", (10, 48, 48), (9.0, 1.5, 1.5))
    plan, _ = derived(folder, tasks={"mask": {"kind": "detection"}})
    assert plan.image.dims == 3 and plan.image.size[0] >= 8
    with pytest.raises(Problem, match="boxes in volumes reach across slices"):
        derived(folder, tasks={"mask": {"kind": "detection"}}, image={"dims": 2})


def test_nothing_is_planned_by_a_test_part_that_has_a_name(tmp_path: Path) -> None:
    found = cohort.read(pictures(tmp_path / "set", 64, 8))
    seen = structures.look(found, found.questions)
    assert len(seen.sizes) == sum(entry.split != "test" for entry in found.entries)
