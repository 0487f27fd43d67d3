"""What is done to an image before it is resized, because of the machine that made it: one way a file.

Every file holds ``CROPS``, whether it takes away the margin of an image, and ``apply(image) -> Prepared``. What a
file finds it says in one sentence; what it is not sure of it leaves alone, and says that. Crops take away what shows
nothing, only from height and width, and the same in all moments.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from osler import catalog
from osler.image import Image
from osler.problem import Problem


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that was made ready.

    Attributes:
        image: it.
        said: what was done to it, or why it was left alone, a sentence each.
        start: ``(depth, height, width)`` where it begins in the image as it was read.
    """

    image: Image
    said: tuple[str, ...]
    start: tuple[int, int, int] = (0, 0, 0)

    def back(self, values: Float[np.ndarray, "d h w"], size: tuple[int, int, int]) -> Float[np.ndarray, "d2 h2 w2"]:
        """Values of its pixels at their places in the image as it was read, of that ``size``; 0 outside."""
        if size == values.shape:
            return values
        full = np.zeros(size, values.dtype)
        full[tuple(slice(a, a + n) for a, n in zip(self.start, values.shape, strict=True))] = values
        return full


# An answer and its explanation look at one image several times; what was made of it is kept as long as it is.
_made: "WeakKeyDictionary[Image, dict[tuple[Sequence[str], int], Prepared]]" = WeakKeyDictionary()
_lock = threading.Lock()


def prepared(image: Image, names: tuple[str, ...], moments: int) -> Prepared:
    """The image after these preparations, in their order.

    Args:
        image: as it was read.
        names: files of this folder.
        moments: at most so many of a sequence, evenly spaced: what others show plays no part.

    Raises:
        Problem: a library that one of them needs is not installed.
    """
    if not names:
        return Prepared(image.thinned(moments), ())
    with _lock:
        known = _made.setdefault(image, {})
    found = known.get((names, moments))
    if found is None:
        # A copy, so that what is kept does not keep what it is kept for.
        found = Prepared(replace(image.thinned(moments)), ())
        for name in names:
            step: Prepared = catalog.find("preparations", name).apply(found.image)
            start = tuple(a + b for a, b in zip(found.start, step.start, strict=True))
            found = Prepared(step.image, (*found.said, *step.said), start)  # type: ignore[arg-type]
        known[names, moments] = found
    return found


def check(names: Sequence[str], *, dense: bool) -> None:
    """What a recipe may name; ``dense``: beside a task that asks where something is.

    Raises:
        Problem: there is no such preparation, one comes twice, or a crop stands where places are asked.
    """
    margins = [name for name in names if catalog.find("preparations", name).CROPS]
    if len(set(names)) < len(names):
        raise Problem("in the recipe, image.prepare names something twice", fix="name it once")
    if margins and dense:
        what = f"in the recipe, image.prepare crops ({', '.join(margins)}) beside a task that asks where something is"
        raise Problem(f"{what}, which is answered on the image as it was read", fix="leave it out")


def cropped(image: Image, first: tuple[int, int], last: tuple[int, int]) -> Image:
    """Rows and columns from ``first`` up to (without) ``last``."""
    return image.crop((0, *first), (image.size[0], *last))


def otsu(values: NDArray[np.floating]) -> float:
    """The threshold that parts values into two groups whose means lie as far apart as may be (Otsu 1979).

    From 256 bins, of which it is the edge between two; values are finite.
    """
    counts, edges = np.histogram(values.astype(np.float64), 256)
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    middles = (edges[:-1] + edges[1:]) / 2
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    between = np.where((below > 0) & (above > 0), below * 1.0 * above * apart**2, 0.0)
    # Where nothing lies between the groups, every edge there is as good: the middle one is taken.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[best[len(best) // 2] + 1])


def by_volume(image: Image, work: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The result of ``work`` on each volume ``(depth, height, width)`` of each moment and channel, in one array."""
    found = np.empty(image.array.shape, np.float32)
    for place in np.ndindex(image.array.shape[:2]):
        found[place] = work(np.asarray(image.array[place], np.float32))
    return found
