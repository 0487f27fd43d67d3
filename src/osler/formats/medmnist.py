"""One row of an array of images in a NumPy file, as MedMNIST has them (Yang et al., 2023)."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Source
from osler.image import Image
from osler.problem import Problem


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
    stat = source.path.stat()
    images = _array(source.path, source.key, stat.st_mtime_ns, stat.st_size)
    if not 0 <= source.index < len(images):
        raise Problem(f"there is no row {source.index} among {len(images)} of {source.key!r}", path=source.path)
    row = np.array(images[source.index])
    if row.ndim == 3 and row.shape[-1] in (1, 3):
        return Image(np.ascontiguousarray(np.moveaxis(row, -1, 0)[None, :, None]))
    if row.ndim == 2:
        return Image(row[None, None, None])
    if row.ndim == 3:
        return Image(row[None, None])
    raise Problem(f"images of shape {row.shape} are neither grey, RGB nor a volume", path=source.path)


# Decompressed once and kept: the three parts of one file. Time and size are arguments: a new file is read anew.
@lru_cache(maxsize=3)
def _array(path: Path, key: str, modified: int, size: int) -> NDArray[Any]:
    try:
        # Opened here: numpy leaves the file open where the archive is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if key not in arrays.files:
                raise Problem(f"there is no array {key!r}", path=path, fix=f"it holds {', '.join(arrays.files)}")
            array: NDArray[Any] = arrays[key]
    except Problem:
        raise
    except Exception as error:
        # zipfile, zlib and numpy each have their own errors for a broken archive.
        raise Problem(
            "the NumPy file is broken or holds pickled objects", path=path, fix="download it again"
        ) from error
    array.flags.writeable = False
    return array
