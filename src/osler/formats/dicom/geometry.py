"""Where the pixels lie: one image, or slices that are stacked by their position along the normal."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.image import Affine, Geometry, NoGeometry, Spacing
from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

# Projections and scans of film: their pixels lie on a detector, not in the patient.
_DETECTOR = ("CR", "DX", "MG", "IO", "PX", "XA", "RF", "XC", "RG")
_ORTHONORMAL = 1e-3
# Shares of the distance between slices: positions are often rounded to 0.01 or 0.1 mm.
_UNEVEN, _DOUBLED = 0.05, 0.01


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
    """The plane of a data set, or of one frame of it; ``None`` where position or orientation is not stated."""
    position = _group(dataset, frame, "PlanePositionSequence").get("ImagePositionPatient")
    directions = _group(dataset, frame, "PlaneOrientationSequence").get("ImageOrientationPatient")
    measures = _group(dataset, frame, "PixelMeasuresSequence")
    spacing = _pair(measures.get("PixelSpacing"))
    if not position or not directions or len(position) != 3 or len(directions) != 6 or spacing is None:
        return None
    row, column = np.array(directions, dtype=np.float64).reshape(2, 3)
    lengths = np.array([row @ row, column @ column, 1 + row @ column])
    if np.abs(lengths - 1).max() > _ORTHONORMAL:
        return None
    thickness = _positive(measures.get("SliceThickness"))
    return Plane(np.array(position, dtype=np.float64), row, column, (spacing[1], spacing[0]), thickness)


def of_one(dataset: "Dataset", notes: list[str], frame: int | None = None) -> Geometry:
    """The geometry of a single slice or projection; never invented."""
    there = plane(dataset, frame)
    if there is not None and there.thickness is not None:
        return Affine(_matrix(there, there.normal * there.thickness), _frame_of_reference(dataset))
    if there is not None:
        notes.append("The slice thickness is not stated, so the slice has no extent along its normal.")
        return Spacing(*there.spacing, source="PixelSpacing")
    if dataset.get("ImageOrientationPatient") and dataset.get("ImagePositionPatient"):
        notes.append("Orientation or spacing is not valid, so the place in the patient is unknown.")
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


def stack(planes: list[Plane], frame: str, notes: list[str]) -> tuple[list[int], Affine]:
    """The order of two or more slices along their normal, and the affine of the volume.

    Slices of a tilted gantry lie on a sheared grid, which the affine states exactly.

    Raises:
        Problem: slices differ in orientation or spacing, are doubled or missing, or lie unevenly.
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
    gaps = np.diff(along[order])
    step = float(np.median(gaps))
    _check_gaps(gaps, step)
    positions = positions[order]
    move = (positions[-1] - positions[0]) / (len(positions) - 1)
    straight = positions[0] + np.arange(len(positions))[:, None] * move
    if np.abs(positions - straight).max() > max(0.5 * step, 0.5 * min(first.spacing)):
        raise Problem("its slices do not lie on one straight line", fix="give one volume only")
    tilt = float(np.degrees(np.arccos(np.clip(move @ first.normal / np.linalg.norm(move), -1, 1))))
    if tilt > 0.5:
        notes.append(f"The gantry was tilted by {tilt:.1f} degrees: slices are shifted against each other.")
    return [int(index) for index in order], Affine(_matrix(planes[order[0]], move), frame)


def _check_gaps(gaps: NDArray[np.float64], step: float) -> None:
    doubled = int((gaps <= _DOUBLED * max(step, 1e-3)).sum())
    if doubled or step <= 0:
        what = f"{doubled} of its slices lie at the same position as another one"
        raise Problem(what, fix="give one time point, echo or reconstruction, without doubled slices")
    wrong = np.abs(gaps - step) > _UNEVEN * step
    if not wrong.any():
        return
    missing = np.rint(gaps[wrong] / step)
    if len(gaps) > 1 and np.all((missing >= 2) & (np.abs(gaps[wrong] - missing * step) <= _UNEVEN * step * missing)):
        what = f"{int((missing - 1).sum())} slices are missing from the series (a gap of {gaps.max():.4g} mm)"
        raise Problem(what, fix="export the complete series")
    what = f"the distance between slices is not even: {gaps.min():.4g} to {gaps.max():.4g} mm"
    raise Problem(what, fix="export a series with one slice distance")


def _matrix(first: Plane, step: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 0] = first.row * first.spacing[0]
    matrix[:3, 1] = first.column * first.spacing[1]
    matrix[:3, 2] = step
    matrix[:3, 3] = first.position
    return matrix


def _group(dataset: "Dataset", frame: int | None, name: str) -> Any:
    """The item of a functional group for a frame, of all frames, or the data set itself (PS3.3 C.7.6.16)."""
    groups = [(dataset.get("SharedFunctionalGroupsSequence") or [None])[0]]
    each = dataset.get("PerFrameFunctionalGroupsSequence")
    if each and len(each) > (frame or 0):
        groups.insert(0, each[frame or 0])
    for group in groups:
        if group is not None and group.get(name):
            return group.get(name)[0]
    return dataset


def _frame_of_reference(dataset: "Dataset") -> str:
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
