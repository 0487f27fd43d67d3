"""The edge of the X-ray field: a border, black or white, outside a slightly turned rectangle."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How much of the image lies outside the field.

    Attributes:
        probability: share of the images that get a border.
        low, high: width of the border at each side, drawn uniformly between them, as a fraction of the image's size.
        rotation: largest angle of the field, degrees, to either side.
        white_probability: share of those whose border is white, as film and detector leave it where no ray comes; the
            others are black, as viewers mask it.
    """

    probability: float = 0.2
    low: float = 0.01
    high: float = 0.1
    rotation: float = 3.0
    white_probability: float = 0.3

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 <= self.white_probability <= 1):
            raise ValueError("collimation: a probability must lie between 0 and 1")
        if not 0 <= self.low <= self.high < 0.5:
            raise ValueError("collimation: needs 0 <= low <= high < 0.5")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Sets what is outside each chosen image's field to its minimum or maximum; what is inside stays to the bit.

    The collimator of the tube bounds the field, a display shutter blackens the rest (DICOM PS3.3, X-Ray Collimator
    and Display Shutter). Both are set by hand and differ between rooms and hospitals, as diseases do, and networks
    tell hospitals apart (Zech et al., PLOS Medicine 15(11), 2018).
    """
    rows = np.flatnonzero(uniform(key, "collimation/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    outside = torch.from_numpy(1 - inside(options, key, *images.shape[3:])).to(images)[:, None, None]
    white = torch.from_numpy(uniform(key, "collimation/white", (1, 1, 1, 1)) < options.white_probability)
    before = images[chosen]
    border = torch.where(
        white.to(images.device), before.amax((1, 2, 3, 4), keepdim=True), before.amin((1, 2, 3, 4), keepdim=True)
    )
    result = images.clone()
    result[chosen] = torch.where(outside == 0, before, torch.lerp(before, border, outside))
    return result


def inside(options: Options, key: NDArray[np.uint64], height: int, width: int) -> NDArray[np.float64]:
    """About the share of each pixel that lies in the field, ``(b, height, width)``."""
    size = np.array([height, width])
    first, last = (
        uniform(key, f"collimation/{end}", (2, 1, 1), options.low, options.high) for end in ("first", "last")
    )
    angle = np.deg2rad(uniform(key, "collimation/rotation", (1, 1), -options.rotation, options.rotation))
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    turned = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    share = np.ones((len(key), height, width))
    for axis, place in enumerate(turned):
        half, n = size[axis] / 2, size[axis]
        share *= np.clip(place + half - n * first[:, axis] + 0.5, 0, 1)
        share *= np.clip(half - n * last[:, axis] - place + 0.5, 0, 1)
    return share
