"""A spike in k-space, from a spark or a loose contact: stripes over the whole MR image."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How strong and how fine the stripes are.

    Attributes:
        probability: share of the images that get stripes.
        low, high: their amplitude is drawn uniformly between them, in standard deviations of the normalised image.
        coarsest, finest: their spatial frequency is drawn uniformly between them, cycles a pixel.
    """

    probability: float = 0.05
    low: float = 0.1
    high: float = 0.4
    coarsest: float = 0.03
    finest: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("spike: probability must lie between 0 and 1")
        if not (0 <= self.low <= self.high and 0 < self.coarsest <= self.finest <= 0.5):
            raise ValueError("spike: needs 0 <= low <= high and 0 < coarsest <= finest <= 0.5")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Adds one point of k-space to each chosen image; the image's minimum counts as no signal.

    A point alone, without its Hermitian mirror, is one complex wave of amplitude A, so a pixel of signal s shows
    the magnitude ``|s + A exp(i phi)|``: where there is much signal a cosine, where there is none an even veil
    (Stadler et al., European Radiology 17, 2007).
    """
    rows = np.flatnonzero(uniform(key, "spike/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    size = tuple(images.shape[2:])
    phase = 2 * np.pi * uniform(key, "spike/phase", (1, 1, 1, 1))
    for axis, (n, cycles) in enumerate(zip(size, frequency(options, key, size).T, strict=True)):
        along = np.arange(n).reshape([n if axis == other else 1 for other in range(3)])
        phase = phase + (2 * np.pi / n) * cycles[:, None, None, None, None] * along
    height = uniform(key, "spike/amplitude", (1, 1, 1, 1), options.low, options.high)
    low = images[chosen].amin((1, 2, 3, 4), keepdim=True)
    real = images[chosen] - low + torch.from_numpy(height * np.cos(phase)).to(images)
    result = images.clone()
    result[chosen] = torch.hypot(real, torch.from_numpy(height * np.sin(phase)).to(images)) + low
    return result


def frequency(options: Options, key: NDArray[np.uint64], size: tuple[int, ...]) -> NDArray[np.float64]:
    """Whole cycles along each axis, ``(b, 3)``; not all are 0 where an axis has more than one pixel."""
    count = np.array(size)
    towards = uniform(key, "spike/direction", (3,), -1.0, 1.0) * (count > 1)
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
    cycles = np.round(towards * uniform(key, "spike/frequency", (1,), options.coarsest, options.finest) * count)
    longest = int(count.argmax())
    cycles[~cycles.any(1), longest] = float(count[longest] > 1)
    return np.asarray(cycles)
