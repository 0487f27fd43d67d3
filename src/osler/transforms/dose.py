"""The noise of a CT scan at a lower dose: grainy, and most where the rays passed through the most tissue."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import normal, uniform


@dataclass(frozen=True)
class Options:
    """How much lower the dose is.

    Attributes:
        probability: share of the images that get noise.
        low, high: the noise's root mean square over the image is drawn uniformly between them, in standard
            deviations of the normalised image. Noise of the deviation n at full dose is ``n sqrt(1/f - 1)`` more at
            the share f of it.
        attenuation: logarithm by which a ray of mean length is weakened, beyond what a bow-tie filter evens out.
    """

    probability: float = 0.2
    low: float = 0.05
    high: float = 0.3
    attenuation: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("dose: probability must lie between 0 and 1")
        if not (0 <= self.low <= self.high and self.attenuation >= 0):
            raise ValueError("dose: needs 0 <= low <= high and attenuation >= 0")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Adds noise with the spectrum and the distribution that filtered back-projection gives it.

    Its spectrum rises with the frequency, as the ramp filter does, and falls with the smoothing of the kernel, here
    Hann's (Kijewski and Judy, Physics in Medicine and Biology 32(5), 1987); slices are independent. Its local
    variance is :func:`variance`. The image's minimum counts as air, which is right in Hounsfield units where some
    air is seen, and under any window whose lower end is dark.
    """
    rows = np.flatnonzero(uniform(key, "dose/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    white = torch.from_numpy(normal(key, "dose", tuple(images.shape[2:]))).to(images)[:, None]
    transfer = torch.from_numpy(_transfer(*images.shape[3:])).to(images)
    grain = torch.fft.ifft2(torch.fft.fft2(white) * transfer).real
    local = variance(images[chosen], options.attenuation)
    deviation = torch.from_numpy(uniform(key, "dose/deviation", (1, 1, 1, 1), options.low, options.high)).to(images)
    result = images.clone()
    result[chosen] += grain * local.sqrt() * deviation
    return result


def variance(images: Float32[Tensor, "b c d h w"], attenuation: float) -> Float32[Tensor, "b 1 d h w"]:
    """The relative variance of the noise at each pixel, its mean over an image 1.

    A ray that is weakened by ``exp(-p)`` brings that share of the quanta, so its logarithm has a variance that grows
    as ``exp(p)`` (Zeng et al., IEEE Transactions on Nuclear Science 62(5), 2015). A pixel takes the mean over the
    rays through it; those along its row, its column and its two diagonals stand for all. At ``exp(8)`` electronic
    noise takes over.
    """
    signal = (images - images.amin((1, 2, 3, 4), keepdim=True)).mean(1, keepdim=True)
    height, width = signal.shape[3:]
    mean = signal.mean((2, 3, 4), keepdim=True).clamp_min(1e-12) * (height * width) ** 0.5
    rays = (
        signal.sum(3, keepdim=True),
        signal.sum(4, keepdim=True),
        _falling(signal),
        _falling(signal.flip(4)).flip(4),
    )
    summed = torch.zeros_like(signal)
    for ray in rays:
        summed += (attenuation * ray / mean).clamp_max(8.0).exp()
    return summed / summed.mean((2, 3, 4), keepdim=True)


def _falling(signal: Float32[Tensor, "b 1 d h w"]) -> Float32[Tensor, "b 1 d h w"]:
    """The integral along each pixel's diagonal from the upper left to the lower right."""
    height, width = signal.shape[3:]
    steps = torch.arange(width, device=signal.device) - torch.arange(height, device=signal.device)[:, None]
    line = (steps + height - 1).flatten()
    sums = signal.new_zeros(*signal.shape[:3], height + width - 1).index_add_(3, line, signal.flatten(3))
    return 2**0.5 * sums[..., line].view_as(signal)


def _transfer(height: int, width: int) -> NDArray[np.float64]:
    """What white noise is filtered with: root of the ramp times Hann's window, with a mean square of 1."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    transfer = np.sqrt(radius) * np.where(radius < 0.5, 0.5 + 0.5 * np.cos(2 * np.pi * radius), 0.0)
    return np.asarray(transfer / max(float(np.sqrt(np.mean(transfer**2))), 1e-12))
