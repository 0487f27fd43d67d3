"""Brightness, contrast, gamma and inversion."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How far grey values are changed; every amount is drawn uniformly, to either side.

    Attributes:
        probability: share of the images that are changed at all.
        brightness: largest amount added, in the units of the normalised image (1 is a standard deviation).
        contrast: largest change of contrast about the image's mean, natural logarithm.
        gamma: largest change of the exponent, natural logarithm; the image's own minimum and maximum stay.
        invert_probability: share of the changed images that are inverted, minimum to maximum.
    """

    probability: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    gamma: float = 0.3
    invert_probability: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 <= self.invert_probability <= 1):
            raise ValueError("intensity: a probability must lie between 0 and 1")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Changes the grey values of each chosen image; the order of its grey values is kept unless it is inverted."""
    rows = np.flatnonzero(uniform(key, "intensity/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)

    def draw(stream: str, size: float) -> Tensor:
        values = uniform(key, f"intensity/{stream}", (1, 1, 1, 1), -size, size)
        return torch.from_numpy(values).to(images)

    changed = images[chosen]
    if options.gamma:
        changed = bend(changed, draw("gamma", options.gamma).exp())
    if options.contrast:
        mean = changed.mean((1, 2, 3, 4), keepdim=True)
        changed = (changed - mean) * draw("contrast", options.contrast).exp() + mean
    if options.brightness:
        changed = changed + draw("brightness", options.brightness)
    if options.invert_probability:
        inverted = uniform(key, "intensity/invert", (1, 1, 1, 1)) < options.invert_probability
        ends = changed.amin((1, 2, 3, 4), keepdim=True) + changed.amax((1, 2, 3, 4), keepdim=True)
        changed = torch.where(torch.from_numpy(inverted).to(images.device), ends - changed, changed)
    result = images.clone()
    result[chosen] = changed
    return result


def bend(images: Float32[Tensor, "b c d h w"], gamma: Float32[Tensor, "b 1 1 1 1"]) -> Float32[Tensor, "b c d h w"]:
    """``low + range * ((x - low) / range) ** gamma`` over each image's own range; a constant image stays."""
    low = images.amin((1, 2, 3, 4), keepdim=True)
    reach = images.amax((1, 2, 3, 4), keepdim=True) - low
    return ((images - low) / reach.clamp_min(1e-12)).pow(gamma) * reach + low
