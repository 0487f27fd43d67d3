"""Gaussian blur."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from osler.draws import uniform
from osler.transforms import loops, spread, target


@dataclass(frozen=True)
class Options:
    """How much is blurred.

    Attributes:
        probability: share of the images that are blurred.
        low, high: the Gaussian's sigma is drawn uniformly between them, pixels, the same along all axes.
    """

    probability: float = 0.1
    low: float = 0.3
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("blur: probability must lie between 0 and 1")
        if not 0 < self.low <= self.high:
            raise ValueError("blur: sigmas need 0 < low <= high")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Blurs each chosen image with a sigma of its own, beyond the edge the edge's pixels.

    The blur is separable; along each axis it is one small matrix for each image, which on a processor is as
    fast as a convolution and lets every image have its own width.
    """
    rows = np.flatnonzero(uniform(key, "blur/apply") < options.probability)
    if not len(rows):
        return images
    radius, result = int(4 * options.high + 0.5), target(images, rows)
    deviation = uniform(key[rows], "blur/sigma", (), options.low, options.high)
    loop = loops("grey", images)
    if loop is not None:
        before, after = images.contiguous().numpy(), result.numpy()
        weights = _weights(torch.from_numpy(deviation).float(), radius)[:, radius:].contiguous().numpy()
        count = len(rows) * images.shape[1] * images.shape[2]
        spread(lambda planes: loop.blur(before, after, rows, weights, planes), count)
        return result
    chosen = torch.from_numpy(rows).to(images.device)
    sigma = torch.from_numpy(deviation).to(images)
    depth, height, width = images.shape[2:]
    blurred = torch.einsum("bcdhw,bxw->bcdhx", images[chosen], _kernel(sigma, width, radius))
    blurred = torch.einsum("bcdhw,byh->bcdyw", blurred, _kernel(sigma, height, radius))
    if depth > 1:
        blurred = torch.einsum("bcdhw,bzd->bczhw", blurred, _kernel(sigma, depth, radius))
    result[chosen] = blurred
    return result


def _kernel(sigma: Float32[Tensor, " b"], size: int, radius: int) -> Float32[Tensor, "b n n"]:
    """The blur of an axis as a matrix: row ``i`` holds what pixel ``i`` takes from each pixel."""
    weight = _weights(sigma, radius)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    source = (torch.arange(size, device=sigma.device)[:, None] + offset).clamp(0, size - 1)
    return torch.einsum("bk,ikj->bij", weight, one_hot(source, size).to(weight))


def _weights(sigma: Float32[Tensor, " b"], radius: int) -> Float32[Tensor, "b taps"]:
    """What a pixel takes from itself (in the middle) and from those up to ``radius`` away."""
    weight = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=sigma.device) / sigma[:, None]) ** 2)
    return weight / weight.sum(1, keepdim=True)
