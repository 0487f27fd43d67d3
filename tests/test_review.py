"""What a reading with fresh eyes found wrong, and what holds since."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import osler
from osler import cohort, data, fitting, pseudonym, recipe
from osler.case import Entry, Finding, Question
from osler.cohort import Calibration, Splits, Test, Training, Validation
from osler.image import Image
from osler.inspections import Evidence, duplicates, label_names
from osler.problem import Problem

SMALL = {
    "image": {"size": [1, 16, 16]},
    "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}},
    "network": {"options": {"depth": 18, "width": 4}},
}


def entries(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry(name, name, {}) for name in names)


def test_a_copy_leaves_every_part_that_the_other_is_held_out_from() -> None:
    splits = Splits(
        Training(entries("a", "b", "c", "d")), Validation(entries("e", "f")), Calibration(entries("g", "h")),
        Test(entries("t")),
    )  # fmt: skip
    kept, left = cohort.apart(splits, [{"t", "e", "a"}, {"g", "f", "b"}, {"c", "d"}])
    assert [[entry.id for entry in part.entries] for part in (kept.training, kept.validation, kept.calibration)] == [
        ["c", "d"], ["f"], ["h"],
    ]  # fmt: skip
    assert left == {"validation": 1, "calibration": 1, "training": 2}


def test_a_step_that_is_left_out_leaves_no_trace() -> None:
    """A forward pass writes into the running statistics before anybody knows that its gradient is not finite."""
    plan = recipe.build(SMALL)
    pixels = np.random.default_rng(0).normal(size=(8, 1, 1, 1, 16, 16)).astype(np.float32)
    examples = fitting.Examples(Training(()), pixels, {"label": np.zeros((8, 1), np.float32)})
    state = fitting.start(examples, plan, 0)
    before = {name: value.clone() for name, value in state.network.named_buffers()}
    pixels[0] = np.nan
    fitting.step_once(state, examples, np.arange(8), plan, 0, 1)
    assert state.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in state.network.named_buffers())


@pytest.mark.parametrize("value", [np.nan, np.inf, -3.4028235e38])
def test_fill_values_are_no_pixels_to_anyone(tmp_path: Path, value: float) -> None:
    random = np.random.default_rng(0)
    rows = ["case,image,label"]
    for number in range(14):
        image = random.normal(size=(20, 20)).astype(np.float32)
        image[:3] = value if number < 2 else image[:3]
        np.save(tmp_path / f"{number}.npy", image)
        rows.append(f"c{number},{number}.npy,{'ab'[number % 2]}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    loaded = data.load(cohort.read(tmp_path).entries, recipe.ImagePlan(size=(1, 16, 16)))
    assert len(loaded.problems) == 2 and len(loaded.entries) == 12
    found = osler.inspect(tmp_path, tmp_path / "out", say=lambda line: None)
    assert len(found.unreadable) == 2 and all("not numbers" in str(problem) for problem in found.unreadable)


def test_blank_images_of_any_size_are_blank_and_no_copies() -> None:
    for size in (16, 105, 300):
        for value in (7, 255):
            image = Image(np.full((1, 1, 1, size, size), value, np.uint8))
            assert not duplicates.mark(image, image.array[0, 0, 0].astype(np.float32))["small"].any(), (size, value)


def test_a_cohort_of_blank_images_is_looked_at(tmp_path: Path) -> None:
    for name in ("no", "yes"):
        (tmp_path / "cohort" / name).mkdir(parents=True)
        for number in range(6):
            Pillow.new("L", (24, 24), number).save(tmp_path / "cohort" / name / f"{name}{number}.png")
    found = osler.inspect(tmp_path / "cohort", tmp_path / "out", say=lambda line: None)
    assert "blank" in {trouble.kind for trouble in found.problems}


def test_what_a_reader_does_not_state_contradicts_nobody() -> None:
    question = Question("f", "multilabel", ("A", "B", "C"))

    def case(name: str, **said: float) -> Entry:
        return Entry(name, name, {}, tuple(Finding("f", key, probability=value) for key, value in said.items()))

    marks = np.zeros(3, duplicates.MARK)
    marks["pixels"], marks["small"] = b"same", np.arange(256, dtype=np.uint8).reshape(16, 16)

    def kinds(*cases: Entry) -> set[str]:
        evidence = Evidence(cases, (question,), measured={"duplicates": marks[: len(cases)]})
        return {trouble.kind for trouble in duplicates._conflicts(duplicates.copies(marks[: len(cases)]), evidence)}

    assert kinds(case("x", A=1, C=0), case("y", A=1, B=0)) == set()
    assert kinds(case("x", A=1, C=0), case("y", A=1, C=1)) == {"label_conflict"}


@pytest.mark.parametrize(("one", "other"), [("-1", "1"), ("ER-", "ER"), ("1.5", "15"), ("I/II", "III")])
def test_signs_with_a_meaning_make_another_class(one: str, other: str) -> None:
    assert label_names._plain(one) != label_names._plain(other)


def test_a_name_that_is_no_text_has_a_pseudonym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path))
    name = os.fsdecode(b"M\xfcller.png")
    assert len(pseudonym.pseudonym(name)) == 12
    pseudonym.remember(tmp_path, [name])
    pseudonym.remember(tmp_path, ["other"])
    assert b"M\xfcller.png" in (tmp_path / "names.csv").read_bytes()


def test_training_on_nothing_but_copies_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number in range(12):
            folder = tmp_path / "cohort" / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(number).integers(0, 255, (24, 24)).astype(np.uint8)
            Pillow.fromarray(image).save(folder / f"{number}.png")
    with pytest.raises(Problem, match="no case is left to train on"):
        osler.train(
            tmp_path / "cohort", tmp_path / "run",
            {"training": {"folds": 0, "epochs": 1}, "image": {"size": [1, 16, 16]}, "network": SMALL["network"]},
            say=lambda line: None,
        )  # fmt: skip
