"""Files that come from outside: taken in under names of our own, within limits, into a folder that is then deleted.

What a client calls a file, or a zip calls its members, never becomes a path: only an ending from a closed list is
kept, because some formats are known by it.
"""

import gzip
import io
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast, runtime_checkable

from osler.problem import Problem

# Formats that are known by their name; all others by their first bytes.
_ENDINGS = (".nii", ".npy", ".dcm", ".dicom", ".ima", ".mp4", ".m4v", ".mov", ".avi")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


@runtime_checkable
class Readable(Protocol):
    """What bytes can be read from, also out of a zip or a gzip."""

    def read(self, size: int = ..., /) -> bytes: ...


@runtime_checkable
class Seekable(Readable, Protocol):
    """A file in memory or on disk, open for reading."""

    def seek(self, offset: int, whence: int = ..., /) -> int: ...

    def tell(self) -> int: ...


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        upload: bytes of the body.
        expanded: bytes of all files once decompressed.
        files: in a zip.
        waiting: requests behind the one that is being answered.
    """

    upload: int = 512 * 2**20
    expanded: int = 2 * 2**30
    files: int = 5000
    waiting: int = 4


class Refused(Problem):
    """A request that is not let in; ``status`` is its HTTP status."""

    def __init__(self, what: str, *, fix: str = "", status: int = 422) -> None:
        super().__init__(what, fix=fix)
        self.status = status


def case_name(filename: str) -> str:
    """The id that ``osler diagnose`` would give to a case from a file of this name; shown as a pseudonym only."""
    name = filename.replace("\\", "/").rstrip("/").rpartition("/")[2]
    for suffix in (".gz", ".nii", PurePosixPath(name).suffix):
        name = name.removesuffix(suffix)
    return name or "image"


def store(upload: Seekable, filename: str, folder: Path, limits: Limits) -> Path:
    """Writes an upload below ``folder``: an image as one file, a zip as a folder, or as a file if it holds just one.

    Raises:
        Refused: it is empty or broken, or holds more than the limits allow, encryption, links, or names that lead
            out of the folder.
    """
    head = upload.read(4)
    upload.seek(0)
    if not head:
        raise Refused("the file is empty (0 bytes)", fix="copy it again from where it came from")
    if head not in _ZIP:
        return _write(upload, filename, folder / "image", limits.expanded)
    target = folder / "image"
    target.mkdir()
    try:
        with zipfile.ZipFile(_Frugal(upload, limits.files)) as archive:
            members = _members(archive, limits)
            left = limits.expanded
            for number, member in enumerate(members):
                with archive.open(member) as file:
                    path = _write(file, member.filename, target / f"{number:06d}", left)
                left -= path.stat().st_size
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError, ValueError) as error:
        raise Refused("the zip is broken or cut short", fix="make it again") from error
    return path if len(members) == 1 else target


class _Frugal(io.BufferedIOBase):
    """A file that is read in small pieces only: a zip's list of files would be read as one, whatever its size."""

    def __init__(self, file: Seekable, files: int) -> None:
        self.file, self.files = file, files

    def read(self, size: int | None = -1, /) -> bytes:
        # 46 bytes and a name for each; what is read of the files themselves comes in pieces of 1 MiB.
        if size is not None and size > max(2**21, self.files * 512):
            raise _too_many(self.files)
        return self.file.read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True


def _members(archive: zipfile.ZipFile, limits: Limits) -> list[zipfile.ZipInfo]:
    """The files to read, in the order in which the folder would be listed; hidden ones are left out."""
    members = []
    for member in archive.infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or parts[0].endswith(":"):
            raise Refused("the zip holds a file whose name leads out of its folder", fix="zip the folder itself")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused("the zip holds a link or a device", fix="zip the files themselves")
        if member.is_dir() or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
            continue
        if member.flag_bits & 1:
            raise Refused("the zip is encrypted", fix="zip it without a password")
        # Only these two are decompressed piece by piece by Python.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused("the zip is compressed in an unusual way", fix="zip it with deflate, the usual method")
        members.append(member)
    if not members:
        raise Refused("the zip holds no files", fix="zip a folder with one image or one DICOM series")
    if len(members) > limits.files:
        raise _too_many(limits.files)
    if sum(member.file_size for member in members) > limits.expanded:
        raise _too_large(limits.expanded)
    return sorted(members, key=lambda member: PurePosixPath(member.filename.replace("\\", "/")).parts)


def _write(source: Readable, name: str, stem: Path, most: int) -> Path:
    """Copies at most ``most`` bytes to ``stem`` with the ending of ``name``; NIfTI is decompressed on the way."""
    name = name.lower()
    try:
        if name.endswith(".nii.gz"):
            with gzip.GzipFile(fileobj=cast(IO[bytes], source)) as plain:
                return _copy(plain, stem.with_suffix(".nii"), most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Refused(
            "the .nii.gz file is broken or cut short", fix="copy it again from where it came from"
        ) from error
    ending = next((ending for ending in _ENDINGS if name.endswith(ending)), "")
    return _copy(source, stem.with_suffix(ending), most)


def _copy(source: Readable, path: Path, most: int) -> Path:
    with path.open("xb") as file:
        while piece := source.read(2**20):
            most -= len(piece)
            if most < 0:
                raise Refused(
                    "the upload decompresses to more than is allowed", fix="crop it or thin it out", status=413
                )
            file.write(piece)
    return path


def _too_many(files: int) -> Refused:
    return Refused(f"the zip holds more than {files:,} files", fix="zip one image or one series", status=413)


def _too_large(size: int) -> Refused:
    what = f"the zip decompresses to more than {size / 2**20:,.0f} MiB"
    return Refused(what, fix="zip one image or one series", status=413)
