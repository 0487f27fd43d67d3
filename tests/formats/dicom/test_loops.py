"""Loops: when their frames were taken, and that some of their frames can be read without the others."""

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, Sequence, uid

from dicom_files import dataset, write
from osler import data, formats, identity
from osler.case import Source
from osler.formats.dicom import pixels
from osler.image import evenly
from osler.problem import Problem
from osler.recipe import ImagePlan

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (20, 64, 70), dtype=np.uint8)


def read(path, moments=None):
    return formats.read(Source(path), moments)


def item(**tags) -> Dataset:
    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def groups(count: int, content) -> Sequence:
    return Sequence([item(FrameContentSequence=Sequence([content(k)])) for k in range(count)])


# --- times --------------------------------------------------------------------------------------------------

POINTER_TIME, POINTER_VECTOR = 0x00181063, 0x00181065
VECTOR = [0, 30, 50, 20]
OF_VECTOR, OF_TIME = (0, 0.03, 0.08, 0.1), (0, 0.04, 0.08, 0.12)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"FrameTime": 40, "FrameIncrementPointer": POINTER_TIME}, OF_TIME),
        ({"FrameTimeVector": VECTOR, "FrameIncrementPointer": POINTER_VECTOR}, OF_VECTOR),
        # Both are there: the pointer decides (C.7.6.6.1.2); without one the real increments do.
        ({"FrameTime": 40, "FrameTimeVector": VECTOR, "FrameIncrementPointer": POINTER_TIME}, OF_TIME),
        ({"FrameTime": 40, "FrameTimeVector": VECTOR, "FrameIncrementPointer": POINTER_VECTOR}, OF_VECTOR),
        ({"FrameTime": 40, "FrameTimeVector": VECTOR}, OF_VECTOR),
        # What is pointed to is of no use.
        ({"FrameTime": 40, "FrameTimeVector": [0, 30], "FrameIncrementPointer": POINTER_VECTOR}, OF_TIME),
        ({"FrameTime": 0, "CineRate": 50, "FrameIncrementPointer": POINTER_TIME}, (0, 0.02, 0.04, 0.06)),
        ({"CineRate": 25, "RecommendedDisplayFrameRate": 10}, OF_TIME),
        ({"RecommendedDisplayFrameRate": 10}, (0, 0.1, 0.2, 0.3)),
        # The delay of the first frame does not count from the first frame.
        ({"FrameTime": 40, "FrameDelay": 1000, "FrameIncrementPointer": POINTER_TIME}, OF_TIME),
        # An increment of the first frame, against C.7.6.5.1.2, and one that stands still.
        ({"FrameTimeVector": [33, 30, 50, 20], "FrameIncrementPointer": POINTER_VECTOR}, OF_VECTOR),
        ({"FrameTimeVector": [0, 30, 0, 20], "FrameIncrementPointer": POINTER_VECTOR}, ()),
        ({"CineRate": 0}, ()),
        ({}, ()),
    ],
)
def test_times_of_frames_are_those_of_the_cine_module(tmp_path, tags, expected):
    image = read(write(tmp_path / "a.dcm", dataset(FRAMES[:4], Modality="US", **tags)))
    assert image.times == pytest.approx(expected)
    noted = any("shown at 10 a second" in note for note in image.notes)
    assert noted == ("RecommendedDisplayFrameRate" in tags and "CineRate" not in tags)
    assert any("not stated" in note for note in image.notes) == (not expected)


@pytest.mark.parametrize("name", ["FrameAcquisitionDateTime", "FrameReferenceDateTime"])
def test_what_each_frame_says_of_itself_goes_first(tmp_path, name):
    """C.7.6.16.2.2: over midnight, and not even."""
    stamps = ["20260101235959.5", "20260102000000.0", "20260102000000.75", "20260102000003.0"]
    each = groups(4, lambda k: item(**{name: stamps[k]}))
    made = dataset(FRAMES[:4], Modality="US", PerFrameFunctionalGroupsSequence=each, FrameTime=40)
    image = read(write(tmp_path / "a.dcm", made))
    assert image.times == pytest.approx((0, 0.5, 1.25, 3.5))


def test_frames_that_do_not_all_say_when_leave_it_to_the_cine_module(tmp_path):
    each = groups(4, lambda k: item(FrameAcquisitionDateTime=f"2026010112000{k}") if k else item(StackID="1"))
    made = dataset(FRAMES[:4], Modality="US", PerFrameFunctionalGroupsSequence=each, FrameTime=40)
    assert read(write(tmp_path / "a.dcm", made)).times == pytest.approx(OF_TIME)


# --- some moments -------------------------------------------------------------------------------------------


def encoded(tmp_path, syntax, **tags):
    made = dataset(FRAMES, Modality="US", FrameTime=40, **tags)
    path = write(tmp_path / "a.dcm", made)
    if syntax.is_compressed and syntax != uid.DeflatedExplicitVRLittleEndian:
        made = pydicom.dcmread(path)
        made.compress(syntax)
        made.save_as(path)
    elif syntax == uid.ExplicitVRBigEndian:
        made = dataset(FRAMES.astype(">u2"), Modality="US", FrameTime=40, **tags)
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, made, enforce_file_format=True)
    else:
        made = pydicom.dcmread(path)
        made.file_meta.TransferSyntaxUID = syntax
        made.save_as(path, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    return path


SYNTAXES = [
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
]


@pytest.mark.parametrize("moments", [1, 3, 20, 30])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_some_moments_are_those_of_all(tmp_path, monkeypatch, syntax, moments):
    monkeypatch.setattr("osler.formats.dicom.files._LARGE", 64)
    path = encoded(tmp_path, syntax)
    whole, some = read(path), read(path, moments)
    chosen = evenly(20, moments) if moments < 20 else np.arange(20)
    assert (some.array[:, 0, 0] == FRAMES[chosen]).all()
    assert some.array.dtype == whole.array.dtype and some.notes == whole.notes
    assert some.times == tuple(whole.times[k] for k in chosen) and some.length == 20
    assert some.numbers == (tuple(chosen) if moments < 20 else ())
    assert identity.pixels(some, moments) == identity.pixels(whole, moments)
    plan = ImagePlan(size=(1, 64, 70), frames=moments)
    assert (data.prepare(some, plan) == data.prepare(whole, plan)).all()


def test_values_of_some_moments_have_the_type_of_all(tmp_path):
    """One frame is rescaled beyond 16 bits, and is not among those that are read."""

    def of_values(k: int) -> Dataset:
        values = item(RescaleSlope=1000.0 if k == 1 else 1.0, RescaleIntercept=float(k), RescaleType="US")
        return item(PixelValueTransformationSequence=Sequence([values]))

    each = Sequence([of_values(k) for k in range(20)])
    path = write(tmp_path / "a.dcm", dataset(FRAMES, Modality="US", PerFrameFunctionalGroupsSequence=each))
    whole, some = read(path), read(path, 2)
    assert whole.array.dtype == some.array.dtype == np.int32
    assert (some.array[1, 0, 0] == FRAMES[19].astype(int) + 19).all() and (some.array == whole.array[[0, 19]]).all()


def test_inverted_frames_are_inverted_within_the_same_range(tmp_path):
    path = write(tmp_path / "a.dcm", dataset(FRAMES, Modality="US", PhotometricInterpretation="MONOCHROME1"))
    assert (read(path, 3).array[:, 0, 0] == 255 - FRAMES[evenly(20, 3)]).all()


def test_frames_that_are_not_asked_for_are_not_decoded(tmp_path, monkeypatch):
    path = encoded(tmp_path, uid.RLELossless)
    monkeypatch.setattr(pixels, "_decoded", None)
    assert read(path, 4).frames == 4
    with pytest.raises(Problem):
        read(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless], ids=lambda syntax: syntax.name)
def test_a_loop_that_is_cut_short_is_refused_also_where_its_end_is_not_asked_for(tmp_path, monkeypatch, syntax):
    monkeypatch.setattr("osler.formats.dicom.files._LARGE", 64)
    path = encoded(tmp_path, syntax)
    content = path.read_bytes()
    path.write_bytes(content[:-5000])
    for moments in (None, 1, 5):
        with pytest.raises(Problem):
            read(path, moments)


@pytest.mark.real_data
def test_a_cine_in_colour_gives_the_same_moments(real_data):
    path = real_data / "dicom" / "pydicom" / "examples_ybr_color.dcm"
    whole, some = read(path), read(path, 4)
    assert whole.array.shape[:2] == (30, 3) and (some.array == whole.array[evenly(30, 4)]).all()
    assert whole.times == pytest.approx([k * 0.033333 for k in range(30)], abs=1e-6)
