"""Whatever is sent, a file lands under a name of our own inside of the folder, or is refused in a sentence."""

import gzip
import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osler import layouts
from osler.server.uploads import Limits, Refused, case_name, store

Zipped = Callable[[dict[str, bytes]], bytes]
SMALL = Limits(upload=2**20, expanded=2**16, files=3)


def stored(content: bytes, name: str, folder: Path, limits: Limits = SMALL) -> Path:
    return store(io.BytesIO(content), name, folder, limits)


def test_a_file_is_kept_as_it_is_under_a_name_of_our_own(tmp_path: Path) -> None:
    path = stored(b"content", "../../Erika Mustermann.PNG", tmp_path)
    assert path == tmp_path / "image"
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize(("name", "ending"), [("a.dcm", ".dcm"), ("b.NII", ".nii"), ("c.IMA", ".ima"), ("d.exe", "")])
def test_only_known_endings_are_kept(name: str, ending: str, tmp_path: Path) -> None:
    assert stored(b"content", name, tmp_path).name == f"image{ending}"


def test_nifti_is_decompressed_on_the_way(tmp_path: Path) -> None:
    path = stored(gzip.compress(b"volume"), "brain.nii.gz", tmp_path)
    assert (path.name, path.read_bytes()) == ("image.nii", b"volume")


@pytest.mark.parametrize("cut", [slice(0, 20), slice(5, None)])
def test_a_broken_gzip_is_refused(cut: slice, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"\.nii\.gz file is broken"):
        stored(gzip.compress(bytes(range(256)))[cut], "brain.nii.gz", tmp_path)


def test_a_zip_becomes_a_folder_in_the_order_of_its_names(zipped: Zipped, tmp_path: Path) -> None:
    content = zipped({"s/b/2.dcm": b"two", "s/a.dcm": b"one", "__MACOSX/s/._a.dcm": b"no", "s/.DS_Store": b"no"})
    path = stored(content, "s.zip", tmp_path)
    assert [(file.name, file.read_bytes()) for file in sorted(path.iterdir())] == [
        ("000000.dcm", b"one"),
        ("000001.dcm", b"two"),
    ]


def test_a_zip_with_one_file_is_that_file(zipped: Zipped, tmp_path: Path) -> None:
    path = stored(zipped({"folder/brain.nii.gz": gzip.compress(b"volume")}), "x.zip", tmp_path)
    assert (path.suffix, path.read_bytes()) == (".nii", b"volume")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:\\evil", "..\\evil", "a\\..\\..\\evil"])
def test_names_that_lead_out_are_refused(name: str, zipped: Zipped, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    with pytest.raises(Refused, match="leads out of its folder"):
        stored(zipped({"good": b"x", name: b"y"}), "x.zip", folder)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("image.png")
        link.create_system, link.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(Refused, match="link or a device"):
        stored(stream.getvalue(), "x.zip", tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_bounded_are_refused(method: int, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a", bytes(1000))
    with pytest.raises(Refused, match="unusual way"):
        stored(stream.getvalue(), "x.zip", tmp_path)


def test_an_encrypted_zip_is_refused(zipped: Zipped, tmp_path: Path) -> None:
    content = bytearray(zipped({"a": b"secret"}))
    # The general purpose flags stand at byte 8 of the file list's entry (APPNOTE 4.3.12).
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(Refused, match="encrypted"):
        stored(bytes(content), "x.zip", tmp_path)


def test_bombs_are_refused_before_they_fill_the_disk(zipped: Zipped, tmp_path: Path) -> None:
    for number, (content, name) in enumerate(
        [
            (zipped({"a": bytes(2**16 + 1)}), "x.zip"),
            (zipped({str(n): bytes(2**15) for n in range(3)}), "x.zip"),
            (gzip.compress(bytes(2**22)), "x.nii.gz"),
            (zipped({"a.nii.gz": gzip.compress(bytes(2**22))}), "x.zip"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(Refused, match="decompresses to more") as refused:
            stored(content, name, folder)
        assert refused.value.status == 413
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= SMALL.expanded


def test_a_zip_that_lies_about_its_sizes_stays_within_them(zipped: Zipped, tmp_path: Path) -> None:
    content = bytearray(zipped({"a": bytes(2**20)}))
    # The uncompressed size stands at byte 24 of the file list's entry (APPNOTE 4.3.12).
    content[(at := content.index(b"PK\x01\x02") + 24) : at + 4] = struct.pack("<I", 100)
    with pytest.raises(Refused, match="broken"):
        stored(bytes(content), "x.zip", tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 100


def test_too_many_files_are_refused_also_if_only_the_list_is_long(zipped: Zipped, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="more than 3 files"):
        stored(zipped({str(n): b"x" for n in range(4)}), "x.zip", tmp_path)
    with pytest.raises(Refused, match="more than 3 files") as refused:
        stored(zipped({f"{n}{'x' * 5000}/": b"" for n in range(500)}), "y.zip", tmp_path / "image")
    assert refused.value.status == 413


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"PK\x05\x06", b"PK\x03\x04" + bytes(100)])
def test_what_only_begins_like_a_zip_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="broken"):
        stored(content, "x.zip", tmp_path)


def test_empty_things_are_refused(zipped: Zipped, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="0 bytes"):
        stored(b"", "x.png", tmp_path)
    with pytest.raises(Refused, match="holds no files"):
        stored(zipped({}), "x.zip", tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(4, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_zip_is_read_or_refused_and_nothing_else(
    changes: list[tuple[int, int]], zipped: Zipped, tmp_path: Path
) -> None:
    content = bytearray(zipped({"a.dcm": b"abc" * 50, "b/c": bytes(range(100))}))
    for place, value in changes:
        content[4 + (place - 4) % (len(content) - 4)] = value
    folder = Path(tmp_path) / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    try:
        path = stored(bytes(content), "x.zip", folder)
    except Refused as refused:
        assert str(refused).endswith(".")
    else:
        assert folder in path.parents


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.nii", "a.b.dcm", "IM0001", "Ä 1.png", ".hidden"])
def test_a_case_is_called_as_by_osler_diagnose(name: str, png: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(png)
    assert case_name(name) == case_name(f"C:\\somewhere\\{name}") == layouts.single(tmp_path / name).id
