"""The gain of an ultrasound machine, set by depth: bands that are too bright or too dark."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How far the gain is off.

    Attributes:
        probability: share of the images whose gain is off.
        overall: largest change of the gain at all depths, natural logarithm, to either side.
        strength: largest further change at each slider, natural logarithm, to either side.
        sliders: of the time-gain compensation, evenly spaced over the depth.
    """

    probability: float = 0.3
    overall: float = 0.2
    strength: float = 0.3
    sliders: int = 6

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("gain: probability must lie between 0 and 1")
        if self.overall < 0 or self.strength < 0 or self.sliders < 2:
            raise ValueError("gain: needs sliders >= 2 and no negative amounts")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Multiplies each row of each chosen image by its gain, the probe being at the top.

    Echoes from deeper tissue are weaker and are amplified more, by sliders for bands of depth; a wrong one leaves a
    bright or dark band (Kremkau and Taylor, Journal of Ultrasound in Medicine 5(4), 1986). The image's minimum
    counts as no echo; a product, and not the sum that decibels would ask for, keeps the margin of a sector black.
    """
    rows = np.flatnonzero(uniform(key, "gain/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    factor = torch.from_numpy(gains(options, key, images.shape[3])).to(images)[:, None, None, :, None]
    before = images[chosen]
    low = before.amin((1, 2, 3, 4), keepdim=True)
    result = images.clone()
    result[chosen] = (before - low) * factor + low
    return result


def gains(options: Options, key: NDArray[np.uint64], height: int) -> NDArray[np.float64]:
    """The factor of each row, ``(b, height)``; its logarithm is linear between sliders."""
    setting = uniform(key, "gain/overall", (1,), -options.overall, options.overall)
    setting = setting + uniform(key, "gain/sliders", (options.sliders,), -options.strength, options.strength)
    place = (np.arange(height) + 0.5) / height * (options.sliders - 1)
    below = np.minimum(place.astype(np.intp), options.sliders - 2)
    part = place - below
    return np.asarray(np.exp(setting[:, below] * (1 - part) + setting[:, below + 1] * part))
