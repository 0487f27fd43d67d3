"""MRI: each volume on the scale of what is not air, whose share of the image says nothing of the patient."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from osler.image import Image
from osler.preparations import Prepared, by_volume, otsu

CROPS = False


def apply(image: Image) -> Prepared:
    """Mean 0 and standard deviation 1 of what is brighter than Otsu's threshold; the same is done to what is darker.

    The unit of an MR image is arbitrary and differs from scan to scan. nnU-Net (Isensee 2021) standardises each image
    by its own mean and deviation, of the pixels that are not 0 where images were masked. Air is not 0 in an image as
    the scanner writes it, so that the threshold takes the place of that mask: then a wider field of view around the
    same body gives the same values in it, which the mean of all pixels does not.
    """
    shares: list[float] = []

    def scaled(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        inside = volume[volume > otsu(volume)].astype(np.float64)
        inside = inside if inside.size else volume.ravel().astype(np.float64)
        shares.append(inside.size / volume.size)
        return np.asarray((volume - inside.mean()) / (inside.std() or 1.0), np.float32)

    array = by_volume(image, scaled)
    said = f"intensities were standardised by the foreground, {np.mean(shares):.0%} of the image (Otsu's threshold)"
    return Prepared(replace(image, array=array, unit=""), (said,))
