"""Rows that are visits become one case, whose image is their sequence in order of time."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from osler import cohort, data, formats, identity, visits
from osler.case import Source
from osler.problem import Problem
from osler.recipe import ImagePlan
from osler.table import Table

DAY = 86400.0
RNG = np.random.default_rng(0)


def picture(folder: Path, name: str, value: int, size=(6, 8), *, colour=False) -> str:
    shape = (*size, 3) if colour else size
    Pillow.fromarray(np.full(shape, value, np.uint8)).save(folder / name)
    return name


def table(folder: Path, rows: list[dict[str, str]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def visit(folder, case, time, value, label="", **more):
    name = picture(
        folder, f"{case}-{time}-{value}.png", value, more.pop("size", (6, 8)), colour=more.pop("colour", False)
    )
    return {"case": case, "patient": f"p{case}", "time": time, "image": name, "label": label, **more}


@pytest.fixture
def listed(tmp_path):
    rows = [
        visit(tmp_path, "a", "30", 3, "ill", **{"covariate.age": "51", "covariate.sex": "f", "note": "last"}),
        visit(tmp_path, "b", "", 9, "well"),
        visit(tmp_path, "a", "-2.5", 1, **{"covariate.age": "50"}),
        visit(tmp_path, "a", "4", 2, "well", **{"covariate.sex": "f", "note": "middle"}),
        visit(tmp_path, "c", "2026-03-01", 5, "ill"),
        visit(tmp_path, "c", "2026-02-28T12:00", 4, ""),
    ]
    return cohort.read(table(tmp_path, rows))


def test_visits_are_one_case_in_order_of_time(listed):
    by = {entry.id: entry for entry in listed.entries}
    assert sorted(by) == ["a", "b", "c"] and not listed.problems
    assert by["a"].patient == "pa"
    image = data.the_image(data.read_case(by["a"]))
    assert image.array.shape == (3, 1, 1, 6, 8) and image.array[:, 0, 0, 0, 0].tolist() == [1, 2, 3]
    assert image.times == (0.0, 6.5 * DAY, 32.5 * DAY)
    one = data.the_image(data.read_case(by["b"]))
    assert one.frames == 1 and one.times == () and by["b"].images["image"].visits == ()
    assert data.the_image(data.read_case(by["c"])).times == (0.0, DAY / 2)


def test_the_last_visit_is_the_one_that_is_diagnosed(listed):
    by = {entry.id: entry for entry in listed.entries}
    assert [f.name for f in by["a"].findings if f.probability == 1] == ["ill"]
    # Blank in the last visit: what the others say, if they say the same.
    assert by["a"].covariates == {"age": 51.0, "sex": "f"} and by["a"].metadata["note"] == "last"
    assert [f.name for f in by["c"].findings if f.probability == 1] == ["ill"]
    assert any("those of the last visit" in note for note in listed.notes)


def test_some_visits_are_read_where_some_moments_are_asked_for(listed):
    [entry] = [entry for entry in listed.entries if entry.id == "a"]
    image = data.the_image(data.read_case(entry, moments=2))
    assert image.array[:, 0, 0, 0, 0].tolist() == [1, 3] and image.times == (0.0, 32.5 * DAY)
    assert image.numbers == (0, 2) and image.length == 3
    whole = data.the_image(data.read_case(entry))
    assert identity.pixels(image, 2) == identity.pixels(whole, 2) != identity.pixels(whole)
    plan = ImagePlan(size=(1, 6, 8), frames=2)
    assert data.times_of(image, plan).tolist() == data.times_of(whole, plan).tolist() == [0.0, 32.5 * DAY]


def test_each_visit_is_fitted_to_the_grid_on_its_own(tmp_path):
    """A ramp of any size, stretched, is the same ramp; padded, it keeps its own shape."""
    sources = []
    for number, size in enumerate([(40, 60), (80, 120), (30, 30)]):
        ramp = np.broadcast_to((np.arange(size[1]) + 0.5) / size[1] * 200, size).round().astype(np.uint8)
        Pillow.fromarray(ramp).save(tmp_path / f"{number}.png")
        sources.append((number * DAY, Source(tmp_path / f"{number}.png")))
    image = formats.read(Source(tmp_path / "2.png", visits=tuple(sources)))
    assert image.size == (1, 30, 30) and len(image.visits) == 3 and "differ in size" in image.notes[-1]
    for fit in ("stretch", "pad"):
        plan = ImagePlan(size=(1, 24, 24), frames=3, fit=fit)
        prepared = data.prepare(image, plan)
        for moment, (_, source) in enumerate(sources):
            alone = data.prepare(formats.read(source), ImagePlan(size=(1, 24, 24), frames=1, fit=fit))
            assert (prepared[moment] == alone[0]).all()
    stretched = data.prepare(image, ImagePlan(size=(1, 24, 24), frames=3))
    inner = (np.arange(24) + 0.5) / 24 * 200
    assert np.abs(stretched[:, 0, 0, :, 2:-2] - inner[2:-2]).max() < 2
    repeated = data.prepare(image, ImagePlan(size=(1, 24, 24), frames=6))
    assert (repeated == stretched[[0, 0, 1, 1, 2, 2]]).all()


def test_grey_and_colour_go_together(tmp_path):
    rows = [visit(tmp_path, "a", "0", 7), visit(tmp_path, "a", "1", 8, "ill", colour=True)]
    rows += [visit(tmp_path, "b", "0", 1, "well")]
    [entry, _] = cohort.read(table(tmp_path, rows)).entries
    image = data.the_image(data.read_case(entry))
    assert image.channels == 3 and image.array[:, :, 0, 0, 0].tolist() == [[7, 7, 7], [8, 8, 8]]


def test_the_digest_of_visits_of_several_sizes_is_that_of_their_own_pixels(tmp_path):
    rows = [visit(tmp_path, "a", "0", 7, size=(5, 5)), visit(tmp_path, "a", "1", 8, "ill")]
    rows += [visit(tmp_path, "b", "0", 7, size=(7, 5)), visit(tmp_path, "b", "1", 8, "well")]
    one, other = (data.the_image(data.read_case(e)) for e in cohort.read(table(tmp_path, rows)).entries)
    assert (one.array == other.array).all() and identity.pixels(one) != identity.pixels(other)
    assert (one.frame(0).array == 7).all() and one.frame(0).size == (1, 5, 5)
    # What was cut or resampled is all that is there.
    assert one.crop((0, 0, 0), (1, 3, 3)).visits == one.flip("width").visits == one.resample((1, 3, 3)).visits == ()


@pytest.mark.parametrize("written", ["{}{}{}", "{}-{}-{}", "{}{}{}.0", "{}{}{}T000000", "{}{}{}0000", "{}{}{}000000"])
def test_a_date_is_one_however_it_is_written(tmp_path, written):
    """A day lies between the last of January and the first of February, not seventy."""
    when = [written.format("2026", *day) for day in (("01", "31"), ("02", "01"))]
    rows = [visit(tmp_path, "a", time, value, "ill") for value, time in enumerate(when)]
    rows += [visit(tmp_path, "b", "", 7, "well")]
    entry = cohort.read(table(tmp_path, rows)).entries[0]
    assert data.the_image(data.read_case(entry)).times == (0.0, DAY)


def test_numbers_stay_numbers(tmp_path):
    """20260131 seconds are two thirds of a year; 12345678 is no date."""
    for unit, cells in (("seconds", ("0", "20260131")), ("days", ("0", "12345678")), ("days", ("10", "12"))):
        rows = [{"case": "a", "time": cell, "image": cell} for cell in cells]
        made = visits.gathered(Table(tmp_path, ("case", "time", "image"), rows), "case", "time", images=["image"],
                               unit=unit)  # fmt: skip
        length = float(cells[1]) - float(cells[0])
        assert made.of["a"][1][0] == length * (1 if unit == "seconds" else DAY)


def test_rows_that_repeat_a_visit_and_say_something_else_are_told(tmp_path):
    same = visit(tmp_path, "a", "0", 1, "ill", note="x")
    rows = [same, dict(same), {**same, "label": "well"}, visit(tmp_path, "a", "5", 2, "ill", note="x")]
    rows += [visit(tmp_path, "b", "", 3, "well", note="x")]
    notes = cohort.read(table(tmp_path, rows)).notes
    said = "2 rows that repeat an image at the same time were left out"
    assert f"{said}; of those that differ in label the first one counts." in notes


def test_other_dates_are_another_cohort(tmp_path):
    """The pixels of two visits are the same, whenever these were: what was read, and a run that began, are not."""
    plan, stamps, digests = ImagePlan(size=(1, 6, 8), frames=2), set(), set()
    for last in ("5", "6"):
        name = picture(tmp_path, "0.png", 1), picture(tmp_path, "1.png", 2)
        rows = [{"case": "a", "time": "0", "image": name[0], "label": "ill"},
                {"case": "a", "time": last, "image": name[1], "label": "ill"},
                {"case": "b", "time": "", "image": name[1], "label": "well"}]  # fmt: skip
        entries = cohort.read(table(tmp_path, rows)).entries
        os.utime(tmp_path / "0.png", (0, 0))
        os.utime(tmp_path / "1.png", (0, 0))
        stamps.add(data._stamp(entries, plan))
        digests.add(data.times_digest(data.load(entries, plan)))
    assert len(stamps) == len(digests) == 2
    still = data.load(entries, ImagePlan(size=(1, 6, 8)))
    assert data.times_digest(still) == ""


# --- what is left out ---------------------------------------------------------------------------------------


def test_a_visit_without_a_time_is_left_out_and_a_case_without_any_too(tmp_path):
    rows = [visit(tmp_path, "a", "0", 1), visit(tmp_path, "a", "", 2), visit(tmp_path, "a", "5", 3, "ill")]
    rows += [visit(tmp_path, "b", "", 4), visit(tmp_path, "b", "", 5, "ill"), visit(tmp_path, "c", "1", 6, "well")]
    found = cohort.read(table(tmp_path, rows))
    assert [entry.id for entry in found.entries] == ["a", "c"]
    assert data.the_image(data.read_case(found.entries[0])).array[:, 0, 0, 0, 0].tolist() == [1, 3]
    told = [problem.what for problem in found.problems]
    assert any("1 of the 3 visits of case a" in what for what in told)
    assert any("none of the 2 visits of case b" in what for what in told) and len(told) == 2


@pytest.mark.parametrize(
    ("times", "what"),
    [
        (("0", "soon"), "neither a number nor a date"),
        (("0", "inf"), "neither a number nor a date"),
        (("0", "2026-01-01"), "some visits of case a have a date"),
    ],
)
def test_times_that_cannot_be_ordered_leave_the_case_out(tmp_path, times, what):
    rows = [visit(tmp_path, "a", time, k) for k, time in enumerate(times)]
    rows += [visit(tmp_path, "b", "0", 3, "ill"), visit(tmp_path, "c", "0", 4, "well")]
    found = cohort.read(table(tmp_path, rows))
    assert [entry.id for entry in found.entries] == ["b", "c"] and what in found.problems[0].what


def test_a_copy_is_left_out_and_two_images_at_one_time_stay_in_the_order_of_the_table(tmp_path):
    rows = [visit(tmp_path, "a", "3", 5), visit(tmp_path, "a", "3", 4), visit(tmp_path, "a", "1", 1, "ill")]
    rows += [dict(rows[0]), visit(tmp_path, "b", "0", 3, "well")]
    found = cohort.read(table(tmp_path, rows))
    image = data.the_image(data.read_case(found.entries[0]))
    assert image.array[:, 0, 0, 0, 0].tolist() == [1, 5, 4] and image.times == (0.0, 2 * DAY, 2 * DAY)
    assert any("1 rows that repeat" in note for note in found.notes)
    assert any("1 visits have the time of another one" in note for note in found.notes)


def test_a_patient_torn_over_two_names_or_splits_is_left_out(tmp_path):
    rows = [visit(tmp_path, "a", "0", 1, split="train"), visit(tmp_path, "a", "1", 2, "ill", split="test")]
    rows += [visit(tmp_path, "b", "0", 3, "ill", split="train"), visit(tmp_path, "c", "0", 4, "well", split="train")]
    found = cohort.read(table(tmp_path, rows))
    assert [entry.id for entry in found.entries] == ["b", "c"]
    assert "several values in column 'split': test, train" in found.problems[0].what


def test_a_loop_is_no_visit(tmp_path):
    np.save(tmp_path / "loop.npy", np.zeros((3, 1, 1, 4, 4), np.uint8))
    np.save(tmp_path / "still.npy", np.zeros((4, 4), np.uint8))
    source = Source(
        tmp_path / "still.npy", visits=((0.0, Source(tmp_path / "loop.npy")), (1.0, Source(tmp_path / "still.npy")))
    )
    with pytest.raises(Problem, match=r"loop\.npy.*itself a sequence of 3"):
        formats.read(source)


def test_without_a_time_a_case_id_may_come_once_only(tmp_path):
    rows = [visit(tmp_path, "a", "0", 1, "ill"), visit(tmp_path, "a", "1", 2, "well")]
    for row in rows:
        del row["time"]
    with pytest.raises(Problem, match="is there 2 times"):
        cohort.read(table(tmp_path, rows))


# --- a cohort file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "seconds"), [(None, DAY), ("hours", 3600.0), ("years", 365.25 * DAY)])
def test_a_cohort_file_says_the_unit(tmp_path, unit, seconds):
    rows = [visit(tmp_path, "a", "1", 1), visit(tmp_path, "a", "3", 2, "ill"), visit(tmp_path, "b", "0", 3, "well")]
    table(tmp_path, rows).joinpath("manifest.csv").rename(tmp_path / "t.csv")
    text = 'table = "t.csv"\ncase = "case"\npatient = "patient"\nimage = "{image}"\ntime = "time"\n'
    text += f'time_unit = "{unit}"\n' if unit else ""
    (tmp_path / "cohort.toml").write_text(text + '[label.x]\ncolumn = "label"\n')
    found = cohort.read(tmp_path)
    assert data.the_image(data.read_case(found.entries[0])).times == (0.0, 2 * seconds)


def test_a_cohort_file_refuses_masks_of_visits_and_unknown_units(tmp_path):
    rows = [visit(tmp_path, "a", "1", 1, "ill"), visit(tmp_path, "b", "0", 3, "well")]
    table(tmp_path, rows).joinpath("manifest.csv").rename(tmp_path / "t.csv")
    text = 'table = "t.csv"\ncase = "case"\nimage = "{image}"\ntime = "time"\n'
    (tmp_path / "cohort.toml").write_text(text + '[mask.m]\nfile = "{image}"\n')
    with pytest.raises(Problem, match="with time a case has several"):
        cohort.read(tmp_path)
    (tmp_path / "cohort.toml").write_text(text + 'time_unit = "moons"\n')
    with pytest.raises(Problem, match="'time_unit' is wrong"):
        cohort.read(tmp_path)


def test_a_join_may_be_by_a_key_of_several_columns(tmp_path):
    for patient, side in (("1", "L"), ("1", "R"), ("2", "L")):
        picture(tmp_path, f"patient_{patient}_{side}.png", 1)
    (tmp_path / "scores.csv").write_text("file,score\npatient_1_L,0\npatient_1_R,2\npatient_2_L,1\n")
    (tmp_path / "cohort.toml").write_text(
        'case = "side"\npatient = "patient"\nimage = "patient_{patient}_{side}.png"\n'
        '[[join]]\ntable = "scores.csv"\non = "file"\nkey = "patient_{patient}_{side}"\n'
        '[label.score]\ncolumn = "score"\nkind = "ordinal"\nclasses = ["0", "1", "2"]\n'
    )
    with pytest.raises(Problem, match="is there 2 times"):
        cohort.read(tmp_path)
    text = (tmp_path / "cohort.toml").read_text()
    (tmp_path / "cohort.toml").write_text(text.replace('"side"', '"{patient}-{side}"', 1))
    found = cohort.read(tmp_path)
    said = {entry.id: [f.name for f in entry.findings if f.probability == 1] for entry in found.entries}
    assert said == {"1-L": ["0"], "1-R": ["2"], "2-L": ["1"]}
    assert set(found.entries[0].metadata) == {"side"}


# --- real data ----------------------------------------------------------------------------------------------

RECIPES = Path(__file__).parents[1] / "recipes" / "cohorts"


@pytest.mark.real_data
def test_follow_up_of_covid_cxr(real_data):
    found = cohort.read(real_data / "covid_cxr", RECIPES / "covid_cxr_visits.toml")
    rows = {}
    with (real_data / "covid_cxr" / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["patientid"], []).append(row)
    for entry in found.entries:
        timed = [row for row in rows[entry.id] if row["offset"]] if len(rows[entry.id]) > 1 else rows[entry.id]
        visits = entry.images["image"].visits
        assert max(1, len(visits)) == len(timed)
        days = sorted(float(row["offset"]) for row in timed) if len(timed) > 1 else []
        assert [second / DAY for second, _ in visits] == pytest.approx([day - days[0] for day in days])
    lost = sum(len(some) > 1 and not any(row["offset"] for row in some) for some in rows.values())
    assert len(found.entries) + lost == len(rows)
    longest = max(found.entries, key=lambda entry: len(entry.images["image"].visits))
    prepared = data.prepare(data.the_image(data.read_case(longest)), ImagePlan(size=(1, 64, 64), frames=7, fit="pad"))
    assert prepared.shape == (7, 1, 1, 64, 64)


@pytest.mark.real_data
def test_loops_of_covid_blues(real_data):
    found = cohort.read(real_data / "covid_blues", RECIPES / "covid_blues.toml")
    assert len(found.entries) == len(list((real_data / "covid_blues" / "lus_videos").glob("*.mp4")))
    assert len({entry.patient for entry in found.entries}) == 43 and found.grouping == "column patient_id"
    asked = {question.task: question for question in found.questions}
    assert asked["severity"].kind == "ordinal" and asked["severity"].classes == ("0", "1", "2", "3")
    with (real_data / "covid_blues" / "severity.csv").open(newline="") as file:
        scores = {row["video_file"]: row for row in csv.DictReader(file)}
    with (real_data / "covid_blues" / "clinical_variables.csv").open(newline="") as file:
        patients = {row["patient_id"]: row for row in csv.DictReader(file)}
    for entry in found.entries:
        said = {(f.task, f.name): f.probability for f in entry.findings}
        stem = entry.images["image"].path.stem
        assert said["severity", str(int(float(scores[stem]["Severity Score"])))] == 1
        assert said["b_lines", scores[stem]["B-lines"].strip()] == 1
        assert said["a_lines", scores[stem]["A-lines"].strip()] == 1
        assert said["cov_test", "positive" if patients[entry.patient]["cov_test"] == "1" else "negative"] == 1
    leaks = ("clin_diagn", "test_meth", "PCR_CT", "oxygen_th", "oxygen_app", "outcome", "los_", "stay_", "discharge")
    leaks += ("Transfer", "ward", "C19_vacc", "incl_crit", "duration", "vent_dep", "application_method", "cov_test")
    assert not [name for name in found.entries[0].covariates if name.startswith(leaks)]
    ages = [entry.covariates["pat_age"] for entry in found.entries]
    assert min(ages) > 0 and -99 not in {v for e in found.entries for v in e.covariates.values()}
