"""X-ray: cropped to the exposed field, where a straight border, black or white, lies around it."""

import numpy as np
from numpy.typing import NDArray

from osler.image import Image
from osler.preparations import Prepared, cropped

CROPS = True
# Share of the range by which a border may vary; of a side's length by which its edge may leave a straight line, how
# much of it must keep to that line, and how steep it may be (5 degrees); of the image, how wide a border may be; of
# the range again, how far the field must differ from it three pixels farther in; and how much that must be of what it
# differs by at the sixth pixel: a body begins thin, a field at once.
_EVEN, _STRAIGHT, _KEPT, _STEEP, _WIDEST, _STEP, _SHARP = 0.02, 0.006, 0.85, 0.09, 0.35, 0.06, 0.75
_SMALL = 64


def apply(image: Image) -> Prepared:
    """The rows and columns of the exposed field; wedges beside a turned field stay, so that no exposed pixel is lost.

    A border is what reaches from one side of the image inwards, as dark or as bright as anything in it, and ends at a
    straight line that is nearly parallel to that side; letters in it may interrupt it. Dark air beside a patient ends
    at the patient, which is no straight line, and stays.
    """
    depth, height, width = image.size
    if depth > 1 or min(height, width) < _SMALL:
        why = "a volume" if depth > 1 else f"fewer than {_SMALL} pixels"
        return Prepared(image, (f"no collimation border was looked for: {why}",))
    array = image.array[:, :, 0].astype(np.float32)
    low, high = float(array.min()), float(array.max())
    scale = max(high - low, 1e-30)
    # What is dark, and what is bright, at all moments and in all channels: from 0, as any border, to 1.
    found = [_widths((array.max((0, 1)) - low) / scale), _widths((high - array.min((0, 1))) / scale)]
    top, bottom, left, right = (max(each) for each in zip(*found, strict=True))
    if not any((top, bottom, left, right)):
        return Prepared(image, ("no collimation border was found",))
    first, last = (top, left), (height - bottom, width - right)
    share = (last[0] - first[0]) * (last[1] - first[1]) / (height * width)
    said = f"cropped to the collimated field, {share:.0%} of the image"
    return Prepared(cropped(image, first, last), (said,), (0, *first))


def _widths(away: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """How many rows and columns of a border there are at the top, at the bottom, at the left and at the right.

    ``away``: how far each pixel ``(height, width)`` is from a border's value, as a share of the range.
    """
    top, bottom, left, right = (_width(one) for one in (away, away[::-1], away.T, away[:, ::-1].T))
    return top, bottom, left, right


def _width(away: NDArray[np.float32]) -> int:
    """Rows at the top that lie outside the field everywhere; 0 where its edge is not straight, or not sharp."""
    height, width = away.shape
    border = away <= _EVEN
    # How far down the border reaches in each column; all the way in those of the borders at both sides.
    runs = np.where(border.all(0), height, border.argmin(0))
    columns = np.flatnonzero(runs < 0.6 * height)
    if len(columns) < 0.4 * width or (runs[columns] > 0).mean() < 0.5:
        return 0
    slope, offset = _line(columns, runs[columns])
    line = offset + slope * columns
    near = np.abs(runs[columns] - line) <= max(1.0, _STRAIGHT * width)
    rows = int(np.floor(line[[0, -1]].min()))
    if near.mean() < _KEPT or abs(slope) > _STEEP or not 1 <= rows <= _WIDEST * height:
        return 0
    at, deep = (float(np.median(away[np.minimum(runs[columns] + n, height - 1), columns])) for n in (2, 5))
    return rows if at > _STEP and at > _SHARP * deep else 0


def _line(x: NDArray[np.int64], y: NDArray[np.int64]) -> tuple[float, float]:
    """A line through most of the points (Theil 1950, of pairs that lie half of the way apart)."""
    half = len(x) // 2
    slope = float(np.median((y[half : 2 * half] - y[:half]) / (x[half : 2 * half] - x[:half])))
    return slope, float(np.median(y - slope * x))
