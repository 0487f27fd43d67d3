"""Ultrasound: cropped to the fan or rectangle that the probe saw; text and marks beside it vanish.

Machines store the logarithm of the echo, so that grey values are proportional to decibels, and each loop's gain adds
one number to all of them: mean and deviation (``image.intensity``) are what suits them, and nothing is done to
intensities here.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

from osler import polygons
from osler.image import Image
from osler.preparations import Prepared, cropped

CROPS = True
# Less than that of the range above the background is what compression leaves around text.
_DEAD = 0.03
# Pixels below which nothing is to be told; shares of the image: what a sector holds at least, and how much must be
# gained; of the sector: how much of it is alive at least, and how large another part may be; of what lies beside it,
# how much may differ from the background at all: tissue in the depth that sends no echo still has noise.
_SMALL, _LEAST, _GAIN, _ALIVE, _OTHER, _NOISY = 64, 0.15, 0.03, 0.5, 0.1, 0.4


def apply(image: Image) -> Prepared:
    """The rows and columns of the sector; what lies beside its convex hull is set to the background.

    The sector is the largest connected part of all that is ever brighter than the background, over all moments, after
    strokes thinner than 1 % of the image were taken away. No pixel of that part is lost. An image is left alone where
    that is no single large part that fills its hull, where what lies beside it is not dead, or where nothing is
    gained.
    """
    found = _hull(image)
    if isinstance(found, str):
        return Prepared(image, (f"the scan sector was not cropped: {found}",))
    hull, background = found
    rows, columns = np.flatnonzero(hull.any(1)), np.flatnonzero(hull.any(0))
    first, last = (int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1)
    kept = cropped(image, first, last)
    beside = ~hull[first[0] : last[0], first[1] : last[1]]
    array = np.where(beside, np.asarray(background).astype(image.array.dtype), kept.array)
    share = (last[0] - first[0]) * (last[1] - first[1]) / hull.size
    said = f"cropped to the scan sector, {share:.0%} of the image"
    return Prepared(replace(kept, array=array), (said,), (0, *first))


def _hull(image: Image) -> tuple[NDArray[np.bool_], float] | str:
    """The convex hull of the sector and the value beside it, or why it is not told."""
    depth, height, width = image.size
    if depth > 1 or min(height, width) < _SMALL:
        return "a volume" if depth > 1 else f"fewer than {_SMALL} pixels"
    peak = image.array.max((0, 1))[0].astype(np.float32)
    background = float(image.array.min())
    alive = peak > background + _DEAD * (float(peak.max()) - background)
    stroke = max(3, round(0.01 * min(height, width)) | 1)
    solid = _opened(_closed(np.pad(alive, stroke).astype(np.uint8), 3), stroke)[stroke:-stroke, stroke:-stroke]
    numbers, count = ndimage.label(solid)
    if not count:
        return "nothing in it is brighter than the background"
    sizes = np.bincount(numbers.ravel())[1:]
    sector = numbers == sizes.argmax() + 1
    if np.sort(sizes)[-2:][0] > _OTHER * sizes.max() and count > 1:
        return "it shows several parts"
    rows, columns = np.flatnonzero(sector.any(1)), np.flatnonzero(sector.any(0))
    if np.ptp(rows) * np.ptp(columns) > (1 - _GAIN) * sector.size:
        return "it fills the image"
    # The ends of each row, by the edges of its pixels.
    left, right = sector[rows].argmax(1), width - sector[rows, ::-1].argmax(1)
    ends = np.concatenate([np.stack([x, rows + below], 1) for x in (left, right) for below in (0, 1)])
    corners = ends[spatial.ConvexHull(ends).vertices].astype(np.float64)
    hull = polygons.mask([corners], (height, width)).within((1, height, width))[0]
    if hull.mean() < _LEAST or alive[hull].mean() < _ALIVE:
        return "no large part of it is brighter than the background"
    if not hull.all() and (alive[~hull].mean() > _OTHER or (peak[~hull] > background).mean() > _NOISY):
        return "what lies beside it is not dead"
    return hull, background


def _closed(mask: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(ndimage.minimum_filter(ndimage.maximum_filter(mask, side), side))


def _opened(mask: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(ndimage.maximum_filter(ndimage.minimum_filter(mask, side), side))
