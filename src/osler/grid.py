"""The grid on which a dense network works, and the way back to the image as it was read."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from osler.image import Image
from osler.problem import Problem
from osler.recipe import Recipe


@dataclass(frozen=True)
class Grid:
    """Two grids over the same field of view: pixel edges at its ends coincide.

    Attributes:
        original: ``(depth, height, width)`` of the image as it was read.
        size: the same of the working grid.
    """

    original: tuple[int, int, int]
    size: tuple[int, int, int]

    def to(self, image: Image) -> Image:
        """The image on the working grid, linearly."""
        return image.resample(self.size)

    def labels_to(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A label map ``(depth, height, width)`` on the working grid, by the nearest pixel."""
        moved = Image(labels[None, None]).resample(self.size, order=0).array[0, 0]
        return np.ascontiguousarray(moved, np.uint8)

    def back(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values ``(k, depth, height, width)`` of the working grid on the image's own, linearly."""
        if self.size == self.original:
            return values
        found = np.empty((len(values), *self.original), np.float32)
        for k, one in enumerate(values):  # of a CT with ten classes not all fit into memory several times
            found[k] = Image(one[None, None]).resample(self.original).array[0, 0]
        return found

    def boxes_to(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes ``(n, 6)``, start and stop as (depth, height, width) edges, on the working grid."""
        return self._scaled(boxes, np.array(self.size) / self.original)

    def boxes_back(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes of the working grid on the image's own, cut at its edges."""
        moved = self._scaled(boxes, np.array(self.original) / self.size)
        return moved.clip(0, np.tile(self.original, 2)).astype(np.float32)

    @staticmethod
    def _scaled(boxes: NDArray[np.floating], factors: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.asarray(boxes * np.tile(factors, 2), np.float32).reshape(-1, 6)


def find(image: Image, plan: Recipe) -> Grid:
    """The working grid of an image.

    Raises:
        Problem: the recipe counts in millimetres, and the image does not know its own.
    """
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
