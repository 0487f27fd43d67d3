"""MRI: the slow change of brightness across a volume that the coils make, estimated and divided out (N4)."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from osler import cache
from osler.image import Image
from osler.preparations import Prepared, by_volume, otsu
from osler.problem import Problem

CROPS = False
# Voxels along each axis of the copy on which the field is estimated, and how often at each of three resolutions.
_SIDE, _STEPS = 32, (30, 30, 30)


def apply(image: Image) -> Prepared:
    """Each volume divided by the field that N4 (Tustison 2010) finds in its foreground.

    The field is smooth, so that a copy of at most 32 voxels along each axis shows all of it; what was found there is
    interpolated and divided out at full size. It takes seconds a volume, and the same on any machine: one thread.

    Raises:
        Problem: SimpleITK is not installed.
    """
    array = by_volume(image, corrected)
    said = "the bias field was estimated (N4) and divided out"
    return Prepared(replace(image, array=array, unit=""), (said,))


def corrected(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """A volume ``(depth, height, width)`` over its field; unchanged where it shows nothing.

    Raises:
        Problem: SimpleITK is not installed.
    """
    if np.ptp(volume) == 0:
        return volume
    lowest = volume.min()
    small = Image(volume[None, None]).resample(_size(volume.shape)).array[0, 0]
    # The field is the same whatever the unit; what is not positive has no logarithm.
    small = np.asarray((small - lowest) / np.ptp(volume) + 1e-3, np.float32)
    log = Image(_log_field(small)[None, None]).resample(volume.shape).array[0, 0]
    return np.asarray((volume - lowest) / np.exp(log) + lowest, np.float32)


def _size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    depth, height, width = (min(n, _SIDE) for n in shape)
    return depth, height, width


def _log_field(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logarithm of the field, with mean 0 in the foreground; kept on the disk, as it takes long."""
    try:
        import SimpleITK as sitk  # noqa: N813
    except ImportError as error:
        what = "n4, a preparation of this recipe, needs SimpleITK, which is not installed"
        raise Problem(what, fix='pip install "osler[registration]"') from error
    name = cache.content_key(f"n4|{_STEPS}|{sitk.Version.VersionString()}", volume)
    kept = cache.find(name)
    if kept is not None:
        # Another process may just have taken it away.
        with suppress(OSError, ValueError):
            return np.fromfile(kept, np.float32).reshape(volume.shape)
    flat = volume.shape[0] == 1
    mask = volume > otsu(volume)
    given = sitk.GetImageFromArray(volume[0] if flat else volume)
    inside = sitk.GetImageFromArray((mask[0] if flat else mask).astype(np.uint8))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    # The sums of several threads differ in their last bits from machine to machine.
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(_STEPS)
    n4.Execute(given, inside)
    log = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(given)).reshape(volume.shape)
    log = np.ascontiguousarray(log - log[mask].mean(), np.float32)
    cache.store(name, log.data)
    return log
