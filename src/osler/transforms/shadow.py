"""Acoustic shadows and enhancement in ultrasound: darker behind what reflects, brighter behind fluid."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How dark, how wide and how often.

    Attributes:
        probability: share of the images that get a shadow or an enhancement.
        low, high: share of the brightness that a shadow takes away is drawn uniformly between them.
        enhancement_probability: share of those that become brighter instead, by half as much.
        narrowest, widest: its width is drawn uniformly between them, as a fraction of the image's width.
        fan: beams spread by up to this factor more from the top of the image to its bottom; 0 is a linear probe.
    """

    probability: float = 0.2
    low: float = 0.2
    high: float = 0.7
    enhancement_probability: float = 0.3
    narrowest: float = 0.05
    widest: float = 0.25
    fan: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 <= self.enhancement_probability <= 1):
            raise ValueError("shadow: a probability must lie between 0 and 1")
        if not (0 <= self.low <= self.high <= 1 and 0 < self.narrowest <= self.widest and self.fan >= 0):
            raise ValueError("shadow: needs 0 <= low <= high <= 1, 0 < narrowest <= widest and fan >= 0")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Multiplies each chosen image by :func:`transmission`; its minimum counts as no echo, the probe is at the top.

    What attenuates more than its surroundings casts a shadow along the beams behind it, what attenuates less a
    brighter band (Feldman, Katyal and Blackwood, RadioGraphics 29(4), 2009). In decibels a display would subtract;
    a product keeps black what is black, the margin beside a sector above all.
    """
    rows = np.flatnonzero(uniform(key, "shadow/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    factor = torch.from_numpy(transmission(options, key, *images.shape[3:])).to(images)[:, None, None]
    before = images[chosen]
    low = before.amin((1, 2, 3, 4), keepdim=True)
    result = images.clone()
    result[chosen] = (before - low) * factor + low
    return result


def transmission(options: Options, key: NDArray[np.uint64], height: int, width: int) -> NDArray[np.float64]:
    """What remains of the brightness, ``(b, height, width)``: 1 above the object and beside its beams."""
    y = (np.arange(height)[:, None] + 0.5) / height
    x = (np.arange(width) + 0.5) / width - 0.5
    spread = uniform(key, "shadow/fan", (1, 1), 0.0, options.fan)
    beam = x / (1 + spread * y)
    side = uniform(key, "shadow/width", (1, 1), options.narrowest, options.widest) / 2
    at = uniform(key, "shadow/beam", (1, 1), -0.35, 0.35)
    start = uniform(key, "shadow/depth", (1, 1), 0.1, 0.6)
    # Edges of beams are soft; the object itself is some percent of the image deep.
    edge = 1 / (1 + np.exp(np.clip((np.abs(beam - at) - side) / (0.2 * side), -60, 60)))
    behind = np.clip((y - start) / 0.05, 0, 1)
    lost = uniform(key, "shadow/lost", (1, 1), options.low, options.high)
    brighter = uniform(key, "shadow/enhancement", (1, 1)) < options.enhancement_probability
    return np.asarray(1 - np.where(brighter, -lost / 2, lost) * edge * behind)
