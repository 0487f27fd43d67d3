"""What a training does about copies: kept together, left out, refused or ignored, as `split.leaks` says."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from osler import cohort, data, planning, training
from osler.cohort import Cohort, Splits
from osler.problem import Problem
from osler.recipe import Recipe

SMALL: dict[str, Any] = {"training": {"epochs": 1, "members": 1}, "image": {"size": [1, 16, 16]}}
HELD = ("resized", "flipped", "compressed", "file")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, data.Loaded, Recipe]:
    """60 textures to train on, 20 to validate with, and there a copy of each kind of one that is trained on."""
    folder = tmp_path_factory.mktemp("cohort")
    random = np.random.default_rng(0)
    rows = ["case,image,label,split"]

    def add(name: str, picture: Pillow.Image, split: str) -> None:
        ending = "jpg" if name == "compressed" else "png"
        picture.save(folder / f"{name}.{ending}")
        rows.append(f"{name},{name}.{ending},{'ab'[len(rows) % 2]},{split}")

    pictures = []
    for number in range(80):
        texture = gaussian_filter(random.normal(size=(90, 90)), 4)
        values = np.clip(128 + 40 * texture / texture.std(), 0, 255).astype(np.uint8)
        pictures.append(Pillow.fromarray(values))
        add(f"c{number:02d}", pictures[-1], "train" if number < 60 else "validation")
    add("resized", pictures[0].resize((70, 70), Pillow.Resampling.BILINEAR), "validation")
    add("flipped", pictures[1].transpose(Pillow.Transpose.ROTATE_90), "validation")
    add("compressed", pictures[2], "validation")
    add("file", pictures[3], "validation")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    found = cohort.read(folder)
    plan, _ = planning.derive(found, SMALL, 1.0)
    plan = replace(plan, training=replace(plan.training, folds=0))
    return found, data.load(found.entries, plan.image), plan


def divided(
    made: tuple[Cohort, data.Loaded, Recipe], leaks: Literal["fix", "stop", "ignore"], split: bool = True
) -> tuple[Splits, list[str]]:
    found, loaded, plan = made
    if not split:
        entries = tuple(replace(entry, split=None) for entry in found.entries)
        found, loaded = replace(found, entries=entries), replace(loaded, entries=entries)
    return training.divide(found, loaded, replace(plan, split=replace(plan.split, leaks=leaks)))


def test_copies_of_held_out_cases_leave_training_and_it_is_said(made: tuple[Cohort, data.Loaded, Recipe]) -> None:
    splits, notes = divided(made, "fix")
    trained, held = ({entry.id for entry in part.entries} for part in (splits.training, splits.validation))
    assert not trained & {"c00", "c01", "c02", "c03"}
    assert held >= set(HELD)
    kept = {entry.id for entry in divided(made, "ignore")[0].training.entries}
    assert trained <= kept <= trained | {"c00", "c01", "c02", "c03"}, "nobody else left"
    assert any("they left" in note for note in notes)


def test_stop_refuses_and_ignore_does_nothing(made: tuple[Cohort, data.Loaded, Recipe]) -> None:
    with pytest.raises(Problem, match="training cases are copies"):
        divided(made, "stop")
    _, notes = divided(made, "ignore")
    assert not any("copies" in note or "they left" in note for note in notes)


@pytest.mark.parametrize("seed", range(5))
def test_copies_stay_together_where_parts_are_drawn(made: tuple[Cohort, data.Loaded, Recipe], seed: int) -> None:
    found, loaded, plan = made
    plan = replace(plan, training=replace(plan.training, seed=seed))
    splits, _ = divided((found, loaded, plan), "fix", split=False)
    parts = (splits.training, splits.validation, splits.calibration, splits.test)
    part = {entry.id: number for number, entries in enumerate(parts) for entry in entries.entries}
    for number, copy in enumerate(HELD):
        assert part[f"c{number:02d}"] == part[copy]
    assert len(part) == len(found.entries), "nobody had to leave"
