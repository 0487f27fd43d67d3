"""Stored bytes to values: decompression, colour, modality LUT, and larger is brighter."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

_KINDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_AGAIN = "export it again from where it came from"
_OTHERWISE = "export it uncompressed, or as JPEG 2000, JPEG-LS or RLE"


def count(dataset: "Dataset") -> int:
    """How many frames there are, one where it is not said.

    Raises:
        Problem: more are said to be there than there are bits of pixel data: nothing is ever made ready for those.
    """
    stated = max(1, int(dataset.get("NumberOfFrames") or 1))
    if stated > 1 and stated > 8 * max(map(partial(_bytes, dataset), _KINDS)):
        raise Problem(f"it says that it has {stated} frames, which its pixel data cannot hold", fix=_AGAIN)
    return stated


def _bytes(dataset: "Dataset", name: str) -> int:
    """How many bytes of pixel data there are, also where they were left in the file; those may be fewer."""
    if name not in dataset:
        return 0
    element: Any = dataset.get_item(name, keep_deferred=True)
    if element.value is not None:
        return len(element.value)
    # Frames that are compressed state no length (all bits set): what is left of the file bounds it, as it does in a
    # file that is cut short.
    left = Path(str(dataset.filename)).stat().st_size - int(element.value_tell)
    return min(int(element.length), left)


def frames(
    dataset: "Dataset", notes: list[str], chosen: list[int] | None = None, path: Path | None = None
) -> tuple[NDArray[Any], str]:
    """Values ``(frame, channel, height, width)`` and their unit (``"HU"`` or empty).

    Args:
        dataset: with its pixel data, or with that left in its file.
        notes: what has to be assumed is added to these.
        chosen: only these frames, in order of their numbers; where the transfer syntax allows it the others are not
            even read from ``path``.

    Raises:
        Problem: no decoder for the transfer syntax, or pixel data that are cut short or broken.
    """
    stored = _decoded(dataset, notes) if chosen is None or path is None else _some(dataset, notes, chosen, path)
    colour = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if colour == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        stored = apply_color_lut(stored, dataset)
    stored = _with_axes(stored, dataset)
    if stored.shape[1] > 1:
        return stored, ""
    padding = dataset.get("PixelPaddingValue")
    if padding is not None and bool((stored == padding).any()):
        notes.append(f"Pixels with the stored value {padding} are padding, not tissue.")
    values, low, high = _modality(stored, dataset, chosen)
    unit = _unit(dataset)
    if colour == "MONOCHROME1":
        # Mirrored within the range that can be stored, so that slices of one series stay comparable.
        values = np.asarray((low + high - values.astype(np.result_type(values, np.int32))).astype(values.dtype))
        notes.append("Larger values were darker (MONOCHROME1): they were inverted, so that larger is brighter.")
        unit = ""
    return values, unit


def _decoded(dataset: "Dataset", notes: list[str]) -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    syntax = _checked_syntax(dataset, notes)
    try:
        array = pixel_array(dataset)
    except BaseException as error:
        raise _broken(dataset, syntax, error) from error
    return np.asarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def _some(dataset: "Dataset", notes: list[str], chosen: list[int], path: Path) -> NDArray[Any]:
    """The stored values of some frames, as :func:`_decoded` gives those of all."""
    from pydicom.pixels.utils import iter_pixels

    stated = bool(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID"))
    syntax = _checked_syntax(dataset, notes)
    if not stated or syntax.is_deflated:
        # What such a file holds cannot be found in it by its place.
        return _decoded(dataset, notes)[chosen]
    try:
        found = np.stack(list(iter_pixels(path, indices=chosen)))
    except BaseException as error:
        raise _broken(dataset, syntax, error) from error
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def single_frames(dataset: "Dataset", indices: list[int], notes: list[str]) -> Iterator[NDArray[Any]]:
    """The stored values ``(height, width)`` of some frames, one at a time.

    Raises:
        Problem: see :func:`frames`.
    """
    from pydicom.pixels.utils import iter_pixels

    syntax = _checked_syntax(dataset, notes)
    try:
        yield from (np.asarray(frame) for frame in iter_pixels(dataset, indices=indices)) if indices else ()
    except BaseException as error:
        if isinstance(error, (GeneratorExit, Problem)):
            raise
        raise _broken(dataset, syntax, error) from error


def _checked_syntax(dataset: "Dataset", notes: list[str]) -> Any:
    """The transfer syntax, for which there is a decoder, and all of the bytes that it needs."""
    from pydicom.pixels.decoders.base import get_decoder

    _complete_meta(dataset, notes)
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        what = f"its pixels are compressed as {syntax.name}, for which no decoder is installed"
        raise Problem(what, fix=_OTHERWISE)
    if not syntax.is_compressed:
        _check_length(dataset)
    return syntax


def _broken(dataset: "Dataset", syntax: Any, error: BaseException) -> BaseException:
    """What a decoder's error means; what is no error of a decoder stays as it is."""
    # Each decoder plug-in has its own errors; a panic of those in Rust is not even an Exception.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error
    if syntax.is_compressed and int(dataset.get("BitsStored") or 0) > 8 and "JPEG Extended" in syntax.name:
        what = f"its pixels are compressed as {syntax.name} with more than 8 bits, which no installed decoder knows"
        return Problem(what, fix=_OTHERWISE)
    what = f"its pixels ({syntax.name}) cannot be decoded: they are broken, cut short or of a rare kind"
    return Problem(what, fix=_AGAIN)


def _complete_meta(dataset: "Dataset", notes: list[str]) -> None:
    """Says in the file meta group what the bytes themselves showed, where that group is missing."""
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little = dataset.original_encoding
    syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = syntax if little else uid.ExplicitVRBigEndian
    notes.append(
        f"The file does not state its transfer syntax: {dataset.file_meta.TransferSyntaxUID.name} was taken."
    )


def _check_length(dataset: "Dataset") -> None:
    from pydicom.pixels.utils import get_expected_length

    if "PixelData" not in dataset:
        return
    expected, found = get_expected_length(dataset), _bytes(dataset, "PixelData")
    if found < expected:
        raise Problem(f"the pixel data end after {found} of {expected} bytes", fix=_AGAIN)


def _with_axes(array: NDArray[Any], dataset: "Dataset") -> NDArray[Any]:
    """Whatever axes pydicom left out are put back: (frame, channel, row, column)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    grey = int(dataset.get("SamplesPerPixel") or 1) == 1 and array.shape[-2:] == (rows, columns)
    channels = 1 if grey and dataset.get("PhotometricInterpretation") != "PALETTE COLOR" else array.shape[-1]
    array = array.reshape(-1, rows, columns, channels)
    if channels == 4:
        raise Problem("a colour table with transparency cannot be read", fix="export it as RGB")
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def _modality(
    stored: NDArray[Any], dataset: "Dataset", chosen: list[int] | None = None
) -> tuple[NDArray[Any], float, float]:
    """Values after the modality LUT (PS3.3 C.11.1) and the ends of the range they can have."""
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        values = np.asarray(apply_modality_lut(stored, dataset))
        first, length = (
            dataset.ModalityLUTSequence[0].LUTDescriptor[1],
            dataset.ModalityLUTSequence[0].LUTDescriptor[0],
        )
        table = np.asarray(apply_modality_lut(np.arange(first, first + (length or 65536)), dataset))
        return values, float(table.min()), float(table.max())
    low, high = float(stored.min()), float(stored.max())
    if stored.dtype.kind != "f":
        bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
        signed = int(dataset.get("PixelRepresentation") or 0)
        # A lossy codec may overshoot what the header says can be stored.
        low = min(low, -(2.0 ** (bits - 1)) if signed else 0.0)
        high = max(high, 2.0 ** (bits - signed) - 1)
    pairs = rescales(dataset, len(stored) if chosen is None else count(dataset))
    if all(pair == (1.0, 0.0) for pair in pairs):
        return stored, low, high
    slopes, intercepts = (np.array(part).reshape(-1, 1, 1, 1) for part in zip(*pairs, strict=True))
    ends = np.stack([slopes * low + intercepts, slopes * high + intercepts])
    # By all frames, so that the type does not depend on which of them are read.
    kind = _smallest(ends, slopes, intercepts, stored.dtype)
    if chosen is not None:
        slopes, intercepts = slopes[chosen], intercepts[chosen]
    values = (stored.astype(np.float64) * slopes + intercepts).astype(kind)
    return values, float(ends.min()), float(ends.max())


def rescales(dataset: "Dataset", count: int) -> list[tuple[float, float]]:
    """Slope and intercept of each frame: of the data set, or of its functional groups."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    each = dataset.get("PerFrameFunctionalGroupsSequence") or [None] * count
    pairs = []
    for group in each[:count]:
        holder = _transformation(group) or _transformation(shared) or dataset
        slope, intercept = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
        pairs.append((1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)))
    return pairs


def _transformation(group: Any) -> Any:
    return None if group is None else (group.get("PixelValueTransformationSequence") or [None])[0]


def _smallest(ends: NDArray[Any], slopes: NDArray[Any], intercepts: NDArray[Any], stored: np.dtype[Any]) -> Any:
    """The smallest type that holds every possible value: whole numbers stay whole."""
    if stored.kind == "f" or (slopes % 1).any() or (intercepts % 1).any():
        return np.float32 if stored.itemsize <= 2 else np.float64
    fits = (np.int16, np.uint16, np.int32, np.int64)
    return next(kind for kind in fits if np.iinfo(kind).min <= ends.min() and ends.max() <= np.iinfo(kind).max)


def _unit(dataset: "Dataset") -> str:
    """``HU`` for CT unless another rescale type is stated (PS3.3 C.8.2.1.1.2)."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    each = (dataset.get("PerFrameFunctionalGroupsSequence") or [None])[0]
    holder = _transformation(each) or _transformation(shared) or dataset
    stated = holder.get("RescaleSlope") is not None or bool(dataset.get("ModalityLUTSequence"))
    return (
        "HU"
        if dataset.get("Modality") == "CT" and stated and holder.get("RescaleType", "HU") in ("HU", "", None)
        else ""
    )
