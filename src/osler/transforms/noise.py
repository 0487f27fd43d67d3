"""Gaussian noise."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import start, uniform, white
from osler.transforms import loops, spread, target


@dataclass(frozen=True)
class Options:
    """How much noise is added.

    Attributes:
        probability: share of the images that get noise.
        low, high: the standard deviation is drawn uniformly between them, in the units of the normalised image.
    """

    probability: float = 0.2
    low: float = 0.0
    high: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("noise: probability must lie between 0 and 1")
        if not 0 <= self.low <= self.high:
            raise ValueError("noise: standard deviations need 0 <= low <= high")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Adds white Gaussian noise to each chosen image, with a standard deviation of its own."""
    rows = np.flatnonzero(uniform(key, "noise/apply") < options.probability)
    if not len(rows):
        return images
    key, result = key[rows], target(images, rows)
    deviation = uniform(key, "noise/deviation", (1,), options.low, options.high).astype(np.float32)
    flat, changed = images.reshape(len(images), -1), result.view(len(images), -1)
    loop = loops("grey", images)
    if loop is not None:
        before, after, starts = flat.numpy(), changed.numpy(), start(key, "noise")
        spread(
            lambda pieces: loop.noise(before, after, rows, starts, deviation[:, 0], pieces),
            len(rows) * loop.count((flat.shape[1] + 1) // 2),
        )
        return result
    noise = torch.from_numpy(white(key, "noise", flat.shape[1]) * deviation).to(images)
    chosen = torch.from_numpy(rows).to(images.device)
    changed[chosen] = flat[chosen] + noise
    return result
