"""The grid on which a network works, and the way back to the image as it was read."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from osler.image import Image
from osler.problem import Problem
from osler.recipe import ImagePlan, Recipe


@dataclass(frozen=True)
class Grid:
    """Two grids over the same field of view: pixel edges at its ends coincide.

    Attributes:
        original: ``(depth, height, width)`` of the image as it was read.
        size: the same on the working grid.
        start: where the image begins there, and
        whole: the size of that grid; by default the image fills it.
    """

    original: tuple[int, int, int]
    size: tuple[int, int, int]
    start: tuple[int, int, int] = (0, 0, 0)
    whole: tuple[int, int, int] | None = None

    @property
    def window(self) -> tuple[slice, ...]:
        """The part of the working grid that the image covers."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))

    def to(self, image: Image) -> Image:
        """The image on the working grid, linearly; what is outside of it is as dark as its darkest pixel."""
        moved = image.resample(self.size)
        return moved if self.whole is None or self.whole == self.size else moved.pad(self.start, self.whole)

    def labels_to(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A label map ``(depth, height, width)`` on the working grid, by the nearest pixel; outside it is 0."""
        moved = Image(labels[None, None]).resample(self.size, order=0).array[0, 0]
        if self.whole not in (None, self.size):
            canvas = np.zeros(self.whole, np.uint8)
            canvas[self.window] = moved
            moved = canvas
        return np.ascontiguousarray(moved, np.uint8)

    def back(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values ``(k, depth, height, width)`` of the working grid on the image's own, linearly."""
        inside = values if self.whole is None else values[(slice(None), *self.window)]
        if self.size == self.original:
            return inside
        found = np.empty((len(values), *self.original), np.float32)
        for k, one in enumerate(inside):  # of a CT with ten classes not all fit into memory several times
            found[k] = Image(one[None, None]).resample(self.original).array[0, 0]
        return found

    def boxes_to(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes ``(n, 6)``, start and stop as (depth, height, width) edges, on the working grid."""
        return self._scaled(boxes, np.array(self.size) / self.original) + np.tile(np.array(self.start, np.float32), 2)

    def boxes_back(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes of the working grid on the image's own, cut at its edges."""
        inside = boxes - np.tile(np.array(self.start, np.float32), 2)
        moved = self._scaled(inside, np.array(self.original) / self.size)
        return moved.clip(0, np.tile(self.original, 2)).astype(np.float32)

    @staticmethod
    def _scaled(boxes: NDArray[np.floating], factors: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.asarray(boxes * np.tile(factors, 2), np.float32).reshape(-1, 6)


def fit(image: Image, plan: ImagePlan) -> Grid:
    """An image in ``plan.size``: stretched to all of it, or with ``pad`` in its middle, keeping its shape."""
    if plan.fit == "stretch":
        return Grid(image.size, plan.size, whole=plan.size)
    _, height, width = image.size
    spacing = image.spacing
    tall, wide = (height, width) if spacing is None else (height * spacing[1], width * spacing[2])
    factor = min(plan.size[1] / tall, plan.size[2] / wide)
    size = (plan.size[0], max(1, round(tall * factor)), max(1, round(wide * factor)))
    start = (0, (plan.size[1] - size[1]) // 2, (plan.size[2] - size[2]) // 2)
    return Grid(image.size, size, start, plan.size)


def find(image: Image, plan: Recipe) -> Grid:
    """The working grid of an image; linked tasks see it whole.

    Raises:
        Problem: the recipe counts in millimetres, and the image does not know its own.
    """
    if plan.linked:
        return fit(image, plan.image)
    chosen = plan.patches
    if chosen.unit == "px" and chosen.longest:
        _, height, width = image.size
        factor = chosen.longest / max(height, width)
        return Grid(image.size, (image.size[0], max(1, round(height * factor)), max(1, round(width * factor))))
    known: tuple[float | None, ...] | None = (1.0, 1.0, 1.0) if chosen.unit == "px" else image.spacing
    if known is None or (chosen.unit == "mm" and image.size[0] > 1 and known[0] is None and chosen.spacing[0]):
        raise Problem(
            "the model counts in millimetres, and this image does not say how far apart its pixels are",
            fix="give a file that states it, or train with patches.unit=px",
        )
    size = [
        max(1, round(n * old / new)) if new and old else n
        for n, old, new in zip(image.size, known, chosen.spacing, strict=True)
    ]
    return Grid(image.size, (size[0], size[1], size[2]))


def standardised(image: Image) -> Image:
    """Mean 0 and standard deviation 1, each channel of the whole image: for scanners without a common scale."""
    array = image.array.astype(np.float32)
    mean = array.mean((0, 2, 3, 4), keepdims=True)
    spread = array.std((0, 2, 3, 4), keepdims=True)
    return replace(image, array=(array - mean) / np.where(spread > 0, spread, 1))
