import numpy as np
import pytest
from PIL import Image as Pillow

from dicom_files import dataset, write
from osler import formats, layouts
from osler.case import Source
from osler.problem import Problem

PIXELS = np.arange(12, dtype=np.int16).reshape(3, 4)


def png(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def test_a_folder_is_a_class(tmp_path):
    for name in ("well/1.png", "well/2.PNG", "sick/1.png", "sick/.hidden.png", "sick/deep/2.png", ".git/x/1.png"):
        png(tmp_path / name)
    (tmp_path / "sick" / "notes.txt").write_text("hello")
    (tmp_path / "sick" / "Thumbs.db").write_text("hello")
    listing = layouts.read(tmp_path)
    assert [entry.id for entry in listing.entries] == ["sick/1.png", "sick/deep/2.png", "well/1.png", "well/2.PNG"]
    assert [entry.findings[0].name for entry in listing.entries] == ["sick", "sick", "well", "well"]
    assert listing.questions[0].classes == ("sick", "well") and listing.questions[0].kind == "multiclass"
    assert any("2 files that are not images" in note for note in listing.notes)
    assert all(entry.split is None for entry in listing.entries)


@pytest.mark.parametrize(("train", "test", "val"), [("train", "test", "val"), ("Training", "TEST", "Validation")])
def test_folders_above_the_classes_are_splits(tmp_path, train, test, val):
    for part in (train, test, val):
        for name in ("x", "y"):
            png(tmp_path / part / name / "1.png")
    listing = layouts.read(tmp_path)
    splits = {entry.id.split("/")[0]: entry.split for entry in listing.entries}
    assert splits == {train: "train", test: "test", val: "validation"}
    assert listing.questions[0].classes == ("x", "y")


def series(folder, uid, patient, count=2, **tags):
    for number in range(count):
        position = {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        tags |= {"SeriesInstanceUID": uid, "PatientID": patient, "PixelSpacing": [1, 1]}
        write(folder / f"{number}.dcm", dataset(PIXELS, **{**tags, **position}))


def test_a_dicom_series_below_a_class_is_one_case(tmp_path):
    for name, uid, patient in [
        ("x/a", "1.1", "p1"),
        ("x/b", "1.2", "p2"),
        ("y/a", "1.3", "p3"),
        ("y/b", "1.4", "p1"),
    ]:
        series(tmp_path / name, uid, patient)
    listing = layouts.read(tmp_path)
    assert [(entry.id, entry.patient) for entry in listing.entries] == [
        ("x/a", "p1"),
        ("x/b", "p2"),
        ("y/a", "p3"),
        ("y/b", "p1"),
    ]
    assert listing.grouping == "DICOM PatientID"
    assert formats.read(listing.entries[0].images["image"]).size == (2, 3, 4)


def test_patient_folders_of_dicom_are_a_tree_with_a_case_for_each_series(tmp_path):
    series(tmp_path / "p1" / "s1", "1.1", "p1")
    series(tmp_path / "p1" / "s2", "1.2", "p1", count=1)
    series(tmp_path / "p2" / "s1", "1.3", "p2", count=3)
    series(tmp_path / "p2" / "scout", "1.4", "p2", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (tmp_path / "lost.dcm").touch()
    listing = layouts.read(tmp_path)
    assert [(entry.id, entry.patient) for entry in listing.entries] == [("1.1", "p1"), ("1.2", "p1"), ("1.3", "p2")]
    assert listing.questions == () and listing.grouping == "DICOM PatientID"
    assert len(listing.problems) == 1 and "lost.dcm" in str(listing.problems[0])
    assert any("localizer" in note for note in listing.notes)
    depths = [formats.read(entry.images["image"]).size[0] for entry in listing.entries]
    assert depths == [2, 1, 3]


def test_series_that_share_a_folder_are_told_apart(tmp_path):
    for number, uid in enumerate(["1.1", "1.2", "1.1", "1.2", "1.2"]):
        tags = {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        if uid == "1.2":
            tags["ImagePositionPatient"] = [0, 0, [0, 0, 0, 1, 2][number]]
        write(tmp_path / f"{number}.dcm", dataset(PIXELS, SeriesInstanceUID=uid, PixelSpacing=[1, 1], **tags))
    listing = layouts.read(tmp_path)
    assert [formats.read(entry.images["image"]).size[0] for entry in listing.entries] == [2, 3]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("SeriesInstanceUID,label,ward", ["1.1,sick,A", "1.3,well,B"]),
        ("PatientID,label,ward", ["p1,sick,A", "p2,well,B"]),
        ("path,label,ward", ["p1/s1,sick,A", "p2/s1,well,B"]),
    ],
)
def test_labels_beside_a_tree_are_looked_up_by_their_key(tmp_path, header, rows):
    series(tmp_path / "p1" / "s1", "1.1", "p1")
    series(tmp_path / "p2" / "s1", "1.3", "p2")
    (tmp_path / "labels.csv").write_text("\n".join((header, *rows)))
    listing = layouts.read(tmp_path)
    assert {entry.id: entry.findings[0].name for entry in listing.entries} == {"1.1": "sick", "1.3": "well"}
    assert [entry.metadata["ward"] for entry in listing.entries] == ["A", "B"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("name,label\np1,x\n", "none of its columns"), ("PatientID,label\nzz,x\n", "names none of the 2 series")],
)
def test_labels_that_fit_no_series_are_refused(tmp_path, text, words):
    series(tmp_path / "p1" / "s1", "1.1", "p1")
    series(tmp_path / "p2" / "s1", "1.3", "p2")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(Problem, match=words):
        layouts.read(tmp_path)


def test_unknown_empty_and_missing_folders_say_what_was_looked_for(tmp_path):
    with pytest.raises(Problem, match="empty"):
        layouts.read(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(Problem, match=r"cohort\.toml, MedMNIST.*column image.*folder for each class.*DICOM"):
        layouts.read(tmp_path)
    with pytest.raises(Problem, match="no such file"):
        layouts.read(tmp_path / "nothing")
    for name in ("images/1.png", "masks/1.png"):
        png(tmp_path / name)
    with pytest.raises(Problem, match="no cohort was found"):
        layouts.read(tmp_path)


def test_any_file_or_series_is_a_case_of_its_own(tmp_path):
    png(tmp_path / "röntgen.png")
    series(tmp_path / "ct", "1.1", "p1")
    assert layouts.single(tmp_path / "röntgen.png").images == {"image": Source(tmp_path / "röntgen.png")}
    assert layouts.single(tmp_path / "röntgen.png").id == "röntgen"
    assert layouts.single(tmp_path / "ct").id == "ct"
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "zero.png").touch()
    for name, words in [("a.txt", "unknown format"), ("zero.png", "empty"), ("nothing", "no such file")]:
        with pytest.raises(Problem, match=words):
            layouts.single(tmp_path / name)
