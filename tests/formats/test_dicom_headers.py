"""Headers read many at once are those that pydicom gives: on every test file of pydicom, and on made ones."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, uid
from pydicom.sequence import Sequence

from dicom_files import dataset, write
from osler.formats import dicom
from osler.formats.dicom import files, headers
from osler.problem import Problem

PIXELS = np.zeros((2, 2), np.int16)


def by_pydicom(path: Path) -> dict[str, str] | None:
    """The tags as pydicom's own reader gives them, or ``None`` where it refuses the file or it says nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            known = read.get("SOPClassUID") or read.get("Rows") or read.get("DirectoryRecordSequence")
            if not known and "MediaStorageSOPClassUID" not in read.file_meta:
                return None
            return {name: text(read.get(name)) for name in headers.TAGS}
    except Exception:
        return None


def text(value: Any) -> str:
    many = isinstance(value, (pydicom.multival.MultiValue, list, tuple))
    return ("" if value is None else "\\".join(map(str, value)) if many else str(value)).strip(" \0")


def ours(paths: list[Path]) -> list[dict[str, str] | None]:
    return [None if tags is None else dict(tags) for tags in headers.read([str(path) for path in paths])]


def check(paths: list[Path]) -> int:
    """That what was answered is pydicom's answer, and what it refuses is refused; how many were answered."""
    for path, tags, listed in zip(paths, ours(paths), files.headers_of(paths), strict=True):
        truth = by_pydicom(path)
        assert tags is None or tags == truth, path
        if truth is None:
            assert listed is None or isinstance(listed, Problem), path
        elif listed is not None:
            assert not isinstance(listed, Problem) and dict(listed) == truth, path
    return sum(tags is not None for tags in ours(paths))


def test_every_file_that_comes_with_pydicom() -> None:
    folder = Path(pydicom.__file__).parent / "data"
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py")
    assert len(paths) > 100
    assert check(paths) > 50


@pytest.mark.real_data
def test_every_real_file(real_data: Path) -> None:
    paths = sorted(path for path in (real_data / "dicom").rglob("*") if path.is_file())
    assert check(paths) > 80


def test_what_scanners_write_is_answered_without_pydicom(tmp_path: Path) -> None:
    item, inner = Dataset(), Dataset()
    inner.CodeValue = "1"
    item.PatientID, item.ConceptNameCodeSequence = "not this one", Sequence([inner])
    sequences = {"ReferencedImageSequence": Sequence([item, item])}
    made = dataset(PIXELS, Manufacturer="ACME ", KVP="120.5", ImageType=["A", "B"], InstanceNumber=7, **sequences)
    paths = [write(tmp_path / "a.dcm", made), write(tmp_path / "b.dcm", made, uid.ImplicitVRLittleEndian)]
    made["ReferencedImageSequence"].is_undefined_length = True
    for part in (item, inner):
        part.is_undefined_length_sequence_item = True
    item["ConceptNameCodeSequence"].is_undefined_length = True
    paths.append(write(tmp_path / "c.dcm", made))
    assert check(paths) == 3
    assert [tags["PatientID"] for tags in ours(paths) if tags] == ["p1"] * 3
    assert all(tags and tags["KVP"] == "120.5" and tags["ImageType"] == "A\\B" for tags in ours(paths))


def test_a_header_longer_than_the_first_window_is_read_again(tmp_path: Path) -> None:
    paths = []
    for size in (100, 8000, 8100, 8192, 9000, 60_000, 200_000):
        made = dataset(PIXELS)
        made.private_block(0x0009, "ACME", create=True).add_new(1, "OB", b"\1" * size)
        paths.append(write(tmp_path / f"{size}.dcm", made))
    assert check(paths) == len(paths) - 1


@pytest.mark.parametrize(
    "change",
    [
        {"SpecificCharacterSet": "ISO_IR 192", "SeriesDescription": "胸部"},
        {"SpecificCharacterSet": "GB18030", "SeriesDescription": "胸部", "PatientID": "王1"},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "SeriesDescription": "胸部"},
        {"SpecificCharacterSet": "ISO_IR 13", "SeriesDescription": "ｱ"},
        {"SoftwareVersions": ["1", "2 "]},
        {"InstanceNumber": "-3"},
        {"NumberOfFrames": None},
        {"PatientID": ""},
        {"SeriesDescription": " both sides "},
    ],
)
def test_what_is_not_plain_is_as_pydicom_says(tmp_path: Path, change: dict[str, Any]) -> None:
    made = dataset(PIXELS, **change)
    check([write(tmp_path / "a.dcm", made), write(tmp_path / "b.dcm", made, uid.ImplicitVRLittleEndian)] * 3)


def test_other_encodings_are_as_pydicom_says(tmp_path: Path) -> None:
    made = dataset(PIXELS)
    whole = write(tmp_path / "a.dcm", made, uid.ImplicitVRLittleEndian).read_bytes()
    (tmp_path / "raw").write_bytes(whole[whole.index(b"\x08\0\x16\0", 144) :])
    (tmp_path / "empty.dcm").touch()
    deflated = write(tmp_path / "deflated.dcm", made, uid.DeflatedExplicitVRLittleEndian)
    made.PixelData = PIXELS.astype(">i2").tobytes()
    made["PixelData"].VR = "OW"
    big = write(tmp_path / "big.dcm", made, uid.ExplicitVRBigEndian)
    check([tmp_path / "raw", tmp_path / "empty.dcm", deflated, big, tmp_path / "a.dcm"])


TEXT = st.text(st.characters(codec="latin-1"), max_size=20)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "CS": st.text("ABC_ 1\\", max_size=16),
    "UI": st.from_regex(r"\A[0-9.]{0,20}\Z"),
    "DA": st.sampled_from(["", "20240131", "2024.01.31"]),
    "LO": TEXT,
    "SH": TEXT,
    "AS": st.sampled_from(["", "070Y", "7Y"]),
    "DS": st.sampled_from(["", "120", "1e2", " 80.0 ", "-1", "abc", "1\\2"]),
    "IS": st.sampled_from(["", "1", " 12 ", "-4", "007", "1.5", "x", "1\\2", "99999999999"]),
    "US": st.integers(0, 65535),
}


def element(tag: int, vr: str, value: bytes, *, implicit: bool, undefined: bool = False) -> bytes:
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    length = 0xFFFFFFFF if undefined else len(value)
    if implicit:
        return head + length.to_bytes(4, "little") + value
    if vr in ("SQ", "UN", "OB", "UT"):
        return head + vr.encode() + b"\0\0" + length.to_bytes(4, "little") + value
    return head + vr.encode() + len(value).to_bytes(2, "little") + value


@st.composite
def files_made(draw: st.DrawFn) -> bytes:
    """A file of wanted and unwanted elements: true and wrong VRs, odd lengths, doubled, out of order, cut short."""
    implicit = draw(st.booleans())
    syntax = (
        uid.ImplicitVRLittleEndian if implicit else draw(st.sampled_from([uid.ExplicitVRLittleEndian, uid.JPEG2000]))
    )
    meta = element(0x00020010, "UI", syntax.encode() + b"\0" * (len(syntax) % 2), implicit=False)
    meta = element(0x00020000, "UL", len(meta).to_bytes(4, "little"), implicit=False) + meta
    tags = draw(
        st.lists(st.sampled_from([*headers.TAGS.values(), (0x00080005, "CS"), (0x00091001, "UN")]), max_size=12)
    )
    tags = [(0x00080016, "UI"), *tags]
    body = b""
    for tag, right in tags if draw(st.booleans()) else sorted(tags):
        vr = right if draw(st.integers(0, 19)) else draw(st.sampled_from(["UT", "UN", "SH", "IS", "ZZ"]))
        if tag == 0x00080005:
            value = draw(
                st.sampled_from([b"", b"ISO_IR 100", b"ISO_IR 192", b"GB18030 ", b"ISO 2022 IR 6", b"nothing "])
            )
        elif right == "US":
            value = draw(VALUES["US"]).to_bytes(2, "little") * draw(st.sampled_from([1, 1, 1, 0, 2]))
        elif right == "UN":
            value = draw(st.binary(max_size=9))
        else:
            value = draw(VALUES[right]).encode("latin-1")
        if draw(st.integers(0, 9)):
            value += draw(st.sampled_from([b" ", b"\0"])) * (len(value) % 2)
        body += element(tag, vr, value, implicit=implicit)
        if draw(st.integers(0, 9)) == 0:
            inner = element(0x00100020, "LO", b"INNER ", implicit=implicit)
            item = b"\xfe\xff\0\xe0\xff\xff\xff\xff" + inner + b"\xfe\xff\x0d\xe0" + b"\0" * 4
            body += element(
                0x00081140, "SQ", item + b"\xfe\xff\xdd\xe0" + b"\0" * 4, implicit=implicit, undefined=True
            )
    body += element(0x7FE00010, "OB", b"\1" * 8, implicit=implicit) if draw(st.booleans()) else b""
    whole = b"\0" * 128 + b"DICM" + meta + body
    return whole[: len(whole) - draw(st.sampled_from([0, 0, 0, 0, 1, 7, 20]))]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=st.lists(files_made(), min_size=5, max_size=12))
def test_made_headers_are_as_pydicom_says(tmp_path_factory: pytest.TempPathFactory, made: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("made")
    for number, content in enumerate(made):
        (folder / f"{number}.dcm").write_bytes(content)
    check(sorted(folder.iterdir()))


def test_damaged_bytes_are_as_pydicom_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = write(tmp_path / "whole.dcm", dataset(PIXELS, Manufacturer="ACME")).read_bytes()
    for number in range(100):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(132, len(whole), 2)] = rng.integers(0, 256, 2)
        (tmp_path / f"{number}.dcm").write_bytes(damaged.tobytes())
    check(sorted(tmp_path.iterdir()))


def test_a_file_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.dcm", dataset(PIXELS)) for number in range(6)]
    paths[2].unlink()
    assert ours(paths)[2] is None and sum(tags is not None for tags in ours(paths)) == 5


def test_all_tags_of_the_tree_are_there() -> None:
    assert set(files.HEADER) == set(headers.TAGS)
    for name, (tag, vr) in headers.TAGS.items():
        assert pydicom.datadict.tag_for_keyword(name) == tag and pydicom.datadict.dictionary_VR(tag) == vr
    assert dicom.headers_of is files.headers_of
