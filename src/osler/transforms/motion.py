"""Movement during an MRI scan: blurred and doubled edges, ripples along the phase axis."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from osler.draws import uniform


@dataclass(frozen=True)
class Options:
    """How far and how often the patient moves.

    Attributes:
        probability: share of the images that are taken from a moving patient.
        moves: sudden movements during the scan.
        rotation: largest angle in the plane to either side, degrees.
        translation: largest shift along x and along y to either side, as a fraction of the image's size.
    """

    probability: float = 0.1
    moves: int = 2
    rotation: float = 4.0
    translation: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("motion: probability must lie between 0 and 1")
        if self.moves < 1 or self.rotation < 0 or self.translation < 0:
            raise ValueError("motion: needs moves >= 1 and no negative amounts")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Takes the lines of k-space from rigidly moved copies, one after the other, as they are acquired.

    Model of Shaw et al. (MIDL 2019). The magnitude of :func:`scanned` is shown, the image's minimum counts as no
    signal. Slices move together, within their plane.
    """
    rows = np.flatnonzero(uniform(key, "motion/apply") < options.probability)
    if not len(rows):
        return images
    result = images.clone()
    across = uniform(key[rows], "motion/axis") < 0.5
    for axis, chosen in ((3, rows[~across]), (4, rows[across])):
        if len(chosen):
            place = torch.from_numpy(chosen).to(images.device)
            low = images[place].amin((1, 2, 3, 4), keepdim=True)
            result[place] = scanned(images[place] - low, options, key[chosen], axis).abs() + low
    return result


def scanned(signal: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64], axis: int) -> Tensor:
    """The complex image, ``(b, c, d, h, w)``, of a scan whose phase axis is 3 (y) or 4 (x).

    Lines are taken from the most negative frequency to the most positive one. The line of frequency 0, and with it
    the mean, is from the unmoved patient: otherwise all of it would only lie elsewhere.
    """
    size, count = signal.shape[axis], options.moves + 1
    line = np.fft.fftfreq(size) + 0.5 + 0.5 / size
    times = uniform(key, "motion/times", (options.moves, 1), 0.1, 0.9)
    pose = (line > times).sum(1)
    angle = np.deg2rad(uniform(key, "motion/rotation", (count,), -options.rotation, options.rotation))
    shift = uniform(key, "motion/translation", (count, 2), -options.translation, options.translation)
    shape = [len(key), 1, 1, 1, 1]
    shape[axis] = size
    lines = torch.zeros_like(signal, dtype=torch.complex64)
    for number in range(count):
        still = pose[:, 0] == number
        moved = _moved(signal, np.where(still, 0, angle[:, number]), np.where(still[:, None], 0, shift[:, number]))
        taken = torch.from_numpy(pose == number).to(signal).view(shape)
        lines += torch.fft.fft(moved, dim=axis) * taken
    image: Tensor = torch.fft.ifft(lines, dim=axis)
    return image


def _moved(
    signal: Float32[Tensor, "b c d h w"], angle: NDArray[np.float64], shift: NDArray[np.float64]
) -> Float32[Tensor, "b c d h w"]:
    """Each image turned about its centre and shifted; nothing beyond the edge."""
    b, c, d, h, w = signal.shape
    cosine, sine = np.cos(angle), np.sin(angle)
    rows = [
        np.stack([cosine, -sine * h / w, 2 * shift[:, 0]], 1),
        np.stack([sine * w / h, cosine, 2 * shift[:, 1]], 1),
    ]
    grid = affine_grid(torch.from_numpy(np.stack(rows, 1)).to(signal), [b, c * d, h, w], align_corners=False)
    return grid_sample(signal.reshape(b, c * d, h, w), grid, align_corners=False).view(b, c, d, h, w)
