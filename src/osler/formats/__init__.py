"""Files that hold one image: one format a file.

Every file holds ``matches(path) -> bool`` (cheap: name and first bytes) and
``read(source) -> Image``, which raises :class:`osler.problem.Problem` for anything it cannot read honestly;
optionally ``sample(source, most) -> Image``: at most so many moments of a sequence, evenly spaced, whose others
are never in memory together; ``write(image, path)``; ``facts(path)``: header fields that say how an image was made,
by name;
``labels(source) -> Image``, where the values of a label map are not what is seen (palettes); and
``size(path) -> (depth, height, width)``, from the header alone.
"""

import os
import stat
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from osler import catalog
from osler.case import Source
from osler.image import Image, evenly
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


def read(source: Source, moments: int | None = None) -> Image:
    """The image at ``source``, all its bits and its geometry; one moment of it if ``source.frame`` says so.

    Args:
        source: where it is; of a series of visits the image is their sequence.
        moments: at most so many moments of a sequence, evenly spaced (:func:`osler.image.evenly`): memory then does
            not grow with its length, where the format can be read piece by piece. All by default.

    Raises:
        Problem: the file is missing, empty, unknown, broken, not an image, or has no such frame.
    """
    if source.visits:
        return _sequence(source, moments)
    path = source.path
    found = _stat(path)
    if found is None:
        raise Problem("there is no such file or folder", path=path, fix="check the path")
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        raise Problem("the file is empty (0 bytes)", path=path, fix="copy it again from where it came from")
    module = _find(path, found)
    if module is None:
        known = ", ".join(catalog.names("formats"))
        what = "a folder without DICOM files or pictures" if path.is_dir() else "a file of an unknown format"
        raise Problem(f"this is {what}", path=path, fix=f"formats that can be read: {known}")
    some = None if source.frame is not None else moments
    image: Image = module.sample(source, some) if some and hasattr(module, "sample") else module.read(source)
    if source.frame is None:
        return image if some is None else image.thinned(some)
    try:
        return image.frame(source.frame)
    except ValueError as error:
        raise Problem(str(error), path=path, fix="choose a frame that exists, counted from 0") from error


def _sequence(source: Source, moments: int | None) -> Image:
    """A series of visits as one image, a moment each; times are seconds from the first one."""
    count = len(source.visits)
    chosen = list(range(count)) if moments is None or count <= moments else evenly(count, moments).tolist()
    images = []
    for number in chosen:
        where = source.visits[number][1]
        image = read(where)
        if image.frames > 1:
            what = f"this image of a series of visits is itself a sequence of {image.frames} moments"
            raise Problem(what, path=where.path, fix="choose one with frame, or make each visit a case of its own")
        images.append(image)
    last = images[-1]
    if len({image.unit for image in images}) > 1 or {image.channels for image in images} - {last.channels, 1, 3}:
        what = "the visits of one case are in different units, or their channels cannot be brought together"
        raise Problem(what, path=source.path, fix="make each visit a case of its own")
    channels = max(image.channels for image in images)
    images = [i if i.channels == channels else replace(i, array=np.repeat(i.array, channels, 1)) for i in images]
    differ = len({(image.size, image.spacing) for image in images}) > 1
    notes = tuple(dict.fromkeys(note for image in images for note in image.notes))
    if differ:
        notes += (
            "The visits differ in size or spacing: they are shown in that of the last, each is fitted on its own.",
        )
    if len({image.modality for image in images}) > 1:
        notes += (f"The visits are of several modalities: {', '.join(image.modality or '?' for image in images)}.",)
    return replace(
        images[-1],
        array=np.concatenate([_as_large(image, last.size) for image in images]),
        times=tuple(source.visits[number][0] for number in chosen),
        notes=notes,
        numbers=tuple(chosen) if len(chosen) < count else (),
        length=count,
        visits=tuple(images) if differ else (),
    )


def _as_large(image: Image, size: tuple[int, int, int]) -> NDArray[np.generic]:
    """The pixels on a grid of ``size``, in their own type."""
    moved, kind = image.resample(size).array, image.array.dtype
    return moved if moved.dtype == kind else (np.rint(moved) if kind.kind in "iu" else moved).astype(kind)


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
