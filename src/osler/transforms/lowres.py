"""Low resolution, as from thick slices, an older machine or a small copy: down, then up again."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How coarse the images become.

    Attributes:
        probability: share of the images that are coarsened.
        plane: largest factor in the plane, >= 1; drawn uniformly from 1.
        slices: largest factor across the slices, >= 1, drawn on its own; 3D only.
    """

    probability: float = 0.1
    plane: float = 2.0
    slices: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("lowres: probability must lie between 0 and 1")
        if not (self.plane >= 1 and self.slices >= 1):
            raise ValueError("lowres: a factor must be at least 1")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Samples each chosen image down by its own factor and linearly up again."""
    rows = np.flatnonzero(uniform(key, "lowres/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    plane = torch.from_numpy(uniform(key, "lowres/plane", (), 1.0, options.plane)).to(images)
    depth, height, width = images.shape[2:]
    coarse = torch.einsum("bcdhw,bxw->bcdhx", images[chosen], down_up(plane, width))
    coarse = torch.einsum("bcdhw,byh->bcdyw", coarse, down_up(plane, height))
    if depth > 1:
        slices = torch.from_numpy(uniform(key, "lowres/slices", (), 1.0, options.slices)).to(images)
        coarse = torch.einsum("bcdhw,bzd->bczhw", coarse, down_up(slices, depth))
    result = images.clone()
    result[chosen] = coarse
    return result


def down_up(factor: Float32[Tensor, " b"], size: int) -> Float32[Tensor, "b n n"]:
    """Down by a factor and up again along an axis of ``size`` pixels, as one matrix for each factor.

    Down is antialiased by a triangle as wide as the factor, up is linear; pixel edges stay in place.
    """
    count = (size / factor).round().clamp_min(1)[:, None, None]
    step = size / count
    index = torch.arange(size, device=factor.device, dtype=factor.dtype)
    fine, coarse = index[None, None, :], index[None, :, None]
    down = (1 - ((fine + 0.5) / step - coarse - 0.5).abs()).clamp_min(0) * (coarse < count)
    down = down / down.sum(2, keepdim=True).clamp_min(1e-12)
    place = torch.minimum(((fine + 0.5) / step - 0.5).clamp_min(0), count - 1)
    up = (1 - (place - coarse).abs()).clamp_min(0)
    return up.transpose(1, 2) @ down
