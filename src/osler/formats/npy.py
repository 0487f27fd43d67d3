"""NumPy arrays of one image, in Osler's own shape: what ``osler.Classifier`` hands over."""

from pathlib import Path

import numpy as np

from osler.case import Source
from osler.image import Image
from osler.problem import Problem


def matches(path: Path) -> bool:
    """By name."""
    return path.is_file() and path.suffix.lower() == ".npy"


def read(source: Source) -> Image:
    """An array ``(time, channel, depth, height, width)``, or ``(height, width)``, without geometry.

    Raises:
        Problem: it is not a plain numeric array of such a shape; nothing is ever unpickled.
    """
    try:
        array = np.load(source.path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        what = f"this is not a plain NumPy array ({str(error)[:80]})"
        raise Problem(what, path=source.path, fix="save numbers with numpy.save, not objects") from error
    if array.ndim == 2:
        array = array[None, None, None]
    if array.ndim != 5 or array.size == 0 or array.dtype.kind not in "uifb":
        raise Problem(
            f"an array must be (time, channel, depth, height, width) or (height, width); this is {array.shape}",
            path=source.path,
            fix="save it in that shape",
        )
    return Image(array)
