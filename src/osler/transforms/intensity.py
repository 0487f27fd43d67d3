"""Brightness, contrast, gamma and inversion."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform
from osler.transforms import loops, spread, target


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
    key, result = key[rows], target(images, rows)
    loop = loops("grey", images)
    if loop is not None:
        before, after = images.reshape(len(images), -1).numpy(), result.view(len(images), -1).numpy()
        _change(loop, before, after, rows, options, key)
        return result
    chosen = torch.from_numpy(rows).to(images.device)
    drawn = {name: torch.from_numpy(x).to(images).view(-1, 1, 1, 1, 1) for name, x in _draw(options, key).items()}
    changed = images[chosen]
    if options.gamma:
        changed = bend(changed, drawn["gamma"].exp())
    if options.contrast:
        mean = changed.mean((1, 2, 3, 4), keepdim=True)
        changed = (changed - mean) * drawn["contrast"].exp() + mean
    if options.brightness:
        changed = changed + drawn["brightness"]
    if options.invert_probability:
        ends = changed.amin((1, 2, 3, 4), keepdim=True) + changed.amax((1, 2, 3, 4), keepdim=True)
        changed = torch.where(drawn["invert"] > 0, ends - changed, changed)
    result[chosen] = changed
    return result


def _draw(options: Options, key: NDArray[np.uint64]) -> dict[str, NDArray[np.float64]]:
    """What is drawn for each key, ``(b,)``: logarithms of gamma and contrast, brightness, and 1 for inverted."""
    sizes = {"gamma": options.gamma, "contrast": options.contrast, "brightness": options.brightness}
    drawn = {name: uniform(key, f"intensity/{name}", (), -size, size) for name, size in sizes.items()}
    return drawn | {"invert": (uniform(key, "intensity/invert") < options.invert_probability).astype(np.float64)}


def _change(
    loop: ModuleType,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    rows: NDArray[np.intp],
    options: Options,
    key: NDArray[np.uint64],
) -> None:
    """The same with compiled loops: after gamma all is one straight line, whose ends are known beforehand."""
    drawn, pieces = _draw(options, key), loop.count(before.shape[1])
    found = np.empty((len(rows), pieces, 3))
    spread(lambda some: loop.extent(before, rows, found, some), len(rows) * pieces)
    low, high, sums = found[..., 0].min(1), found[..., 1].max(1), found[..., 2]
    if options.gamma:
        change = np.stack([low, np.maximum(high - low, 1e-12), np.exp(drawn["gamma"])], 1).astype(np.float32)
        sums = np.empty((len(rows), pieces))
        spread(lambda some: loop.gamma(before, after, rows, change, sums, some), len(rows) * pieces)
    source = after if options.gamma else before
    factor = np.exp(drawn["contrast"])
    offset = sums.sum(1) / before.shape[1] * (1 - factor) + drawn["brightness"]
    inverted = drawn["invert"] > 0
    offset = np.where(inverted, factor * (low + high) + offset, offset)
    line = np.stack([np.where(inverted, -factor, factor), offset], 1).astype(np.float32)
    if source is before or (line != [1, 0]).any():
        spread(lambda some: loop.scale(source, after, rows, line, some), len(rows) * pieces)


def bend(images: Float32[Tensor, "b c d h w"], gamma: Float32[Tensor, "b 1 1 1 1"]) -> Float32[Tensor, "b c d h w"]:
    """``low + range * ((x - low) / range) ** gamma`` over each image's own range; a constant image stays."""
    low = images.amin((1, 2, 3, 4), keepdim=True)
    reach = images.amax((1, 2, 3, 4), keepdim=True) - low
    return ((images - low) / reach.clamp_min(1e-12)).pow(gamma) * reach + low
