from pathlib import Path

import pytest

from osler import layouts
from osler.problem import Problem

PLAN = """
table = "labels.csv"
case = "id"
patient = "group"
image = "images/{id}.png"
missing = ["-99"]
covariates = ["age"]
[label.grade]
column = "grade"
kind = "ordinal"
classes = ["low", "middle", "high"]
"""
ROWS = "id,group,grade,age\nb,7,high,-99\na,7,low,61\nc,,,50\nd,8,middle,51\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"\x89PNG")
    (tmp_path / "labels.csv").write_text(ROWS)
    return tmp_path


def read(folder: Path, plan: str, tmp: str = "cohort.toml"):
    (folder / tmp).write_text(plan)
    return layouts.read(folder)


def test_a_cohort_file_maps_columns_to_roles(folder):
    listing = read(folder, PLAN)
    first, second, third = listing.entries
    assert [entry.id for entry in listing.entries] == ["a", "b", "c"]
    assert first.patient == second.patient == "7" and third.patient == "c"
    assert first.covariates == {"age": 61.0} and second.covariates == {"age": None}
    assert listing.questions[0].classes == ("low", "middle", "high") and listing.questions[0].kind == "ordinal"
    assert [(f.name, f.value) for f in second.findings] == [("high", 2.0)] and third.findings == ()
    assert listing.grouping == "column group"
    assert len(listing.problems) == 1 and "d.png" in str(listing.problems[0])


def test_it_may_lie_outside_a_read_only_folder(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("recipes") / "mine.toml"
    outside.write_text(PLAN)
    assert layouts.read(folder, outside).entries == read(folder, PLAN).entries


def test_frames_exclusions_renaming_separators_and_joins(folder):
    (folder / "more.csv").write_text("group,scanner\n7,A\n")
    plan = """
    table = "labels.csv"
    case = "id"
    frame = 0
    exclude = {grade = ["middle"]}
    [image]
    t1 = "images/{id}.png"
    [[join]]
    table = "more.csv"
    on = "group"
    [label.bad]
    column = "grade"
    rename = {low = "no", high = "yes,really"}
    kind = "multilabel"
    separator = ","
    """
    listing = read(folder, plan)
    assert not listing.problems and listing.entries[0].images["t1"].frame == 0
    assert [entry.metadata["scanner"] for entry in listing.entries] == ["A", "A", None]
    assert listing.questions[0].classes == ("no", "really", "yes")
    assert {f.name: f.probability for f in listing.entries[1].findings} == {"no": 0, "really": 1, "yes": 1}


def test_a_column_for_each_class(folder):
    (folder / "labels.csv").write_text("id,mass,fluid\na,1,0\nb,,1\n")
    plan = 'table = "labels.csv"\ncase = "id"\nimage = "images/{id}.png"\n'
    plan += '[label.x]\ncolumns = {M = "mass", F = "fluid"}\n'
    listing = read(folder, plan)
    assert listing.questions[0].classes == ("M", "F")
    assert [{f.name: f.probability for f in entry.findings} for entry in listing.entries] == [
        {"M": 1, "F": 0},
        {"F": 1},
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("missing =", "mising ="), "no key 'mising'.*known keys are table"),
        (('column = "grade"', 'colunm = "grade"'), "no key 'label.grade.colunm'.*known keys are column"),
        (('case = "id"', "case = 3"), "the key 'case' is wrong"),
        (('case = "id"', 'case = "ID"'), "no column 'ID'.*id, group, grade, age"),
        (("{id}", "{name}"), "no column 'name'.*id, group"),
        (('column = "grade"', 'column = "garde"'), "no column 'garde'"),
        (('"high"]', '"top"]'), "holds 'high', which is none of low, middle, top"),
        (('table = "labels.csv"', 'table = "nothing.csv"'), "nothing.csv: .*not there"),
        (("images/", "pictures/"), "none of the images"),
        (('case = "id"', "case = "), "not TOML"),
        (('column = "grade"', ""), "needs either column or columns"),
    ],
)
def test_a_wrong_cohort_file_says_what_is_wrong(folder, change, words):
    with pytest.raises(Problem, match=words):
        read(folder, PLAN.replace(*change))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "cases", "patients", "kind", "unknown"),
    [
        ("busi", 627, 485, "multiclass", 0),
        ("acdc", 60, 60, "multiclass", 0),
        ("covid_cxr", 256, 142, "multilabel", 60),
    ],
)
def test_the_recipes_fit_the_real_cohorts(real_data, name, cases, patients, kind, unknown):
    file = Path(__file__).parents[2] / "recipes" / "cohorts" / f"{name}.toml"
    listing = layouts.read(real_data / name, file)
    assert not listing.problems and len(listing.entries) == cases
    assert len({entry.patient for entry in listing.entries}) == patients
    assert listing.questions[0].kind == kind
    assert sum(not entry.findings for entry in listing.entries) == unknown
