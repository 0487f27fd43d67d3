"""Columns, fields and names: what tells the label is found, what is chance or honest is not."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from osler import columns, probe
from osler.case import Entry, Finding, Question, Source
from osler.inspections import Evidence, covariates, headers, label_names, normalisation

QUESTION = Question("label", "multiclass", ("normal", "ill"))
SOURCE = {"image": Source(Path("a.png"))}


def evidence(
    labels: Sequence[str],
    fields: Mapping[str, list[str | float | None]] | None = None,
    patients: Sequence[str] | None = None,
    **columns: Sequence[str | float | None],
) -> Evidence:
    """A cohort of those labels; columns whose names begin with ``covariate_`` are covariates."""
    entries = []
    for number, label in enumerate(labels):
        row = {name: cells[number] for name, cells in columns.items()}
        given = {name.removeprefix("covariate_"): v for name, v in row.items() if name.startswith("covariate_")}
        rest = {name: value for name, value in row.items() if not name.startswith("covariate_")}
        entries.append(
            Entry(
                f"c{number}",
                patients[number] if patients else f"p{number}",
                SOURCE,
                (Finding("label", label, probability=1.0),),
                covariates=given,
                metadata=rest,
            )
        )
    classes = tuple(dict.fromkeys(("normal", "ill", *labels)))
    question = Question("label", "multiclass", tuple(name for name in classes if name in labels))
    return Evidence(tuple(entries), (question,), "column patient" if patients else "", fields or {})


def drawn(seed: int, count: int = 120) -> tuple[np.random.Generator, list[str]]:
    random = np.random.default_rng(seed)
    return random, [("normal", "ill")[int(random.random() < 0.4)] for _ in range(count)]


# --- the probe ----------------------------------------------------------------------------------------------


def test_a_probe_tells_what_can_be_told_and_nothing_else() -> None:
    random, labels = drawn(0, 400)
    (contrast,) = probe.contrasts(evidence(labels).entries, (QUESTION,))
    ill = np.array(labels) == "ill"
    assert (contrast.positive == ill).all()
    signal = random.normal(size=400) + 2 * ill
    told = probe.area(probe.tell(np.stack([signal, random.normal(size=400)], 1), contrast), contrast)
    assert abs(told.value - roc_auc_score(ill, signal)) < 0.02  # one useful number: its own order
    nothing = [probe.area(probe.tell(random.normal(size=(400, 30)), contrast), contrast).value for _ in range(20)]
    assert abs(np.mean(nothing) - 0.5) < 0.03


def test_folds_never_cut_through_a_patient_and_spread_the_labels() -> None:
    random = np.random.default_rng(1)
    patients = random.integers(0, 80, 300)
    labels = (patients % 3).astype(np.intp)
    folds = probe.folds(labels, patients)
    assert all(len(set(folds[patients == p])) == 1 for p in set(patients))
    for fold in range(probe.FOLDS):
        held = [len(set(patients[(folds == fold) & (labels == label)])) for label in range(3)]
        assert max(held) - min(held) <= 2


def test_values_that_do_not_come_back_tell_nothing() -> None:
    _, labels = drawn(2)
    (contrast,) = probe.contrasts(evidence(labels).entries, (QUESTION,))
    told = probe.area(probe.tell_by_value(np.arange(1, 121), contrast), contrast)
    assert told.low <= 0.5


@pytest.mark.parametrize(
    ("found", "of", "other", "of_others", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17:873, table II, method 10.
    [(56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090), (5, 56, 0, 29, -0.0381, 0.1926)],
)
def test_difference_of_proportions_is_the_published_one(
    found: int, of: int, other: int, of_others: int, low: float, high: float
) -> None:
    got = probe.newcombe(found, of, other, of_others)
    assert (round(got.low, 4), round(got.high, 4)) == (low, high)


# --- header fields ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_two_hundred_columns_of_chance_give_no_alarm(seed: int) -> None:
    random, labels = drawn(seed)
    makers = (
        lambda: random.normal(size=120).tolist(),
        lambda: [f"site{k}" for k in random.integers(0, 6, 120)],
        lambda: [f"id{k}" for k in random.permutation(10_000)[:120]],
        lambda: [None if random.random() < 0.5 else "yes" for _ in range(120)],
    )
    fields: dict[str, list[str | float | None]] = {f"header.F{k}": makers[k % 4]() for k in range(200)}
    assert headers.find(evidence(labels, fields)) == []


@pytest.mark.parametrize("kind", ["category", "number", "missing", "date", "order", "folder"])
def test_a_field_that_tells_the_label_is_named(kind: str) -> None:
    random, labels = drawn(3, 200)
    ill = np.array(labels) == "ill"
    leak = ill ^ (random.random(200) < 0.15)
    cells: dict[str, list[str | float | None]] = {
        "category": [("A", "B")[int(x)] for x in leak],
        "number": (random.normal(size=200) + 3 * leak).tolist(),
        "missing": ["x" if x else None for x in leak],
        "date": [f"20{10 + 3 * int(x)}{1 + k % 12:02d}{1 + k % 28:02d}" for k, x in enumerate(leak)],
        "order": [f"IMG_{(1000 if x else 0) + k:05d}" for k, x in enumerate(leak)],
        "folder": [f"{'ward' if x else 'clinic'}/{k}" for k, x in enumerate(leak)],
    }
    noise: list[str | float | None] = random.normal(size=200).tolist()
    (trouble,) = headers.find(evidence(labels, {"header.Noise": noise, "header.Leak": cells[kind]}))
    assert trouble.kind == "header_shortcut" and "header.Leak" in trouble.message
    assert "Noise" not in trouble.message and trouble.severity == "look"


def test_several_cases_of_few_patients_are_not_many_witnesses() -> None:
    """Twenty patients with ten cases each: what is the same within a patient cannot be told from chance."""
    random = np.random.default_rng(5)
    patients = [f"p{k // 10}" for k in range(200)]
    labels = [("normal", "ill")[int(k // 10) % 2] for k in range(200)]
    device = {f"p{k}": f"dev{random.integers(0, 3)}" for k in range(20)}
    found = headers.find(evidence(labels, {"header.Device": [device[p] for p in patients]}, patients))
    assert not any("Device" in trouble.message for trouble in found)


def test_age_may_tell_the_label() -> None:
    random, labels = drawn(6, 200)
    age = [60 + 15 * (label == "ill") + random.normal(0, 8) for label in labels]
    assert headers.find(evidence(labels, age=age)) == []
    assert headers.find(evidence(labels, kilovolt=age))


# --- covariates ---------------------------------------------------------------------------------------------


def test_a_covariate_that_is_the_outcome_is_found_and_a_risk_factor_is_not() -> None:
    random, labels = drawn(7, 200)
    ill = np.array(labels) == "ill"
    found = covariates.find(
        evidence(
            labels,
            covariate_marker=(random.normal(size=200) + 6 * ill).tolist(),
            covariate_age=(60 + 10 * random.normal(size=200) + 10 * ill).tolist(),
            covariate_survival=["Y" if random.random() < 0.5 else "N" for _ in ill],
        )
    )
    assert {trouble.kind for trouble in found} == {"leaking_covariate"}
    assert [("marker" in t.message, "survival" in t.message) for t in found] == [(True, False), (False, True)]


def test_what_is_proposed_and_withheld() -> None:
    random, labels = drawn(8, 60)
    made = evidence(
        labels,
        age=random.normal(60, 9, 60).tolist(),
        sex=["M" if random.random() < 0.5 else "F" for _ in labels],
        smoker=["yes"] * 60,
        glucose=[None if k % 3 else 5.0 + k for k in range(60)],
        hospital=["A" if k % 2 else "B" for k in range(60)],
        exam_date=[f"2020-01-{1 + k % 28:02d}" for k in range(60)],
        therapy=["none" if k % 2 else "drug" for k in range(60)],
        patient_id=[f"x{k}" for k in range(60)],
        wobble=random.normal(size=60).tolist(),
    )
    said = {column.name: column for column in covariates.propose(made.entries, made.questions)}
    assert {name for name, column in said.items() if column.verdict == "propose"} == {"age", "sex"}
    assert "same in every case" in said["smoker"].reason
    assert "no value" in said["glucose"].reason and abs(said["glucose"].missing - 2 / 3) < 1e-9
    assert "outcome" in said["therapy"].reason and "identifier" in said["patient_id"].reason
    assert all(column.reason for column in said.values())


@pytest.mark.real_data
def test_only_honest_columns_of_real_tables_are_proposed(real_data: Path) -> None:
    leaky = ("clin_diagn", "test_meth", "pcr", "therap", "outcome", "los_", "vacc", "incl_crit", "surviv", "icu")
    other = (
        "intub",
        "supplemental",
        "cov_test",
        "stay_",
        "discharge",
        "transfer",
        "url",
        "license",
        "date",
        "offset",
    )
    for name, honest in (
        ("covid_blues/clinical_variables.csv", ("pat_age", "pat_sex", "pat_bmi", "patient_symp#Fever")),
        ("covid_cxr/labels.csv", ("age", "sex", "temperature")),
    ):
        with (real_data / name).open(encoding="utf-8") as file:
            header = next(csv.reader(file))
        proposed = {column for column in header if columns.meaning(column) == "attribute"}
        assert not [c for c in proposed if any(word in c.lower() for word in (*leaky, *other))]
        assert proposed.issuperset(honest)


# --- names of classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        ({"malignant": 50, "Malignant": 3, "benign": 80}, {"Malignant"}),
        ({"malignant": 50, "malignat": 1, "benign": 80}, {"malignat"}),
        ({"malignant": 50, "mailgnant": 1, "benign": 80}, {"mailgnant"}),
        ({"COVID-19": 50, "covid 19": 40}, {"covid 19"}),
        ({"grade 1": 50, "grade 2": 1, "grade 3": 2}, set()),
        ({"T1": 50, "T2": 1, "N0": 1}, set()),
        ({"type I": 90, "type II": 1}, set()),
        ({"normal": 90, "abnormal": 1}, set()),
        ({"typical": 90, "atypical": 1}, set()),
        ({"hypertension": 90, "hypotension": 1}, set()),
        ({"left lung": 90, "left lobe": 1}, set()),
        ({"stage IV": 90, "stage V": 1, "0": 40, "1": 1}, set()),
        ({"carcinoma": 90, "carcinoid": 4}, set()),
        ({"ER+": 30, "ER-": 1}, set()),
    ],
)
def test_slips_of_the_pen_are_found_and_honest_classes_are_not(names: dict[str, int], wrong: set[str]) -> None:
    labels = [name for name, count in names.items() for _ in range(count)]
    found = label_names.find(evidence(labels))
    assert {labels[int(case[1:])] for trouble in found for case in trouble.cases} == wrong
    assert sum(len(trouble.cases) for trouble in found) == sum(names[name] for name in wrong)


# --- normalisation ------------------------------------------------------------------------------------------


def normalised(fitted_on: str, how: str = "standard") -> Evidence:
    random = np.random.default_rng(9)
    splits = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    images = [random.normal(100 + 40 * (k == 50) - 40 * (k == 55), 20 + k % 5, (8, 8)) for k in range(60)]
    used = np.concatenate([i.ravel() for i, s in zip(images, splits, strict=True) if fitted_on in ("all", s)])
    zero, one = (used.mean(), used.std()) if how == "standard" else (used.min(), np.ptp(used))
    rows = []
    for image in images:
        scaled = ((image - zero) / one).astype(np.float32).astype(np.float64)
        rows.append([scaled.size, scaled.sum(), (scaled**2).sum(), scaled.min(), scaled.max()])
    entries = tuple(Entry(f"c{k}", f"p{k}", SOURCE, split=s) for k, s in enumerate(splits))  # type: ignore[arg-type]
    return Evidence(entries, (), measured={"normalisation": np.array(rows)})


@pytest.mark.parametrize("how", ["standard", "range"])
def test_normalisation_by_all_splits_is_found_and_by_training_alone_is_not(how: str) -> None:
    (trouble,) = normalisation.find(normalised("all", how))
    assert trouble.kind == "joint_normalisation" and "test" in trouble.message
    assert normalisation.find(normalised("train", how)) == []
