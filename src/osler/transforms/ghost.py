"""Ghosts in MRI: faint copies of the image along the phase axis, from what beats or breathes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How strong the ghosts are.

    Attributes:
        probability: share of the images that get ghosts.
        fewest, most: the ghosts lie the image's size divided by a whole number apart, which is drawn between them.
        low, high: the swing of the lines' phase is drawn uniformly between them, radians; the first ghost has
            about half of it as its share of the image's signal.
    """

    probability: float = 0.1
    fewest: int = 2
    most: int = 8
    low: float = 0.1
    high: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("ghost: probability must lie between 0 and 1")
        if not (2 <= self.fewest <= self.most and 0 <= self.low <= self.high):
            raise ValueError("ghost: needs 2 <= fewest <= most and 0 <= low <= high")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Turns the phase of the lines of k-space to and fro with a period of some lines, along y or along x.

    A phase that swings as ``s sin(2 pi n / k)`` with the line n puts copies at multiples of a k-th of the image,
    the j-th with the weight J_j(s) of a Bessel function; no energy is lost (Wood and Henkelman, Medical Physics
    12(2), 1985). The image's minimum counts as no signal, and the magnitude is shown. That the whole image swings
    and not only what moves is a simplification.
    """
    rows = np.flatnonzero(uniform(key, "ghost/apply") < options.probability)
    if not len(rows):
        return images
    result = images.clone()
    across = uniform(key[rows], "ghost/axis") < 0.5
    for axis, chosen in ((3, rows[~across]), (4, rows[across])):
        if len(chosen):
            turned = torch.from_numpy(phases(options, key[chosen], images.shape[axis])).to(images.device)
            shape = [len(chosen), 1, 1, 1, 1]
            shape[axis] = images.shape[axis]
            place = torch.from_numpy(chosen).to(images.device)
            low = images[place].amin((1, 2, 3, 4), keepdim=True)
            lines = torch.fft.fft(images[place] - low, dim=axis) * turned.to(torch.complex64).view(shape)
            result[place] = torch.fft.ifft(lines, dim=axis).abs() + low
    return result


def phases(options: Options, key: NDArray[np.uint64], size: int) -> NDArray[np.complex128]:
    """The factor of each line of k-space, ``(b, size)``, all of modulus 1, in the order of the FFT."""
    line = np.fft.fftfreq(size, 1 / size)
    count = np.floor(uniform(key, "ghost/count", (1,), options.fewest, options.most + 1))
    swing = uniform(key, "ghost/swing", (1,), options.low, options.high)
    start = uniform(key, "ghost/start", (1,), 0.0, 2 * np.pi)
    return np.asarray(np.exp(1j * swing * np.sin(2 * np.pi * line / count + start)))
