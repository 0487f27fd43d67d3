"""Polygons as masks: a pixel is inside if its centre is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from osler.case import Mask


def mask(polygons: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> Mask:
    """What one or more polygons hold, together, in an image of ``size`` (height, width).

    Where a polygon crosses itself, places that it runs around twice are outside (the even-odd rule). One that holds
    no centre of a pixel is the pixel in which its middle lies.

    Args:
        polygons: ``(n, 2)`` each: x and y of the corners, by the edges of pixels (the centre of the first is .5).
        size: of the image; what lies beyond its edges is left out.

    Raises:
        ValueError: there is none, one has fewer than three corners, or numbers that are not finite.
    """
    if not polygons or any(len(corners) < 3 or not np.isfinite(corners).all() for corners in polygons):
        raise ValueError("an outline needs three corners or more")
    every = np.concatenate(list(polygons))
    limit = np.array(size[::-1])
    low = np.clip(np.floor(every.min(0)), 0, limit - 1).astype(int)
    high = np.maximum(np.clip(np.ceil(every.max(0)), 0, limit).astype(int), low + 1)
    inside = np.zeros((high[1] - low[1], high[0] - low[0]), bool)
    for corners in polygons:
        inside |= _inside(corners - low, inside.shape)
    if not inside.any():
        x, y = np.clip(every.mean(0), low, high - 1).astype(int) - low
        inside[y, x] = True
    found = Mask.cropped(inside[None])
    return Mask(found.array, (0, found.start[1] + int(low[1]), found.start[2] + int(low[0])))


def _inside(corners: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Row by row: a centre is inside if an odd number of edges cross the row to the left of it."""
    height, width = shape
    x0, y0 = corners.T
    x1, y1 = np.roll(corners, -1, axis=0).T
    crossings = np.zeros((height, width + 1), np.int64)
    for row in range(height):
        y = row + 0.5
        cut = (y0 <= y) != (y1 <= y)
        x = x0[cut] + (y - y0[cut]) / (y1[cut] - y0[cut]) * (x1[cut] - x0[cut])
        np.add.at(crossings[row], np.clip(np.ceil(x - 0.5), 0, width).astype(int), 1)
    return np.asarray(np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1)
