"""NIfTI-1 and NIfTI-2: ``.nii``, ``.nii.gz`` and ``.hdr``/``.img`` pairs."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Source
from osler.image import Affine, Geometry, Image, NoGeometry
from osler.problem import Problem

_MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


def matches(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.is_file() and path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".hdr.gz"))


def read(source: Source) -> Image:
    """The volume or sequence; ``x`` is the width, ``y`` the height, ``z`` the depth, the fifth axis the channel.

    ``scl_slope`` and ``scl_inter`` are applied where the header has them, else the stored type is kept. The
    affine goes from RAS to LPS. Where the file does not say where its voxels are (both form codes 0, or an
    identity without a unit) there is no geometry.

    Raises:
        Problem: broken, not NIfTI, complex numbers, or more than five axes.
    """
    import nibabel

    try:
        volume = nibabel.load(source.path)
        if not isinstance(volume, nibabel.Nifti1Pair):
            raise Problem("this is not NIfTI but an older Analyze image", fix="convert it to NIfTI")
        notes: list[str] = []
        array = _ordered(_values(volume))
        geometry = _geometry(volume, notes)
        times = _times(volume.header, len(array))
        return Image(array, geometry, times=times, notes=tuple(notes))
    except Problem as problem:
        raise Problem(problem.what, path=source.path, fix=problem.fix) from problem
    except Exception as error:
        # nibabel lets gzip, zlib, struct and numpy errors through.
        what = "the NIfTI file is broken or cut short"
        raise Problem(what, path=source.path, fix="copy it again from where it came from") from error


def _values(volume: Any) -> NDArray[Any]:
    stored = np.asanyarray(volume.dataobj.get_unscaled())
    if stored.dtype.names == ("R", "G", "B"):
        while stored.ndim < 4:
            stored = stored[..., None]
        return np.stack([stored[name] for name in "RGB"], axis=-1)
    if stored.dtype.kind not in "iufb":
        raise Problem(f"its voxels are of type {stored.dtype}, not real numbers", fix="save magnitude or grey values")
    slope, intercept = volume.dataobj.slope, volume.dataobj.inter
    if (slope, intercept) == (1, 0):
        return np.asarray(stored.astype(stored.dtype.newbyteorder("=")))
    kind = np.float32 if stored.dtype.itemsize <= 2 else np.float64
    return np.asarray((stored.astype(np.float64) * slope + intercept).astype(kind))


def _ordered(array: NDArray[Any]) -> NDArray[Any]:
    """(x, y, z, t, c) with missing axes to (t, c, z, y, x)."""
    while array.ndim > 5 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 5:
        raise Problem(f"it has {array.ndim} axes", fix="save at most x, y, z, time and channel")
    while array.ndim < 5:
        array = array[..., None]
    return np.ascontiguousarray(array.transpose(3, 4, 2, 1, 0))


def _geometry(volume: Any, notes: list[str]) -> Geometry:
    header = volume.header
    unit = header.get_xyzt_units()[0]
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        notes.append("The header does not say where the voxels are (both form codes are 0): distances are unknown.")
        return NoGeometry()
    affine = np.asarray(volume.affine, dtype=np.float64)
    if unit == "unknown" and np.array_equal(affine, np.eye(4)):
        notes.append("The affine is the identity and has no unit: distances are unknown.")
        return NoGeometry()
    if unit == "unknown":
        notes.append("The unit of length is not stated: millimetres were assumed.")
    scale = _MILLIMETRES.get(unit, 1.0)
    try:
        return Affine(np.diag([-scale, -scale, scale, 1.0]) @ affine)
    except ValueError:
        notes.append("The affine of the header is not invertible: distances are unknown.")
        return NoGeometry()


def _times(header: Any, frames: int) -> tuple[float, ...]:
    unit = header.get_xyzt_units()[1]
    zooms = header.get_zooms()
    if frames < 2 or len(zooms) < 4 or unit not in _SECONDS or not zooms[3] > 0:
        return ()
    step = float(zooms[3]) * _SECONDS[unit]
    return tuple(step * frame for frame in range(frames))
