"""Speckle in ultrasound: grains, longer across the beam than along it, brighter where the tissue is brighter."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import normal, uniform


@dataclass(frozen=True)
class Options:
    """How strong and how coarse the speckle is.

    Attributes:
        probability: share of the images that get speckle of their own.
        low, high: share of the brightness that is speckle, drawn uniformly between them; 1 is fully developed.
        along, across: largest sigma of the pulse along the beam (y) and across it (x), pixels; an image's is half of
            that to all of it.
    """

    probability: float = 0.3
    low: float = 0.1
    high: float = 0.4
    along: float = 0.7
    across: float = 1.4

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("speckle: probability must lie between 0 and 1")
        if not (0 <= self.low <= self.high <= 1 and self.along > 0 and self.across > 0):
            raise ValueError("speckle: needs 0 <= low <= high <= 1 and positive sigmas")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Multiplies each chosen image by 1 plus a share of (:func:`grains` - 1); its minimum counts as no echo.

    So the mean brightness stays and black stays black. The amplitude of the echo of many scatterers follows
    Rayleigh's law (Wagner et al., IEEE Transactions on Sonics and Ultrasonics 30(3), 1983). A display compresses it
    to about its logarithm, which narrows the law: hence a share and not all of it.
    """
    rows = np.flatnonzero(uniform(key, "speckle/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    share = uniform(key, "speckle/share", (1, 1, 1), options.low, options.high)
    factor = torch.from_numpy(1 + share * (grains(options, key, tuple(images.shape[2:])) - 1)).to(images)[:, None]
    before = images[chosen]
    low = before.amin((1, 2, 3, 4), keepdim=True)
    result = images.clone()
    result[chosen] = (before - low) * factor + low
    return result


def grains(options: Options, key: NDArray[np.uint64], size: tuple[int, ...]) -> NDArray[np.float64]:
    """Fully developed speckle of mean 1, ``(b, depth, height, width)``; each slice has its own.

    The magnitude of complex Gaussian noise that was smoothed by the pulse, a Gaussian.
    """
    sigma = (
        uniform(key, "speckle/sigma", (2, 1, 1), 0.5, 1.0) * np.array([options.along, options.across])[:, None, None]
    )
    frequency = np.fft.fftfreq(size[1])[:, None] * sigma[:, 0], np.fft.fftfreq(size[2]) * sigma[:, 1]
    transfer = np.exp(-2 * np.pi**2 * (frequency[0] ** 2 + frequency[1] ** 2))[:, None]
    transfer /= np.sqrt(np.mean(transfer**2, axis=(2, 3), keepdims=True))
    white = normal(key, "speckle", (*size, 2)).view(np.complex128)[..., 0]
    echo = np.fft.ifft2(np.fft.fft2(white) * transfer)
    return np.asarray(np.abs(echo) / np.sqrt(np.pi / 2))
