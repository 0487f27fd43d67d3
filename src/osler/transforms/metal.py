"""A piece of metal in a CT scan: a bright spot, and streaks that start from it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import normal, uniform

_ANGLES, _HARMONICS = 720, 40


@dataclass(frozen=True)
class Options:
    """How large the metal is and how strong its streaks.

    Attributes:
        probability: share of the images that get metal.
        smallest, largest: its radius is drawn uniformly between them, as a fraction of the image's shorter side.
        low, high: the deviation of the streaks at its surface is drawn uniformly between them, in standard
            deviations of the normalised image.
    """

    probability: float = 0.05
    smallest: float = 0.015
    largest: float = 0.05
    low: float = 0.3
    high: float = 1.2

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("metal: probability must lie between 0 and 1")
        if not (0 < self.smallest <= self.largest and 0 <= self.low <= self.high):
            raise ValueError("metal: needs 0 < smallest <= largest and 0 <= low <= high")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Puts a round piece of metal, as bright as the image's maximum, into the middle of each chosen image.

    Rays through metal bring next to no quanta, so each view errs by itself, and back-projection draws its error out
    into a line through the metal (De Man et al., IEEE Transactions on Nuclear Science 46(3), 1999). At a distance r
    from metal of radius R, R/r of the views overlap; since their errors are independent, streaks fall with the root
    of that. They stay within the metal's slices.
    """
    rows = np.flatnonzero(uniform(key, "metal/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    depth, height, width = images.shape[2:]
    side = min(height, width)
    radius = side * uniform(key, "metal/radius", (1, 1, 1), options.smallest, options.largest)
    z, y, x = uniform(key, "metal/centre", (3, 1, 1, 1), 0.3, 0.7).swapaxes(0, 1)
    down = np.arange(height)[:, None] + 0.5 - y * height
    across = np.arange(width) + 0.5 - x * width
    away = (np.arange(depth)[:, None, None] + 0.5 - z * depth) / max(1.0, 0.1 * depth)
    inside = np.exp(-0.5 * away**2) if depth > 1 else np.ones((len(rows), 1, 1, 1))
    distance = np.hypot(down, across)
    place = (np.arctan2(down, across) / np.pi * _ANGLES).astype(np.intp) % _ANGLES
    streak = np.take_along_axis(streaks(key), place.reshape(len(rows), -1), 1).reshape(distance.shape)
    strength = uniform(key, "metal/strength", (1, 1, 1), options.low, options.high)
    error = (streak * strength * np.sqrt(radius / np.maximum(distance, radius))) * inside
    metal = torch.from_numpy(np.clip(radius - distance + 0.5, 0, 1) * (inside > 0.5)).to(images)[:, None]
    before = images[chosen]
    result = images.clone()
    result[chosen] = torch.lerp(
        before + torch.from_numpy(error).to(images)[:, None], before.amax((1, 2, 3, 4), keepdim=True), metal
    )
    return result


def streaks(key: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The error of the views over half a turn, ``(b, angles)``: mean 0, deviation 1, periodic."""
    waves = normal(key, "metal/streaks", (_HARMONICS, 2)).view(np.complex128)[..., 0]
    error = np.fft.irfft(np.concatenate([np.zeros((len(key), 1)), waves], 1), _ANGLES)
    return np.asarray(error / error.std(1, keepdims=True))
