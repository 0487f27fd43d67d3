"""Where the pixels lie: one image, or slices that are stacked by their position along the normal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.image import Affine, Geometry, NoGeometry, Spacing
from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

_ORTHONORMAL = 1e-3
# Share of the distance between slices: positions are often rounded to 0.01 or 0.1 mm.
_UNEVEN = 0.05
_AGAIN = "export it again from where it came from"
_EVEN = "export a series with one slice distance"
# Shares of the pixel spacing: up to where two slices lie at the same place, and how far one may lie off the line.
_SAME, _ASIDE = 0.02, 0.1


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice in the patient (PS3.3 C.7.6.2), millimetres LPS.

    Attributes:
        position: ``(3,)``, centre of the first pixel.
        row, column: unit vectors ``(3,)`` along which the column index and the row index grow.
        spacing: millimetres between columns (x) and between rows (y).
        thickness: nominal millimetres along the normal, or ``None``.
    """

    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float | None

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.asarray(np.cross(self.row, self.column))


def plane(dataset: "Dataset", frame: int | None = None) -> Plane | None:
    """The plane of a data set, or of one frame of it; ``None`` where position, orientation or spacing is not stated.

    Raises:
        Problem: they are stated, but are no place: directions that are not perpendicular unit vectors, a spacing that
            is not positive, or two places for one frame.
    """
    position = _group(dataset, frame, "PlanePositionSequence").get("ImagePositionPatient")
    directions = _group(dataset, frame, "PlaneOrientationSequence").get("ImageOrientationPatient")
    measures = _group(dataset, frame, "PixelMeasuresSequence")
    if not position or not directions or not measures.get("PixelSpacing"):
        return None
    if len(position) != 3 or not np.isfinite(np.array(position, dtype=np.float64)).all():
        raise Problem("its ImagePositionPatient is not three numbers", fix=_AGAIN)
    spacing = _pair(measures.get("PixelSpacing"))
    if spacing is None:
        raise Problem("its PixelSpacing is not two positive numbers", fix=_AGAIN)
    row, column = _directions(directions)
    thickness = _positive(measures.get("SliceThickness"))
    return Plane(np.array(position, dtype=np.float64), row, column, (spacing[1], spacing[0]), thickness)


def _directions(values: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors from direction cosines that may have been rounded to three digits."""
    if len(values) != 6 or not np.isfinite(np.array(values, dtype=np.float64)).all():
        raise Problem("its ImageOrientationPatient is not six numbers", fix=_AGAIN)
    row, column = np.array(values, dtype=np.float64).reshape(2, 3)
    if np.abs([row @ row - 1, column @ column - 1]).max() > _ORTHONORMAL:
        raise Problem("the directions in its ImageOrientationPatient are not unit vectors", fix=_AGAIN)
    if abs(row @ column) > _ORTHONORMAL:
        raise Problem("the directions in its ImageOrientationPatient are not perpendicular", fix=_AGAIN)
    return row / np.linalg.norm(row), column / np.linalg.norm(column)


def of_one(dataset: "Dataset", notes: list[str], frame: int | None = None) -> Geometry:
    """The geometry of a single slice or projection; never invented."""
    try:
        there = plane(dataset, frame)
    except Problem as problem:
        notes.append(f"The place in the patient is unknown: {problem.what}.")
        there = None
    if there is not None and there.thickness is not None:
        return Affine(_matrix(there, there.normal * there.thickness), frame_of_reference(dataset))
    if there is not None:
        notes.append("The slice thickness is not stated, so the slice has no extent along its normal.")
        return Spacing(*there.spacing, source="PixelSpacing")
    return _flat(dataset, notes)


def _flat(dataset: "Dataset", notes: list[str]) -> Geometry:
    measures = _group(dataset, None, "PixelMeasuresSequence")
    stated, detector = _pair(measures.get("PixelSpacing")), _pair(dataset.get("ImagerPixelSpacing"))
    # Equal values mean that nothing was calibrated (PS3.3 10.7.1.3).
    if stated is not None and (detector is None or not np.allclose(stated, detector, rtol=1e-6)):
        return Spacing(stated[1], stated[0], source="PixelSpacing")
    if detector is not None:
        notes.append("Distances are those in the plane of the detector, not in the patient.")
        return Spacing(detector[1], detector[0], source="ImagerPixelSpacing")
    return _ultrasound(dataset, notes)


def _ultrasound(dataset: "Dataset", notes: list[str]) -> Geometry:
    """Regions of ultrasound in centimetres (PS3.3 C.8.5.5), if all agree."""
    found = set()
    for region in dataset.get("SequenceOfUltrasoundRegions") or []:
        centimetres = region.get("PhysicalUnitsXDirection") == 3 and region.get("PhysicalUnitsYDirection") == 3
        x, y = _positive(_absolute(region.get("PhysicalDeltaX"))), _positive(_absolute(region.get("PhysicalDeltaY")))
        if centimetres and region.get("RegionSpatialFormat") == 1 and x and y:
            found.add((round(10 * x, 6), round(10 * y, 6)))
    if len(found) > 1:
        notes.append("Its ultrasound regions have different scales, so distances are unknown.")
    if len(found) != 1:
        return NoGeometry()
    notes.append("Distances hold inside the calibrated ultrasound region only.")
    x, y = found.pop()
    return Spacing(x, y, source="UltrasoundRegion")


def levels(planes: Sequence[Plane]) -> NDArray[np.int64]:
    """Which of the places along their normal each slice lies at, 0 for the lowest ``(n,)``.

    Raises:
        Problem: slices differ in orientation or spacing, or lie beside each other.
    """
    first = planes[0]
    for other in planes[1:]:
        if not np.allclose([other.row, other.column], [first.row, first.column], atol=_ORTHONORMAL):
            raise Problem("its slices have different orientations", fix="give the slices of one orientation only")
        if not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            raise Problem("its slices have different pixel spacings", fix="give the slices of one spacing only")
    positions = np.stack([each.position for each in planes])
    along = positions @ first.normal
    order = np.argsort(along, kind="stable")
    same = _SAME * min(first.spacing)
    found = np.empty(len(planes), np.int64)
    found[order] = np.cumsum(np.diff(along[order], prepend=along[order[0]]) > same)
    for level in range(int(found.max()) + 1):
        if np.ptp(positions[found == level], axis=0).max() > 2 * same:
            raise Problem("some of its slices lie beside each other in one plane", fix="give one stack of slices")
    return found


def volume(planes: Sequence[Plane], at: NDArray[np.int64], frame: str, notes: list[str]) -> Affine:
    """The affine of slices that lie, in order along their normal, at the places ``at`` of an even grid.

    Slices of a tilted gantry lie on a sheared grid, which the affine states exactly.

    Raises:
        Problem: they do not lie on one straight line, or not evenly.
    """
    first, positions = planes[0], np.stack([each.position for each in planes])
    move = (positions[-1] - positions[0]) / (at[-1] - at[0])
    step = float(move @ first.normal)
    away = positions - (positions[0] + (at - at[0])[:, None] * move)
    along = away @ first.normal
    if np.linalg.norm(away - along[:, None] * first.normal, axis=1).max() > max(
        _UNEVEN * step, _ASIDE * min(first.spacing)
    ):
        raise Problem("its slices do not lie on one straight line", fix="give one volume only")
    if np.abs(along).max() > _UNEVEN * step:
        raise Problem("the distance between slices is not even: it drifts along the series", fix=_EVEN)
    tilt = float(np.degrees(np.arccos(np.clip(step / np.linalg.norm(move), -1, 1))))
    if tilt > 0.5:
        notes.append(f"The gantry was tilted by {tilt:.1f} degrees: slices are shifted against each other.")
    return Affine(_matrix(first, move, positions[0] - at[0] * move), frame)


def check_gaps(planes: Sequence[Plane]) -> None:
    """That slices, in order along their normal, lie evenly.

    Raises:
        Problem: slices are missing, or the distance between them differs.
    """
    gaps = np.diff(np.stack([each.position for each in planes]) @ planes[0].normal)
    step = float(np.median(gaps))
    wrong = np.abs(gaps - step) > _UNEVEN * step
    if not wrong.any():
        return
    missing = np.rint(gaps[wrong] / step)
    if len(gaps) > 1 and np.all((missing >= 2) & (np.abs(gaps[wrong] - missing * step) <= _UNEVEN * step * missing)):
        what = f"{int((missing - 1).sum())} slices are missing from the series (a gap of {gaps.max():.4g} mm)"
        raise Problem(what, fix="export the complete series")
    what = f"the distance between slices is not even: {gaps.min():.4g} to {gaps.max():.4g} mm"
    raise Problem(what, fix=_EVEN)


def multiples(planes: Sequence[Plane], steps: Sequence[float | None]) -> NDArray[np.int64]:
    """Places on an even grid for slices of which some may be left out, as in a segmentation.

    Args:
        planes: one for each place, in order along their normal.
        steps: distances that the file states, the likeliest first; the first of which all gaps are whole multiples
            is taken, else the smallest gap.

    Raises:
        Problem: the gaps are multiples of none of them.
    """
    gaps = np.diff(np.stack([each.position for each in planes]) @ planes[0].normal)
    for step in (*steps, float(gaps.min())):
        if step is None:
            continue
        whole = np.rint(gaps / step)
        if whole.min() >= 1 and np.abs(gaps - whole * step).max() <= _UNEVEN * step:
            return np.concatenate([[0], np.cumsum(whole).astype(np.int64)])
    what = f"the distance between its frames is not even: {gaps.min():.4g} to {gaps.max():.4g} mm"
    raise Problem(what, fix=_EVEN)


def spacing_between(dataset: "Dataset", frame: int | None = None) -> float | None:
    """SpacingBetweenSlices as a distance; its sign means nothing where positions are stated (PS3.3 C.7.6.2)."""
    return _positive(_absolute(_group(dataset, frame, "PixelMeasuresSequence").get("SpacingBetweenSlices")))


def thick(there: Plane, depth: float, frame: str) -> Affine:
    """The affine of a single plane that is ``depth`` millimetres thick."""
    return Affine(_matrix(there, there.normal * depth), frame)


def _matrix(
    first: Plane, step: NDArray[np.float64], origin: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 0] = first.row * first.spacing[0]
    matrix[:3, 1] = first.column * first.spacing[1]
    matrix[:3, 2] = step
    matrix[:3, 3] = first.position if origin is None else origin
    return matrix


def _group(dataset: "Dataset", frame: int | None, name: str) -> Any:
    """The item of a functional group, or the data set itself where there is none."""
    found = group(dataset, frame, name)
    return dataset if found is None else found


def group(dataset: "Dataset", frame: int | None, name: str) -> Any:
    """The item of a functional group for a frame or for all frames (PS3.3 C.7.6.16), ``None`` without one.

    Raises:
        Problem: it is there for the frame and for all, and the two differ: either may be right.
    """
    each, index = dataset.get("PerFrameFunctionalGroupsSequence") or [], frame or 0
    both = [(dataset.get("SharedFunctionalGroupsSequence") or [None])[0], each[index] if index < len(each) else None]
    items = [holder.get(name)[0] for holder in both if holder is not None and holder.get(name)]
    if len(items) > 1 and items[0] != items[1]:
        raise Problem(f"it states {name} for all frames and for one of them, and they differ", fix=_AGAIN)
    return items[-1] if items else None


def frame_of_reference(dataset: "Dataset") -> str:
    """The UID of the space that positions are in, empty where it is not stated."""
    return str(dataset.get("FrameOfReferenceUID") or "")


def _pair(value: Any) -> tuple[float, float] | None:
    """Two positive numbers, or ``None``."""
    if value is None or isinstance(value, (str, float, int)) or len(value) != 2:
        return None
    first, second = _positive(value[0]), _positive(value[1])
    return None if first is None or second is None else (first, second)


def _absolute(value: Any) -> float | None:
    return None if value is None else abs(float(value))


def _positive(value: Any) -> float | None:
    if value in (None, ""):
        return None
    number = float(value)
    return number if np.isfinite(number) and number > 0 else None
