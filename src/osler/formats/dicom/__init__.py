"""DICOM: a file, or a folder that holds one series.

``files`` opens and says what an object is, ``headers`` does so for many at once, ``pixels`` decodes,
``geometry`` places, ``series`` stacks slices.
"""

import warnings
from pathlib import Path

from osler.case import Source
from osler.formats.dicom import series
from osler.formats.dicom.files import header, headers_of, is_dicom, made_by
from osler.image import Image
from osler.problem import Problem

__all__ = ["facts", "header", "headers_of", "matches", "read"]


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
    try:
        # pydicom warns whenever a value that breaks a rule is touched; what matters is said in the notes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (
                series.read_folder(source.path, source.key) if source.path.is_dir() else series.read_file(source.path)
            )
    except Problem as problem:
        if problem.path is not None:
            raise
        # Values of a broken header may be in the text: nothing of theirs may steer a terminal.
        what = "".join(letter if letter.isprintable() else " " for letter in problem.what)
        raise Problem(what, path=source.path, fix=problem.fix) from problem
    except ImportError:
        raise
    except Exception as error:
        # A broken data set makes pydicom and its decoders raise nearly anything.
        what = f"this DICOM object is broken ({type(error).__name__})"
        raise Problem(what, path=source.path, fix="export it again from where it came from") from error


def facts(path: Path) -> dict[str, str | float]:
    """How the image was made: the tags of ``files.MADE_BY`` that its (first) file has; empty where it is broken."""
    file = next((file for file in series.files_below(path) if is_dicom(file)), None) if path.is_dir() else path
    try:
        return {} if file is None else made_by(file)
    except Problem:
        return {}
