"""What is written about findings is read back by other programs: same pixels, same place in the patient."""

import csv
import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom import dcmread, uid
from scipy.spatial.transform import Rotation

from dicom_files import dataset, in_patient, write
from osler import data, writing
from osler.case import Answer, Box, Case, Code, Diagnosis, Entry, Finding, Mask, Measurement, Question, Source
from osler.formats import dicom
from osler.image import Affine, Image, NoGeometry, Spacing
from osler.pseudonym import pseudonym

ORGANS = Question("mask", "segmentation", ("liver", "strange thing"), values=((1,), (2,)))
LESIONS = Question("mask", "segmentation", ("lesion",), values=((1,),), separate=True)
REGIONS = Question("mask", "segmentation", ("whole", "core"), values=((1, 2), (2,)))
BOXES = Question("boxes", "detection", ("nodule",))
SIZE = (4, 6, 7)


@pytest.fixture(autouse=True)
def _own_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path_factory.mktemp("home")))


def mask(*window: tuple[int, int]) -> Mask:
    full = np.zeros(SIZE, bool)
    full[tuple(slice(*part) for part in window)] = True
    # No box: so that a mask that is mirrored or moved is another one.
    full[window[0][0], window[1][0], window[2][0]] = False
    return Mask.cropped(full)


ONE, TWO = mask((1, 3), (0, 3), (2, 6)), mask((2, 4), (4, 6), (1, 3))


def outlined(name: str, drawn: Mask, probability: float = 0.9, frame: int = 0, **more) -> Finding:
    measurements = (Measurement("volume", 1.25, "ml", (1.0, 1.5)), Measurement("long axis", 12.0, "mm"))
    return Finding(
        "mask",
        name,
        "model:x",
        probability,
        box=drawn.box,
        mask=drawn,
        frame=frame,
        measurements=measurements,
        **more,
    )


def said(*findings: Finding, task: str = "mask", kind: str = "segmentation", withheld: bool = False) -> Diagnosis:
    decision = () if withheld else tuple(dict.fromkeys(f.name for f in findings))
    answers = {task: Answer(task, kind, findings, decision, threshold=0.5)}
    return Diagnosis("Jane Doe", answers, None, withheld, (), (), (), "ab" * 32, "torch", "float32", 1.0, 1.0)


def oblique() -> np.ndarray:
    return Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix().T


def series(folder: Path, shear: float = 0.0, moments: int = 1, **tags) -> Path:
    """A series of the patient p1, ``SIZE`` large, with slices in no order."""
    rng, axes = np.random.default_rng(0), oblique()
    for level in range(SIZE[0]):
        for moment in range(moments):
            position = [10, -20, 30] + 2.5 * level * axes[2] + shear * level * axes[1]
            made = dataset(
                rng.integers(0, 900, SIZE[1:]).astype(np.int16), **in_patient(position, *axes[:2], (0.7, 0.5))
            )
            made.RescaleSlope, made.RescaleIntercept, made.InstanceNumber = 1, -1024, 50 - level
            made.PatientName, made.PatientSex, made.PatientBirthDate = "Doe^Jane", "F", "19500101"
            made.StudyDate, made.StudyTime, made.StudyID, made.AccessionNumber = "20200102", "1010", "7", "8"
            made.ReferringPhysicianName = "Who^Dr"
            if moments > 1:
                made.TemporalPositionIdentifier = moment + 1
            for name, tag in tags.items():
                setattr(made, name, tag)
            write(folder / f"{(7 * level + moment) % 11}{moment}.dcm", made)
    return folder


def case_at(path: Path) -> Case:
    return data.read_case(Entry("Jane Doe", "p1", {"image": Source(path)}))


def case_of(geometry, frames: int = 1, times: tuple[float, ...] = ()) -> Case:
    array = np.random.default_rng(1).integers(0, 255, (frames, 1, *SIZE)).astype(np.uint8)
    return Case("Jane Doe", "p1", {"image": Image(array, geometry, times)})


def labels(question: Question, *findings: Finding, frames: int = 1) -> np.ndarray:
    full = np.zeros((frames, *SIZE), np.uint8)
    for finding in findings:
        full[finding.frame][finding.mask.within(SIZE)] = question.classes.index(finding.name) + 1
    return full


def check_standard(path: Path) -> None:
    """No error by David Clunie's validator, where it is installed (apt: dicom3tools)."""
    if shutil.which("dciodvfy"):
        found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]
        assert not errors, errors


# --- DICOM segmentations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shear", [0.0, 0.6])
def test_a_segmentation_comes_back_pixel_for_pixel_at_its_place(tmp_path: Path, shear: float) -> None:
    case = case_at(series(tmp_path / "in", shear))
    findings = outlined("liver", ONE), outlined("strange thing", TWO)
    assert writing.write(said(*findings), case, tmp_path, {"mask": ORGANS}) == ()
    path = tmp_path / "mask.seg.dcm"
    check_standard(path)
    image, seen = case.images["image"], dicom.labels(Source(path))
    # Empty frames are left out: the first slice is not there, and the affine says so.
    truth = labels(ORGANS, *findings)[:, None, 1:]
    assert (seen.array == truth).all() and seen.array.shape == truth.shape
    there = image.to_patient(np.array([[0, 0, 1], [6, 5, 3], [2, 3, 2]], float))
    assert seen.to_patient(np.array([[0, 0, 0], [6, 5, 2], [2, 3, 1]], float)) == pytest.approx(there, abs=1e-5)
    assert seen.geometry.frame == image.geometry.frame == "1.2.3.4"
    assert (dicom.labels(Source(path, key="2")).array == np.where(truth == 2, 2, 0)).all()


def test_a_segmentation_says_what_it_is_of_and_who_drew_it(tmp_path: Path) -> None:
    case = case_at(series(tmp_path / "in"))
    code = Code("SCT", "4147007", "Mass")
    findings = outlined("liver", ONE), outlined("strange thing", TWO, code=code)
    writing.write(said(*findings), case, tmp_path, {"mask": ORGANS})
    made = dcmread(tmp_path / "mask.seg.dcm")
    sources = {}
    for path in (tmp_path / "in").iterdir():
        source = dcmread(path)
        sources[source.SOPInstanceUID] = source
        for name in ("PatientID", "PatientName", "PatientSex", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
            assert made[name].value == source[name].value
    assert {i.ReferencedSOPInstanceUID for i in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence} == set(
        sources
    )
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3" != made.SeriesInstanceUID
    for group in made.PerFrameFunctionalGroupsSequence:
        # Each frame refers to the image that lies where the frame says it lies.
        source = sources[group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert [float(v) for v in position] == pytest.approx(
            [float(v) for v in source.ImagePositionPatient], abs=1e-5
        )
    seg = dicom.segments(tmp_path / "mask.seg.dcm")
    assert [(s.number, s.label, s.algorithm) for s in seg.segments] == [
        (1, "liver", "AUTOMATIC"),
        (2, "strange thing", "AUTOMATIC"),
    ]
    assert (seg.segments[0].category.value, seg.segments[0].type.value) == ("123037004", "10200004")
    assert seg.segments[1].type == code
    assert seg.series == ("1.2.3",) and seg.patient == "p1" and seg.study == "1.2"
    assert "abababababab" in made.ContentDescription and made.Manufacturer == "Osler"
    assert made.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion.endswith("ab")


def test_names_in_any_script_are_kept(tmp_path: Path) -> None:
    case = case_at(series(tmp_path / "in", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Zoë"))
    question = replace(ORGANS, classes=("läsion", "肝"))
    findings = outlined("läsion", ONE), outlined("肝", TWO)
    assert writing.write(said(*findings), case, tmp_path, {"mask": question}) == ()
    check_standard(tmp_path / "mask.seg.dcm")
    assert dcmread(tmp_path / "mask.seg.dcm").PatientName == "Müller^Zoë"
    assert [s.label for s in dicom.segments(tmp_path / "mask.seg.dcm").segments] == ["läsion", "肝"]


def test_an_image_that_nothing_can_refer_to_gives_a_sentence(tmp_path: Path) -> None:
    case = case_at(series(tmp_path / "in", StudyInstanceUID=""))
    (note,) = writing.write(said(outlined("liver", ONE)), case, tmp_path, {"mask": ORGANS})
    assert note.startswith("mask: no DICOM segmentation was written: its image lacks a UID")
    assert not list(tmp_path.glob("*.dcm")) and (tmp_path / "mask.nii.gz").exists()


def test_each_lesion_is_a_segment_of_its_own_and_may_overlap_another(tmp_path: Path) -> None:
    case = case_at(series(tmp_path / "in"))
    near = mask((1, 3), (1, 4), (2, 6))
    writing.write(said(outlined("lesion", ONE), outlined("lesion", near)), case, tmp_path, {"mask": LESIONS})
    path = tmp_path / "mask.seg.dcm"
    check_standard(path)
    assert [s.label for s in dicom.segments(path).segments] == ["lesion 1", "lesion 2"]
    assert dcmread(path).SegmentsOverlap == "YES"
    for key, drawn in (("1", ONE), ("2", near)):
        seen = dicom.labels(Source(path, key=key)).array[0, 0]
        assert ((seen > 0) == drawn.within(SIZE)[1:3]).all()


def test_moments_and_flat_images_are_written_too(tmp_path: Path) -> None:
    case = case_at(series(tmp_path / "in", moments=2))
    findings = outlined("liver", ONE), outlined("liver", TWO, frame=1)
    writing.write(said(*findings), case, tmp_path, {"mask": ORGANS})
    check_standard(tmp_path / "mask.seg.dcm")
    seen = dicom.labels(Source(tmp_path / "mask.seg.dcm"))
    assert (seen.array[:, 0] == labels(ORGANS, *findings, frames=2)).all()

    flat = np.random.default_rng(0).integers(0, 99, (5, *SIZE[1:])).astype(np.uint8)
    tags = {"Modality": "US", "SOPClassUID": uid.UltrasoundMultiFrameImageStorage, "FrameTime": 40}
    case = case_at(write(tmp_path / "us.dcm", dataset(flat, **tags)))
    drawn = Mask(ONE.array[:1] | True, (0, 1, 2))
    findings = (outlined("liver", drawn, frame=3),)
    assert writing.write(said(*findings), case, tmp_path, {"mask": ORGANS}) == ()
    check_standard(tmp_path / "mask.seg.dcm")
    seen = dicom.labels(Source(tmp_path / "mask.seg.dcm"))
    assert seen.array.shape == (5, 1, 1, *SIZE[1:]) and seen.geometry == NoGeometry()
    assert seen.array[3].sum() == drawn.array.sum() == seen.array.sum()
    references = [
        g.DerivationImageSequence[0].SourceImageSequence[0]
        for g in dcmread(tmp_path / "mask.seg.dcm").PerFrameFunctionalGroupsSequence
    ]
    assert [r.ReferencedFrameNumber for r in references] == [1, 2, 3, 4, 5]


def test_highdicom_reads_the_same_volume(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="highdicom is an optional oracle")
    case = case_at(series(tmp_path / "in"))
    findings = outlined("liver", ONE), outlined("strange thing", TWO)
    writing.write(said(*findings), case, tmp_path, {"mask": ORGANS})
    seg = highdicom.seg.segread(tmp_path / "mask.seg.dcm")
    volume = seg.get_volume(combine_segments=True)
    # Its order of axes is that of files: slices, rows, columns; its slices may run the other way.
    mine = labels(ORGANS, *findings)[0]
    image = case.images["image"]
    for z, y, x in np.argwhere(mine):
        there = image.to_patient(np.array([x, y, z], float))
        k, j, i = np.rint(volume.map_reference_to_indices(there[None]))[0].astype(int)
        assert volume.array[k, j, i] == mine[z, y, x]
    assert (volume.array > 0).sum() == (mine > 0).sum()


def test_there_is_none_without_dicom_or_when_the_answer_is_withheld(tmp_path: Path) -> None:
    for name, case, withheld in (
        ("png", case_of(NoGeometry()), False),
        ("withheld", case_at(series(tmp_path / "in")), True),
    ):
        (tmp_path / name).mkdir()
        writing.write(said(outlined("liver", ONE), withheld=withheld), case, tmp_path / name, {"mask": ORGANS})
        assert not list((tmp_path / name).glob("*.dcm"))


# --- NIfTI ----------------------------------------------------------------------------------------------------


def affine(shear: float = 0.0) -> Affine:
    matrix = np.eye(4)
    matrix[:3, :3] = oblique().T @ np.diag([0.5, 0.75, 2.5])
    matrix[:3, 2] += shear * matrix[:3, 1]
    matrix[:3, 3] = [10, -20, 30.5]
    return Affine(matrix)


@pytest.mark.parametrize("shear", [0.0, 0.4])
def test_nibabel_sees_the_same_labels_at_the_same_places(tmp_path: Path, shear: float) -> None:
    import nibabel

    case = case_of(affine(shear))
    findings = outlined("liver", ONE), outlined("strange thing", TWO)
    writing.write(said(*findings), case, tmp_path, {"mask": ORGANS})
    volume = nibabel.load(tmp_path / "mask.nii.gz")
    assert (np.asarray(volume.dataobj) == labels(ORGANS, *findings)[0].T).all()
    assert volume.header.get_xyzt_units()[0] == "mm"
    points = np.array([[0, 0, 0], [6, 5, 3], [2, 1, 3]], float)
    ras = nibabel.affines.apply_affine(volume.affine, points)
    assert ras * [-1, -1, 1] == pytest.approx(case.images["image"].to_patient(points), abs=1e-5)


def test_simpleitk_sees_the_same_labels_at_the_same_places(tmp_path: Path) -> None:
    simple = pytest.importorskip("SimpleITK", reason="SimpleITK is an optional oracle")
    case = case_of(affine())
    findings = outlined("liver", ONE), outlined("strange thing", TWO)
    writing.write(said(*findings), case, tmp_path, {"mask": ORGANS})
    volume = simple.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert (simple.GetArrayFromImage(volume) == labels(ORGANS, *findings)[0]).all()
    for point in [(0, 0, 0), (6, 5, 3), (2, 1, 3)]:
        there = volume.TransformContinuousIndexToPhysicalPoint([float(part) for part in point])
        assert there == pytest.approx(case.images["image"].to_patient(np.array(point, float)), abs=1e-4)


def test_there_are_no_millimetres_where_the_image_has_none(tmp_path: Path) -> None:
    import nibabel

    for geometry, zooms, unit in (
        (NoGeometry(), (1, 1, 1), "unknown"),
        (Spacing(0.5, 0.75, 3.0), (0.5, 0.75, 3), "mm"),
        (Spacing(0.5, 0.75), (0.5, 0.75, 1), "mm"),
    ):
        writing.write(said(outlined("liver", ONE)), case_of(geometry), tmp_path, {"mask": ORGANS})
        header = nibabel.load(tmp_path / "mask.nii.gz").header
        assert header.get_zooms() == pytest.approx(zooms) and header.get_xyzt_units()[0] == unit
        assert int(header["sform_code"]) == int(header["qform_code"]) == 0


def test_regions_have_a_file_each_and_moments_share_one(tmp_path: Path) -> None:
    import nibabel

    case = case_of(affine(), frames=2, times=(0.0, 0.25))
    findings = outlined("whole", ONE, frame=1), outlined("core", mask((1, 2), (0, 3), (2, 6)), frame=1)
    writing.write(said(*findings), case, tmp_path, {"mask": REGIONS})
    for finding in findings:
        volume = nibabel.load(tmp_path / f"mask-{finding.name}.nii.gz")
        assert volume.shape == (*SIZE[::-1], 2) and volume.header.get_zooms()[3] == 0.25
        assert (np.asarray(volume.dataobj)[..., 1] == finding.mask.within(SIZE).T).all()
        assert not np.asarray(volume.dataobj)[..., 0].any()
    assert not (tmp_path / "mask.nii.gz").exists()


def test_uncertainty_lies_beside_the_masks(tmp_path: Path) -> None:
    import nibabel

    case, unsure = case_of(affine()), np.random.default_rng(0).random((1, *SIZE), np.float32)
    writing.write(said(outlined("liver", ONE)), case, tmp_path, {"mask": ORGANS}, {"mask": unsure})
    volume = nibabel.load(tmp_path / "mask-uncertainty.nii.gz")
    assert volume.get_data_dtype() == np.float32 and (np.asarray(volume.dataobj) == unsure[0].T).all()


def test_only_what_is_stated_is_in_the_masks(tmp_path: Path) -> None:
    sure, unsure = outlined("liver", ONE, 0.9), outlined("strange thing", TWO, 0.2)
    maps = writing.label_maps(said(sure, unsure).answers["mask"], ORGANS, case_of(affine()).images["image"])
    assert (maps["mask.nii.gz"] == labels(ORGANS, sure)).all()


# --- pictures, table, data ------------------------------------------------------------------------------------


def test_a_picture_shows_the_fullest_slice_with_an_outline(tmp_path: Path) -> None:
    case = case_of(affine())
    writing.write(said(outlined("liver", ONE)), case, tmp_path, {"mask": ORGANS})
    shown = np.asarray(Pillow.open(tmp_path / "mask.png"))
    assert min(shown.shape[:2]) >= 384 and shown.shape[0] * 7 == shown.shape[1] * 6
    factor = shown.shape[0] // 6
    # Slice 2 holds 12 pixels of the mask, slice 1 only 11: it is grey but for the outline, which lies in the mask.
    grey = np.repeat(np.repeat(case.images["image"].array[0, 0, 2], factor, 0), factor, 1)
    drawn = (shown != grey[..., None]).any(-1)
    inside = np.repeat(np.repeat(ONE.within(SIZE)[2], factor, 0), factor, 1)
    assert drawn.any() and not (drawn & ~inside).any()
    assert not drawn[
        inside.nonzero()[0].min() + 2 : inside.nonzero()[0].max() - 1, 2 * factor + 2 : 6 * factor - 2
    ].any()


def test_boxes_are_drawn_at_their_edges_on_the_moment_in_which_they_lie(tmp_path: Path) -> None:
    case = case_of(NoGeometry(), frames=3)
    boxed = Finding("boxes", "nodule", "model:x", 0.8, box=Box((1.0, 1.0, 2.0), (2.0, 4.0, 6.0)), frame=2)
    writing.write(said(boxed, task="boxes", kind="detection"), case, tmp_path, {"boxes": BOXES})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes-2.png", "findings.csv"]
    shown = np.asarray(Pillow.open(tmp_path / "boxes-2.png")).astype(int)
    factor = shown.shape[0] // 6
    grey = np.repeat(np.repeat(case.images["image"].array[2, 0, 1], factor, 0), factor, 1)
    rows, columns = (shown != grey[..., None]).any(-1).nonzero()
    assert (rows.min(), rows.max() + 1) == (factor, 4 * factor)
    assert (columns.min(), columns.max() + 1) == (2 * factor, 6 * factor)


def test_a_box_lies_in_the_slices_whose_middle_it_holds() -> None:
    case = case_of(NoGeometry())
    wide = Finding("boxes", "nodule", probability=0.8, box=Box((1.0, 1.0, 1.0), (2.4, 4.0, 5.0)))
    other = Finding("boxes", "nodule", probability=0.8, box=Box((2.0, 1.0, 1.0), (3.0, 3.0, 4.0)))
    content = writing.pictures(
        [(said(wide, other, task="boxes", kind="detection").answers["boxes"], BOXES)], case.images["image"]
    )
    shown = np.asarray(Pillow.open(io.BytesIO(content[0])))
    # Slice 1 holds the larger box only; the other one does not reach it.
    assert (shown[-1] == np.repeat(case.images["image"].array[0, 0, 1, -1], len(shown) // 6)[:, None]).all()


def test_a_box_of_another_slice_is_not_drawn() -> None:
    image = Image(np.zeros((1, 1, 12, 40, 40), np.uint8))
    first = [Finding("boxes", "nodule", probability=0.8, box=Box((0.0, 2.0, 5.0), (2.0, 8.0, 11.0)))] * 2
    later = Finding("boxes", "nodule", probability=0.8, box=Box((9.0, 30.0, 5.0), (11.0, 36.0, 11.0)))
    answer = said(*first, later, task="boxes", kind="detection").answers["boxes"]
    shown = np.asarray(Pillow.open(io.BytesIO(writing.pictures([(answer, BOXES)], image)[0])))
    rows = shown.any((1, 2)).nonzero()[0] // (len(shown) // 40)
    assert set(rows) == {2, 3, 4, 5, 6, 7}


def test_the_table_has_a_row_for_each_measurement_and_no_name(tmp_path: Path) -> None:
    findings = outlined("liver", ONE), replace(outlined("strange thing", TWO, 0.2), measurements=())
    writing.write(said(*findings), case_of(affine()), tmp_path, {"mask": ORGANS})
    text = (tmp_path / "findings.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [
        (r["class"], r["measurement"], r["value"], r["low"], r["high"], r["unit"], r["stated"]) for r in rows
    ] == [
        ("liver", "volume", "1.25", "1", "1.5", "ml", "yes"),
        ("liver", "long axis", "12", "", "", "mm", "yes"),
        ("strange thing", "", "", "", "", "", "no"),
    ]
    assert {row["case"] for row in rows} == {pseudonym("Jane Doe")} and "Jane" not in text


def test_the_data_hold_places_and_no_arrays() -> None:
    case = case_of(affine())
    findings = outlined("liver", ONE), outlined("strange thing", TWO, 0.2)
    content = writing.as_data(said(*findings), case, {"mask": ORGANS})
    assert "Jane" not in json.dumps(content)
    first, second = content["answers"]["mask"]["findings"]
    assert first["mask"] == {"file": "mask.nii.gz", "value": 1, "pixels": int(ONE.array.sum())}
    assert second["mask"] == {"file": None, "value": None, "pixels": int(TWO.array.sum())}
    assert first["measurements"][0]["value"] == 1.25
    assert first["box"]["start"] == (1, 0, 2) and first["box"]["stop"] == (3, 3, 6)
    there = np.array(first["box"]["corners"])
    matrix = case.images["image"].geometry.matrix
    # The pixel (1, 0, 2) is the first of the box; its outer corner lies half a pixel before its centre.
    assert there[0] == pytest.approx(matrix[:3, :3] @ [1.5, -0.5, 0.5] + matrix[:3, 3])
    assert there[7] == pytest.approx(matrix[:3, :3] @ [5.5, 2.5, 2.5] + matrix[:3, 3])
    flat = writing.as_data(said(*findings), case_of(Spacing(1, 1, 1)), {"mask": ORGANS})
    assert flat["answers"]["mask"]["findings"][0]["box"]["corners"] is None
