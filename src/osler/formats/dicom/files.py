"""Opening DICOM files, with or without a preamble, and saying what they are."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from osler.formats.dicom import headers
from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

HEADER = list(headers.TAGS)

# What may tell machines, sites, protocols and hands apart, and so must not tell classes apart.
MADE_BY = [
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "StationName"),
    *("InstitutionName", "Modality", "BodyPartExamined", "ViewPosition", "Laterality", "ProtocolName"),
    *("SeriesDescription", "ConversionType", "PhotometricInterpretation", "BitsStored", "BurnedInAnnotation"),
    *("KVP", "Exposure", "ExposureTime", "XRayTubeCurrent", "ConvolutionKernel", "SliceThickness", "PatientPosition"),
    *("MagneticFieldStrength", "RepetitionTime", "EchoTime", "FlipAngle", "TransducerType", "TransducerFrequency"),
    *("WindowCenter", "WindowWidth", "LossyImageCompression", "RescaleSlope", "RescaleIntercept"),
]

_SUFFIXES = (".dcm", ".dicom", ".ima")
# A data set without a preamble begins with one of these tags, in either byte order.
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_FIRST_TAGS = tuple(
    group.to_bytes(2, order) + element.to_bytes(2, order)
    for order in _ORDERS
    for group, elements in ((2, (0, 1, 2, 16)), (8, (0, 1, 5, 8, 18, 19, 20, 22, 24, 32)))
    for element in elements
)
_OTHERS = {"SEG": "a segmentation", "RTDOSE": "a radiotherapy dose", "SM": "a whole-slide image made of tiles"}
_INSTEAD = {
    "SEG": "give the images that it was drawn on",
    "RTDOSE": "give the CT that it was planned on",
    "SM": "export a region of it as TIFF or PNG",
}


# Bytes from which on a value is left in the file where that is asked for.
_LARGE = 1 << 16
# A walk through many headers at once takes as long as pydicom takes for some of them.
_FEW = 5


def is_dicom(path: Path) -> bool:
    """Whether name or first bytes look like DICOM; cheap, and wrong now and then for files without a preamble."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or path.suffix.lower() in _SUFFIXES or head.startswith(_FIRST_TAGS)


def header(path: Path) -> Mapping[str, str]:
    """The tags named in ``HEADER`` as text, empty where missing; pixels are not read.

    Raises:
        Problem: this is not a DICOM file.
    """
    stat = path.stat()
    return _header(path, stat.st_mtime_ns, stat.st_size)


def headers_of(paths: Sequence[Path | str]) -> Iterator[Mapping[str, str] | Problem | None]:
    """For each file its :func:`header`, the problem with it, or ``None`` where it does not look like DICOM.

    Many at once take a small part of the time that they take one by one (``benchmarks/dicom_headers.py``).
    """
    found = headers.read([str(path) for path in paths]) if len(paths) >= _FEW else [None] * len(paths)
    for path, tags in zip(map(Path, paths), found, strict=True):
        try:
            if tags is not None:
                yield tags
            elif path.stat().st_size and not is_dicom(path):
                yield None
            else:
                yield header(path)
        except Problem as problem:
            yield problem
        except OSError as error:
            what = f"it cannot be read ({(error.strerror or str(error)).lower()})"
            yield Problem(what, path=path, fix="check the link, or the permissions")


@lru_cache(maxsize=20_000)
def _header(path: Path, modified: int, size: int) -> Mapping[str, str]:
    dataset = load(path, tags=HEADER)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {tag: _text(dataset.get(tag)) for tag in HEADER}
    except Exception as error:
        # Values are decoded when first touched, each with errors of its own.
        raise Problem("its header is broken", path=path, fix="export it again from where it came from") from error


def made_by(path: Path) -> dict[str, str | float]:
    """The tags of ``MADE_BY`` that a file has: numbers as numbers, the rest as text.

    Raises:
        Problem: this is not a DICOM file.
    """
    dataset = load(path, tags=[*MADE_BY, "SOPClassUID", "Rows"])
    found: dict[str, str | float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag in MADE_BY:
            try:
                text = _text(dataset.get(tag))
            except Exception:
                # A value is decoded when first touched, each kind with errors of its own: a broken one says nothing.
                continue
            if text:
                found[tag] = _number(text)
    return found


def _number(text: str) -> str | float:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _text(value: Any) -> str:
    if value is None:
        return ""
    # Some exporters pad with NUL instead of a space (PS3.5 6.2 allows that for UIDs only).
    text = "\\".join(map(str, value)) if isinstance(value, (list, tuple)) or _is_many(value) else str(value)
    return text.strip(" \0")


def _is_many(value: Any) -> bool:
    from pydicom.multival import MultiValue

    return isinstance(value, MultiValue)


def load(path: Path, tags: list[str] | None = None, *, lazy: bool = False) -> "Dataset":
    """The data set; with ``tags`` only those, and no pixels; ``lazy`` leaves large values in the file.

    Raises:
        Problem: this is not a DICOM file, or it is cut short.
    """
    import pydicom

    if path.stat().st_size == 0:
        raise Problem("the file is empty (0 bytes)", path=path, fix="copy it again from where it came from")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(
                path,
                defer_size=_LARGE if lazy else None,
                force=True,
                specific_tags=tags,
                stop_before_pixels=tags is not None,
            )
            # Elements are decoded when first touched: broken ones must fail here.
            known = bool(dataset.get("SOPClassUID") or dataset.get("Rows") or dataset.get("DirectoryRecordSequence"))
            known = known or "MediaStorageSOPClassUID" in getattr(dataset, "file_meta", {})
    except Exception as error:
        # pydicom lets struct, OS, value and its own errors through.
        what = f"the file is broken or is not DICOM ({type(error).__name__})"
        raise Problem(what, path=path, fix="export it again from where it came from") from error
    if not known:
        raise Problem("this is not DICOM, or its header is missing", path=path, fix="give a DICOM image")
    return dataset


def not_an_image(dataset: "Dataset") -> Problem | None:
    """Why an object cannot be read as an image, or ``None`` if it can: SR, SEG, RT, DICOMDIR, PDF, ECG, ..."""
    meta = getattr(dataset, "file_meta", {})
    uid = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
    name = "" if uid is None or uid.name == uid else str(uid.name).removesuffix(" Storage")
    modality = str(dataset.get("Modality") or "")
    if "DirectoryRecordSequence" in dataset or name == "Media Storage Directory":
        return Problem("this is a DICOMDIR, the index of a medium", fix="give the folder of one series")
    if modality in _OTHERS:
        return Problem(f"this is {_OTHERS[modality]}, not an image that is read here", fix=_INSTEAD[modality])
    if not dataset.get("Rows") or not dataset.get("Columns") or not has_pixels(dataset):
        what = "this object" if not name else f"this is {name}: it"
        return Problem(f"{what} holds no pixels", fix="give an image")
    return None


def has_pixels(dataset: "Dataset") -> bool:
    """Whether the data set holds pixel data of any kind."""
    return any(tag in dataset for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
