"""A box of the image is blanked (Zhong et al., 2020; DeVries and Taylor, 2017)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How much is erased. Off unless asked for: a box can hide the very lesion that the label speaks of.

    Attributes:
        probability: share of the images that lose a box.
        low, high: each side of the box is drawn uniformly between them, as a fraction of the image's size.
    """

    probability: float = 0.0
    low: float = 0.05
    high: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("erase: probability must lie between 0 and 1")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError("erase: sides need 0 <= low <= high <= 1")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Replaces one box of each chosen image, which lies wholly inside it, by the mean of each of its channels."""
    rows = np.flatnonzero(uniform(key, "erase/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    sides = uniform(key, "erase/sides", (3,), options.low, options.high)
    starts = uniform(key, "erase/starts", (3,)) * (1 - sides)
    box = np.ones((len(rows), 1, 1, 1, 1), dtype=bool)
    for axis, size in enumerate(images.shape[2:]):
        if size > 1:
            place = (np.arange(size) + 0.5) / size
            inside = (place >= starts[:, axis, None]) & (place < (starts + sides)[:, axis, None])
            shape = [1] * 5
            shape[0], shape[2 + axis] = len(rows), size
            box = box & inside.reshape(shape)
    before = images[chosen]
    result = images.clone()
    mean = before.mean((2, 3, 4), keepdim=True)
    result[chosen] = torch.where(torch.from_numpy(box).to(images.device), mean, before)
    return result
