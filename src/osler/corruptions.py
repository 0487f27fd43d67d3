"""What can befall an image and what no augmentation of ``osler.transforms`` makes, at one fixed strength.

A network is looked at through these to see whether it stands what it was not trained for (after Hendrycks and
Dietterich, ICLR 2019). They must differ in kind from the augmentations: a network that was trained with noise does
better with noise, which says nothing about anything else (Mintun, Kirillov and Xie, NeurIPS 2021).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from osler.draws import uniform

Pixels = NDArray[np.float32]
_AXES = (1, 2, 3, 4, 5)


def impulse(x: Pixels, key: NDArray[np.uint64]) -> Pixels:
    """Two of a hundred pixels, of a dead row of the detector or lost in transfer, show the minimum or maximum."""
    struck = uniform(key, "impulse", (1, 1, *x.shape[3:]))
    low, high = _ends(x)
    return np.where(struck < 0.01, low, np.where(struck > 0.99, high, x))


def smeared(x: Pixels, key: NDArray[np.uint64]) -> Pixels:
    """Averaged over a twelfth of the width along x, as by movement during an exposure."""
    return np.asarray(ndimage.uniform_filter1d(x, max(3, x.shape[-1] // 12 | 1), axis=-1, mode="nearest"))


def equalised(x: Pixels, key: NDArray[np.uint64]) -> Pixels:
    """Half of the way to an equalised histogram, as another maker's display does it."""
    flat = x.reshape(len(x), -1)
    rank = np.stack([np.searchsorted(np.sort(row), row, "right") for row in flat]).astype(np.float32) / flat.shape[1]
    low, high = _ends(x)
    return np.asarray((x + low + rank.reshape(x.shape) * (high - low)) / 2)


def posterised(x: Pixels, key: NDArray[np.uint64]) -> Pixels:
    """Six grey levels, as after a poor export."""
    low, high = _ends(x)
    step = np.maximum(high - low, 1e-12) / 5
    return np.asarray(low + np.round((x - low) / step) * step)


def sharpened(x: Pixels, key: NDArray[np.uint64]) -> Pixels:
    """Edges enhanced by an unsharp mask of a fiftieth of the width, as in post-processing."""
    sigma = max(0.7, x.shape[-1] / 50)
    return np.asarray(x + 1.5 * (x - ndimage.gaussian_filter(x, sigma, axes=(-2, -1))))


def marked(x: Pixels, key: NDArray[np.uint64]) -> Pixels:
    """A bright label, an eighth high and a quarter wide, burned into the upper left corner."""
    result = x.copy()
    result[..., : max(1, x.shape[-2] // 8), : max(1, x.shape[-1] // 4)] = _ends(x)[1]
    return result


CORRUPTIONS: dict[str, Callable[[Pixels, NDArray[np.uint64]], Pixels]] = {
    function.__name__: function for function in (impulse, smeared, equalised, posterised, sharpened, marked)
}


def corrupt(name: str, x: Pixels, key: NDArray[np.uint64]) -> Pixels:
    """Images ``(n, time, channel, depth, height, width)`` under one of :data:`CORRUPTIONS`, with a key for each."""
    return np.ascontiguousarray(CORRUPTIONS[name](x, key), np.float32)


def _ends(x: Pixels) -> tuple[Pixels, Pixels]:
    return x.min(_AXES, keepdims=True), x.max(_AXES, keepdims=True)
