"""Segmentation objects (SEG; PS3.3 A.51, C.8.20.2): frames that say which pixels belong to which segment."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Code
from osler.formats.dicom import geometry, pixels
from osler.image import Geometry, Image
from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

# What `described` needs of a file.
TAGS = [
    *("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "SegmentationType", "SegmentSequence"),
    *("ReferencedSeriesSequence", "FrameOfReferenceUID"),
]
_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_AGAIN = "export it again from where it came from"
# Pixels of a label map that only a wrong place of a frame makes: 60 moments of 256 slices of 512 x 512.
_LARGEST = 1 << 32


@dataclass(frozen=True)
class Segment:
    """What one segment is.

    Attributes:
        number: its value in a label map.
        label: its name, as people read it.
        category: Segmented Property Category, e.g. ``Code("SCT", "49755003", "Morphologically abnormal structure")``.
        type: Segmented Property Type, e.g. ``Code("SCT", "4147007", "Mass")``.
        algorithm: ``AUTOMATIC``, ``SEMIAUTOMATIC`` or ``MANUAL``, empty where it is not stated.
    """

    number: int
    label: str
    category: Code | None
    type: Code | None
    algorithm: str = ""


@dataclass(frozen=True)
class Segments:
    """What a segmentation object says without its pixels.

    Attributes:
        segments: in the order of the file, without a background.
        series: SeriesInstanceUIDs of the images that it was drawn on.
        patient, study, frame: PatientID, StudyInstanceUID, Frame of Reference UID; empty where not stated.
    """

    segments: tuple[Segment, ...]
    series: tuple[str, ...]
    patient: str
    study: str
    frame: str


def matches(dataset: "Dataset") -> bool:
    """Whether a data set is a segmentation."""
    return str(dataset.get("SOPClassUID") or "") in _CLASSES or dataset.get("Modality") == "SEG"


def described(dataset: "Dataset") -> Segments:
    """What it says of its segments and its source.

    Raises:
        Problem: it names no segment, or a segment without a number.
    """
    found = []
    for item in dataset.get("SegmentSequence") or []:
        number = item.get("SegmentNumber")
        if number is None:
            raise Problem("one of its segments has no number", fix=_AGAIN)
        label = str(item.get("SegmentLabel") or "").strip() or f"segment {int(number)}"
        category = _code(item.get("SegmentedPropertyCategoryCodeSequence"))
        kind = _code(item.get("SegmentedPropertyTypeCodeSequence"))
        found.append(Segment(int(number), label, category, kind, str(item.get("SegmentAlgorithmType") or "")))
    # Number 0 is the background, which only a label map describes (C.8.20.2).
    found = [segment for segment in found if segment.number]
    if not found:
        raise Problem("this segmentation describes no segment", fix=_AGAIN)
    numbers = [segment.number for segment in found]
    if len(set(numbers)) < len(numbers):
        raise Problem("two of its segments have one number", fix=_AGAIN)
    series = tuple(str(item.get("SeriesInstanceUID")) for item in dataset.get("ReferencedSeriesSequence") or [])
    patient, study = (str(dataset.get(name) or "").strip() for name in ("PatientID", "StudyInstanceUID"))
    return Segments(tuple(found), series, patient, study, geometry.frame_of_reference(dataset))


def _code(items: Any) -> Code | None:
    if not items:
        return None
    value = items[0].get("CodeValue") or items[0].get("LongCodeValue") or items[0].get("URNCodeValue")
    scheme, meaning = items[0].get("CodingSchemeDesignator"), items[0].get("CodeMeaning")
    return None if not value else Code(str(scheme or ""), str(value), str(meaning or ""))


@dataclass(frozen=True)
class _Frame:
    """What a frame is of.

    Attributes:
        index: in the file.
        segment: its number; 0 in a label map, whose frames are of all segments.
        moment: from 0.
        plane: ``None`` where the object has no place in the patient.
    """

    index: int
    segment: int
    moment: int
    plane: geometry.Plane | None


def read(dataset: "Dataset", key: str = "") -> Image:
    """The label map ``(time, 1, depth, height, width)``; frames that were left out are empty.

    Every frame lies where its own functional groups put it. The distance between slices is SpacingBetweenSlices, or
    else the thickness, or else the smallest gap: the first of these of which all gaps are multiples.

    Args:
        dataset: a segmentation.
        key: number of the one segment to take, or empty.

    Raises:
        Problem: fractions that are not a yes or no, overlapping segments, or frames that make no volume.
    """
    known = {segment.number for segment in described(dataset).segments}
    chosen = _chosen(key, known)
    frames = list(_frames(dataset))
    if any(frame.segment not in known for frame in frames if frame.segment):
        raise Problem("one of its frames is of a segment that it does not describe", fix=_AGAIN)
    notes: list[str] = []
    levels, place = _place(dataset, frames, notes)
    shape = (
        max(frame.moment for frame in frames) + 1,
        1,
        int(levels.max()) + 1,
        int(dataset.Rows),
        int(dataset.Columns),
    )
    if math.prod(shape) > _LARGEST:
        what = f"its frames would make an image of {shape[0]} moments and {shape[2]} slices"
        raise Problem(what, fix=_AGAIN)
    drawn = np.zeros(shape, np.uint8 if max(known) < 256 else np.uint16)
    seen: set[tuple[int, int, int]] = set()
    inside = _inside(dataset, [frame for frame in frames if chosen is None or frame.segment in (0, chosen)], notes)
    for frame, values in inside:
        level = int(levels[frame.index])
        if (frame.segment, frame.moment, level) in seen:
            raise Problem("two of its frames are of one segment at one place", fix="export it without doubled frames")
        seen.add((frame.segment, frame.moment, level))
        target = drawn[frame.moment, 0, level]
        if frame.segment == 0:
            _check_values(values, known)
            target[...] = values if chosen is None else np.where(values == chosen, values, 0)
            continue
        twice = target[(target != 0) & values]
        if len(twice):
            what = f"its segments {twice[0]} and {frame.segment} overlap in {len(twice)} pixels of a frame"
            raise Problem(what, fix="take one segment at a time")
        target[values] = frame.segment
    return Image(drawn, place, notes=tuple(notes))


def _chosen(key: str, known: set[int]) -> int | None:
    if not key:
        return None
    if not key.isdecimal() or int(key) not in known:
        what = f"there is no segment {key!r} in this segmentation"
        raise Problem(what, fix=f"its segments are {', '.join(map(str, sorted(known)))}")
    return int(key)


def _frames(dataset: "Dataset") -> Iterator[_Frame]:
    kind, count = str(dataset.get("SegmentationType") or ""), pixels.count(dataset)
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise Problem(f"this segmentation is of the unknown type {kind!r}", fix="export it as binary")
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    slide = any(group.get("PlanePositionSlideSequence") for group in groups[:1])
    if slide or dataset.get("DimensionOrganizationType") == "TILED_FULL":
        raise Problem("this segmentation was drawn on a whole-slide image made of tiles", fix="export a mask of it")
    if len(groups) != count:
        raise Problem(f"it says of {len(groups)} of its {count} frames what they are", fix=_AGAIN)
    for index in range(count):
        named = geometry.group(dataset, index, "SegmentIdentificationSequence")
        if kind != "LABELMAP" and (named is None or not named.get("ReferencedSegmentNumber")):
            raise Problem("one of its frames does not say which segment it is of", fix=_AGAIN)
        content = geometry.group(dataset, index, "FrameContentSequence")
        moment = 1 if content is None else int(content.get("TemporalPositionIndex") or 1)
        segment = 0 if kind == "LABELMAP" else int(named.ReferencedSegmentNumber)
        yield _Frame(index, segment, moment - 1, geometry.plane(dataset, index))


def _place(dataset: "Dataset", frames: list[_Frame], notes: list[str]) -> tuple[NDArray[np.int64], Geometry]:
    """The level of each frame, and the geometry of the whole."""
    planes = [frame.plane for frame in frames if frame.plane is not None]
    if not planes:
        return np.zeros(len(frames), np.int64), geometry.of_one(dataset, notes)
    if len(planes) < len(frames):
        what = f"{len(frames) - len(planes)} of its {len(frames)} frames do not say where they lie in the patient"
        raise Problem(what, fix=_AGAIN)
    levels = geometry.levels(planes)
    stated = geometry.spacing_between(dataset, 0)
    ordered = [planes[int(np.flatnonzero(levels == level)[0])] for level in range(int(levels.max()) + 1)]
    frame = geometry.frame_of_reference(dataset)
    if len(ordered) == 1:
        depth = stated or planes[0].thickness
        one = geometry.of_one(dataset, notes, 0) if depth is None else geometry.thick(planes[0], depth, frame)
        return levels, one
    at = geometry.multiples(ordered, (stated, ordered[0].thickness))
    if at[-1] >= len(ordered):
        notes.append(f"{at[-1] + 1 - len(ordered)} slices between its frames are empty.")
    return at[levels], geometry.volume(ordered, at, frame, notes)


def _inside(
    dataset: "Dataset", frames: list[_Frame], notes: list[str]
) -> Iterator[tuple[_Frame, NDArray[np.generic]]]:
    """Each frame with its pixels: true or false, or numbers of segments ``(height, width)``."""
    kind = str(dataset.SegmentationType)
    stored = pixels.single_frames(dataset, [frame.index for frame in frames], notes)
    if kind == "LABELMAP":
        yield from zip(frames, stored, strict=True)
        return
    whole = 1 if kind == "BINARY" else int(dataset.get("MaximumFractionalValue") or 255)
    between = False
    for frame, values in zip(frames, stored, strict=True):
        if not np.isin(values, (0, whole)).all():
            between = True
            if dataset.get("SegmentationFractionalType") != "PROBABILITY":
                what = "its pixels say which share of them is inside (a fractional segmentation of occupancy)"
                raise Problem(what, fix="export it as binary")
        yield frame, 2 * values.astype(np.int64) >= whole
    if between:
        notes.append("It holds probabilities: pixels of 0.5 and more were taken as inside.")


def _check_values(values: NDArray[np.generic], known: set[int]) -> None:
    strange = sorted({int(value) for value in np.unique(values)} - known - {0})
    if strange:
        raise Problem(f"its pixels hold the number {strange[0]}, of which it describes no segment", fix=_AGAIN)
