"""Another exposure of a radiograph: fewer quanta, and another tone curve over what they show."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import normal, uniform


@dataclass(frozen=True)
class Options:
    """How far dose and display differ.

    Attributes:
        probability: share of the images that are exposed anew.
        fewest, most: quanta a pixel behind the darkest part of the image, drawn log-uniformly between them.
        latitude: natural logarithm of the exposures between the image's darkest and brightest part.
        centre: largest shift of the tone curve's middle to either side, as a fraction of the image's range.
        narrowest, widest: the width of the tone curve is drawn uniformly between them, in the image's range; the
            narrower, the steeper its middle and the flatter its ends.
    """

    probability: float = 0.2
    fewest: float = 300.0
    most: float = 30_000.0
    latitude: float = 2.5
    centre: float = 0.15
    narrowest: float = 0.8
    widest: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("exposure: probability must lie between 0 and 1")
        if not (0 < self.fewest <= self.most and 0 < self.narrowest <= self.widest and self.latitude > 0):
            raise ValueError("exposure: needs 0 < fewest <= most, 0 < narrowest <= widest and latitude > 0")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Exposes each chosen image with fewer quanta and shows it with a tone curve of its own; bright is dense.

    ``intensity`` changes grey values after the fact, by one power law and without noise. Here the image, between its
    minimum and maximum, is the logarithm of the attenuation: where it is brighter, exponentially fewer quanta arrive
    and the logarithm of their number is noisier, by 1 over its root (Bushberg et al., The Essential Physics of
    Medical Imaging, 2011, chapter 7). The tone curve is the sigmoid of DICOM's VOI LUT function (PS3.3
    C.11.2.1.3.1), scaled to keep both ends: dark and bright parts are compressed at once.
    """
    rows = np.flatnonzero(uniform(key, "exposure/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)

    def draw(stream: str, low: float, high: float) -> Tensor:
        return torch.from_numpy(uniform(key, f"exposure/{stream}", (1, 1, 1, 1), low, high)).to(images)

    before = images[chosen]
    low = before.amin((1, 2, 3, 4), keepdim=True)
    reach = before.amax((1, 2, 3, 4), keepdim=True) - low
    unit = (before - low) / reach.clamp_min(1e-12)
    quanta = draw("quanta", float(np.log(options.fewest)), float(np.log(options.most))).exp()
    white = torch.from_numpy(normal(key, "exposure", tuple(images.shape[2:]))).to(images)[:, None]
    noisy = unit + white * deviation(unit, quanta, options.latitude)
    centre = 0.5 + draw("centre", -options.centre, options.centre)
    result = images.clone()
    result[chosen] = tone(noisy, centre, draw("width", options.narrowest, options.widest)) * reach + low
    return result


def deviation(
    unit: Float32[Tensor, "b c d h w"], quanta: Float32[Tensor, "b 1 1 1 1"], latitude: float
) -> Float32[Tensor, "b c d h w"]:
    """Of the noise where an image of the range 0 to 1 is seen with so many quanta behind its zeros."""
    return (0.5 * latitude * unit).exp() / (quanta.sqrt() * latitude)


def tone(
    unit: Float32[Tensor, "b c d h w"], centre: Float32[Tensor, "b 1 1 1 1"], width: Float32[Tensor, "b 1 1 1 1"]
) -> Float32[Tensor, "b c d h w"]:
    """The sigmoid ``1 / (1 + exp(-4 (x - centre) / width))``, scaled so that 0 stays 0 and 1 stays 1."""
    shown, first, last = (torch.sigmoid(4 * (x - centre) / width) for x in (unit, centre * 0, centre * 0 + 1))
    return (shown - first) / (last - first)
