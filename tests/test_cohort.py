"""Copies stay together: in each given part, or in all that is folded."""

import itertools
from dataclasses import replace
from pathlib import Path

from osler import cohort
from osler.case import Entry, Finding, Outline, Question, Role, Source
from osler.cohort import Cohort


def entry(number: int, split: Role | None = None, patient: str = "") -> Entry:
    return Entry(f"c{number}", patient or f"p{number}", {}, split=split)


def test_copies_and_their_patients_become_one_group() -> None:
    """c1 is a copy of c0, and c2 is of the patient of c1."""
    entries = [entry(0), entry(1, patient="x"), entry(2, patient="x"), entry(3)]
    joined, count = cohort.join(entries, [(0, 1)], folded=False)
    assert count == 1
    assert len({one.patient for one in joined[:3]}) == 1
    assert joined[3].patient not in {one.patient for one in joined[:3]}


def test_given_parts_are_not_merged_but_folded_ones_are() -> None:
    entries = [entry(0, "train"), entry(1, "validation"), entry(2, "test"), entry(3, "train")]
    apart, none = cohort.join(entries, [(0, 1, 2)], folded=False)
    assert none == 0
    assert [one.split for one in apart] == ["train", "validation", "test", "train"]
    assert len({one.patient for one in apart}) == 4
    folded, one = cohort.join(entries, [(0, 1, 2)], folded=True)
    assert one == 1
    assert [each.split for each in folded] == [None, None, "test", None]
    assert folded[0].patient == folded[1].patient != folded[2].patient


def test_the_order_of_the_groups_does_not_matter() -> None:
    entries = [entry(number) for number in range(6)]
    groups = [(0, 1), (2, 3), (1, 2)]
    made = []
    for order in itertools.permutations(groups):
        joined, _ = cohort.join(entries, order, folded=False)
        made.append([[b for b, other in enumerate(joined) if other.patient == one.patient] for one in joined])
    assert all(one == made[0] for one in made)
    assert made[0][0] == [0, 1, 2, 3]


def test_what_chooses_nothing_is_not_kept_from_the_rest() -> None:
    """With no validation asked for, a given part of that name calibrates, and training keeps all of its own."""
    said = (Finding("label", "a", probability=1.0),)
    parts: list[Role] = ["train"] * 20 + ["validation"] * 8 + ["test"] * 5
    entries = tuple(replace(entry(number, role), findings=said) for number, role in enumerate(parts))
    found = cohort.Cohort(Path(), entries, (Question("label", "multiclass", ("a", "b")),))
    none = cohort.split(found, validation=0, calibration=0.15, test=0.2)
    assert [len(p) for p in (none.training, none.validation, none.calibration, none.test)] == [20, 0, 8, 5]
    asked = cohort.split(found, validation=0.15, calibration=0.15, test=0.2)
    assert len(asked.validation) == 8 and len(asked.training) + len(asked.calibration) == 20
    folded = cohort.split(found, validation=0, calibration=0, test=0)
    assert len(folded.training) == 20 and len(folded.calibration) == 0


def test_folds_and_parts_are_the_same_whatever_is_asked() -> None:
    """Models of one task and of all may be compared case by case: no patient changes sides."""
    label, mask = (
        Question("label", "multiclass", ("a", "b")),
        Question("mask", "segmentation", ("x",), values=((1,),)),
    )
    entries = tuple(
        Entry(f"c{i}", f"p{i}", {}, (Finding("label", "ab"[i % 3 == 0], probability=1.0),),
              outlines=(Outline("mask", Source(Path(f"{i}.png")), "x"),) if i % 2 else ())
        for i in range(60)
    )  # fmt: skip
    found = Cohort(Path(), entries, (mask, label), "column p")
    parts, folds = [], []
    for tasks in ("all", "label", "mask", ["mask"], {"mask": {}}):
        asked, _ = cohort.asking(found, tasks)
        splits = cohort.split(asked, validation=0.2, calibration=0.2, test=0.2)
        parts.append([[e.id for e in getattr(splits, role).entries] for role in ("training", "calibration", "test")])
        folds.append([[e.id for e in held.entries] for _, held in cohort.folds(entries, asked.balanced_by, 5, 0)])
    assert all(part == parts[0] for part in parts) and all(fold == folds[0] for fold in folds)


def test_of_two_labels_the_asked_one_is_stratified() -> None:
    """The table names another label first, and of the one that is asked there are few."""
    questions = tuple(Question(name, "multiclass", ("no", "yes")) for name in ("sex", "cancer"))
    entries = tuple(
        Entry(f"c{i}", f"p{i}", {}, (Finding("sex", ("no", "yes")[i % 2], probability=1.0),
                                     Finding("cancer", ("no", "yes")[i % 25 == 0], probability=1.0)))
        for i in range(300)
    )  # fmt: skip
    asked, _ = cohort.asking(Cohort(Path(), entries, questions, "column p"), "cancer")
    held = [fold for _, fold in cohort.folds(entries, asked.balanced_by, 5, 0)]
    # 12 of 300 have it: in each fold as many as in any other, but for one.
    assert sorted(sum(cohort.label_of(e, questions[1]) == "yes" for e in fold.entries) for fold in held) == [
        2, 2, 2, 3, 3,
    ]  # fmt: skip
