"""Augmentations of a training batch: one a file.

Every file holds ``Options`` (a frozen dataclass of plain types; ``probability`` among them) and
``apply(images, options, key) -> images`` on a float32 batch ``(b, c, d, h, w)`` whose intensities were
normalised to about mean 0, standard deviation 1, with one 64-bit key for each image (``osler.draws``). Depth 1
means 2D. Each image's result depends on its own pixels and its own key only, never on its place in the batch.
The batch that was handed in is never changed; where nothing is to be done it is returned itself.

A file whose transform moves pixels also holds ``move_masks(masks, options, key) -> masks``, which moves labels of
any type along with the images of the same keys; each pixel takes the label of the nearest; and
``move_boxes(boxes, options, key, size) -> boxes``, which moves the boxes ``(n, 7)`` of one image of that size (edges
and class) and drops those of which too little is left. A file may compute with the loops of ``osler.kernels`` where
:func:`loops` finds them, and must give the same numbers without them, but for rounding.
"""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from osler import kernels

# From so many pixels a batch on, a training is long enough for the seconds that compiling takes.
_PAYS = 1 << 19


def loops(name: str, images: Shaped[Tensor, "b c d h w"]) -> ModuleType | None:
    """The compiled loops ``osler.kernels.<name>`` if they pay: many pixels, on the processor, and numba is there.

    It depends on the batch's shape, type and device only, so that a training resumes to the same bits.
    """
    pays = images.device.type == "cpu" and images.numel() >= _PAYS and not images.requires_grad
    return kernels.find(name) if pays else None


def target(images: Shaped[Tensor, "b c d h w"], rows: NDArray[np.intp]) -> Shaped[Tensor, "b c d h w"]:
    """Where the result goes: a copy of the images, whose pixels are not set yet where all images will change."""
    if len(rows) == len(images):
        return torch.empty(images.shape, dtype=images.dtype, device=images.device)
    return images.clone(memory_format=torch.contiguous_format)


def spread(work: Callable[[tuple[int, int]], object], count: int) -> None:
    """:func:`osler.kernels.spread` on torch's number of threads, for loops that take their range as a pair."""
    kernels.spread(lambda first, last: work((first, last)), count, torch.get_num_threads())
