"""DICOM: a file, or a folder that holds one series.

``files`` opens and says what an object is, ``headers`` does so for many at once, ``pixels`` decodes,
``geometry`` places, ``series`` stacks slices, ``moments`` tells those of one place apart, ``times`` says when frames
of a loop were taken, ``segmentation`` reads what was drawn on them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from osler.case import Source
from osler.formats.dicom import segmentation, series
from osler.formats.dicom.files import header, headers_of, is_dicom, load, made_by
from osler.formats.dicom.segmentation import Segments
from osler.image import Image
from osler.problem import Problem

__all__ = [
    "Segments",
    "facts",
    "frame_of_reference",
    "header",
    "headers_of",
    "labels",
    "matches",
    "read",
    "sample",
    "segments",
]


def matches(path: Path) -> bool:
    """Whether this is a DICOM file (by its first bytes or its name) or a folder with at least one."""
    if path.is_dir():
        return any(is_dicom(file) for file in series.files_below(path))
    return path.is_file() and is_dicom(path)


def read(source: Source) -> Image:
    """The image of a file, or of the one series in a folder; ``source.key`` may name its SeriesInstanceUID.

    Values are those of the modality (DICOM PS3.3 C.11.1), Hounsfield units for CT; larger is always brighter.

    Raises:
        Problem: the object is no image, is broken, cannot be decoded, or its slices do not make one volume.
    """
    with _in_words(source.path):
        return series.read(source.path, source.key)


def sample(source: Source, most: int) -> Image:
    """As :func:`read`, but of a file with more moments only so many, evenly spaced; the others are not decoded.

    Raises:
        Problem: see :func:`read`.
    """
    with _in_words(source.path):
        return series.read(source.path, source.key, most)


def labels(source: Source) -> Image | None:
    """The label map of a segmentation object (SEG): values are numbers of segments; ``None`` for any other file.

    ``source.key`` may be the number of a segment, which is then the only one taken.

    Raises:
        Problem: the object is broken, its segments overlap and none is chosen, or it does not say what is inside.
    """
    if not source.path.is_file():
        return None
    with _in_words(source.path):
        dataset = load(source.path)
        return segmentation.read(dataset, source.key) if segmentation.matches(dataset) else None


def segments(path: Path) -> Segments | None:
    """What a segmentation object says of its segments and of the images it was drawn on; ``None`` for another file.

    Raises:
        Problem: the object is broken.
    """
    with _in_words(path):
        dataset = load(path, segmentation.TAGS)
        return segmentation.described(dataset) if segmentation.matches(dataset) else None


def frame_of_reference(path: Path) -> str:
    """The UID of the space that the positions in a file are in, empty where it is not stated.

    Raises:
        Problem: this is not a DICOM file.
    """
    with _in_words(path):
        return str(load(path, ["SOPClassUID", "Rows", "FrameOfReferenceUID"]).get("FrameOfReferenceUID") or "")


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is said in a sentence with the file's name."""
    try:
        # pydicom warns whenever a value that breaks a rule is touched; what matters is said in the notes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Problem as problem:
        # Values of a broken header may be in the text: nothing of theirs may steer a terminal.
        what = "".join(letter if letter.isprintable() else " " for letter in problem.what)
        raise Problem(what, path=problem.path or path, fix=problem.fix) from problem
    except ImportError:
        raise
    except Exception as error:
        # A broken data set makes pydicom and its decoders raise nearly anything.
        what = f"this DICOM object is broken ({type(error).__name__})"
        raise Problem(what, path=path, fix="export it again from where it came from") from error


def facts(path: Path) -> dict[str, str | float]:
    """How the image was made: the tags of ``files.MADE_BY`` that its (first) file has; empty where it is broken."""
    file = next((file for file in series.files_below(path) if is_dicom(file)), None) if path.is_dir() else path
    try:
        return {} if file is None else made_by(file)
    except Problem:
        return {}
