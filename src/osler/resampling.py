"""An image on the grid of another one, through the places of both in the patient."""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from osler.image import Affine, Image

Size = tuple[int, int, int]


def onto(image: Image, where: Affine, size: Size, *, order: Literal[0, 1] = 1, outside: float = 0.0) -> Image:
    """The image at the pixel centres of another grid: rotated, flipped, oblique, finer or coarser.

    A pixel is known up to its edges, half a pixel beyond the outermost centres; farther out it is ``outside``. As in
    ITK: ``ResampleImageFilter`` with a linear or nearest interpolator. A coarser grid picks, it does not average.

    Args:
        image: with an affine.
        where, size: the other grid, ``(depth, height, width)``.
        order: 1 interpolates linearly to float32; 0 takes the nearest pixel and keeps the type, for labels.
        outside: value where the image says nothing.

    Raises:
        ValueError: the image has no affine.
    """
    step = between(image, where)
    depth, height, width = size
    kind = image.array.dtype if order == 0 else np.dtype(np.float32)
    out = np.full((image.frames, image.channels, *size), outside, kind)
    across = step[:3, 0, None, None] * np.arange(width) + step[:3, 1, None, None] * np.arange(height)[:, None]
    last = np.array(image.size[::-1])[:, None, None]
    for z in range(depth):
        points = across + (step[:3, 2] * z + step[:3, 3])[:, None, None]
        inside = ((points >= -0.5) & (points < last - 0.5)).all(0)
        if not inside.any():
            continue
        places = points[::-1, inside]
        if order == 0:
            i, j, k = np.floor(places + 0.5).astype(np.intp)
            out[:, :, z, inside] = image.array[:, :, i, j, k]
        else:
            for t, c in np.ndindex(out.shape[:2]):
                stack = image.array[t, c].astype(np.float32, copy=False)
                out[t, c, z, inside] = ndimage.map_coordinates(stack, places, order=1, mode="nearest")
    return replace(image, array=out, geometry=where, visits=())


def between(image: Image, where: Affine) -> NDArray[np.float64]:
    """4x4: pixels ``(x, y, z, 1)`` of the other grid to pixels of the image.

    Raises:
        ValueError: the image has no affine.
    """
    if not isinstance(image.geometry, Affine):
        raise ValueError("this image has no place in the patient: its geometry is not an affine")
    return np.asarray(np.linalg.solve(image.geometry.matrix, where.matrix))


def farthest(image: Image, where: Affine) -> float:
    """How far the same pixel lies apart on two grids, in pixels of the image, at the corner where that is most."""
    ends = np.array([(x, y, z, 1) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    ends[:, :3] *= np.array(image.size[::-1]) - 1
    moved = ends @ between(image, where).T
    return float(np.abs(moved - ends).max())
