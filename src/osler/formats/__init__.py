"""Files that hold one image: one format a file.

Every file holds ``matches(path) -> bool`` (cheap: name and first bytes) and
``read(source) -> Image``, which raises :class:`osler.problem.Problem` for anything it cannot read honestly;
optionally ``write(image, path)``; ``facts(path)``: header fields that say how an image was made, by name;
``labels(source) -> Image``, where the values of a label map are not what is seen (palettes); and
``size(path) -> (depth, height, width)``, from the header alone.
"""

import os
import stat
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from osler import catalog
from osler.case import Source
from osler.image import Image
from osler.problem import Problem


def find(path: Path) -> ModuleType | None:
    """The format of a file or folder, or ``None``: the first one that says it ``matches``."""
    found = _stat(path)
    return None if found is None else _find(path, found)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _find(path: Path, found: os.stat_result) -> ModuleType | None:
    if stat.S_ISREG(found.st_mode):
        return _of_file(str(path), found.st_mtime_ns, found.st_size)
    return _matching(path)


# A cohort asks several times for each file, and for a container once a case. A changed file is asked anew.
@lru_cache(maxsize=1024)
def _of_file(path: str, modified: int, size: int) -> ModuleType | None:
    return _matching(Path(path))


def _matching(path: Path) -> ModuleType | None:
    modules = (catalog.find("formats", name) for name in catalog.names("formats"))
    return next((module for module in modules if module.matches(path)), None)


def read(source: Source) -> Image:
    """The image at ``source``, all its bits and its geometry; one moment of it if ``source.frame`` says so.

    Raises:
        Problem: the file is missing, empty, unknown, broken, not an image, or has no such frame.
    """
    path = source.path
    found = _stat(path)
    if found is None:
        raise Problem("there is no such file or folder", path=path, fix="check the path")
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        raise Problem("the file is empty (0 bytes)", path=path, fix="copy it again from where it came from")
    module = _find(path, found)
    if module is None:
        known = ", ".join(catalog.names("formats"))
        what = "a folder without DICOM files" if path.is_dir() else "a file of an unknown format"
        raise Problem(f"this is {what}", path=path, fix=f"formats that can be read: {known}")
    image: Image = module.read(source)
    if source.frame is None:
        return image
    try:
        return image.frame(source.frame)
    except ValueError as error:
        raise Problem(str(error), path=path, fix="choose a frame that exists, counted from 0") from error


def labels(source: Source) -> Image:
    """The label map or mask at ``source``: as :func:`read`, but a picture with a palette gives its numbers.

    Raises:
        Problem: see :func:`read`.
    """
    module = find(source.path)
    special = getattr(module, "labels", None)
    drawn: Image | None = special(source) if special else None
    if drawn is None:
        return read(source)
    return drawn if source.frame is None else drawn.frame(source.frame)


def lossy(path: Path) -> bool:
    """Whether the file is a JPEG, which does not keep values as they were."""
    with path.open("rb") as file:
        return file.read(3) == b"\xff\xd8\xff"


def size(path: Path) -> tuple[int, int, int]:
    """``(depth, height, width)`` of the image at ``path``, from its header where the format can tell it so.

    Raises:
        Problem: see :func:`read`.
    """
    module = find(path)
    told: tuple[int, int, int] | None = module.size(path) if hasattr(module, "size") else None  # type: ignore[union-attr]
    return told or read(Source(path)).size
