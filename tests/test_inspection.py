"""An inspection says what is there and what is wrong, goes on past broken files, and shows no names."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from osler import inspection, phantom
from osler.cli import main
from osler.problem import Problem


def quiet(line: str) -> None:
    del line


def cohort(folder: Path, count: int = 24) -> Path:
    """Independent textures of two classes, patients of two cases each, in two given splits."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = ["case,patient,image,label,split,ward"]
    for number in range(count):
        texture = gaussian_filter(random.normal(size=(80, 70)), 3)
        values = 128 + 40 * texture / texture.std()
        Pillow.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        split = "train" if number < count // 2 else "test"
        label, ward = ("sick", "") if number % 2 else ("well", "north")
        rows.append(f"secret{number},jane{number // 2},images/{number}.png,{label},{split},{ward}")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))


def test_what_is_there_is_counted(tmp_path: Path) -> None:
    found = inspection.inspect(cohort(tmp_path / "cohort"), tmp_path / "out", say=quiet)
    summary = json.loads((tmp_path / "out" / "inspection.json").read_text("utf-8"))["summary"]
    assert summary == json.loads(json.dumps(found.summary))
    assert (summary["cases"], summary["patients"], summary["unreadable"]) == (24, 12, 0)
    assert summary["classes"] == {"label": {"well": 12, "sick": 12, "unlabelled": 0}}
    assert summary["splits"] == {"train": 12, "test": 12}
    assert summary["sizes"] == {"1 x 1 x 80 x 70": 24}
    assert summary["spacings"] == {"unknown": 24}
    assert summary["missing"] == {"ward": 12}
    low, *_, high = summary["intensities"]["mean"]
    assert 110 < low < high < 146


def test_planted_troubles_are_found_and_broken_files_do_not_stop_it(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "cohort")
    (folder / "images" / "20.png").write_bytes((folder / "images" / "2.png").read_bytes())
    (folder / "images" / "5.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    table = (folder / "manifest.csv").read_text("utf-8")
    (folder / "manifest.csv").write_text(table.replace("secret13,jane6", "secret13,jane0"), encoding="utf-8")
    found = inspection.inspect(folder, tmp_path / "out", say=quiet)
    named = {problem.kind: problem for problem in found.problems}
    assert named["torn_patient"].severity == "stop"
    assert named["torn_patient"].groups == (("secret0", "secret1", "secret13"),)
    assert named["same_file"].severity == "repair"
    assert named["same_file"].groups == (("secret2", "secret20"),)
    assert named["unreadable"].cases == ("secret5",)
    assert "broken" in named["unreadable"].message
    assert found.problems[0].severity == "stop", "the gravest first"
    assert found.summary["cases"] == 23


def test_no_name_is_written_but_into_the_private_table(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "cohort")
    (folder / "images" / "5.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "images" / "20.png").write_bytes((folder / "images" / "2.png").read_bytes())
    out = tmp_path / "out"
    found = inspection.inspect(folder, out, say=quiet)
    for name in ("inspection.json", "inspection.html"):
        text = (out / name).read_text("utf-8")
        assert "secret" not in text
        assert "jane" not in text
    with (out / "names.csv").open(encoding="utf-8", newline="") as file:
        back = {row["pseudonym"]: row["case"] for row in csv.DictReader(file)}
    assert (out / "names.csv").stat().st_mode & 0o777 == 0o600
    written = json.loads((out / "inspection.json").read_text("utf-8"))["problems"]
    assert [tuple(back[case] for case in one["cases"]) for one in written] == [one.cases for one in found.problems]
    assert not list(out.glob("*.part"))


def test_one_file_that_fails_does_not_change_what_is_said_of_the_others(tmp_path: Path) -> None:
    """Rows of the evidence stay beside their cases when a case before them is missing."""
    folder = cohort(tmp_path / "cohort")
    (folder / "images" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Pillow.fromarray(np.full((80, 70), 7, np.uint8)).save(folder / "images" / "9.png")
    found = inspection.inspect(folder, tmp_path / "out", say=quiet)
    assert {problem.kind: problem.cases for problem in found.problems}["blank"] == ("secret9",)


def test_nothing_readable_is_one_sentence(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "cohort", 4)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(Problem, match="none of the 4 cases can be read"):
        inspection.inspect(folder, tmp_path / "out", say=quiet)


def test_the_command_says_it_and_names_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cohort(tmp_path / "cohort")
    (folder / "images" / "20.png").write_bytes((folder / "images" / "2.png").read_bytes())
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(folder), "--out", str(tmp_path / "out"), "--masked"])
    assert not stop.value.code
    said = capsys.readouterr()
    assert "repair: 2 cases in 1 group are the same, byte for byte" in said.out
    assert "inspection.html" in said.out
    assert (tmp_path / "out" / "inspection.html").exists()


@pytest.mark.parametrize("modality", ["xray", "ct", "ultrasound"])
def test_clean_cohorts_are_not_stopped(tmp_path: Path, modality: str) -> None:
    spec = phantom.Phantom(modality=modality, size=48, cases_per_patient=1.0)  # type: ignore[arg-type]
    folder = phantom.write_phantom(tmp_path / "cohort", spec, 60)
    found = inspection.inspect(folder, tmp_path / "out", say=quiet)
    assert not [problem for problem in found.problems if problem.severity != "look"]
    assert len(found.problems) <= 1


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["covid_cxr", "acdc"])
def test_real_cohorts_are_not_stopped(tmp_path: Path, real_data: Path, name: str) -> None:
    recipe = Path(__file__).parents[1] / "recipes" / "cohorts" / f"{name}.toml"
    found = inspection.inspect(real_data / name, tmp_path / "out", cohort_file=recipe, say=quiet)
    assert not [problem for problem in found.problems if problem.severity == "stop"]
