"""One row of an array of images in a NumPy file, as MedMNIST has them (Yang et al., 2023)."""

import errno
import math
import shutil
import struct
import tempfile
import weakref
import zipfile
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Source
from osler.image import Image
from osler.problem import Problem

# Arrays of more bytes than this stay on disk.
_IN_MEMORY = 2**26
_unpacking = Lock()


def matches(path: Path) -> bool:
    """Whether the name ends in ``.npz``."""
    return path.is_file() and path.suffix.lower() == ".npz"


def read(source: Source) -> Image:
    """Row ``source.index`` of array ``source.key``: ``(h, w)``, ``(h, w, 3)`` or ``(d, h, w)``.

    Raises:
        Problem: no row or array is named, there is none such, or the file is broken or holds pickles.
    """
    if source.index is None:
        raise Problem("this file holds many images", path=source.path, fix="give it as a cohort, not as one image")
    path = source.path
    stat = path.stat()
    # One thread unpacks, the others wait: a cache alone would let each of them do it.
    with _unpacking:
        images = _array(path, source.key, stat.st_mtime_ns, stat.st_size)
    if not 0 <= source.index < len(images):
        what = f"there is no row {source.index} among {len(images)} of {source.key!r}"
        raise Problem(what, path=path, fix="download the set again")
    row = np.array(images[source.index])
    if row.ndim == 3 and row.shape[-1] in (1, 3):
        return Image(np.ascontiguousarray(np.moveaxis(row, -1, 0)[None, :, None]))
    if row.ndim == 2:
        return Image(row[None, None, None])
    if row.ndim == 3:
        return Image(row[None, None])
    what = f"images of shape {row.shape} are neither grey, RGB nor a volume"
    raise Problem(
        what, path=path, fix="save them as (rows, height, width), with 3 channels at the end or a depth before"
    )


class _OnDisk:
    """The rows of an array that is too large for the memory, each read when it is asked for."""

    def __init__(self, file: Any, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file, self._start, self._shape, self._dtype = file, start, shape, dtype
        self._lock = Lock()
        weakref.finalize(self, file.close)

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, index: int) -> NDArray[Any]:
        count = math.prod(self._shape[1:]) * self._dtype.itemsize
        with self._lock:
            self._file.seek(self._start + index * count)
            data = self._file.read(count)
        return np.frombuffer(data, self._dtype).reshape(self._shape[1:])


# Unpacked once and kept: the three parts of one file. Time and size are arguments: a new file is read anew.
@lru_cache(maxsize=3)
def _array(path: Path, key: str, modified: int, size: int) -> NDArray[Any] | _OnDisk:
    try:
        # Opened here: numpy leaves the file open where the archive is broken.
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if key not in names:
                raise Problem(f"there is no array {key!r}", path=path, fix=f"it holds {', '.join(names)}")
            member = archive.getinfo(f"{key}.npy")
            if member.file_size > _IN_MEMORY:
                return _large(path, archive, member)
            with archive.open(member) as content:
                array: NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False)
    except Problem:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            fix = "free some space, or set TMPDIR to a folder with more"
            raise Problem("unpacked, the file does not fit into the temporary folder", path=path, fix=fix) from error
        # zipfile, zlib and numpy each have their own errors for a broken archive.
        raise Problem(
            "the NumPy file is broken or holds pickled objects", path=path, fix="download it again"
        ) from error
    array.flags.writeable = False
    return array


def _large(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _OnDisk:
    """Rows of the file itself where they are stored as they are, else of a temporary copy, unpacked."""
    with archive.open(member) as content:
        version = np.lib.format.read_magic(content)
        head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = head(content)
        if dtype.hasobject or by_column:
            raise ValueError("pickled objects, or rows that do not lie together")
        skipped = content.tell()
        if member.compress_type != zipfile.ZIP_STORED:
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - kept open for as long as the array is
            shutil.copyfileobj(content, unpacked, 2**20)
            return _OnDisk(unpacked, 0, shape, dtype)
        while content.read(2**20):
            """At its end the archive's checksum is compared."""
    file = path.open("rb")
    file.seek(member.header_offset + 26)
    lengths = struct.unpack("<HH", file.read(4))  # of the name and of what is extra (APPNOTE 4.3.7)
    return _OnDisk(file, member.header_offset + 30 + sum(lengths) + skipped, shape, dtype)
