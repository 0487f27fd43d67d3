"""Of cases with several images each modality is looked at, and what is said of one names it."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from osler import inspection
from osler.problem import Problem

NAMES = ("flair", "t1")


def _picture(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.normal(size=(8, 8)), np.ones((6, 6))) * 30 + rng.normal(0, 8, (48, 48)) + 120
    return smooth.clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """44 cases; of t1 one is blank, two are copies of each other, one is torn and one is missing."""
    lines = ["case,label,covariate.age,image.flair,image.t1"]
    for number in range(44):
        cells = []
        for shift, name in enumerate(NAMES):
            array = _picture(2 * number + shift)
            if name == "t1" and number == 3:
                array = np.zeros_like(array)
            if name == "t1" and number == 7:
                array = _picture(2 * 6 + 1)
            cells.append(f"{name}-{number}.png")
            Image.fromarray(array).save(tmp_path / cells[-1])
        lines.append(f"c{number},{'ab'[number % 2]},{50 + number},{cells[0]},{'' if number == 9 else cells[1]}")
    (tmp_path / "t1-11.png").write_bytes(b"no picture")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_every_modality_is_looked_at(folder: Path, tmp_path: Path) -> None:
    made = inspection.inspect(folder, tmp_path / "out", say=lambda line: None)
    said = {trouble.kind: trouble for trouble in made.problems}
    assert said["blank"].message.startswith("in t1: 1 of 42 images") and said["blank"].cases == ("c3",)
    copies = next(trouble for trouble in made.problems if set(trouble.cases) == {"c6", "c7"})
    assert copies.message.startswith("in t1: ")
    assert said["unreadable"].cases == ("c11",) and said["unreadable"].message.startswith("in t1: 1 left out")
    assert made.summary["images"] == {"flair": 44, "t1": 42} and made.summary["cases"] == 44
    assert made.summary["sizes"] == {"flair: 1 x 1 x 48 x 48": 44, "t1: 1 x 1 x 48 x 48": 42}
    assert {"flair mean", "t1 mean"} <= set(made.summary["intensities"])
    assert not any(trouble.message.startswith("in flair: ") for trouble in made.problems)
    text = (tmp_path / "out" / "inspection.html").read_text()
    assert "t1: mean of the image" in text and "flair: width, pixels" in text
    assert json.loads((tmp_path / "out" / "inspection.json").read_text())["summary"]["images"]["t1"] == 42


def test_columns_are_looked_at_once(folder: Path, tmp_path: Path) -> None:
    table = folder / "cases.csv"
    lines = table.read_text().splitlines()
    rows = [f"{line},{'xy'[number % 2]}" for number, line in enumerate(lines[1:])]
    table.write_text("\n".join([lines[0] + ",covariate.survival", *rows]) + "\n")
    made = inspection.inspect(folder, tmp_path / "out", say=lambda line: None)
    leaks = [trouble.message for trouble in made.problems if trouble.kind == "leaking_covariate"]
    assert len(leaks) == 1 and leaks[0].startswith("the covariate 'survival'")


def test_a_patient_is_torn_between_splits_whatever_images_the_cases_have(folder: Path, tmp_path: Path) -> None:
    """In training FLAIR alone, in the test T1 alone, of the same patients."""
    lines = ["case,patient,split,label,image.flair,image.t1"]
    for number in range(20):
        lines.append(f"a{number},p{number},train,{'ab'[number % 2]},flair-{number}.png,")
        lines.append(f"b{number},p{number},test,{'ab'[number % 2]},,t1-{number + 20}.png")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    made = inspection.inspect(folder, tmp_path / "out", say=lambda line: None)
    (torn,) = (trouble for trouble in made.problems if trouble.kind == "torn_patient")
    assert torn.severity == "stop" and torn.message.startswith("20 patients (column patient) stand in more")


def test_one_modality_that_cannot_be_read_leaves_the_other(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("t1-*.png"):
        file.write_bytes(b"no picture")
    made = inspection.inspect(folder, tmp_path / "out", say=lambda line: None)
    assert made.summary["images"] == {"flair": 44} and len(made.unreadable) == 43
    for file in folder.glob("flair-*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(Problem, match="none of the 44 cases can be read"):
        inspection.inspect(folder, tmp_path / "again", say=lambda line: None)
