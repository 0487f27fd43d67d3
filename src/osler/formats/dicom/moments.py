"""Several slices at one place: moments of time, where a tag says so; else two images in one series."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.formats.dicom import geometry
from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

# Keyword in a data set: functional group and keyword for a frame (PS3.3 C.7.6.16, C.8.13, C.8.15).
_PLACES = {
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "EchoNumbers": ("", ""),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "DiffusionGradientOrientation": ("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
    "InversionTime": ("", ""),
    "KVP": ("CTXRayDetailsSequence", "KVP"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
    "ImageType": ("", "FrameType"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
}
_TIMES = ("TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber")
_KINDS = tuple(name for name in _PLACES if name not in _TIMES)
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
# Trigger times of the slices of one moment may differ by this share of the time between moments.
_JITTER = 0.05


@dataclass(frozen=True)
class Facts:
    """What tells a slice from another one at the same place.

    Attributes:
        values: by keyword of ``_PLACES``, ``None`` where it is not stated.
        stack: the StackID, empty where there is none.
        second: of the acquisition, counted from any beginning, or ``None``.
    """

    values: dict[str, Any]
    stack: str
    second: float | None


def facts(dataset: "Dataset", frame: int | None = None) -> Facts:
    """The facts of a data set, or of one frame of it."""
    values: dict[str, Any] = {}
    for name, (sequence, keyword) in _PLACES.items():
        holders = _FRAME_TYPES if name == "ImageType" else (sequence,)
        items = [item for item in (_item(dataset, frame, holder) for holder in holders) if item is not None]
        found = items[0].get(keyword) if items else dataset.get(name)
        values[name] = None if found in (None, "") else _plain(name, found)
    content = _item(dataset, frame, "FrameContentSequence")
    stack = "" if content is None else str(content.get("StackID") or "")
    return Facts(values, stack, _second(dataset, frame, content))


def _item(dataset: "Dataset", frame: int | None, name: str) -> Any:
    return geometry.group(dataset, frame, name) if name and frame is not None else None


def _plain(name: str, value: Any) -> Any:
    if name in _TIMES:
        return float(value)
    return str(value)


def second_of_frame(dataset: "Dataset", frame: int) -> float | None:
    """The second of a frame by its own functional groups, counted from any beginning; ``None`` if they are silent."""
    content = _item(dataset, frame, "FrameContentSequence")
    offset = _item(dataset, frame, "TemporalPositionSequence")
    stated = content is not None and (
        content.get("FrameAcquisitionDateTime") or content.get("FrameReferenceDateTime")
    )
    if not stated and (offset is None or offset.get("TemporalPositionTimeOffset") is None):
        return None
    return _second(dataset, frame, content)


def _second(dataset: "Dataset", frame: int | None, content: Any) -> float | None:
    offset = _item(dataset, frame, "TemporalPositionSequence")
    if offset is not None and offset.get("TemporalPositionTimeOffset") is not None:
        return float(offset.TemporalPositionTimeOffset)
    # Frame Reference DateTime is the moment that a frame stands for, where its beginning is not stated.
    own = ("FrameAcquisitionDateTime", "FrameReferenceDateTime")
    stated = (
        dataset.get("AcquisitionDateTime") if content is None else next(filter(None, map(content.get, own)), None)
    )
    stated = stated or f"{dataset.get('AcquisitionDate') or '20000101'}{dataset.get('AcquisitionTime') or ''}"
    # Zone and fractions as in PS3.5 6.2; a zone is the same for all slices of a series.
    whole, _, fraction = str(stated).partition("+")[0].partition("-")[0].partition(".")
    try:
        return datetime.strptime(whole, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or 0}")
    except ValueError:
        return None


def split(known: Sequence[Facts], levels: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[float, ...]]:
    """Slices in the order of moments and of places.

    Args:
        known: of each slice.
        levels: the place of each slice, as :func:`osler.formats.dicom.geometry.levels` counts them.

    Returns:
        Indices ``(moments, places)``, and the seconds of the moments from the first, or ``()`` where unknown.

    Raises:
        Problem: slices at one place differ in more than time, or nothing says which of them belong together.
    """
    stacks = {each.stack for each in known}
    if len(stacks) > 1:
        raise Problem(f"it holds {len(stacks)} stacks of slices", fix="export each stack as a series of its own")
    counts = np.bincount(levels)
    if counts.max() == 1:
        return np.argsort(levels)[None], ()
    places = [np.flatnonzero(levels == level).tolist() for level in range(len(counts))]
    for name in _KINDS:
        if any(len({known[index].values[name] for index in place}) > 1 for place in places):
            count = len({each.values[name] for each in known})
            what = f"its slices at one position differ in {name}, of which there are {count}"
            raise Problem(what, fix="export each as a series of its own")
    doubled = f"{int((counts - 1).sum())} of its slices lie at the same position as another one"
    for name in _TIMES:
        values = [[known[index].values[name] for index in place] for place in places]
        if any(None in each or len(set(each)) < len(each) for each in values) or not _apart(name, values):
            continue
        if len(set(counts)) > 1:
            break
        order = np.array([np.array(place)[np.argsort(each)] for place, each in zip(places, values, strict=True)]).T
        return order, _seconds(name, known, order)
    if len(set(counts)) > 1 and counts.min() > 1:
        doubled = f"its moments are not complete: there are {counts.min()} to {counts.max()} slices at a position"
    raise Problem(doubled, fix="give one time point, echo or reconstruction, without doubled slices")


def _apart(name: str, values: list[list[float]]) -> bool:
    """Numbers of moments must be the same at all places; times need not, as a heart does not beat evenly."""
    if name == "TriggerTime" or len({len(each) for each in values}) > 1:
        return True
    return len({tuple(sorted(each)) for each in values}) == 1


def _seconds(name: str, known: Sequence[Facts], order: NDArray[np.int64]) -> tuple[float, ...]:
    """The moments' seconds from the first: trigger times that agree, else the beginnings of acquisitions."""
    if name == "TriggerTime":
        table = np.array([[known[index].values[name] / 1000 for index in row] for row in order.tolist()])
        starts = table.mean(1)
        if np.ptp(table, axis=1).max() > _JITTER * np.diff(starts).min():
            return ()
    else:
        seconds = [[known[index].second for index in row] for row in order.tolist()]
        if any(second is None for row in seconds for second in row):
            return ()
        starts = np.array(seconds, dtype=np.float64).min(1)
    return tuple(float(s) for s in starts - starts[0]) if np.diff(starts).min() > 0 else ()
