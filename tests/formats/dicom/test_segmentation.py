"""Segmentation objects as other software writes them, read as label maps; as Osler writes them: test_writing.py."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.sr.codedict import codes

from dicom_files import dataset, in_patient, write
from osler import formats, layouts, outlines
from osler.case import Code, Source
from osler.formats import dicom
from osler.image import Affine
from osler.problem import Problem

SIZE = (6, 8, 10)


@pytest.fixture
def highdicom() -> ModuleType:
    return pytest.importorskip("highdicom", reason="highdicom is an optional oracle")


def sources(folder: Path, patient: str = "p1", series: str = "1.2.3", **tags: Any) -> list[Dataset]:
    """A series of coronal slices, from back to front, in ``folder``; their data sets as they were read."""
    rng = np.random.default_rng(0)
    for level in range(SIZE[0]):
        place = in_patient((10, 40 - 2.5 * level, 30), (1, 0, 0), (0, 0, -1), (0.7, 0.5))
        made = dataset(rng.integers(0, 900, SIZE[1:]).astype(np.int16), **place)
        made.PatientID, made.SeriesInstanceUID, made.StudyInstanceUID = patient, series, "1.2"
        made.PatientName = made.PatientBirthDate = made.PatientSex = made.AccessionNumber = made.StudyID = ""
        made.ReferringPhysicianName = made.StudyDate = made.StudyTime = ""
        made.InstanceNumber = level + 1
        for name, tag in tags.items():
            setattr(made, name, tag)
        write(folder / f"{level}.dcm", made)
    return [dcmread(path) for path in sorted(folder.iterdir())]


def drawn() -> np.ndarray:
    """Two segments ``(slices, rows, columns)``, which do not touch the first slice."""
    full = np.zeros(SIZE, np.uint8)
    full[1:4, 2:6, 1:7], full[3:5, 1:3, 7:9], full[1, 2, 1] = 1, 2, 0
    return full


def described(highdicom: ModuleType, number: int, label: str) -> Any:
    return highdicom.seg.SegmentDescription(
        number,
        label,
        codes.cid7150.MorphologicallyAbnormalStructure,
        codes.cid7159.Lesion,
        highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def saved(highdicom: ModuleType, path: Path, images: list[Dataset], pixels: np.ndarray, **more: Any) -> Path:
    kind = more.pop("kind", "BINARY")
    labels = more.pop("labels", ("tumour", "cyst"))
    made = highdicom.seg.Segmentation(
        images,
        pixels,
        kind,
        [described(highdicom, number, label) for number, label in enumerate(labels, 1)],
        uid.generate_uid(),
        7,
        uid.generate_uid(),
        1,
        "maker",
        "model",
        "1",
        "2",
        **more,
    )
    made.save_as(path)
    return path


def as_on(image: Any, seen: Any) -> np.ndarray:
    """The label map on the grid of an image, voxel for voxel by their places in the patient."""
    full = np.zeros(image.size, seen.array.dtype)
    to_pixels = np.linalg.inv(image.geometry.matrix)
    for z, y, x in np.argwhere(seen.array[0, 0]):
        there = to_pixels @ [*seen.to_patient(np.array([x, y, z], float)), 1]
        assert there == pytest.approx(np.rint(there), abs=1e-4)
        x1, y1, z1 = np.rint(there[:3]).astype(int)
        full[z1, y1, x1] = seen.array[0, 0, z, y, x]
    return full


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("sparse", [True, False])
def test_a_segmentation_lies_on_its_images(highdicom: ModuleType, tmp_path: Path, kind: str, sparse: bool) -> None:
    images = sources(tmp_path / "in")
    path = saved(highdicom, tmp_path / "s.dcm", images[::-1], drawn()[::-1], kind=kind, omit_empty_frames=sparse)
    image, seen = formats.read(Source(tmp_path / "in")), dicom.labels(Source(path))
    assert isinstance(seen.geometry, Affine) and seen.geometry.frame == "1.2.3.4"
    # The image's slices run along their normal, from the front of the patient backwards... as they come sorted.
    truth = drawn() if image.to_patient(np.zeros(3))[1] == 40 else drawn()[::-1]
    assert (as_on(image, seen) == truth).all()
    for number in (1, 2):
        one = dicom.labels(Source(path, key=str(number)))
        assert (as_on(image, one) == np.where(truth == number, number, 0)).all()


def test_names_and_codes_of_segments(highdicom: ModuleType, tmp_path: Path) -> None:
    seg = dicom.segments(saved(highdicom, tmp_path / "s.dcm", sources(tmp_path / "in"), drawn()))
    assert [(s.number, s.label, s.algorithm) for s in seg.segments] == [
        (1, "tumour", "MANUAL"),
        (2, "cyst", "MANUAL"),
    ]
    assert seg.segments[0].type == Code("SCT", "52988006", "Lesion")
    assert seg.segments[0].category.value == "49755003"
    assert (seg.patient, seg.study, seg.series, seg.frame) == ("p1", "1.2", ("1.2.3",), "1.2.3.4")
    assert (
        dicom.segments(tmp_path / "in" / "0.dcm") is None and dicom.labels(Source(tmp_path / "in" / "0.dcm")) is None
    )


def test_frames_far_apart_leave_empty_slices_between_them(highdicom: ModuleType, tmp_path: Path) -> None:
    images = sources(tmp_path / "in")
    pixels = np.zeros(SIZE, np.uint8)
    pixels[[0, 2, 5], 1, 1] = 1
    path = saved(highdicom, tmp_path / "s.dcm", images, pixels, labels=("tumour",))
    seen = dicom.labels(Source(path))
    assert seen.size == (6, *SIZE[1:]) and (as_on(formats.read(Source(tmp_path / "in")), seen) > 0).sum() == 3
    assert any("3 slices between its frames are empty" in note for note in seen.notes)


def test_overlapping_segments_are_refused_together_and_read_one_by_one(highdicom: ModuleType, tmp_path: Path) -> None:
    pixels = np.stack([drawn() == 1, drawn() > 0], -1).astype(np.uint8)
    path = saved(highdicom, tmp_path / "s.dcm", sources(tmp_path / "in"), pixels)
    with pytest.raises(Problem, match=r"s.dcm: its segments 1 and 2 overlap in \d+ pixels of a frame; take one"):
        dicom.labels(Source(path))
    for number in (1, 2):
        seen = dicom.labels(Source(path, key=str(number)))
        assert np.count_nonzero(seen.array) == pixels[..., number - 1].sum()
    with pytest.raises(Problem, match=r"no segment '3' in this segmentation; its segments are 1, 2"):
        dicom.labels(Source(path, key="3"))


def test_probabilities_are_cut_in_the_middle_and_said_to_be(highdicom: ModuleType, tmp_path: Path) -> None:
    images, ramp = sources(tmp_path / "in"), np.linspace(0, 1, np.prod(SIZE)).reshape(SIZE)
    options = {"kind": "FRACTIONAL", "labels": ("tumour",)}
    path = saved(highdicom, tmp_path / "p.dcm", images, ramp, fractional_type="PROBABILITY", **options)
    seen = dicom.labels(Source(path))
    assert any("0.5 and more" in note for note in seen.notes)
    # Stored in steps of 1/255.
    inside = as_on(formats.read(Source(tmp_path / "in")), seen)
    inside = inside if inside[-1].all() else inside[::-1]
    assert inside[ramp > 0.505].all() and not inside[ramp < 0.495].any()
    path = saved(highdicom, tmp_path / "o.dcm", images, ramp, fractional_type="OCCUPANCY", **options)
    with pytest.raises(Problem, match=r"fractional segmentation of occupancy\); export it as binary"):
        dicom.labels(Source(path))


def broken(path: Path, change: Any) -> Path:
    made = dcmread(path)
    change(made)
    made.save_as(path.with_name("broken.dcm"))
    return path.with_name("broken.dcm")


BROKEN = {
    "more frames than there can be": (
        lambda d: setattr(d, "NumberOfFrames", 2_000_000_000),
        "says that it has 2000000000 frames, which its pixel data cannot hold",
    ),
    "a moment that is far away": (
        lambda d: setattr(
            d.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0], "TemporalPositionIndex", 1 << 31
        ),
        "would make an image of 2147483648 moments",
    ),
    "a frame of an unknown segment": (
        lambda d: setattr(
            d.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 9
        ),
        "segment that it does not describe",
    ),
    "a frame without a segment": (
        lambda d: delattr(d.PerFrameFunctionalGroupsSequence[0], "SegmentIdentificationSequence"),
        "does not say which segment",
    ),
    "a frame without a place": (
        lambda d: delattr(d.PerFrameFunctionalGroupsSequence[0], "PlanePositionSequence"),
        "1 of its 5 frames do not say where they lie",
    ),
    "two frames at one place": (
        lambda d: setattr(
            d.PerFrameFunctionalGroupsSequence[1],
            "PlanePositionSequence",
            d.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence,
        ),
        "two of its frames are of one segment at one place",
    ),
    "fewer groups than frames": (
        lambda d: d.PerFrameFunctionalGroupsSequence.pop(),
        "says of 4 of its 5 frames what they are",
    ),
    "no segment": (lambda d: delattr(d, "SegmentSequence"), "describes no segment"),
    "one number twice": (
        lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 1),
        "two of its segments have one number",
    ),
    "an unknown type": (lambda d: setattr(d, "SegmentationType", "SURFACE"), "unknown type 'SURFACE'"),
    "pixels cut short": (lambda d: setattr(d, "PixelData", d.PixelData[:10]), "pixel data end after 10 of 50 bytes"),
    "a frame between two places": (
        lambda d: setattr(
            d.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0], "ImagePositionPatient", [10, 36.1, 30]
        ),
        "distance between its frames is not even",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_segmentation_is_refused_in_a_sentence(highdicom: ModuleType, tmp_path: Path, name: str) -> None:
    change, words = BROKEN[name]
    path = broken(saved(highdicom, tmp_path / "s.dcm", sources(tmp_path / "in"), drawn()), change)
    with pytest.raises(Problem, match=words) as caught:
        dicom.labels(Source(path))
    assert str(caught.value).startswith("broken.dcm: ") and str(caught.value).endswith(".")


def test_a_segmentation_is_not_taken_for_an_image(highdicom: ModuleType, tmp_path: Path) -> None:
    path = saved(highdicom, tmp_path / "s.dcm", sources(tmp_path / "in"), drawn())
    with pytest.raises(Problem, match="a segmentation, not an image that is read here; give the images"):
        formats.read(Source(path))


# --- a tree of DICOM files ------------------------------------------------------------------------------------


def test_a_tree_outlines_series_by_their_segmentations(highdicom: ModuleType, tmp_path: Path) -> None:
    first = sources(tmp_path / "a", "p1", "1.2.31")
    second = sources(tmp_path / "b", "p2", "1.2.32", StudyInstanceUID="1.4")
    sources(tmp_path / "c", "p3", "1.2.33")
    saved(highdicom, tmp_path / "a" / "seg.dcm", first, drawn())
    saved(highdicom, tmp_path / "second.dcm", second, (drawn() == 2).astype(np.uint8), labels=("cyst",))
    listing = layouts.read(tmp_path)
    assert not listing.problems
    (question,) = listing.questions
    assert (question.task, question.kind, question.classes) == ("mask", "segmentation", ("cyst", "tumour"))
    entries = {entry.patient: entry for entry in listing.entries}
    assert [(o.source.key, o.values) for o in entries["p1"].outlines] == [("1", "tumour"), ("2", "cyst")]
    assert [(o.source.key, o.values) for o in entries["p2"].outlines] == [("1", "cyst")]
    assert entries["p3"].outlines == ()
    for patient, shown in (("p1", {1: 2, 2: 1}), ("p2", {2: 1})):
        entry = entries[patient]
        image = formats.read(entry.images["image"])
        found = outlines.read(entry, image, listing.questions)
        truth = drawn() if image.to_patient(np.zeros(3))[1] == 40 else drawn()[::-1]
        wanted = sum(np.where(truth == mine, value, 0) for mine, value in shown.items())
        assert (found.maps["mask"][0] == wanted).all()


def test_a_segmentation_that_names_no_series_is_found_by_its_space(highdicom: ModuleType, tmp_path: Path) -> None:
    images = sources(tmp_path / "a", "p1", "1.2.31")
    sources(tmp_path / "b", "p1", "1.2.32", FrameOfReferenceUID="1.9")
    path = saved(highdicom, tmp_path / "a" / "seg.dcm", images, drawn())
    made = dcmread(path)
    del made.ReferencedSeriesSequence
    made.save_as(path)
    listing = layouts.read(tmp_path)
    assert [(entry.id, len(entry.outlines)) for entry in listing.entries] == [("1.2.31", 2), ("1.2.32", 0)]
    sources(tmp_path / "c", "p1", "1.2.34")
    listing = layouts.read(tmp_path)
    assert [str(p) for p in listing.problems] == [
        "a/seg.dcm: it does not say which of 2 series in its space it was drawn on; remove the other series."
    ]


def test_a_segmentation_of_what_is_not_here_is_a_problem(highdicom: ModuleType, tmp_path: Path) -> None:
    images = sources(tmp_path / "elsewhere", "p1", "1.2.31")
    sources(tmp_path / "tree" / "b", "p2", "1.2.32")
    saved(highdicom, tmp_path / "tree" / "seg.dcm", images, drawn())
    listing = layouts.read(tmp_path / "tree")
    assert len(listing.entries) == 1 and not listing.questions
    (problem,) = listing.problems
    assert "the series that this segmentation was drawn on is not here" in str(problem)
    sources(tmp_path / "tree" / "c", "other", "1.2.31")
    (problem,) = layouts.read(tmp_path / "tree").problems
    assert "are of two patients" in str(problem) and "other" not in str(problem)


@pytest.mark.real_data
def test_real_segmentations_hold_what_highdicom_sees(real_data: Path, highdicom: ModuleType) -> None:
    compared = 0
    for path in sorted((real_data / "dicom" / "highdicom").glob("seg_image_ct_*.dcm")):
        seg = highdicom.seg.segread(path)
        for number in seg.segment_numbers:
            seen = dicom.labels(Source(path, key=str(number)))
            pixels = seg.get_pixels_by_source_instance(
                [i[2] for i in seg.get_source_image_uids()],
                segment_numbers=[number],
                ignore_spatial_locations=True,
                assert_missing_frames_are_empty=True,
                rescale_fractional=True,
            )
            assert np.count_nonzero(seen.array) == (pixels >= 0.5).sum()
            compared += 1
    assert compared >= 5


@pytest.mark.real_data
def test_segmentations_of_slides_are_refused(real_data: Path) -> None:
    for path in sorted((real_data / "dicom" / "highdicom").glob("seg_image_sm_*.dcm")):
        with pytest.raises(Problem, match="whole-slide image"):
            dicom.labels(Source(path))
